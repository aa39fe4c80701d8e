"""A few records, found by looking back through a topic: for people who ask where a row came from.

Invariant: read-only, in no group that anybody commits to; only committed records count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, TopicPartition

from connectors.kafka.client import Options, settings, translate, translated
from connectors.kafka.epochs import epoch_in
from connectors.kafka.topics import Topics
from schemas.epoch import Epoch
from schemas.errors import Unavailable

_FIRST = 256  # offsets looked back at first; four times as many at each further step
_MOST = 1 << 16
_EPOCHS = 2000  # records of the epochs topic that are read for one epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record. `at_ms` is when it was produced."""

    topic: str
    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    value: bytes


class Scan:
    """Looks through the topics of one cluster. `timeout_s` is for each question."""

    def __init__(self, bootstrap: str, options: Options, *, timeout_s: float = 60.0) -> None:
        self._bootstrap = bootstrap
        self._options = options
        self._timeout_s = timeout_s
        self._topics = Topics(bootstrap, options)

    def partitions(self, topic: str) -> int:
        """How many there are now. Errors: StreamGap when there is no such topic."""
        found = self._topics.partitions([topic])
        return found[topic]

    def any(self, topic: str) -> Record | None:
        """Some newer record of the topic that has a key; None when it holds none."""
        for partition in range(self.partitions(topic)):
            found = self.newest(topic, partition, lambda record: record.key is not None)
            if found is not None:
                return found
        return None

    def newest(
        self, topic: str, partition: int, wanted: Callable[[Record], bool], *, below: int | None = None
    ) -> Record | None:
        """The newest record that is `wanted`, of those before offset `below`; None when Kafka holds none."""
        first, stable, _ = self._topics.stable_ends([(topic, partition)])[topic, partition]
        until = stable if below is None else min(below, stable)
        step = _FIRST
        with self._consumer(topic) as consumer:
            while until > first:
                start = max(first, until - step)
                newest = None
                for record in self._read(consumer, topic, partition, start, until):
                    if wanted(record):
                        newest = record
                if newest is not None:
                    return newest
                until, step = start, min(step * 4, _MOST)
        return None

    def epoch_of(self, epochs_topic: str, record: Record) -> Epoch | None:
        """The epoch that holds a row's record: published in its Kafka transaction, just after it."""
        with self._consumer(epochs_topic) as consumer:
            with translated(f"reading {epochs_topic}"):
                asked = TopicPartition(epochs_topic, 0, record.at_ms)
                found = consumer.offsets_for_times([asked], timeout=self._timeout_s)
            start = found[0].offset
            _, stable, _ = self._topics.stable_ends([(epochs_topic, 0)])[epochs_topic, 0]
            if start < 0:
                return None
            for one in self._read(consumer, epochs_topic, 0, start, min(stable, start + _EPOCHS)):
                epoch = epoch_in(epochs_topic, one.offset, one.value)
                extent = epoch.extents.get(record.topic, {}).get(record.partition)
                if extent is not None and extent.start_offset <= record.offset < extent.end_offset:
                    return epoch
        return None

    @contextmanager
    def _consumer(self, topic: str) -> Iterator[Consumer]:
        with translated(f"reading {topic}"):
            consumer = Consumer(
                settings(
                    self._bootstrap,
                    self._options,
                    group_id=f"{topic}.trace",
                    isolation_level="read_committed",
                    check_crcs=True,
                    enable_auto_commit=False,
                    enable_partition_eof=True,
                    auto_offset_reset="error",
                    fetch_wait_max_ms=10,  # behind the last record wanted stands a commit marker: its end is waited for
                )
            )
        with closing(consumer):
            yield consumer

    def _read(self, consumer: Consumer, topic: str, partition: int, start: int, until: int) -> Iterator[Record]:
        """The visible records in [start, until), in order."""
        deadline = time.monotonic() + self._timeout_s
        with translated(f"reading {topic}"):
            consumer.assign([TopicPartition(topic, partition, start)])
        while True:
            with translated(f"reading {topic}"):
                message = consumer.poll(0.5)  # one at a time: a batch is waited for until it is full, or the time over
            if message is None:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"Kafka does not hand out the records of {topic}",
                        hint="check that Kafka is up and reachable, then ask again",
                    )
                continue
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    return
                raise translate(error, f"reading {topic}, partition {partition}")
            offset = message.offset()
            if offset is None or offset >= until:
                return
            yield Record(
                topic=topic,
                partition=partition,
                offset=offset,
                at_ms=message.timestamp()[1],
                key=message.key(),
                value=message.value() or b"",
            )
            if offset + 1 >= until:
                return
