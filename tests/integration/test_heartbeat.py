"""Heartbeats are judged by the clock of the server that holds them, and a frozen server holds up nobody who watches."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from connectors.postgres import control
from connectors.postgres.session import Connection, connect
from schemas.direction import Side
from schemas.errors import SlackwaterError, Unavailable
from stream.monitoring.heartbeat import DEAD_S, Beat, Heartbeat, beats
from stream.monitoring.sessions import Line, Sides
from tests.fixtures.databases import Databases
from tests.fixtures.servers import private_postgres

KEY = ("forward", "apply")


@pytest.fixture
def new(databases: Databases) -> Connection:
    conn = connect(databases.new)
    with control.transaction(conn, "preparing"):
        control.install(conn)
    return conn


def until(found: Callable[[], Beat | None], what: Callable[[Beat], bool]) -> Beat:
    deadline = time.monotonic() + 10
    while True:
        beat = found()
        if beat is not None and what(beat):
            return beat
        assert time.monotonic() < deadline, beat
        time.sleep(0.05)


def test_a_change_of_state_is_written_at_once_and_figures_soon(new: Connection, databases: Databases) -> None:
    heartbeat = Heartbeat(dsn=databases.new, migration="shop", direction="forward", role="apply")
    with new:

        def read() -> Beat | None:
            return beats(new, "shop").get(KEY)

        heartbeat.start()
        try:
            assert until(read, lambda b: b.state == "starting").alive
            heartbeat.waiting("not prepared yet")
            beat = until(read, lambda b: b.state == "waiting")
            assert beat.reason == "not prepared yet"
            heartbeat.running()
            heartbeat.figures = {"captured_lsn": "0/1", "captured_epoch": 3}
            heartbeat.measured["http"] = "127.0.0.1:1"
            beat = until(read, lambda b: b.figures.get("captured_epoch") == 3)
            assert beat.figures["http"] == "127.0.0.1:1"
            assert (beat.pid, beat.host) == (heartbeat.pid, heartbeat.host)
        finally:
            heartbeat.stop()
        stopped = read()
        assert stopped is not None
        assert (stopped.seen_state, stopped.alive) == ("stopped", False)


def test_a_beat_that_was_not_renewed_is_dead(new: Connection) -> None:
    with new:
        new.execute(
            "insert into slackwater.role (migration, direction, role, pid, host, state, seen_at) "
            "values ('shop', 'forward', 'apply', 1, 'a', 'running', clock_timestamp() - make_interval(secs => %s))",
            (DEAD_S + 1,),
        )
        beat = beats(new, "shop")[KEY]
        assert (beat.alive, beat.seen_state) == (False, "dead")
        assert beats(new, "other") == {}


def test_the_beat_comes_back_with_its_database(databases: Databases, new: Connection) -> None:
    heartbeat = Heartbeat(dsn=databases.new, migration="shop", direction="forward", role="apply")
    with new:
        heartbeat.start()
        try:
            until(lambda: beats(new, "shop").get(KEY), lambda b: b.alive)
            new.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and application_name = 'slackwater heartbeat apply'"
            )
            new.execute("delete from slackwater.role")
            until(lambda: beats(new, "shop").get(KEY), lambda b: b.alive)
        finally:
            heartbeat.stop()


def test_a_frozen_server_does_not_hold_up_the_one_who_asks() -> None:
    with private_postgres() as server:
        line = Line(server.dsn(), "new", "slackwater test")
        assert line.ask(lambda c: c.execute("select 1").fetchone()) == (1,)
        server.freeze()
        try:
            started = time.monotonic()
            for _ in range(3):  # the second and third do not even wait their turn for long
                with pytest.raises(Unavailable, match="new has not answered for"):
                    line.ask(lambda c: c.execute("select 1").fetchone(), patience_s=0.5)
            assert time.monotonic() - started < 3
        finally:
            server.thaw()
        deadline = time.monotonic() + 10
        while True:  # the answer to the first question is nobody's; then it answers again
            try:
                assert line.ask(lambda c: c.execute("select 2").fetchone()) == (2,)
                break
            except Unavailable:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        line.close()


def test_one_side_down_leaves_the_other(databases: Databases) -> None:
    sides = Sides({Side.OLD: "host=127.0.0.1 port=1 connect_timeout=2", Side.NEW: databases.new}, application="test")
    old = sides.attempt(Side.OLD, lambda c: c.execute("select 1").fetchone())
    assert isinstance(old, SlackwaterError)
    assert sides.attempt(Side.NEW, lambda c: c.execute("select 1").fetchone()) == (1,)
    sides.close()
