"""What was there before the stream began, loaded chunk by chunk beside it: README.md follows a chunk through."""
