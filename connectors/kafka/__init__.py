"""Kafka's edge: epochs in, epochs out, and the topics and schemas they need."""
