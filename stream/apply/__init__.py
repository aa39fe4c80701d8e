"""Epochs from Kafka become rows and a checkpoint on the target, in one transaction: README.md follows them through."""
