"""The backfill is killed and stopped at every step, while the stream goes on; in the end both sides are equal."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from connectors.failpoint import VARIABLE
from connectors.postgres.session import connect
from schemas.spec import Backfill as Options
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling, wait_for

OLD = """
create table t (id integer primary key, v text, n integer);
insert into t select i, 'v' || i || repeat('x', 60), i from generate_series(1, 3000) i;
create table k (v text, n integer);
alter table k replica identity full;
insert into k select 'v' || i % 7, i % 3 from generate_series(1, 200) i;
"""
NEW = """
create table t (id integer primary key, v text, n bigint);
create table k (v text, n integer);
"""
PROGRAM = Path(__file__).with_name("backfill_process.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def filling(databases: Databases) -> Iterator[Filling]:
    made = Filling(databases, OLD, NEW, "copy: [t, k]")
    yield made
    made.close()


@contextmanager
def process(
    filling: Filling, *, failpoints: str = "", idle: str = "15s", workers: int = 2
) -> Iterator[subprocess.Popen[bytes]]:
    """The role in a process of its own; stopped afterwards."""
    options = Options.model_validate({"workers": workers, "chunk_bytes": 8192, "max_rows_per_s": 10_000})
    given = {
        "plan": filling.plan,
        "old": filling.databases.old,
        "new": filling.databases.new,
        "options": options,
        "idle": idle,
    }
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pickle.dumps(given))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop(VARIABLE, None)
        if failpoints:
            environment[VARIABLE] = failpoints
        running = subprocess.Popen([sys.executable, PROGRAM, file.name], env=environment, stderr=subprocess.PIPE)
        try:
            yield running
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGCONT)
                running.terminate()
            try:
                running.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.communicate()
                raise


def done(filling: Filling) -> int:
    with connect(filling.databases.new) as conn:
        row = conn.execute("select count(*) from slackwater.backfill_chunk where state = 'done'").fetchone()
    assert row is not None
    return int(str(row[0]))


def change(filling: Filling, n: int) -> None:
    with connect(filling.databases.old, settings={"search_path": "public"}) as conn:
        conn.execute(f"update t set v = 'changed {n}', n = n + 1 where id % 5 = {n % 5}".encode())
        conn.execute(f"delete from t where id % 97 = {n}".encode())
        conn.execute("insert into t values (%s, 'came', 0)", (10_000 + n,))
        conn.execute("insert into k values ('came', %s)", (n,))
        conn.execute("delete from k where ctid = (select min(ctid) from k)")


PLACES = ("after_snapshot", "mid_chunk", "before_commit", "after_commit")


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_anywhere_resumes_at_the_chunk(filling: Filling, place: str) -> None:
    with filling.streaming():
        for round_ in range(1, 4):
            before = done(filling)
            with process(filling, failpoints=f"backfill.{place}=kill@4") as killed:
                change(filling, round_)
                assert killed.wait(30) == -signal.SIGKILL
            assert done(filling) > before  # what was committed stays done
        with process(filling):
            filling.filled()
    filling.advance()
    filling.agrees()
    sum_ = filling.one("select sum(rows) from slackwater.backfill_chunk where load = 't'", on="new")
    assert sum_ == filling.rows()["t"].rows  # no chunk was counted twice


def test_a_worker_that_was_stopped_and_wakes_late_cannot_commit(filling: Filling) -> None:
    """Its session, and with it the lock that the applier waits for, goes while it is stopped."""
    with process(filling, failpoints="backfill.mid_chunk=stop@3", idle="3s", workers=1) as stopped:
        wait_for(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED)
        loaded = done(filling)
        change(filling, 1)
        filling.advance()  # the applier goes past what the stopped chunk has read
        held = filling.one(
            "select count(*) from pg_stat_activity where application_name = 'slackwater backfill'"
            " and datname = current_database() and state like 'idle in transaction%'",
            on="new",
        )
        assert held == 0
        stopped.send_signal(signal.SIGCONT)
        assert stopped.wait(30) == 1
        assert stopped.stderr is not None
        said = stopped.stderr.read().decode()
        assert "Unavailable backoff" in said, said  # it is built anew and tried again by itself
        assert done(filling) == loaded
    filling.agrees_so_far("t")
    with filling.streaming(), process(filling):
        filling.filled()
    filling.advance()
    filling.agrees()


def test_a_successor_starts_while_the_stopped_one_sleeps(filling: Filling) -> None:
    """The guard's session is not idle in a transaction: the successor waits until the stopped one is gone."""
    with process(filling, failpoints="backfill.mid_chunk=stop@2", idle="3s", workers=1) as stopped:
        wait_for(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED)
        with process(filling) as successor:
            change(filling, 1)
            filling.advance()
            stopped.kill()
            filling.filled()
            assert successor.poll() is None
    filling.advance()
    filling.agrees()
