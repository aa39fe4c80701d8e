"""Where data crosses an edge: PostgreSQL, Kafka, and the embedded copies of both."""
