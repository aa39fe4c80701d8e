"""Capture killed, frozen and starved: every change is in Kafka exactly once all the same, in contiguous epochs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors.failpoint import VARIABLE
from schemas.errors import SlotLost
from schemas.position import parse_lsn
from tests.fixtures.capturing import Rig, until
from tests.fixtures.databases import Databases, fresh_database
from tests.fixtures.servers import private_kafka, private_postgres

ROOT = Path(__file__).parents[2]
DDL = "create table item (id int primary key, v text); create table other (id int primary key, v text)"


def make(dsn: str, bootstrap: str, prefix: str, migration: str) -> Rig:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(DDL)
    return Rig(dsn=dsn, bootstrap=bootstrap, prefix=prefix, migration=migration, tables=("item", "other")).prepare()


@pytest.fixture
def rig(databases: Databases, bootstrap: str, topic_prefix: str, migration_name: str) -> Rig:
    return make(databases.old, bootstrap, topic_prefix, migration_name)


@contextlib.contextmanager
def process(rig: Rig, *, faults: str = "", max_rows: int = 20_000) -> Iterator[subprocess.Popen[str]]:
    """Ended with SIGTERM, or with SIGKILL should that not do."""
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/faults/capture_process.py"), rig.to_json(), str(max_rows)],
        env={**os.environ, VARIABLE: faults, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
        running.send_signal(signal.SIGTERM)
        running.wait(30)
    finally:
        running.kill()
        running.communicate()


def write(rig: Rig, first: int, transactions: int, rows: int) -> int:
    """Inserts, and an update of each transaction's first row; returns the next unused id."""
    with rig.connect() as conn:
        for _ in range(transactions):
            with conn.transaction():
                conn.execute(
                    "insert into item select g, 'x' from generate_series(%s::int, %s) g", (first, first + rows - 1)
                )
                conn.execute("update item set v = 'y' where id = %s", (first,))
                conn.execute("insert into other values (%s, 'o')", (first,))
            first += rows
    return first


def check(rig: Rig, transactions: int, rows: int) -> None:
    found = rig.published()
    items = [c for c in found.changes if c.table == "item" and c.op == "c"]
    assert [(c.after or {})["id"] for c in items] == list(range(transactions * rows))
    per_transaction = [*["c"] * rows, "u", "c"]
    assert [c.op for c in found.changes] == per_transaction * transactions
    assert [c.position.seq for c in found.changes] == list(range(rows + 2)) * transactions


@pytest.mark.parametrize(
    "failpoint",
    ["capture.before_publish", "capture.after_flush", "writer.before_commit", "capture.after_commit"],
)
def test_killed_at_each_point_of_publishing(rig: Rig, failpoint: str) -> None:
    """In the middle of the second epoch, and a successor's successor in the middle of its first."""
    write(rig, 0, 5, 7)
    with process(rig, faults=f"{failpoint}=kill@2") as running:
        until(lambda: rig.epochs() > 1, 20)
        write(rig, 35, 5, 7)
        running.wait(20)
        assert running.returncode == -signal.SIGKILL, "the failpoint was not reached"
    write(rig, 70, 5, 7)
    with process(rig, faults=f"{failpoint}=kill@1") as running:
        running.wait(20)
        assert running.returncode == -signal.SIGKILL, "the failpoint was not reached"
    with rig.running() as task:
        rig.captured(task)
    check(rig, 15, 7)


@pytest.mark.parametrize("failpoint", ["capture.mid_run=kill@3", "capture.after_flush=kill@2"])
def test_killed_inside_a_run_of_parts(rig: Rig, failpoint: str) -> None:
    write(rig, 0, 1, 1000)
    before = rig.confirmed()
    with process(rig, faults=failpoint, max_rows=150) as running:
        running.wait(20)
        assert running.returncode == -signal.SIGKILL
    assert rig.confirmed() == before, "part of a transaction was confirmed"
    write(rig, 1000, 1, 1000)
    with rig.running(max_rows=130) as task:
        rig.captured(task)
    check(rig, 2, 1000)


def test_killed_at_random_under_load(rig: Rig) -> None:
    done = threading.Event()

    def load() -> None:
        write(rig, 0, 300, 11)
        done.set()

    writer = threading.Thread(target=load)
    writer.start()
    rounds = 0
    while not done.is_set() or rounds < 3:
        with contextlib.suppress(AssertionError), process(rig, max_rows=100) as running:
            time.sleep(1.0 + 0.13 * rounds)
            running.kill()
        rounds += 1
    writer.join()
    with rig.running(max_rows=100) as task:
        rig.captured(task)
    check(rig, 300, 11)


def test_a_frozen_predecessor_changes_nothing_when_it_wakes(rig: Rig) -> None:
    """SIGSTOP, its walsender is ended, a successor takes over, SIGCONT: the zombie is fenced."""
    write(rig, 0, 5, 7)
    with process(rig, faults="writer.before_commit=stop@2") as zombie:
        until(lambda: rig.epochs() > 1, 20)
        write(rig, 35, 5, 7)
        until(lambda: Path(f"/proc/{zombie.pid}/stat").read_text().rsplit(")")[-1].split()[0] == "T", 20)
        with rig.connect() as conn:
            conn.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s", (rig.slot,)
            )
            until(lambda: rig.active_pid() is None, 10)
        with rig.running() as task:
            write(rig, 70, 5, 7)
            rig.captured(task)
            zombie.send_signal(signal.SIGCONT)
            time.sleep(1.5)
            write(rig, 105, 5, 7)
            rig.captured(task)
    check(rig, 20, 7)


def test_a_transaction_larger_than_memory(rig: Rig) -> None:
    """200,000 rows of 1 kB: several times what capture may use."""
    with process(rig) as running:
        with rig.connect() as conn:
            conn.execute("insert into item select g, repeat(md5(g::text), 32) from generate_series(1, 200000) g")
            end = rig.lsn()
            until(lambda: rig.confirmed() >= end or running.poll() is not None, 60)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    assert json.loads(out)["peak_kb"] < 400 * 1024
    found = rig.published()
    assert len(found.changes) == 200_000
    parts = [e for e in found.epochs if not e.complete]
    assert len(parts) >= 10
    assert [e.epoch for e in parts] == list(range(parts[0].epoch, parts[-1].epoch + 1))
    assert found.epochs[parts[-1].epoch + 1].complete


def test_a_stalled_broker_neither_loses_the_slot_nor_a_row(rig: Rig, topic_prefix: str, migration_name: str) -> None:
    """Hazard A9: wal_sender_timeout is 2 s, Kafka does not answer for 7, and the session stays the same."""
    with rig.connect() as conn:
        conn.execute(f'alter database "{conn.info.dbname}" set wal_sender_timeout = 2000')
    with private_kafka() as broker:
        with rig.connect() as conn:
            conn.execute(f"drop publication {rig.slot}")
            conn.execute("select pg_drop_replication_slot(%s)", (rig.slot,))
        rig.bootstrap = broker.bootstrap
        rig.prepare()
        with rig.running() as task:
            write(rig, 0, 3, 5)
            rig.captured(task)
            with rig.connect() as conn:
                owner = rig.active_pid()
                broker.freeze()
                try:
                    stalled_at = rig.confirmed()
                    write(rig, 15, 300, 5)
                    until(lambda: task.heartbeat.state == "waiting", 10)
                    time.sleep(6)
                    assert (task.heartbeat.reason or "").startswith("waits for Kafka")
                    assert rig.active_pid() == owner, "the session was lost"
                    assert parse_lsn(task.heartbeat.figures["captured_lsn"]) < rig.lsn()
                    assert rig.confirmed() >= stalled_at
                finally:
                    broker.thaw()
                rig.captured(task, within_s=40)
                assert rig.active_pid() == owner
        check(rig, 303, 5)


def test_a_commit_that_its_standby_has_not_acknowledged_is_not_published(
    bootstrap: str, topic_prefix: str, migration_name: str
) -> None:
    """It is in the WAL, and streamed, before anybody can see it: what Kafka holds, every later snapshot must show."""
    with private_postgres() as server, fresh_database(server.dsn(), "old") as dsn:
        rig = make(dsn, bootstrap, topic_prefix, migration_name)
        with rig.running() as task, rig.connect() as conn:
            conn.execute("insert into item values (1, 'visible')")
            rig.captured(task)
            epochs = rig.epochs()
            conn.execute("alter system set synchronous_standby_names = 'nobody'")
            conn.execute("select pg_reload_conf()")
            until(lambda: _setting(conn, "synchronous_standby_names") == "nobody", 5)
            stalled = threading.Thread(target=_execute, args=(rig, "insert into item values (2, 'hidden')"))
            stalled.start()
            try:
                until(lambda: task.heartbeat.figures.get("waits_for") is not None, 10)
                assert "synchronous standby" in task.heartbeat.figures["waits_for"]
                assert task.heartbeat.state == "waiting"
                assert rig.epochs() == epochs
                assert conn.execute("select count(*) from item").fetchone() == (1,)
                time.sleep(1.5)  # feedback goes on
            finally:
                conn.execute("set synchronous_commit = local")
                conn.execute("alter system reset synchronous_standby_names")
                conn.execute("select pg_reload_conf()")
                stalled.join(20)
            rig.captured(task)
        assert [(c.after or {})["id"] for c in rig.published().changes] == [1, 2]


def _setting(conn: psycopg.Connection[Any], name: str) -> str:
    row = conn.execute("select current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def _execute(rig: Rig, statement: str) -> None:
    with rig.connect() as conn:
        conn.execute(statement)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_the_source_stops_and_starts_again(mode: str, bootstrap: str, topic_prefix: str, migration_name: str) -> None:
    """Hazard A7: after a crash the slot stands further back; a fast shutdown is not held up by capture."""
    with private_postgres() as server, fresh_database(server.dsn(), "old") as dsn:
        rig = make(dsn, bootstrap, topic_prefix, migration_name)
        with process(rig):
            write(rig, 0, 20, 5)
            until(lambda: rig.epochs() > 1, 20)
            begun = time.monotonic()
            server.stop(mode)  # type: ignore[arg-type]
            assert time.monotonic() - begun < 8
            server.start()
            write(rig, 100, 20, 5)
            end = rig.lsn()
            until(lambda: rig.confirmed() >= end, 30)
        check(rig, 40, 5)


@pytest.mark.parametrize("moved_on", [False, True])
def test_a_source_that_was_restored_from_a_copy_of_itself_halts(
    bootstrap: str, topic_prefix: str, migration_name: str, moved_on: bool
) -> None:
    """Hazard A6: the same cluster and timeline, and a slot that says nothing; what it has committed since is another
    history, at positions that Kafka holds already: rows would be taken for ones that were published before.
    """
    with private_postgres() as server, fresh_database(server.dsn(), "old") as dsn:
        rig = make(dsn, bootstrap, topic_prefix, migration_name)

        def life(first: int) -> None:
            with rig.running() as task:
                write(rig, first, 3, 5)
                rig.captured(task)

        life(0)
        server.stop()
        copy = server.data.with_name("copy")
        subprocess.run(["cp", "-a", str(server.data), str(copy)], check=True)
        server.start()
        life(15)
        server.stop()
        subprocess.run(["rm", "-r", str(server.data)], check=True)
        copy.rename(server.data)
        server.start()
        if moved_on:
            newest = rig.published().epochs[-1].end_lsn
            write(rig, 100, 3, 5)
            with rig.connect() as conn:
                conn.execute("create table dull (i int)")
                while rig.lsn() <= newest:
                    conn.execute("insert into dull select i from generate_series(1, 10000) i")
            write(rig, 200, 1, 5)
        error = rig.run_until_it_fails()
        assert isinstance(error, SlotLost)
        assert "restored from a copy of itself" in error.cause
        assert "prepare anew" in error.hint
        check(rig, 6, 5)
