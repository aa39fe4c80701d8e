"""Journal, phase, pauses and quarantine in a real database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from connectors.postgres import control
from connectors.postgres.session import Connection, connect
from schemas.direction import Direction, Side
from schemas.errors import Refused
from stream.migration import journal, pauses, phase_store
from stream.migration.journal import Actor
from stream.migration.phases import Phase
from stream.remediation import quarantine
from tests.fixtures.databases import Databases

DBA = Actor(identity="dba", host="anna@a", remark="ticket 7")


@pytest.fixture
def new(databases: Databases) -> Connection:
    conn = connect(databases.new)
    with control.transaction(conn, "preparing"):
        control.install(conn)
        control.put_migration(conn, "shop", phase="prepared", fingerprint="f", prepared="{}")
    return conn


def load(conn: Connection, name: str, how: str) -> None:
    conn.execute(
        "insert into slackwater.load (migration, direction, name, source, fingerprint, state) "
        "values ('shop', 'forward', %s, %s, 'f', %s)",
        (name, name, how),
    )


def test_entries_come_back_as_they_were_sealed(new: Connection) -> None:
    with new:
        detail = {"rows": 3, "big": 10**30, "float": 1.50, "text": 'ä\\"\u2028', "list": [1, None], "tiny": 1e-7}
        written = journal.append(new, "shop", actor=DBA, step="prepare", detail=detail)
        journal.append(new, "shop", actor=DBA, step="pause", outcome="refused")
        journal.append(new, "other", actor=DBA, step="prepare")
        read = journal.entries(new, "shop")
        assert read[0] == written
        assert [(e.seq, e.step, e.outcome) for e in read] == [(1, "prepare", "done"), (2, "pause", "refused")]
        assert read[0].detail["rows"] == 3
        assert journal.first_break(read) is None
        new.execute("update slackwater.journal set actor = 'eve' where seq = 1 and migration = 'shop'")
        assert journal.first_break(journal.entries(new, "shop")) == (
            "entry 1 is not what was written: its hash does not match"
        )


def test_writers_at_the_same_time_make_one_chain(new: Connection, databases: Databases) -> None:
    def write(n: int) -> None:
        with connect(databases.new) as conn:
            for _ in range(10):
                journal.append(conn, "shop", actor=DBA, step=f"writer {n}")

    with new, ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
        entries = journal.entries(new, "shop")
        assert len(entries) == 40
        assert journal.first_break(entries) is None


def test_an_entry_falls_with_what_it_tells_of(new: Connection) -> None:
    with new:
        with new.transaction(force_rollback=True):
            assert phase_store.advance(new, "shop", Phase.BACKFILLING, actor=DBA)
        assert phase_store.phase(new, "shop") is Phase.PREPARED
        assert journal.entries(new, "shop") == []


def test_the_phase_moves_along_the_table_only(new: Connection) -> None:
    with new:
        with pytest.raises(Refused, match="prepared cannot become streaming"):
            phase_store.advance(new, "shop", Phase.STREAMING, actor=DBA)
        assert phase_store.advance(new, "shop", Phase.BACKFILLING, actor=DBA)
        assert not phase_store.advance(new, "shop", Phase.BACKFILLING, actor=DBA)
        (entry,) = journal.entries(new, "shop")
        assert entry.detail == {"from": "prepared", "to": "backfilling"}
        assert (entry.actor, entry.remark) == ("dba", "ticket 7")
        assert phase_store.phase(new, "another") is Phase.PLANNED


def test_one_of_many_racing_movers_wins(new: Connection, databases: Databases) -> None:
    def move(_: int) -> bool:
        with connect(databases.new) as conn:
            return phase_store.advance(conn, "shop", Phase.BACKFILLING, actor=DBA)

    with new, ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(move, range(6))) == 1
        assert len(journal.entries(new, "shop")) == 1


def test_streaming_waits_for_every_load_and_every_reread(new: Connection) -> None:
    with new:
        for name, how in (("customer", "running"), ("address", "done"), ("account", "asleep")):
            load(new, name, how)
        assert phase_store.settle(new, "shop", actor=DBA) is Phase.BACKFILLING
        assert phase_store.settle(new, "shop", actor=DBA) is None
        new.execute("update slackwater.load set state = 'done'")
        new.execute(
            "insert into slackwater.reread (migration, direction, load, source, key, reason) "
            "values ('shop', 'forward', 'customer', 'customers', '{\"id\": \"1\"}', 'toast')"
        )
        assert phase_store.settle(new, "shop", actor=DBA) is None
        new.execute("delete from slackwater.reread")
        assert phase_store.settle(new, "shop", actor=DBA) is Phase.STREAMING
        # A `prepare` after an edit loads a table anew.
        new.execute("update slackwater.load set state = 'pending' where name = 'customer'")
        assert phase_store.settle(new, "shop", actor=DBA) is Phase.BACKFILLING


def test_pause_and_resume(new: Connection) -> None:
    with new:
        assert pauses.paused(new, "shop", "apply") is None
        assert pauses.pause(new, "shop", "apply", reason="the report", by="dba")
        assert not pauses.pause(new, "shop", "apply", reason="the report", by="dba")
        assert pauses.pause(new, "shop", "apply", reason=None, by="dba")
        found = pauses.paused(new, "shop", "apply")
        assert found is not None
        assert found.clause == "paused by dba"
        assert pauses.paused(new, "other", "apply") is None
        assert pauses.resume(new, "shop", "apply")
        assert not pauses.resume(new, "shop", "apply")


def quarantined(conn: Connection, *keys: int) -> None:
    control.put_turn(conn, "shop", Side.NEW, open_turn=0, fence_turn=1)
    for key in keys:
        conn.execute(
            "insert into slackwater.quarantine (migration, direction, load, source, key, error) "
            "values ('shop', 'forward', 'customer', 'customers', jsonb_build_object('id', %s::text), 'no')",
            (key,),
        )


def queue(conn: Connection) -> list[tuple[object, ...]]:
    return conn.execute("select key ->> 'id', reason from slackwater.reread order by 1").fetchall()


def test_retry_puts_rows_into_the_reread_queue(new: Connection) -> None:
    with new:
        quarantined(new, 1, 2, 3)
        assert quarantine.waive(new, "shop", Direction.FORWARD, [2], actor=DBA, reason="a test row") == [2]
        assert quarantine.retry(new, "shop", Direction.FORWARD, [1]) == [1]
        assert queue(new) == [("1", "quarantine retry")]
        assert quarantine.retry(new, "shop", Direction.FORWARD, None) == [1, 3]  # all but the waived one
        assert [q[0] for q in queue(new)] == ["1", "3"]
        assert [r.state for r in quarantine.rows(new, "shop", Direction.FORWARD)] == ["retrying", "waived", "retrying"]
        assert quarantine.retry(new, "shop", Direction.REVERSE, None) == []


def test_retry_is_refused_while_the_application_writes_there(new: Connection) -> None:
    with new:
        quarantined(new, 1, 2)
        new.execute("update slackwater.quarantine set load = 'mirror:customers' where key ->> 'id' = '2'")
        new.execute("update slackwater.turn set open_turn = 1")
        with pytest.raises(Refused, match="new takes the application's writes"):
            quarantine.retry(new, "shop", Direction.FORWARD, None)
        assert queue(new) == []
        assert [r.state for r in quarantine.rows(new, "shop", Direction.FORWARD)] == ["open", "open"]
        assert quarantine.retry(new, "shop", Direction.FORWARD, [2]) == [2]  # mirrors are kept whoever writes


def test_a_waived_row_keeps_the_name_and_the_reason(new: Connection) -> None:
    with new:
        quarantined(new, 1)
        quarantine.retry(new, "shop", Direction.FORWARD, [1])
        assert quarantine.waive(new, "shop", Direction.FORWARD, [1, 99], actor=DBA, reason="a test row") == [1]
        assert quarantine.waive(new, "shop", Direction.FORWARD, [1], actor=DBA, reason="again") == []
        (row,) = quarantine.rows(new, "shop", Direction.FORWARD)
        assert (row.state, row.waived_by, row.waived_reason) == ("waived", "dba", "a test row")
        assert queue(new) == []
        # An explicit retry takes even a waived row back.
        assert quarantine.retry(new, "shop", Direction.FORWARD, [1]) == [1]
