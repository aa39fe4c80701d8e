"""The engine where equality is not identity, where one table feeds mappings of several kinds, where rows are refused.

Each test is a way in which a row was once lost, doubled or left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from connectors.postgres import catalog
from connectors.postgres.session import connect
from schemas.direction import Direction
from schemas.errors import RowRejected
from stream.remediation import quarantine
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling
from tests.fixtures.tape import MIGRATION, Tape

MakeTape = Callable[[str, str, str], Tape]
MakeFilling = Callable[[str, str, str], Filling]


@pytest.fixture
def make(databases: Databases) -> Iterator[MakeTape]:
    with ExitStack() as stack:

        def tape(old: str, new: str, mapping: str) -> Tape:
            made = Tape(databases, old, new, mapping)
            stack.callback(made.close)
            return made

        yield tape


@pytest.fixture
def fill(databases: Databases) -> Iterator[MakeFilling]:
    with ExitStack() as stack:

        def filling(old: str, new: str, mapping: str) -> Filling:
            made = Filling(databases, old, new, mapping)
            stack.callback(made.close)
            return made

        yield filling


def test_one_table_with_a_key_feeds_tables_with_and_without_one(fill: MakeFilling) -> None:
    filling = fill(
        "create table t (id integer primary key, v text); alter table t replica identity full;"
        "insert into t values (1, 'a')",
        "create table keyed (id integer primary key, v text); create table log (id integer, v text);"
        "create table counted (v text primary key, n bigint)",
        "tables:\n  - {to: keyed, from: t}\n  - {to: log, from: t}\n"
        "  - {to: counted, select: 'select v, count(*) as n from t group by v'}",
    )
    with filling.backfill():
        with filling.streaming():
            filling.filled()
        filling.old.execute("insert into t values (2, 'b'), (3, 'b'); update t set id = 9 where id = 1")
        filling.advance()
        filling.agrees()
        filling.old.execute("truncate t; insert into t values (2, 'c')")
        filling.advance()
    filling.agrees()


def test_a_truncate_makes_rows_that_were_not_there(make: MakeTape) -> None:
    tape = make(
        "create table a (id integer primary key); create table b (a_id integer primary key)",
        "create table lonely (id integer primary key)",
        "tables:\n  - to: lonely\n    select: select a.id from a left join b on b.a_id = a.id where b.a_id is null",
    )
    tape.old.execute("insert into a values (1), (2), (3); insert into b values (1), (2), (3)")
    tape.advance()
    tape.old.execute("truncate b")
    tape.advance()
    tape.agrees()


@pytest.mark.parametrize(
    ("type_", "one", "other"),
    [
        ("numeric", "1.0", "1.00"),
        ("float8", "0", "-0"),
        ("interval", "'1 day'", "'24:00:00'"),
    ],
)
def test_a_key_that_changes_and_stays_equal(make: MakeTape, type_: str, one: str, other: str) -> None:
    tape = make(
        f"create table t (k {type_} primary key, v integer); create table o (k {type_} primary key)",
        f"create table t (k {type_} primary key, v integer); create table o (k {type_} primary key)",
        "copy: [t, o]",
    )
    tape.old.execute(f"insert into t values ({one}, 1); insert into o values ({one})".encode())
    tape.advance()
    tape.old.execute(f"update t set k = {other}; update o set k = {other}".encode())
    tape.advance()
    tape.agrees()
    tape.old.execute(f"delete from t; insert into t values ({one}, 2)".encode())
    tape.advance()
    tape.agrees()


def test_not_a_number_is_a_key_like_any_other(make: MakeTape) -> None:
    ddl = "create table t (k float8 primary key, v integer); create table log (v float4, w integer);"
    tape = make(ddl + "alter table log replica identity full", ddl, "copy: [t, log]")
    tape.old.execute("insert into t values ('nan', 1); update t set v = 2; update t set v = 3")
    tape.old.execute("insert into log values ('nan', 1); update log set w = 2; delete from log where w = 2")
    tape.old.execute(
        "insert into log values ('-0', 1); insert into log values ('0', 1); delete from log where v::text = '0'"
    )
    tape.advance()
    tape.agrees()
    tape.old.execute("update t set v = 4; update t set v = 5")
    tape.advance()
    tape.agrees()


def test_a_unique_value_that_moves_in_a_join_and_under_values_not_sent(fill: MakeFilling) -> None:
    filling = fill(
        "create table t (id integer primary key, u integer unique deferrable initially deferred, doc text);"
        "alter table t alter doc set storage external; create table p (id integer primary key, bio text)",
        "create table j (id integer primary key, u integer unique, bio text);"
        "create table s (id integer primary key, u integer unique, doc text, mine text default 'x')",
        "tables:\n  - {to: s, from: t}\n"
        "  - {to: j, select: 'select t.id, t.u, p.bio from t left join p on p.id = t.id'}\n",
    )
    with filling.backfill(), filling.streaming():
        filling.filled()
    filling.old.execute("insert into t select i, i, repeat(i::text, 9000) from generate_series(1, 3) i")
    filling.advance()
    filling.engine.begin(holder="test", lock="exclusive")
    filling.engine.run("update app.s set mine = id::text")
    filling.engine.commit()
    filling.old.execute("update t set u = u % 3 + 1")
    filling.advance()
    filling.agrees()
    assert filling.new.execute("select mine from app.s order by id").fetchall() == [("1",), ("2",), ("3",)]


def test_a_row_that_came_and_went_within_an_epoch_and_was_refused(fill: MakeFilling) -> None:
    filling = fill(
        "create table t (id bigint primary key, v text)",
        "create table t (id integer primary key, v text)",
        "tables:\n  - {to: t, select: 'select id, v from t where v is not null'}",
    )
    with filling.backfill(), filling.streaming():
        filling.filled()
    filling.old.execute("insert into t values (5000000000, 'too large'), (1, 'good'), (2, 'good')")
    filling.old.execute("delete from t where id > 2")
    filling.advance()
    assert filling.actual("t") == [("1", "good"), ("2", "good")]
    rows = filling.new.execute("select key, sqlstate, changes from slackwater.quarantine").fetchall()
    assert rows == [({"id": "5000000000"}, "22003", 1)]


def test_an_owner_that_the_target_refuses_is_set_aside_alone(fill: MakeFilling) -> None:
    filling = fill(
        "create table o (id integer primary key, c integer, v numeric); alter table o replica identity full;"
        "create table c (id integer primary key, n text);"
        "insert into c values (1, 'one'), (2, 'two'), (3, 'three'); insert into o values (1, 1, 0), (2, 2, 10)",
        "create table s (id integer primary key, n text not null check (n <> 'bad'), share numeric)",
        "drop: [o.id]\ntables:\n  - to: s\n    select: select c.id, c.n, 100 / sum(o.v) as share from c"
        " left join o on o.c = c.id group by c.id, c.n\n    feeds: {c: id, o: c}\n",
    )

    def apart() -> list[tuple[object, ...]]:
        return filling.new.execute(
            "select key, sqlstate, state, changes from slackwater.quarantine where load = 's' and source = ''"
            " order by key->>'id'"
        ).fetchall()

    with filling.backfill(), filling.streaming():
        filling.filled()  # it wakes although one of its owners divides by zero
    assert apart() == [({"id": "1"}, "22012", "open", 1)]
    assert [row[0] for row in filling.actual("s")] == ["2", "3"]
    filling.old.execute("update c set n = 'bad' where id = 2; update c set n = 'better' where id = 3")
    filling.old.execute("update o set v = 5 where id = 1")  # it joins the first
    filling.advance()
    assert apart() == [({"id": "1"}, "22012", "open", 2), ({"id": "2"}, "23514", "open", 1)]
    assert [row[:2] for row in filling.actual("s")] == [("2", "two"), ("3", "better")]
    filling.old.execute("insert into o values (4, 3, 1); truncate o; insert into o values (5, 2, 1)")
    filling.advance()
    assert [k for k, *_ in apart()] == [{"id": "1"}, {"id": "2"}]
    assert filling.actual("s") == [("2", "two", "10.0000000000000000"), ("3", "better", None)]
    quarantine.retry(filling.new, MIGRATION, Direction.FORWARD, None)
    filling.advance()
    assert [k for k, *_ in apart()] == [{"id": "2"}]
    assert apart()[0][2] == "open"
    assert filling.rereads() == []
    filling.old.execute("update c set n = 'good' where id = 2")
    filling.advance()
    quarantine.retry(filling.new, MIGRATION, Direction.FORWARD, None)
    filling.advance()
    assert apart() == []
    filling.agrees()


def test_a_key_that_is_checked_only_at_commit_is_no_key(databases: Databases) -> None:
    """While rows share it, a change does not say which of them it means; and no slot sends it as the old row's name."""
    with connect(databases.old, settings={"search_path": "public"}) as conn:
        conn.execute("create table t (id integer primary key deferrable initially deferred, v text)")
        table = catalog.tables(conn, "public")["t"]
        assert (table.key, table.identity_columns) == ((), ())  # `check` refuses it: its UPDATE would fail
        conn.execute("alter table t replica identity full")
        table = catalog.tables(conn, "public")["t"]
        assert (table.key, table.identity_columns) == ((), ("id", "v"))


def test_a_deferred_constraint_holds_where_the_role_may_not_skip_it(fill: MakeFilling) -> None:
    """What `check` names as a way out: values that move within a transaction pass, one that is there twice stops it."""
    ddl = "create table t (id integer primary key, u integer{})"
    filling = fill(ddl.format(""), ddl.format(" unique deferrable initially deferred"), "copy: [t]")
    filling.engine.replica = False
    filling.engine.run("set session_replication_role = origin")
    with filling.backfill(), filling.streaming():
        filling.filled()
    filling.old.execute("insert into t values (1, 1), (2, 2)")
    filling.advance()
    filling.old.execute("update t set u = 3 - u")
    filling.advance()
    filling.agrees()
    filling.old.execute("insert into t values (3, 1)")
    with pytest.raises(RowRejected, match="t_u_key"):
        filling.advance()
    assert filling.new.execute("select count(*) from app.t").fetchone() == (2,)
    filling.old.execute("delete from t where id = 3")


def test_a_table_that_was_empty_when_it_was_analysed_is_not_read_whole_for_each_row(make: MakeTape) -> None:
    tape = make(
        "create table a (id integer primary key, v text); create table b (a_id integer primary key, v text)",
        "create table a (id integer primary key, v text); create table joined (id integer primary key, v text)",
        "copy: [a]\ntables:\n  - to: joined\n    select: select a.id, b.v from a join b on b.a_id = a.id",
    )
    tape.new.execute("analyze")
    for first in (1, 2, 20_002, 40_002):
        rows = 1 if first == 1 else 20_000
        tape.old.execute(
            "with n as (select n, n::text as v from generate_series(%(first)s::int, %(last)s) n),"
            " b as (insert into b select * from n) insert into a select * from n",
            {"first": first, "last": first + rows - 1},
        )
        started = time.monotonic()
        tape.advance()
        assert time.monotonic() - started < 20  # a second or two; a minute and more where the plan is the old one
    tape.agrees()


def test_parents_that_come_and_go_where_foreign_keys_are_checked(fill: MakeFilling) -> None:
    """For a role that may not skip them: a row leaves a parent that goes, and takes one that comes, in one epoch."""
    ddl = "create table t (id integer primary key, up integer{}, v text{})"
    new = ddl.format(" references t", ", mine text default 'd'")
    new += "; create table c (id integer primary key, t_id integer references t, mine text default 'd')"
    filling = fill(f"{ddl.format('', '')}; create table c (id integer primary key, t_id integer)", new, "copy: [t, c]")
    filling.engine.replica = False
    filling.engine.run("set session_replication_role = origin")
    with filling.backfill(), filling.streaming():
        filling.filled()
    filling.old.execute("insert into t values (1, null, 'a'), (2, 1, 'b'), (3, 2, 'c'); insert into c values (1, 3)")
    filling.advance()
    filling.engine.begin(holder="test", lock="exclusive")
    filling.engine.run("update app.t set mine = 'of ' || id")
    filling.engine.commit()
    with filling.old.transaction():
        filling.old.execute("insert into t values (9, null, 'x'); update t set up = 9 where id = 2")
        filling.old.execute("update c set t_id = 2; delete from t where id = 3; delete from t where id = 1")
        filling.old.execute("update t set id = 8 where id = 9; update t set up = 8 where id = 2")
    filling.advance()
    filling.agrees()
    assert filling.new.execute("select count(*) from slackwater.quarantine").fetchone() == (0,)
    assert filling.new.execute("select id, mine from app.t order by id").fetchall() == [(2, "of 2"), (8, "d")]
    filling.old.execute("insert into c values (2, 99)")  # which new refuses
    filling.advance()
    assert filling.new.execute("select sqlstate from slackwater.quarantine").fetchall() == [("23503",)]
    filling.old.execute("delete from c where id = 2")
    filling.unlike = "a row stands in quarantine"
