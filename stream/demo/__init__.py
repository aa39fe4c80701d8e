"""A small shop moves to a new schema while its customers keep buying: `slackwater demo`.

The story runs slackwater's public commands and plain SQL, and nothing of the engine.
"""
