"""Which way a stream flows. The data plane never asks: it gets a source and a target."""

from __future__ import annotations

from enum import StrEnum

from schemas.escape import escape, topic


class Side(StrEnum):
    """Identities that never swap: the legacy schema and the one that replaces it."""

    OLD = "old"
    NEW = "new"

    @property
    def other(self) -> Side:
        return Side.NEW if self is Side.OLD else Side.OLD


class Direction(StrEnum):
    """Forward: source old, target new. Reverse: source new, target old."""

    FORWARD = "forward"
    REVERSE = "reverse"

    @property
    def source(self) -> Side:
        return Side.OLD if self is Direction.FORWARD else Side.NEW

    @property
    def target(self) -> Side:
        return self.source.other

    @property
    def opposite(self) -> Direction:
        return Direction.REVERSE if self is Direction.FORWARD else Direction.FORWARD


def slot_name(migration: str, direction: Direction) -> str:
    """The replication slot's and the publication's name: `slackwater_<migration>_<direction>`."""
    return f"slackwater_{migration}_{direction}"


def topic_name(prefix: str, migration: str, direction: Direction, schema: str, table: str) -> str:
    """A table's row topic: legal for Kafka, and never two tables' (`schemas.escape`)."""
    return topic(prefix, migration, direction, escape(schema, also="-"), escape(table, also="-"))


def epochs_topic(prefix: str, migration: str, direction: Direction) -> str:
    return f"{prefix}.{migration}.{direction}.epochs"


def schemas_topic(prefix: str, migration: str) -> str:
    return f"{prefix}.{migration}.schemas"
