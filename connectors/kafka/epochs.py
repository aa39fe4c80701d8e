"""The newest epoch in Kafka: what capture starts from, and what it must never go behind.

Invariant: only a committed record counts, and its absence is told apart from not being able to see it.
"""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from connectors.kafka.client import Options, settings, translate, translated
from connectors.kafka.topics import Topics
from schemas.epoch import Epoch
from schemas.errors import Halt, Unavailable

_FIRST_STEP = 16  # records looked back at first; transaction markers and aborted records take offsets, too


def last_epoch(
    bootstrap: str, options: Options, topic: str, *, complete: bool = False, timeout_s: float = 30.0
) -> Epoch | None:
    """The newest committed record of the epochs topic; None when it holds none.

    `complete`: the newest that ends where a transaction ends; what comes after it is a part of one.
    A transaction of somebody else's that is still open hides what lies after it: it is waited for, within `timeout_s`.
    Errors: Unavailable (it stays open; Kafka does not answer), StreamGap (no such topic), Halt (a record not ours).
    """
    topics = Topics(bootstrap, options)
    deadline = time.monotonic() + timeout_s
    first, stable, end = topics.stable_ends([(topic, 0)])[topic, 0]
    while stable < end:
        if time.monotonic() > deadline:
            raise open_transaction(topic, 0, stable, end)
        time.sleep(0.1)
        first, stable, end = topics.stable_ends([(topic, 0)])[topic, 0]
    with translated(f"reading {topic}"):
        consumer = Consumer(
            settings(
                bootstrap,
                options,
                group_id=f"{topic}.last",
                isolation_level="read_committed",
                check_crcs=True,
                enable_auto_commit=False,
                enable_partition_eof=True,
                auto_offset_reset="error",
            )
        )
        try:
            step = _FIRST_STEP
            start = end
            while start > first:
                start, until = max(first, start - step), start
                found = _newest(consumer, topic, start, until, deadline, complete=complete)
                if found is not None:
                    return found
                step *= 8
            return None
        finally:
            consumer.close()


def _newest(consumer: Consumer, topic: str, start: int, until: int, deadline: float, *, complete: bool) -> Epoch | None:
    """The newest visible record in [start, until), if there is one; `complete`: of those that are."""
    consumer.assign([TopicPartition(topic, 0, start)])
    newest: Message | None = None
    whole: Epoch | None = None

    def found() -> Epoch | None:
        return whole if complete or newest is None else read_epoch(topic, newest)

    while True:
        message = consumer.poll(0.5)
        if message is None:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Kafka does not hand out the records of {topic}",
                    hint="check that Kafka is up and reachable; it is tried again by itself",
                )
            continue
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return found()
            raise translate(error, f"reading {topic}")
        offset = message.offset()
        if offset is None or offset >= until:
            return found()
        newest = message
        if complete and (epoch := read_epoch(topic, message)).complete:
            whole = epoch


def read_epoch(topic: str, message: Message) -> Epoch:
    """The epoch in a record. Halt when it is not one."""
    return epoch_in(topic, message.offset(), message.value() or b"")


def epoch_in(topic: str, offset: int | None, value: bytes) -> Epoch:
    """The epoch in a record's value. Halt when it is not one."""
    try:
        return Epoch.from_json(value)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Halt(
            f"{topic}, offset {offset}: not an epoch record ({type(error).__name__})",
            hint="something other than slackwater writes to this topic, or a newer slackwater did: find out which",
        ) from error


def open_transaction(topic: str, partition: int, stable: int, end: int) -> Unavailable:
    """What an operator reads when somebody's transaction hides records."""
    return Unavailable(
        f"{topic}, partition {partition}: a Kafka transaction is open at offset {stable:,} and hides what follows, up"
        f" to {end:,}",
        hint="if it is not our own capture's: the broker ends it at its transaction timeout;"
        " `kafka-transactions.sh find-hanging` names its producer, and `abort` ends it now",
    )
