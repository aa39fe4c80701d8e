"""Who is ended for holding the applier's lock: a session whose client is not there, and nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from connectors.postgres import control
from connectors.postgres.session import Connection, connect
from connectors.postgres.stalled import StalledHolders
from schemas.direction import Direction

KEY = "slackwater.m.forward"
TAKE = "select pg_advisory_xact_lock(hashtextextended(%s, 0))"


def in_copy(conn: Connection, moving: threading.Event, ended: threading.Event) -> None:
    with conn.cursor() as cursor, cursor.copy("copy pg_temp.t from stdin") as copy:
        copy.write("x\n" * 100_000)
        while not ended.wait(0.1):
            if moving.is_set():
                copy.write("x\n" * 100_000)


def in_pipeline(conn: Connection, moving: threading.Event, ended: threading.Event) -> None:
    with conn.pipeline():
        conn.execute("insert into pg_temp.t values ('x')")
        conn.pgconn.send_flush_request()
        conn.pgconn.flush()
        while not ended.wait(0.1):
            if moving.is_set():
                conn.execute("insert into pg_temp.t values ('x')")
                conn.pgconn.send_flush_request()
                conn.pgconn.flush()


def working(conn: Connection, moving: threading.Event, ended: threading.Event) -> None:
    conn.execute("select pg_sleep(5)")
    ended.wait()


OURS = "slackwater apply m.forward"


@pytest.mark.parametrize(
    ("hold", "application", "moves", "waited_for", "is_ended"),
    [
        (in_copy, OURS, False, True, True),
        (in_pipeline, OURS, False, True, True),
        (in_copy, OURS, True, True, False),
        (in_pipeline, OURS, True, True, False),
        (working, OURS, False, True, False),
        (in_copy, OURS, False, False, False),
        (in_copy, "an application", False, True, False),
    ],
)
def test_who_is_ended(
    make_database: Callable[[str], str],
    hold: Callable[[Connection, threading.Event, threading.Event], None],
    application: str,
    moves: bool,
    waited_for: bool,
    is_ended: bool,
) -> None:
    dsn = make_database("target")
    moving, ended = threading.Event(), threading.Event()
    if moves:
        moving.set()
    errors: list[psycopg.Error] = []
    with connect(dsn) as admin, connect(dsn, application=application) as conn, connect(dsn) as waiter:
        with admin.transaction():
            control.install(admin)
        conn.execute("create temporary table t (x text)")
        conn.execute("begin")
        conn.execute(TAKE, (KEY,))

        def held() -> None:
            try:
                hold(conn, moving, ended)
            except psycopg.Error as error:
                errors.append(error)

        def waits() -> None:
            waiter.execute(TAKE, (KEY,))

        holder = threading.Thread(target=held, daemon=True)
        holder.start()
        waiting = threading.Thread(target=waits, daemon=True)
        if waited_for:
            waiting.start()
        pid = conn.info.backend_pid
        with StalledHolders(dsn, "m", Direction.FORWARD, stalled_s=1.2):
            time.sleep(3)
        found = admin.execute("select state, wait_event, query from pg_stat_activity where pid = %s", (pid,)).fetchall()
        ended.set()
        holder.join(10)
        conn.close()
        assert len(found) == (0 if is_ended else 1), found
        if waited_for:
            waiting.join(10)
        assert not waiting.is_alive()
