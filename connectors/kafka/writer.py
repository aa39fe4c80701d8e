"""Epochs out: one Kafka transaction per epoch, whose last record says where all the others are.

Invariant 1 rests on this: `publish` returns only once the broker has committed every row and the epoch's record. Any
other way out, the transaction is aborted, nothing of it is ever visible, and this writer is of no more use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from connectors.failpoint import failpoint
from connectors.kafka.client import GIGABYTE, Options, settings, translate, translated, unmasked
from connectors.kafka.topics import DEFAULT_TRANSACTION_MS, Topics
from schemas.epoch import Extent
from schemas.errors import Halt, SlackwaterError, Unavailable

Row = tuple[bytes | None, bytes]
Batches = Mapping[tuple[str, int], Sequence[Row]]
Extents = dict[str, dict[int, Extent]]

IN_FLIGHT_BYTES = 48 << 20
LARGE_BYTES = 900_000  # below every broker's default limit; above it the topic's own is asked for
OVERHEAD_BYTES = 8192  # a record's key and its batch's header, generously
_ABORT_S = 10.0
_START_S = 60.0
_MARKING_S = 0.008
"""The coordinator answers a commit before every partition has its marker. A transaction that is begun meanwhile is
turned away, and librdkafka lets 20 ms pass before it asks again (measured at 500 transactions/s on two cores: commit to
visible p50 51 ms with this pause, 70 ms without). What comes in the meantime goes into the next epoch.
"""


class EpochWriter:
    """The one producer of a direction. `start`, then `publish` per epoch; after any error, `close` and make a new one.

    `problem` says what the last publish waits for, from whatever thread it is read.
    """

    def __init__(
        self,
        bootstrap: str,
        options: Options,
        *,
        transactional_id: str,
        epochs_topic: str,
        message_timeout_s: float = 300.0,
    ) -> None:
        self.problem: str | None = None
        self._bootstrap = bootstrap
        self._options = options
        self._id = transactional_id
        self._epochs_topic = epochs_topic
        self._timeout_s = message_timeout_s
        self._topics = Topics(bootstrap, options)
        self._limits: dict[str, int] = {}
        self._producer: Producer | None = None

    def start(self) -> None:
        """Fence whoever used this transactional id before, and abort what it left open.

        Errors: Unavailable, PrivilegeMissing, Halt.
        """
        longest = self._topics.broker_facts().transaction_max_timeout_ms or DEFAULT_TRANSACTION_MS
        self._timeout_s = min(self._timeout_s, longest / 1000 * 0.8)
        with translated("making a Kafka producer"):
            self._producer = Producer(
                settings(
                    self._bootstrap,
                    # Not compressed, unless the file's options say so: the broker would unpack every batch to check it.
                    {"linger.ms": 5, **self._options},
                    transactional_id=self._id,
                    enable_idempotence=True,
                    acks="all",
                    transaction_timeout_ms=longest,
                    message_timeout_ms=int(self._timeout_s * 1000),
                    message_max_bytes=GIGABYTE,
                    queue_buffering_max_messages=500_000,
                    queue_buffering_max_kbytes=2_097_151,  # IN_FLIGHT_BYTES is the limit; one large row may exceed it
                    error_cb=self._on_error,
                )
            )
        self._again(self._producer.init_transactions, "fencing earlier Kafka producers", _START_S)
        self.problem = None

    def publish(self, batches: Batches, seal: Callable[[Extents], bytes]) -> None:
        """One epoch: the rows of each topic-partition, in order, then the record that `seal` makes of their extents.

        Errors: Unavailable, Halt, PrivilegeMissing. Nothing of the epoch is or becomes visible then, unless the answer
        to the commit itself was lost: the newest record of `epochs` tells (`last_epoch`).
        """
        producer = self._require()
        try:
            with unmasked():
                self._publish(producer, batches, seal)
        except KafkaException as error:
            self._give_up()
            raise translate(error.args[0], f"publishing an epoch to {self._epochs_topic}") from error
        except BaseException:
            self._give_up()
            raise
        self.problem = None

    def _publish(self, producer: Producer, batches: Batches, seal: Callable[[Extents], bytes]) -> None:
        ends: dict[tuple[str, int], list[int]] = {}
        failed: list[KafkaError] = []
        producer.begin_transaction()
        in_flight = 0
        # librdkafka adds the partitions it has rows for to the transaction, all in one request, and those that come
        # later in another. So each partition's first row goes before every other row.
        for part in (slice(0, 1), slice(1, None)):
            for (topic, partition), batch in batches.items():
                rows = batch[part]
                if not rows:
                    continue
                note = _noting(ends.setdefault((topic, partition), []), failed)
                last = len(rows) - 1
                for i, (key, value) in enumerate(rows):
                    size = len(value)
                    if size > LARGE_BYTES:
                        self._check_size(topic, size)
                    in_flight += size
                    if in_flight > IN_FLIGHT_BYTES:
                        self._flush(producer)
                        in_flight = 0
                    try:
                        producer.produce(topic, value, key, partition, note if i == last else None)
                    except BufferError:
                        self._flush(producer)
                        in_flight = 0
                        producer.produce(topic, value, key, partition, note if i == last else None)
                producer.poll(0)
        self._flush(producer)
        if failed:
            raise KafkaException(failed[0])
        record = seal(_extents(batches, ends))
        failpoint("writer.before_commit")
        producer.produce(self._epochs_topic, record, None, 0, _noting([], failed))
        self._again(producer.commit_transaction, "committing an epoch to Kafka", self._timeout_s)
        if failed:
            raise KafkaException(failed[0])
        time.sleep(_MARKING_S)

    def close(self) -> None:
        """Abort what is open, and let go of the producer."""
        self._give_up()

    def _require(self) -> Producer:
        if self._producer is None:
            raise Unavailable(
                "this writer has failed before", hint="it is made anew by itself, through the start order"
            )
        return self._producer

    def _check_size(self, topic: str, size: int) -> None:
        """A row that its topic does not take would never arrive: the broker hangs up, and we would go on trying."""
        size += OVERHEAD_BYTES
        if size > self._limits.get(topic, 0):
            self._limits[topic] = self._topics.max_message_bytes(topic)
        if size > self._limits[topic]:
            raise too_large(topic, size, self._limits[topic], self._topics.broker_facts().socket_request_max_bytes)

    def _flush(self, producer: Producer) -> None:
        """Wait until every row is acknowledged or has failed; librdkafka fails each after `message.timeout.ms`."""
        deadline = time.monotonic() + self._timeout_s + 30.0
        while producer.flush(1.0):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Kafka has not taken an epoch's rows within {self._timeout_s:.0f} s",
                    hint="check that Kafka is up and reachable; it is tried again by itself",
                )

    def _again(self, call: Callable[[float], Any], doing: str, within_s: float) -> None:
        """A transactional call, again as long as librdkafka says it may be repeated."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                with unmasked():
                    call(min(10.0, within_s))
                return
            except KafkaException as error:
                reason = error.args[0]
                if not reason.retriable() or time.monotonic() > deadline:
                    raise translate(reason, doing) from error
                self.problem = f"{doing}: {reason.str()}"

    def _on_error(self, error: KafkaError) -> None:
        self.problem = f"Kafka: {error.str()}"

    def _give_up(self) -> None:
        """Abort, so that our open transaction holds back no reader; what cannot be aborted now, a successor aborts."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            with unmasked():
                producer.purge(in_queue=True, in_flight=True)
                producer.abort_transaction(_ABORT_S)
        except KafkaException as error:
            self.problem = f"aborting a Kafka transaction: {error.args[0].str()}"
        producer.flush(0)


def too_large(topic: str, size: int, limit: int, request_limit: int | None) -> Halt:
    """A row above its topic's limit. `request_limit`: what the brokers take at once, None where they do not say."""
    room = size + size // 8
    hint = (
        f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config max.message.bytes={room},"
        " then restart capture; the slot holds everything meanwhile"
    )
    if request_limit is None or request_limit <= room:
        known = "" if request_limit is None else f", which is {request_limit:,} now"
        hint = f"set socket.request.max.bytes of every broker above {room:,}{known}, and restart them; then {hint}"
    return Halt(f"a row of {size:,} bytes does not fit into topic {topic}, which takes {limit:,}", hint=hint)


def _noting(offsets: list[int], failed: list[KafkaError]) -> Callable[[KafkaError | None, Any], None]:
    def note(error: KafkaError | None, message: Any) -> None:
        if error is not None:
            failed.append(error)
        else:
            offsets.append(message.offset())

    return note


def _extents(batches: Batches, ends: Mapping[tuple[str, int], list[int]]) -> Extents:
    """Where the rows went. Inside one transaction a partition's rows are contiguous: that is asserted, not assumed."""
    extents: Extents = {}
    for (topic, partition), offsets in ends.items():
        count = len(batches[topic, partition])
        if len(offsets) != min(count, 2) or offsets[-1] - offsets[0] + 1 != count:
            raise _not_contiguous(topic, partition, count)
        extents.setdefault(topic, {})[partition] = Extent(
            start_offset=offsets[0], end_offset=offsets[-1] + 1, count=count
        )
    return extents


def _not_contiguous(topic: str, partition: int, count: int) -> SlackwaterError:
    return Halt(
        f"{count:,} rows were sent to {topic}, partition {partition}, and did not arrive as one run",
        hint="something else writes to this topic; find it, stop it, and restart capture",
    )
