"""One row's fault sends that row to the quarantine, whatever the SQLSTATE; what is no row's fault halts the role."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from schemas.errors import Halt, RowRejected
from stream.remediation import quarantine
from tests.fixtures.databases import Databases, fresh_database
from tests.fixtures.filling import FORWARD, Filling
from tests.fixtures.tape import MIGRATION

OLD = """
create table long (id integer primary key, v text);
create table raised (id integer primary key, v text);
create table words (id integer primary key, q text, path text);
create table split (id integer, region text, v text, primary key (id, region));
create table a (id integer primary key, v text);
create table b (id integer primary key, w text);
insert into long select i, 'v' from generate_series(1, 5) i;
insert into raised select i, 'v' from generate_series(1, 5) i;
insert into words select i, 'a & b', '$.a' from generate_series(1, 5) i;
insert into split select i, 'a', 'v' from generate_series(1, 5) i;
insert into a select i, 'v' from generate_series(1, 5) i;
insert into b select i, 'w' from generate_series(1, 5) i;
"""
NEW = """
create function sound(v text) returns boolean immutable language plpgsql as $$
begin if v like 'bad%' then raise exception 'refused: %', v; end if; return true; end $$;
create table long (id integer primary key, v text, mine text default 'nobody''s');
create index long_v on long (v);
create table raised (id integer primary key, v text check (app.sound(v)), mine text default 'nobody''s');
create table words (id integer primary key, q tsquery, path jsonpath);
create table split (id integer, region text, v text, primary key (id, region)) partition by list (region);
create table split_a partition of split for values in ('a');
create table joined (id integer primary key, v text check (app.sound(v)), w text);
"""
MAPPING = """
copy: [long, raised, split]
trust: [app.sound]
tables:
  - {to: words, select: "select id, q::tsquery as q, path::jsonpath as path from words"}
  - {to: joined, select: "select a.id, a.v, b.w from a join b on b.id = a.id"}
"""
LONG = "(select string_agg(sha512(i::text::bytea)::text, '') from generate_series(1, 55) i)"


@pytest.fixture(scope="module")
def filling(postgres_dsn: str) -> Iterator[Filling]:
    with contextlib.ExitStack() as stack:
        old, new = (stack.enter_context(fresh_database(postgres_dsn, side)) for side in ("old", "new"))
        made = stack.enter_context(contextlib.closing(Filling(Databases(old=old, new=new), OLD, NEW, MAPPING)))
        made.old.execute(f"insert into long values (100, {LONG})".encode())  # the backfill meets one, too
        made.old.execute("insert into raised values (100, 'bad from the start')")
        with made.backfill(), made.streaming():
            made.filled()
        yield made


def apart(filling: Filling) -> dict[str, set[tuple[str, str]]]:
    """By table, (id, SQLSTATE) of what stands in quarantine."""
    found: dict[str, set[tuple[str, str]]] = {}
    rows: list[Any] = filling.new.execute("select load, key->>'id', sqlstate from slackwater.quarantine").fetchall()
    for load, key, state in rows:
        found.setdefault(load, set()).add((key, state))
    return found


def told(filling: Filling) -> str:
    rows = filling.new.execute("select error from slackwater.quarantine").fetchall()
    return "\n".join(str(row[0]) for row in rows)


def test_rows_of_the_backfill(filling: Filling) -> None:
    assert apart(filling) == {"long": {("100", "54000")}, "raised": {("100", "P0001")}}
    assert "long_v" in told(filling)
    assert "app.sound has raised an error" in told(filling)
    assert "bad from" not in told(filling)
    filling.old.execute("delete from long where id = 100; delete from raised where id = 100")
    retried(filling)


CASES = [
    (
        "long",
        f"update long set v = {LONG} where id in (2, 3)",
        "54000",
        "update long set v = 'short' where id in (2, 3)",
    ),
    ("raised", "update raised set v = 'bad ' || id where id in (2, 3)", "P0001", "update raised set v = 'v'"),
    ("words", "update words set q = 'a & & b' where id in (2, 3)", "42601", "update words set q = 'a'"),
    ("words", "update words set path = '$$.a[' where id in (2, 3)", "42601", "update words set path = '$'"),
    ("joined", "update a set v = 'bad ' || id where id in (2, 3)", "P0001", "update a set v = 'v'"),
]


@pytest.mark.parametrize(("table", "statement", "state", "mended"), CASES)
def test_rows_of_the_stream(filling: Filling, table: str, statement: str, state: str, mended: str) -> None:
    with filling.old.transaction():
        filling.old.execute(statement.encode())
        filling.old.execute(f"insert into {'a' if table == 'joined' else table} (id) values (50)".encode())
    filling.advance()
    assert apart(filling) == {table: {("2", state), ("3", state)}}
    assert "bad" not in told(filling)
    retried(filling)  # as it is, it is refused again
    assert apart(filling) == {table: {("2", state), ("3", state)}}
    filling.old.execute(mended.encode())
    filling.old.execute(f"delete from {'a' if table == 'joined' else table} where id = 50".encode())
    filling.advance()
    retried(filling)
    assert apart(filling) == {}
    filling.agrees()


def test_a_row_that_no_partition_takes_comes_once_there_is_one(filling: Filling) -> None:
    filling.old.execute("insert into split values (6, 'b', 'v'), (7, 'a', 'v'); update split set v = 'w' where id = 1")
    filling.advance()
    assert apart(filling) == {"split": {("6", "23514")}}
    filling.new.execute("create table app.split_b (like app.split including all)")
    filling.new.execute("alter table app.split attach partition app.split_b for values in ('b')")
    with filling.backfill():
        filling.settle()
    assert apart(filling) == {}
    filling.agrees()


def test_what_is_no_rows_fault_halts(filling: Filling) -> None:
    """The same statements fail without any row."""
    filling.new.execute("alter table app.words rename column path to way")
    filling.old.execute("update words set q = 'c' where id = 1")
    changes = filling.read()
    with pytest.raises(Halt, match="path") as caught:
        filling.write(changes)
    assert not isinstance(caught.value, RowRejected)
    assert apart(filling) == {}
    filling.new.execute("alter table app.words rename column way to path")
    filling.write(changes)
    filling.agrees()


def retried(filling: Filling) -> None:
    quarantine.retry(filling.new, MIGRATION, FORWARD, None)
    with filling.backfill():
        filling.settle()
