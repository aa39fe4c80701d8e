"""Epochs out: what is committed, what is not, and who is fenced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from connectors.kafka.epochs import last_epoch
from schemas.errors import Halt, StreamGap, Unavailable
from schemas.partition import partition_for
from tests.fixtures.stream import Stream, epoch_record, following

ROOT = Path(__file__).parents[2]


def test_extents_say_where_the_rows_are(stream: Stream) -> None:
    writer = stream.writer()
    first = stream.publish(writer, 1, {(0, 0): [b"a", b"b", b"c"], (1, 2): [b"d"], (1, 1): []})
    assert {(t, p, x.start_offset, x.end_offset, x.count) for t, parts in first.items() for p, x in parts.items()} == {
        (stream.rows[0], 0, 0, 3, 3),
        (stream.rows[1], 2, 0, 1, 1),
    }
    second = stream.publish(writer, 2, {(0, 0): [b"e", b"f"]})
    extent = second[stream.rows[0]][0]
    assert extent.start_offset > 2, "the transaction marker takes an offset of its own"
    assert extent.end_offset - extent.start_offset == extent.count == 2
    assert [b.rows for b in following(stream.reader(), 2)] == [[b"a", b"b", b"c", b"d"], [b"e", b"f"]]


def test_the_last_epoch_is_found_behind_whatever_ends_the_topic(stream: Stream) -> None:
    assert last_epoch(stream.bootstrap, {}, stream.epochs) is None
    writer = stream.writer()
    stream.publish(writer, 1, {})
    for n in range(2, 5):
        stream.publish(writer, n, {(0, 0): [b"x"]})
    aborted = Producer({"bootstrap.servers": stream.bootstrap, "transactional.id": stream.prefix})
    aborted.init_transactions()
    for _ in range(40):  # aborted records and their markers, more than one step back
        aborted.begin_transaction()
        aborted.produce(stream.epochs, epoch_record(99, {}).to_json(), None, 0)
        aborted.flush()
        aborted.abort_transaction()
    found = last_epoch(stream.bootstrap, {}, stream.epochs)
    assert found is not None
    assert found.epoch == 4
    # Of a transaction that Kafka holds in part, the newest whole one comes before.
    again = stream.writer()
    for n in range(5, 25):
        stream.publish(again, n, {(0, 0): [b"x"]}, complete=False)
    newest, whole = (last_epoch(stream.bootstrap, {}, stream.epochs, complete=c) for c in (False, True))
    assert newest is not None
    assert whole is not None
    assert (newest.epoch, whole.epoch) == (24, 4)


def test_a_foreign_open_transaction_is_named_within_a_bound(stream: Stream) -> None:
    stream.publish(stream.writer(), 1, {})
    foreign = Producer({"bootstrap.servers": stream.bootstrap, "transactional.id": f"{stream.prefix}.foreign"})
    foreign.init_transactions()
    foreign.begin_transaction()
    foreign.produce(stream.epochs, b"{}", None, 0)
    foreign.flush()
    with pytest.raises(Unavailable, match="transaction is open at offset 2") as error:
        last_epoch(stream.bootstrap, {}, stream.epochs, timeout_s=1.0)
    assert "find-hanging" in error.value.hint
    foreign.abort_transaction()
    found = last_epoch(stream.bootstrap, {}, stream.epochs)
    assert found is not None
    assert found.epoch == 1


def test_a_missing_epochs_topic_is_a_gap(stream: Stream) -> None:
    with pytest.raises(StreamGap):
        last_epoch(stream.bootstrap, {}, f"{stream.epochs}.not")


def test_a_second_writer_fences_the_first(stream: Stream) -> None:
    first = stream.writer()
    stream.publish(first, 1, {(0, 0): [b"a"]})
    second = stream.writer()
    with pytest.raises(Unavailable, match=r"FENCED|PRODUCER_EPOCH"):
        stream.publish(first, 2, {(0, 0): [b"zombie"]})
    with pytest.raises(Unavailable, match="failed before"):
        stream.publish(first, 2, {(0, 0): [b"zombie"]})
    stream.publish(second, 2, {(0, 0): [b"b"]})
    assert [b.rows for b in following(stream.reader(), 2)] == [[b"a"], [b"b"]]


@pytest.mark.parametrize("size", [1 << 20, 20 << 20])
def test_large_rows_go_through(stream: Stream, size: int) -> None:
    rows = [os.urandom(size), b"small", os.urandom(size)]
    writer = stream.writer()
    stream.publish(writer, 1, {(0, 0): rows, (0, 1): [b"other"]})
    stream.publish(writer, 2, {(0, 0): [b"after"]})
    first, second = following(stream.reader(), 2)
    assert first.rows == [*rows, b"other"]
    assert second.rows == [b"after"]


def test_a_row_that_no_topic_takes_halts_and_names_the_settings(stream: Stream) -> None:
    writer = stream.writer()
    with pytest.raises(Halt, match=r"a row of 120,008,192 bytes does not fit into topic .*\.a,") as halt:
        stream.publish(writer, 1, {(0, 0): [b"x", bytes(120_000_000)]})
    assert "max.message.bytes" in halt.value.hint
    assert "socket.request.max.bytes" in halt.value.hint
    stream.publish(stream.writer(), 1, {(0, 0): [b"y"]})
    assert following(stream.reader(), 1)[0].rows == [b"y"]


def test_a_death_before_the_commit_leaves_nothing_to_see(stream: Stream) -> None:
    program = textwrap.dedent(
        """
        import sys
        from contextlib import ExitStack
        from tests.fixtures.stream import Stream
        stream = Stream(bootstrap=sys.argv[1], prefix=sys.argv[2], opened=ExitStack())
        writer = stream.writer()
        stream.publish(writer, 1, {(0, 0): [b"committed"]})
        stream.publish(writer, 2, {(0, 0): [b"torn"] * 1000, (1, 1): [b"torn"]})
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, stream.bootstrap, stream.prefix],
        cwd=ROOT,
        env={**os.environ, "SLACKWATER_FAILPOINTS": "writer.before_commit=kill@2", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    reader = stream.reader()
    assert following(reader, 1)[0].rows == [b"committed"]
    assert reader.next(1.0) is None, "the torn epoch is open, not committed"
    successor = stream.writer()  # aborts it
    found = last_epoch(stream.bootstrap, {}, stream.epochs)
    assert found is not None
    assert found.epoch == 1
    stream.publish(successor, 2, {(0, 0): [b"again"]})
    assert following(reader, 1)[0].rows == [b"again"]


def test_partitions_are_those_of_librdkafkas_murmur2(stream: Stream) -> None:
    topic = stream.rows[0]
    producer = Producer({"bootstrap.servers": stream.bootstrap, "partitioner": "murmur2_random"})
    keys = [bytes([n % 251]) * (n % 60) + str(n).encode() for n in range(500)]
    for key in keys:
        producer.produce(topic, b"v", key)
    assert producer.flush(20) == 0
    consumer = Consumer({"bootstrap.servers": stream.bootstrap, "group.id": stream.prefix, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, p, 0) for p in range(3)])
    seen: dict[bytes, int] = {}
    while len(seen) < len(keys):
        message = consumer.poll(10)
        assert message is not None
        assert message.error() is None
        seen[message.key() or b""] = message.partition() or 0
    consumer.close()
    assert seen == {key: partition_for(key, 3) for key in keys}
