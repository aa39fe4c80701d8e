"""Epochs in: all of an epoch or an error that says what is missing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from connectors.kafka import reader as reader_module
from connectors.kafka import silence
from connectors.kafka.reader import EpochReader
from schemas.errors import Halt, StreamGap
from tests.fixtures.stream import Stream, epoch_record, following


def until_it_raises(reader: EpochReader, error: type[Exception], match: str, within_s: float = 30.0) -> Exception:
    def read_on() -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            reader.next(0.2)

    with pytest.raises(error, match=match) as raised:
        read_on()
    return raised.value


def delete_records(stream: Stream, topic: str, partition: int, before: int) -> None:
    admin = AdminClient({"bootstrap.servers": stream.bootstrap})
    for future in admin.delete_records([TopicPartition(topic, partition, before)]).values():
        future.result()


def test_epochs_come_whole_in_order_and_resume_anywhere(stream: Stream) -> None:
    writer = stream.writer()
    for n in range(1, 21):
        stream.publish(
            writer, n, {(t, p): [b"%d-%d-%d" % (n, t, p)] * n for t in (0, 1) for p in range(3) if (n + p) % 2}
        )
    batches = following(stream.reader(), 20)
    assert [b.epoch.epoch for b in batches] == list(range(1, 21))
    assert all(sorted(b.rows) == sorted(stream.published[b.epoch.epoch]) for b in batches)
    for at in (0, 7, 18):
        rest = following(stream.reader(batches[at]), 19 - at)
        assert [b.epoch.epoch for b in rest] == list(range(at + 2, 21))
        assert [sorted(b.rows) for b in rest] == [sorted(b.rows) for b in batches[at + 1 :]]


def test_an_empty_epoch_is_an_epoch(stream: Stream) -> None:
    writer = stream.writer()
    stream.publish(writer, 1, {})
    stream.publish(writer, 2, {(0, 0): [b"x"]})
    assert [b.rows for b in following(stream.reader(), 2)] == [[], [b"x"]]


def test_news_arrives_while_the_reader_waits(stream: Stream) -> None:
    writer = stream.writer()
    reader = stream.reader()
    assert reader.next(0.1) is None
    threading.Timer(0.5, lambda: stream.publish(writer, 1, {(0, 0): [b"x"]})).start()
    started = time.monotonic()
    assert following(reader, 1)[0].rows == [b"x"]
    assert time.monotonic() - started < 5


def test_a_long_transaction_is_handed_over_only_when_it_is_whole(stream: Stream) -> None:
    writer = stream.writer()
    reader = stream.reader()
    for n in (1, 2, 3):
        stream.publish(writer, n, {(0, n - 1): [b"%d" % n]}, complete=False)
        assert reader.next(0.5) is None
    stream.publish(writer, 4, {(1, 0): [b"4"]})
    assert [(b.epoch.epoch, b.rows) for b in following(reader, 4)] == [(n, [b"%d" % n]) for n in (1, 2, 3, 4)]


def test_memory_stays_bounded_when_partitions_run_apart(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """One topic's rows are all needed before the other's: the other is paused, and goes on where it was."""
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", 1 << 20)
    writer = stream.writer()
    for n in range(1, 11):
        stream.publish(
            writer,
            n,
            {(0 if n <= 5 else 1, p): [os.urandom(1000) for _ in range(700)] for p in range(3)},
        )
    reader = stream.reader()
    most = 0
    for n in range(1, 11):
        batch = following(reader, 1)[0]
        assert sorted(batch.rows) == sorted(stream.published[n])
        most = max(most, sum(rows.size for rows in reader._rows.values()))
        time.sleep(0.05)
    assert reader.next(0.3) is None
    assert most < 12 << 20


def test_a_run_larger_than_the_memory_for_it_comes_through(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", 1 << 19)
    writer = stream.writer()
    for n in range(1, 9):
        rows = {(0, p): [b"%d-%d-%d" % (n, p, i) + b"v" * 500 for i in range(400)] for p in range(3)}
        stream.publish(writer, n, rows, complete=n == 8)
    assert [sorted(b.rows) for b in following(stream.reader(), 8)] == [sorted(stream.published[n]) for n in range(1, 9)]


def test_partitions_added_live_are_read_from_their_start(stream: Stream) -> None:
    writer = stream.writer()
    stream.publish(writer, 1, {(0, 0): [b"a"]})
    reader = stream.reader()
    first = following(reader, 1)[0]
    admin = AdminClient({"bootstrap.servers": stream.bootstrap})
    admin.create_partitions([NewPartitions(stream.rows[0], 6)])[stream.rows[0]].result()
    time.sleep(0.5)
    successor = stream.writer()
    stream.publish(successor, 2, {(0, 5): [b"b", b"c"], (0, 0): [b"d"]})
    assert sorted(following(reader, 1)[0].rows) == [b"b", b"c", b"d"]
    assert sorted(following(stream.reader(first), 1)[0].rows) == [b"b", b"c", b"d"]


def test_records_of_aborted_transactions_are_never_seen(stream: Stream) -> None:
    def refuse(_: object) -> bytes:
        raise Halt("a test", hint="none")

    for n in (1, 2, 3):
        with pytest.raises(Halt):
            stream.writer().publish({(stream.rows[0], 0): [(None, b"aborted")] * 10}, refuse)
        stream.publish(stream.writer(), n, {(0, 0): [b"%d" % n]})
    assert [b.rows for b in following(stream.reader(), 3)] == [[b"1"], [b"2"], [b"3"]]


def test_deleted_rows_are_a_gap(stream: Stream) -> None:
    writer = stream.writer()
    for n in (1, 2, 3):
        stream.publish(writer, n, {(0, 0): [b"%d" % n] * 10})
    delete_records(stream, stream.rows[0], 0, 15)
    reader = stream.reader()
    until_it_raises(reader, StreamGap, "an epoch has 10 records from offset 0 on, but Kafka holds 0 of them")


def test_rows_deleted_after_they_were_applied_are_no_gap(stream: Stream) -> None:
    """A quiet table's records may all be gone, the transaction marker after them, too."""
    writer = stream.writer()
    stream.publish(writer, 1, {(0, 0): [b"1"] * 10, (1, 0): [b"x"]})
    after = following(stream.reader(), 1)[0]
    delete_records(stream, stream.rows[0], 0, -1)
    reader = stream.reader(after)
    assert reader.next(1.0) is None
    stream.publish(writer, 2, {(0, 0): [b"2"] * 5})
    assert following(reader, 1)[0].rows == [b"2"] * 5


def test_deleted_epochs_are_a_gap(stream: Stream) -> None:
    writer = stream.writer()
    for n in (1, 2, 3):
        stream.publish(writer, n, {(0, 0): [b"%d" % n]})
    delete_records(stream, stream.epochs, 0, 3)
    until_it_raises(stream.reader(), StreamGap, "was deleted before it was applied")


def test_a_recreated_topic_is_a_gap(stream: Stream) -> None:
    writer = stream.writer()
    stream.publish(writer, 1, {(0, 0): [b"1"] * 10})
    ids = stream.topics.topic_ids([*stream.rows, stream.epochs])
    after = following(stream.reader(topic_ids=ids), 1)[0]
    stream.topics.delete([stream.rows[0]])
    stream.topics.ensure(stream.specs)
    with pytest.raises(StreamGap, match="deleted and made anew"):
        stream.reader(after, topic_ids=ids)
    stream.publish(stream.writer(), 2, {(0, 0): [b"2"]})
    until_it_raises(stream.reader(after), StreamGap, "made anew")


@pytest.mark.parametrize("which", ["rows", "epochs"])
def test_a_topic_recreated_under_a_running_reader_is_a_gap(stream: Stream, which: str) -> None:
    writer = stream.writer()
    stream.publish(writer, 1, {(0, 0): [b"1"] * 10})
    reader = stream.reader()
    following(reader, 1)
    stream.topics.delete([stream.rows[0] if which == "rows" else stream.epochs])
    stream.topics.ensure(stream.specs)
    until_it_raises(reader, StreamGap, "made anew|does not exist|missing|does not hold|was deleted")


def test_a_deleted_topic_is_a_gap(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "PATIENCE_S", 1.0)
    stream.publish(stream.writer(), 1, {(0, 0): [b"1"]})
    reader = stream.reader()
    following(reader, 1)
    stream.topics.delete([stream.rows[1]])
    until_it_raises(reader, StreamGap, "does not exist any more", within_s=40)


def test_an_epoch_that_does_not_follow_is_a_gap(stream: Stream) -> None:
    writer = stream.writer()
    stream.publish(writer, 1, {})
    stream.publish(writer, 3, {}, previous=2)
    reader = stream.reader()
    until_it_raises(reader, StreamGap, "epoch 3 follows 2, but the one before it here is 1")


@pytest.mark.parametrize(
    ("record", "error", "match"),
    [
        (b"foreign", Halt, "not an epoch record"),
        (b"{}", Halt, "not an epoch record"),
        (b"[]", Halt, "not an epoch record"),
    ],
)
def test_a_foreign_record_among_the_epochs_halts(
    stream: Stream, record: bytes, error: type[Exception], match: str
) -> None:
    produce(stream, stream.epochs, record)
    until_it_raises(stream.reader(), error, match)


def test_a_foreign_row_is_not_taken_for_one_of_an_epoch(stream: Stream) -> None:
    writer = stream.writer()
    stream.publish(writer, 1, {(0, 0): [b"1"]})
    produce(stream, stream.rows[0], b"foreign")
    stream.publish(writer, 2, {(0, 0): [b"2"]})
    reader = stream.reader()
    assert following(reader, 1)[0].rows == [b"1"]
    until_it_raises(reader, StreamGap, "belongs to no epoch")


def test_an_extent_that_claims_more_than_there_is_is_a_gap(stream: Stream) -> None:
    writer = stream.writer()

    def lie(change: Callable[[int], int]) -> None:
        writer.publish(
            {(stream.rows[0], 0): [(None, b"x")] * 5},
            lambda extents: epoch_record(
                1,
                {
                    t: {
                        p: type(x)(start_offset=x.start_offset, end_offset=x.end_offset, count=change(x.count))
                        for p, x in parts.items()
                    }
                    for t, parts in extents.items()
                },
            ).to_json(),
        )

    lie(lambda count: count - 1)
    until_it_raises(stream.reader(), StreamGap, "an epoch has 4 records")


def test_offsets_are_published_for_lag_tools(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_GROUP_S", 0.0)
    writer = stream.writer()
    for n in (1, 2, 3):
        stream.publish(writer, n, {(0, 0): [b"x"] * 10})
    reader = stream.reader()
    batches = following(reader, 3)
    reader.next(2.0)
    admin = AdminClient({"bootstrap.servers": stream.bootstrap})
    from confluent_kafka import ConsumerGroupTopicPartitions

    group = stream.epochs.removesuffix(".epochs")
    (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    found = {(tp.topic, tp.partition): tp.offset for tp in future.result().topic_partitions}
    assert found[stream.epochs, 0] == batches[1].offsets[stream.epochs][0]
    assert found[stream.rows[0], 0] == batches[1].offsets[stream.rows[0]][0]
    assert reader.commit_failures == 0


def produce(stream: Stream, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": stream.bootstrap})
    producer.produce(topic, value, None, 0)
    assert producer.flush(20) == 0
