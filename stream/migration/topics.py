"""The topics of one flow of a migration: made, pinned by their ids, begun with epoch 0, and taken away.

Invariant: a topic that was made anew under the same name is never mistaken for the one that was prepared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from connectors.kafka import topics as kafka
from connectors.kafka.epochs import last_epoch
from connectors.kafka.writer import EpochWriter
from schemas.direction import Direction
from schemas.epoch import Epoch
from schemas.errors import StreamGap
from schemas.problem import Problem
from schemas.spec import Spec


class FlowTopics:
    """One direction's topics on its cluster. Errors of every method: Unavailable, PrivilegeMissing, Halt."""

    def __init__(self, spec: Spec, direction: Direction = Direction.FORWARD) -> None:
        self._spec = spec
        self._direction = direction
        self._admin = kafka.Topics(spec.kafka.bootstrap, spec.kafka.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        del self._admin  # librdkafka's threads end with it

    def brokers(self) -> kafka.BrokerFacts:
        return self._admin.broker_facts()

    def check(self, rows: Iterable[str], epochs: str, schemas: str | None) -> list[Problem]:
        """What is wrong with those of the topics that are there already."""
        specs = self._specs(rows, epochs, schemas)
        there = self._admin.partitions(s.name for s in specs)
        return self._admin.check([s for s in specs if s.name in there])

    def small(self, rows: Iterable[str], wanted_bytes: int) -> dict[str, int]:
        """Those of the row topics that are there and take less than `wanted_bytes` a record, with what they take."""
        there = self._admin.partitions(rows)
        limits = {name: self._admin.max_message_bytes(name) for name in there}
        return {name: limit for name, limit in limits.items() if limit < wanted_bytes}

    def ensure(
        self, rows: Iterable[str], epochs: str, schemas: str | None, *, known: Mapping[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        """Make what is missing; returns (what was made, every topic's id).

        `known`: ids as prepared. Errors: StreamGap when one of those is gone, or is not the one that was prepared.
        """
        specs = self._specs(rows, epochs, schemas)
        ids = self._admin.topic_ids(known)
        lost = sorted(name for name, id_ in known.items() if ids.get(name) != id_)
        if lost:
            raise StreamGap(
                f"topics were deleted or made anew since they were prepared: {', '.join(lost)}",
                hint="what they held is gone: `slackwater cancel`, then prepare anew",
            )
        made = self._admin.ensure(specs)
        return made, self._admin.topic_ids(s.name for s in specs if s.kind is not kafka.Kind.SCHEMAS)

    def next_offsets(self, names: Sequence[str]) -> dict[str, dict[int, int]]:
        """topic -> partition -> the offset that the next record will have."""
        counts = self._admin.partitions(names)
        ends = self._admin.stable_ends((name, p) for name, count in counts.items() for p in range(count))
        offsets: dict[str, dict[int, int]] = {name: {} for name in names}
        for (name, partition), (_, _, end) in ends.items():
            offsets[name][partition] = end
        return offsets

    def last_epoch(self, epochs: str, *, complete: bool = False) -> Epoch | None:
        """The newest committed epoch record (that is `complete`), or None where there is none, or no such topic."""
        if not self._admin.partitions([epochs]):
            return None
        return last_epoch(self._spec.kafka.bootstrap, self._spec.kafka.options, epochs, complete=complete)

    def settle(self, epochs: str) -> None:
        """Abort what a killed `prepare` left open: only before there is a capture, whose transactional id this is."""
        writer = self._writer(epochs)
        try:
            writer.start()
        finally:
            writer.close()

    def publish_first(self, epochs: str, epoch: Epoch) -> None:
        """Epoch 0, in a Kafka transaction under capture's own transactional id: no zombie can add to it."""
        writer = self._writer(epochs)
        try:
            writer.start()
            writer.publish({}, lambda _: epoch.to_json())
        finally:
            writer.close()

    def _writer(self, epochs: str) -> EpochWriter:
        return EpochWriter(
            self._spec.kafka.bootstrap,
            self._spec.kafka.options,
            transactional_id=f"{self._spec.kafka.topic_prefix}.{self._spec.migration}.{self._direction}",
            epochs_topic=epochs,
        )

    def delete(self, names: Iterable[str]) -> list[str]:
        """Delete those of the topics that are there, and return them."""
        return self._admin.delete(names)

    def _specs(self, rows: Iterable[str], epochs: str, schemas: str | None) -> list[kafka.TopicSpec]:
        part = self._spec.kafka
        specs = [
            kafka.TopicSpec(
                name=name,
                partitions=part.partitions,
                replication_factor=part.replication_factor,
                retention_s=part.retention_s,
            )
            for name in rows
        ]
        specs.append(kafka.TopicSpec(name=epochs, kind=kafka.Kind.EPOCHS, replication_factor=part.replication_factor))
        if schemas is not None:
            specs.append(
                kafka.TopicSpec(name=schemas, kind=kafka.Kind.SCHEMAS, replication_factor=part.replication_factor)
            )
        return specs
