"""Where partitions begin and end, and how far their committed records reach.

Asked through a consumer, which waits for the answer. The admin client's own request runs in two threads at once while a
leader is being looked up, and now and then takes the process down with it (librdkafka 2.16, SIGSEGV in ListOffsets).
"""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from connectors.kafka.client import Options, settings

Part = tuple[str, int]  # topic, partition

# What the protocol takes for a timestamp.
_EARLIEST, _LATEST = -2, -1


class Offsets:
    """One cluster's partitions; `timeout_s` is for each request. Errors: KafkaException, of the request or a partition.

    A consumer for each isolation level, made when it is first needed.
    """

    def __init__(self, bootstrap: str, options: Options, *, timeout_s: float) -> None:
        self._bootstrap = bootstrap
        self._options = options
        self._timeout_s = timeout_s
        self._consumers: dict[str, Consumer] = {}

    def first(self, parts: Sequence[Part]) -> dict[Part, int]:
        """The offset of the oldest record that is kept."""
        return self._ask(parts, _EARLIEST, "read_uncommitted")

    def stable(self, parts: Sequence[Part]) -> dict[Part, int]:
        """The offset below which no transaction is open."""
        return self._ask(parts, _LATEST, "read_committed")

    def end(self, parts: Sequence[Part]) -> dict[Part, int]:
        """The offset that the next record gets."""
        return self._ask(parts, _LATEST, "read_uncommitted")

    def _ask(self, parts: Sequence[Part], timestamp: int, isolation_level: str) -> dict[Part, int]:
        if not parts:
            return {}
        if isolation_level not in self._consumers:
            # Under the topics' own prefix, as every group of ours: its ACLs are documented.
            ours = {"group_id": f"{parts[0][0]}.ends", "isolation_level": isolation_level, "enable_auto_commit": False}
            self._consumers[isolation_level] = Consumer(settings(self._bootstrap, self._options, **ours))
        wanted = [TopicPartition(*part, timestamp) for part in parts]
        answers = self._consumers[isolation_level].offsets_for_times(wanted, self._timeout_s)
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return {(answer.topic, answer.partition): answer.offset for answer in answers}
