"""Epochs in: every row of an epoch, proven to be all of them, or an error that says what is missing.

Invariant: an epoch is handed over only when each partition has given exactly the offsets that its record names, and its
record follows the one before. What Kafka no longer holds, or holds anew under an old name, is a StreamGap (hazards C4,
C5, C7), never something to skip over.

librdkafka fetches ahead in threads of its own, into a queue bounded by `AHEAD_BYTES`; `next` takes from it. A partition
that runs ahead of the others is paused, so that what waits here stays bounded as well.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors.kafka.client import MISSING_TOPIC, OUT_OF_RANGE, Options, log, settings, translate, translated
from connectors.kafka.epochs import read_epoch
from connectors.kafka.rows import REMEDY, ROW_OVERHEAD_BYTES, Part, Rows, hole
from connectors.kafka.silence import STALL_S, Silence
from connectors.kafka.topics import Topics
from schemas.epoch import Epoch, Extent
from schemas.errors import Halt, StreamGap, Unavailable

Offsets = Mapping[str, Mapping[int, int]]

AHEAD_BYTES = 32 << 20  # here, and as much again in librdkafka's queue
FETCH_BYTES = 8 << 20  # one answer of a broker, compressed; a row larger than that comes all the same
_CHUNK = 4096  # messages taken from librdkafka at once
_GROUP_S = 5.0
_ASK_S = 4.0  # `next` looks at the log itself, so that is how long it may overstay


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """An epoch, the values of its rows (in order within a partition only), and the next offsets to read."""

    epoch: Epoch
    rows: list[bytes]
    offsets: dict[str, dict[int, int]]


class EpochReader:
    """Reads one direction's stream from a checkpoint on. For one thread.

    `offsets` are the next offsets to read, per topic and partition, the epochs topic's among them; a partition that is
    not in them starts at 0. `after_epoch` is the checkpoint's epoch. `topic_ids`, where known, are the topics' ids when
    they were prepared. `patience_s` is how long a broker may be gone before `next` raises Unavailable.
    """

    def __init__(
        self,
        bootstrap: str,
        options: Options,
        *,
        epochs_topic: str,
        topics: Sequence[str],
        offsets: Offsets,
        after_epoch: int,
        topic_ids: Mapping[str, str] | None = None,
        patience_s: float = 600.0,
    ) -> None:
        self.commit_failures = 0
        self._epochs_topic = epochs_topic
        self._last = after_epoch
        self._known_start = 0 in offsets.get(epochs_topic, {})
        self._topics = Topics(bootstrap, options, timeout_s=_ASK_S)
        self._rows: dict[Part, Rows] = {}
        self._epochs: deque[tuple[int, Epoch]] = deque()
        self._whole = 0  # complete epochs among them
        self._epoch_next = offsets.get(epochs_topic, {}).get(0, 0)
        self._paused: set[Part] = set()
        self._group_at = time.monotonic()
        self._group_offsets: dict[str, dict[int, int]] = {}
        self._silence = Silence(
            self._topics, bootstrap, [epochs_topic, *topics], topic_ids or {}, patience_s=patience_s
        )
        with translated(f"making a Kafka consumer of {epochs_topic}"):
            self._consumer = Consumer(
                settings(
                    bootstrap,
                    {"fetch.wait.max.ms": 500, "fetch.queue.backoff.ms": 5, "fetch.max.bytes": FETCH_BYTES, **options},
                    group_id=epochs_topic.removesuffix(".epochs"),
                    isolation_level="read_committed",
                    check_crcs=True,
                    enable_auto_commit=False,
                    enable_auto_offset_store=False,
                    enable_partition_eof=True,
                    auto_offset_reset="error",
                    queued_max_messages_kbytes=AHEAD_BYTES >> 10,
                    receive_message_max_bytes=2_147_483_647,
                    topic_metadata_refresh_interval_ms=10_000,
                    on_commit=self._on_commit,
                    error_cb=self._silence.failed,
                )
            )
            partitions = self._topics.partitions(topics)
            known = {(t, p) for t, parts in offsets.items() for p in parts if t != epochs_topic}
            known |= {(t, p) for t, n in partitions.items() for p in range(n)}
            starts = [TopicPartition(epochs_topic, 0, self._epoch_next)]
            for topic, partition in sorted(known):
                start = offsets.get(topic, {}).get(partition, 0)
                self._rows[topic, partition] = Rows(start)
                starts.append(TopicPartition(topic, partition, start))
            self._consumer.assign(starts)

    @property
    def problem(self) -> str | None:
        """Why nothing comes, where that is known."""
        return self._silence.problem

    def next(self, timeout_s: float) -> Batch | None:
        """The next epoch, or None when there is none within `timeout_s` (then `problem` may say why).

        The parts of a transaction that spans several epochs (`complete` False) are handed over one by one, the first of
        them only once the last is in Kafka.
        Errors: StreamGap, Unavailable (a broker gone for longer than `patience_s`), PrivilegeMissing, Halt.
        """
        deadline = time.monotonic() + timeout_s
        last = False
        while True:
            batch = self._take()
            if batch is not None:
                self._report(batch)
                return batch
            if last:
                return None
            left = max(deadline - time.monotonic(), 0.0)
            self._balance()
            if not self._pump(left):
                self._silence.look(self._wanted)
            last = left == 0.0

    def close(self) -> None:
        """Leave Kafka. Positions are the caller's checkpoint, so there is nothing to save."""
        self._consumer.close()

    # Handing over

    def _take(self) -> Batch | None:
        if not self._epochs or not self._whole:
            return None
        offset, epoch = self._epochs[0]
        extents = [((topic, p), x) for topic, parts in epoch.extents.items() for p, x in parts.items()]
        ready = [self._ready(part, extent) for part, extent in extents]  # all of them: it adds what is new
        if not all(ready):
            return None
        rows: list[bytes] = []
        for part, extent in extents:
            rows += self._rows[part].take(part, extent)
        self._epochs.popleft()
        self._whole -= epoch.complete
        self._epoch_next = offset + 1
        self._last = epoch.epoch
        self._silence.whole()
        offsets = {self._epochs_topic: {0: self._epoch_next}}
        for (topic, partition), state in self._rows.items():
            offsets.setdefault(topic, {})[partition] = state.next
        return Batch(epoch=epoch, rows=rows, offsets=offsets)

    def _ready(self, part: Part, extent: Extent) -> bool:
        """Whether an extent's rows are all here; raises when they never will be."""
        state = self._rows.get(part)
        if state is None:
            self._add(part)
            return False
        if extent.start_offset < state.next:
            raise StreamGap(
                f"{part[0]}, partition {part[1]}: an epoch's rows lie at offset {extent.start_offset:,}, but what is"
                f" before {state.next:,} was applied already: the topic was made anew",
                hint=REMEDY,
            )
        if state.seen < extent.end_offset:
            return False
        if len(state.values) - state.head < extent.count:
            raise hole(part, extent, state.offsets[state.head :])
        return True

    def _add(self, part: Part) -> None:
        """A partition that came to a topic since we started: all of it is ours to read."""
        self._rows[part] = Rows(0)
        with translated(f"reading {part[0]}, partition {part[1]}"):
            self._consumer.incremental_assign([TopicPartition(part[0], part[1], 0)])

    # Taking in

    def _pump(self, timeout_s: float) -> bool:
        """Take what librdkafka has; wait for the first of it. False when nothing came."""
        with translated(f"reading {self._epochs_topic}"):
            messages: list[Any] = self._consumer.consume(_CHUNK, 0)
            if not messages and timeout_s > 0:
                first = self._consumer.poll(min(timeout_s, STALL_S))
                if first is not None:
                    messages = [first, *self._consumer.consume(_CHUNK, 0)]
        if not messages:
            return False
        rows = self._rows
        epochs_topic = self._epochs_topic
        moved = False
        for message in messages:
            if message.error() is not None:
                self._on_event(message)
                continue
            moved = True
            topic = message.topic()
            if topic == epochs_topic:
                self._on_epoch(message)
                continue
            state = rows[topic, message.partition()]
            value = message.value()
            if value is None:
                raise Halt(
                    f"{topic}, partition {message.partition()}, offset {message.offset()}: a record without a value",
                    hint="something other than slackwater writes to this topic: find it and stop it",
                )
            offset = message.offset()
            state.offsets.append(offset)
            state.values.append(value)
            state.seen = offset + 1
            state.size += len(value) + ROW_OVERHEAD_BYTES
        if moved:
            self._silence.broken()
        return True

    def _on_epoch(self, message: Message) -> None:
        epoch = read_epoch(self._epochs_topic, message)
        newest = self._epochs[-1][1].epoch if self._epochs else self._last
        if not self._known_start and epoch.epoch <= self._last and not self._epochs:
            return  # the checkpoint came without this topic's offset, so reading began at its start
        if epoch.previous != newest or epoch.epoch <= newest:
            raise StreamGap(
                f"{self._epochs_topic}, offset {message.offset()}: epoch {epoch.epoch} follows {epoch.previous},"
                f" but the one before it here is {newest}",
                hint=REMEDY,
            )
        self._epochs.append((message.offset() or 0, epoch))
        self._whole += epoch.complete

    def _on_event(self, message: Message) -> None:
        """A fetch that ended in something else than a record."""
        error = message.error()
        part = (message.topic() or "", message.partition() or 0)
        if error is None:
            return
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            state = self._rows.get(part)
            if state is not None:
                state.seen = max(state.seen, message.offset() or 0)
            return
        if code in OUT_OF_RANGE:
            self._on_out_of_range(part)
            return
        if code in MISSING_TOPIC:
            self._silence.suspect()
            return
        translated_error = translate(error, f"reading {part[0]}, partition {part[1]}")
        if isinstance(translated_error, Unavailable):
            self._silence.failed(error)
            return
        raise translated_error

    def _on_out_of_range(self, part: Part) -> None:
        """The log does not reach from our position on.

        Records may have gone that were applied already (retention, while their table was quiet): then the log begins at
        a later offset, and the next epoch that has rows here says whether any of them is missing.
        """
        state = self._rows.get(part)
        position = self._fetched() if state is None else state.seen
        first, _, end = self._topics.stable_ends([part])[part]
        if end < position or state is None:
            raise StreamGap(
                f"{part[0]}, partition {part[1]}: Kafka holds offsets {first:,} to {end:,}, but {position:,} is next:"
                " it was deleted before it was applied, or the topic was made anew",
                hint=f"{REMEDY}. Give the topics retention enough for the longest stop of the applier",
            )
        state.seen = max(position, first)
        with translated(f"reading {part[0]}, partition {part[1]}"):
            # librdkafka has stopped fetching it, and does not let it be sought from there.
            self._consumer.incremental_unassign([TopicPartition(part[0], part[1])])
            self._consumer.incremental_assign([TopicPartition(part[0], part[1], state.seen)])
        self._paused.discard(part)

    def _fetched(self) -> int:
        """The offset after the newest epoch record that came."""
        return self._epochs[-1][0] + 1 if self._epochs else self._epoch_next

    def _balance(self) -> None:
        """Pause what runs ahead of the epoch that is next, and let it go on when there is room."""
        held = sum(state.size for state in self._rows.values())
        needed: set[Part] = set()
        if self._epochs and self._whole:
            extents = self._epochs[0][1].extents
            needed = {(t, p) for t, parts in extents.items() for p, x in parts.items() if self._behind((t, p), x)}
        if held < AHEAD_BYTES // 2:
            resume = self._paused
        else:
            resume = self._paused & needed
        if resume:
            with translated("resuming partitions"):
                self._consumer.resume([TopicPartition(t, p) for t, p in resume])
            self._paused = self._paused - resume
        if held <= AHEAD_BYTES:
            return
        pause = {part for part, state in self._rows.items() if state.size} - needed - self._paused
        if pause:
            with translated("pausing partitions"):
                self._consumer.pause([TopicPartition(t, p) for t, p in pause])
            self._paused |= pause

    def _behind(self, part: Part, extent: Extent) -> bool:
        return part not in self._rows or self._rows[part].seen < extent.end_offset

    def _wanted(self) -> dict[Part, int]:
        """How far the logs must reach for the epochs that are known."""
        wanted: dict[Part, int] = {(self._epochs_topic, 0): self._fetched()}
        if self._epochs:
            for topic, parts in self._epochs[0][1].extents.items():
                wanted.update({(topic, p): x.end_offset for p, x in parts.items() if self._behind((topic, p), x)})
        return wanted

    # For lag tools

    def _report(self, batch: Batch) -> None:
        """Publish the offsets of the epoch before this one as the group's: for lag tools, never read by us."""
        reported, self._group_offsets = self._group_offsets, batch.offsets
        now = time.monotonic()
        if not reported or now - self._group_at < _GROUP_S:
            return
        self._group_at = now
        offsets = [TopicPartition(t, p, o) for t, parts in reported.items() for p, o in parts.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._on_commit(error.args[0], [])

    def _on_commit(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self.commit_failures += 1
            log.debug("offsets for lag tools were not published: %s", error.str())
