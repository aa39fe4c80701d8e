"""Hazard C7: a cluster that loses its leaders under load, one after the other, and then its quorum."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from connectors.kafka.reader import EpochReader
from connectors.kafka.topics import Topics
from schemas.position import Position
from tests.faults.test_capture_kill import DDL, check, process, write
from tests.fixtures.brokers import Brokers, private_brokers
from tests.fixtures.capturing import Rig, until
from tests.fixtures.databases import Databases

pytestmark = pytest.mark.soak

TRANSACTIONS, ROWS = 600, 5


@pytest.fixture(scope="module")
def brokers() -> Iterator[Brokers]:
    with private_brokers() as made:
        yield made


@pytest.fixture
def rig(databases: Databases, brokers: Brokers, topic_prefix: str, migration_name: str) -> Rig:
    with psycopg.connect(databases.old, autocommit=True) as conn:
        conn.execute(DDL)
    return Rig(
        dsn=databases.old,
        bootstrap=brokers.bootstrap,
        prefix=topic_prefix,
        migration=migration_name,
        tables=("item", "other"),
    ).prepare()


class Reading:
    """Every epoch, by the applier's own reader, on a thread: how many rows came, and whether each followed the last."""

    def __init__(self, rig: Rig) -> None:
        self.rows = 0
        self.errors: list[BaseException] = []
        self._rig = rig
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rig = self._rig
        try:
            reader = EpochReader(
                rig.bootstrap,
                {},
                epochs_topic=rig.epochs_topic,
                topics=list(rig.plan.topics.values()),
                offsets={},
                after_epoch=-1,
            )
            last = Position(rig.confirmed(), -1)
            while not self._ended.is_set():
                batch = reader.next(0.5)
                if batch is not None:
                    assert batch.epoch.last >= last
                    last = batch.epoch.last
                    self.rows += len(batch.rows)
            reader.close()
        except BaseException as error:  # noqa: BLE001 - raised by whoever ends it
            self.errors.append(error)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(60)
        if self.errors:
            raise self.errors[0]


def slowly(rig: Rig, first: int) -> None:
    for n in range(first, first + TRANSACTIONS):
        write(rig, n * ROWS, 1, ROWS)
        time.sleep(0.03)


def test_leaders_are_killed_under_load(rig: Rig, brokers: Brokers) -> None:
    topics = [rig.epochs_topic, rig.plan.topics["item"], rig.plan.topics["other"]]
    facts = Topics(rig.bootstrap, {}).broker_facts()
    assert facts is not None
    assert all(brokers.in_sync(topic) == {1, 2, 3} for topic in topics)
    reading = Reading(rig)
    writer = threading.Thread(target=slowly, args=(rig, 0))
    try:
        with process(rig):
            writer.start()
            for topic in [*topics, rig.epochs_topic]:
                until(lambda topic=topic: brokers.in_sync(topic) == {1, 2, 3}, 60)  # type: ignore[misc]
                leader = brokers.leader(topic)
                brokers.kill(leader)
                until(lambda topic=topic, was=leader: brokers.leader(topic) not in (was, -1), 60)  # type: ignore[misc]
                time.sleep(3)
                brokers.start(leader)
            writer.join()
            end = rig.lsn()
            until(lambda: rig.confirmed() >= end, 120)
            until(lambda: reading.rows >= TRANSACTIONS * (ROWS + 2) or bool(reading.errors), 60)
    finally:
        writer.join()
        reading.end()
    check(rig, TRANSACTIONS, ROWS)
    assert reading.rows == TRANSACTIONS * (ROWS + 2)


def test_without_a_quorum_nothing_is_confirmed_and_afterwards_nothing_is_missing(rig: Rig, brokers: Brokers) -> None:
    with process(rig):
        write(rig, 0, 10, ROWS)
        end = rig.lsn()
        until(lambda: rig.confirmed() >= end, 60)
        for number in (2, 3):
            brokers.kill(number)
        write(rig, 50, 10, ROWS)
        before = rig.confirmed()
        time.sleep(12)
        assert rig.confirmed() == before
        for number in (2, 3):
            brokers.start(number)
        end = rig.lsn()
        until(lambda: rig.confirmed() >= end, 120)
    check(rig, 20, ROWS)
