"""A broker that stops, hangs or dies under the writer and the reader: waited out, said, and nothing lost or doubled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from connectors import local
from connectors.kafka.epochs import last_epoch
from connectors.kafka.reader import EpochReader
from connectors.kafka.writer import EpochWriter
from schemas.errors import Unavailable
from tests.fixtures.servers import private_kafka
from tests.fixtures.stream import MakeStream, Stream, following


@pytest.fixture(scope="module")
def broker() -> Iterator[local.Kafka]:
    with private_kafka() as running:
        yield running


@pytest.fixture
def own_stream(make_stream: MakeStream, broker: local.Kafka) -> Stream:
    return make_stream(broker.bootstrap)


def says(party: EpochReader | EpochWriter) -> bool:
    """Whether it names a problem."""
    return party.problem is not None


def test_a_broker_that_hangs_past_the_timeout_acknowledges_nothing(own_stream: Stream, broker: local.Kafka) -> None:
    """Hazard C3: the rows may have arrived or not; the writer says that it does not know, and what is there tells."""
    stream = own_stream
    writer = stream.writer(message_timeout_s=4.0)
    stream.publish(writer, 1, {(0, 0): [b"1"]})
    broker.freeze()
    try:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            stream.publish(writer, 2, {(0, 0): [b"2"] * 100})
        assert 3 < time.monotonic() - started < 60
    finally:
        broker.thaw()
    successor = stream.writer()
    found = last_epoch(stream.bootstrap, {}, stream.epochs)
    assert found is not None
    assert found.epoch == 1
    stream.publish(successor, 2, {(0, 0): [b"again"]})
    assert [b.rows for b in following(stream.reader(), 2, within_s=60)] == [[b"1"], [b"again"]]


def test_a_broker_that_comes_back_is_waited_for(own_stream: Stream, broker: local.Kafka) -> None:
    stream = own_stream
    writer = stream.writer()
    reader = stream.reader()
    stream.publish(writer, 1, {(0, 0): [b"1"]})
    assert following(reader, 1)[0].rows == [b"1"]
    broker.kill()
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            stream.publish(writer, 2, {(0, 0): [b"2"] * 1000, (1, 1): [b"3"]})
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=publish)
    thread.start()
    deadline = time.monotonic() + 20
    while not says(reader) and time.monotonic() < deadline:
        assert reader.next(0.5) is None
    assert says(reader)
    time.sleep(3)
    assert says(writer)
    assert 2 not in stream.published
    broker.start()
    thread.join(60)
    assert not failures
    assert 2 in stream.published
    batch = following(reader, 1, within_s=60)[0]
    assert sorted(batch.rows) == sorted([b"2"] * 1000 + [b"3"])
    assert not says(reader)
    assert not says(writer)


def test_a_broker_that_stays_away_is_an_error_in_the_end(own_stream: Stream, broker: local.Kafka) -> None:
    stream = own_stream
    stream.publish(stream.writer(), 1, {(0, 0): [b"1"]})
    reader = stream.reader(patience_s=3.0)
    following(reader, 1)
    broker.freeze()
    try:

        def read_on() -> None:
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline:
                reader.next(0.5)

        with pytest.raises(Unavailable):
            read_on()
    finally:
        broker.thaw()
