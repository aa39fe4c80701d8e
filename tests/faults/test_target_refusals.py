"""A target that breaks transactions off, has lost rows, or will not take one: nothing is skipped or done twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from connectors.postgres.session import connect, translated
from schemas.errors import Contended, Halt, RowRejected, Unavailable
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling, background, wait_for

OLD = """
create table t (id integer primary key, nm text, doc text);
alter table t alter doc set storage external;
create table p (id integer primary key, bio text);
create table log (kind text, n numeric);
alter table log replica identity full;
insert into t select i, 'n' || i, repeat(i::text, 9000) from generate_series(1, 9) i;
insert into p values (1, 'one'), (2, 'two');
insert into log values ('a', 1), ('a', 1), ('b', 2);
"""
NEW = """
create table t (id integer primary key, nm text, doc text);
create table small (id integer primary key, nm text);
create table joined (id integer primary key, nm text, bio text);
create table log (kind text, n numeric);
"""
MAPPING = """
copy: [t, log]
tables:
  - {to: small, from: t, drop: [doc]}
  - {to: joined, select: "select t.id, t.nm, p.bio from t join p on p.id = t.id"}
"""


@pytest.fixture
def filling(databases: Databases) -> Iterator[Filling]:
    made = Filling(databases, OLD, NEW, MAPPING)
    yield made
    made.close()


@pytest.fixture
def filled(filling: Filling) -> Filling:
    with filling.backfill(), filling.streaming():
        filling.filled()
    return filling


def breaks_off(filling: Filling, table: str, *states: str) -> Callable[[], int]:
    """The first writes to the table fail with these SQLSTATEs, one after the other; returns how many were tried."""
    new = filling.new
    new.execute("create sequence public.tries")  # a sequence is not rolled back
    chosen = " ".join(f"when {n} then '{state}'" for n, state in enumerate(states, 1))
    new.execute(
        "create function public.break_off() returns trigger language plpgsql as $$ declare state text; begin"
        f" state := case nextval('public.tries') {chosen} end;"
        " if state is not null then raise exception 'broken off' using errcode = state; end if; return null; end $$"
    )
    new.execute(
        f"create trigger break_off after insert or update or delete on app.{table}"
        " for each statement execute function public.break_off()"
    )
    new.execute(f"alter table app.{table} enable always trigger break_off")

    def tries() -> int:
        row = new.execute("select case when is_called then last_value else 0 end from public.tries").fetchone()
        assert row is not None
        return int(row[0])

    return tries


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_a_transaction_of_the_stream_that_is_broken_off_is_done_again_whole(filled: Filling, state: str) -> None:
    """Hazard D5: the error says to the role's process that trying again is right, and nothing of it stays."""
    tries = breaks_off(filled, "small", state)
    before = filled.checkpoint()
    filled.old.execute(
        "update t set nm = 'x' where id < 4; insert into log values ('c', 3); delete from p where id = 1"
    )
    changes = filled.read()
    with pytest.raises(Contended, match=state):
        filled.write(changes)
    assert tries() == 1
    assert filled.checkpoint() == before
    assert filled.one("select count(*) from app.t where nm = 'x'", on="new") == 0
    assert filled.one("select count(*) from app.log", on="new") == 3
    filled.write(changes)
    filled.agrees()


def test_a_transaction_of_the_stream_that_is_the_victim_of_a_deadlock_is_done_again(filled: Filling) -> None:
    filled.old.execute("update t set nm = 'x' where id = 1; update t set nm = 'y' where id = 2")
    changes = filled.read()
    with connect(filled.databases.new, settings={"deadlock_timeout": "1h"}) as other:
        other.execute("begin; select from app.t where id = 2 for update")

        def take_the_first() -> None:
            wait_for(lambda: filled.new.execute("select from pg_locks where not granted").fetchone() is not None)
            other.execute("select from app.t where id = 1 for update")

        thread = threading.Thread(target=take_the_first)
        thread.start()
        with pytest.raises(Contended, match="40P01"):
            filled.write(changes)
        thread.join()
        other.execute("commit")
    filled.write(changes)
    filled.agrees()


def test_a_chunk_that_is_broken_off_is_done_again_whole(filling: Filling) -> None:
    tries = breaks_off(filling, "small", "40001", "40P01", "40001", "40P01")
    with filling.backfill(workers=1), filling.streaming():
        filling.filled()
    assert tries() > 4
    filling.agrees()


@pytest.mark.soak
def test_chunks_that_are_broken_off_for_ever_end_the_role_with_the_cause(filling: Filling) -> None:
    """Bounded: its process backs off, counts the error and says it, and tries anew."""
    tries = breaks_off(filling, "small", *["40001"] * 1000)
    role = filling.role(workers=1)
    with pytest.raises(Contended, match="broken off"), background(role.run) as errors:
        wait_for(lambda: bool(errors), timeout_s=120)
    assert 20 <= tries() <= 45
    filling.new.execute("drop trigger break_off on app.small")
    with filling.backfill(workers=1), filling.streaming():
        filling.filled()
    filling.agrees()


def lose(filling: Filling, statement: str) -> None:
    """What somebody did to new's rows behind our back (the fence keeps applications from it)."""
    filling.engine.begin(holder="test", lock="exclusive")
    filling.engine.run(statement)
    filling.engine.commit()


def test_changes_of_rows_that_the_target_has_lost(filled: Filling) -> None:
    """Hazard D6: no UPDATE or DELETE of no row passes in silence as one that was made: what the change brings whole is
    put back, what it does not is read again from the source, and what is to be gone is gone.
    """
    lose(filled, "delete from app.t; delete from app.small; delete from app.joined where id = 2")
    filled.old.execute("update t set nm = 'whole', doc = 'd' where id = 1")  # with all of its values
    filled.old.execute("update t set nm = 'in part' where id = 2")  # doc is not sent
    filled.old.execute("update t set id = 30 where id = 3; update t set id = 40, doc = 'e' where id = 4")
    filled.old.execute("delete from t where id > 4 and id < 10")
    filled.advance()
    assert {row[0] for row in filled.actual("t")} == {"1", "40"}
    assert sorted((load, key["id"]) for load, key in filled.rereads()) == [("t", "2"), ("t", "30")]
    assert {row[0] for row in filled.actual("small")} == {"1", "2", "30", "40"}
    with filled.backfill():
        filled.settle()
    filled.agrees()


def test_a_small_epoch_puts_back_rows_that_the_target_has_lost(filled: Filling) -> None:
    """The way of few rows without temporary tables."""
    lose(filled, "delete from app.t where id < 3; delete from app.small where id < 3")
    filled.old.execute("update t set nm = 'whole', doc = 'd' where id = 1; delete from t where id = 2")
    filled.advance()
    filled.agrees()
    assert filled.rereads() == []


def test_a_lost_row_of_a_table_without_a_key_halts(filled: Filling) -> None:
    lose(filled, "delete from app.log where ctid = (select min(ctid) from app.log where kind = 'a')")
    before = filled.checkpoint()
    filled.old.execute("delete from log where kind = 'a'")
    changes = filled.read()
    with pytest.raises(Halt, match="2 rows went away at the source, 1 of them are here") as caught:
        filled.write(changes)
    assert "something else wrote to log" in caught.value.hint
    assert filled.checkpoint() == before
    lose(filled, "insert into app.log values ('a', 1)")
    filled.write(changes)
    filled.agrees()


def test_a_row_that_a_table_without_a_key_refuses_halts(filled: Filling) -> None:
    """It has no key to be set aside by; what was committed with it waits as well, and nothing is lost."""
    filled.new.execute("alter table app.log add constraint small_only check (n < 100)")
    before = filled.checkpoint()
    filled.old.execute("insert into log values ('c', 1000); update t set nm = 'waits' where id = 1")
    changes = filled.read()
    with pytest.raises(RowRejected, match="a row of a table without a key, which cannot be set aside") as caught:
        filled.write(changes)
    assert "correct the mapping or the target's column or constraint" in caught.value.hint
    assert "1000" not in str(caught.value)
    assert filled.checkpoint() == before
    assert filled.one("select count(*) from slackwater.quarantine", on="new") == 0
    assert filled.one("select count(*) from app.t where nm = 'waits'", on="new") == 0
    filled.new.execute("alter table app.log drop constraint small_only")
    filled.write(changes)
    filled.agrees()


def test_a_row_that_a_table_without_a_key_refuses_halts_the_backfill(databases: Databases) -> None:
    filling = Filling(
        databases,
        "create table log (kind text, n numeric); alter table log replica identity full;"
        "insert into log values ('a', 1)",
        "create table log (kind text, n numeric check (n > 1))",
        "copy: [log]",
    )
    try:
        role = filling.role()
        with (
            pytest.raises(RowRejected, match="a row of log, which has no key to set it aside by"),
            background(role.run) as errors,
        ):
            wait_for(lambda: bool(errors))
        filling.old.execute("update log set n = 2")
        with filling.backfill(), filling.streaming():
            filling.filled()
        filling.agrees()
    finally:
        filling.close()


def test_a_quota_is_a_full_disk_in_other_words(databases: Databases) -> None:
    """PostgreSQL has no SQLSTATE for it, only the hint that it gives in both cases."""
    with connect(databases.new) as conn, pytest.raises(Unavailable) as caught, translated("writing rows"):
        conn.execute(
            "do $$ begin raise exception using errcode = 'XX000', hint = 'Check free disk space.',"
            " message = 'could not extend file \"base/1/2\": Disk quota exceeded'; end $$"
        )
    assert "free space on that server" in caught.value.hint
