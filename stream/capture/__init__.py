"""The source's WAL becomes epochs in Kafka, each change exactly once: README.md follows a change through."""
