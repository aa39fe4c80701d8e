"""What the source accepted as a transaction the target accepts as an epoch, under whatever constraint of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from stream.remediation import quarantine
from tests.fixtures.databases import Databases, fresh_database
from tests.fixtures.filling import FORWARD, Filling
from tests.fixtures.tape import MIGRATION

OLD = """
create table spans (id integer primary key, during int4range);
create table live (id integer primary key, slot text, on_air boolean);
create table lower_names (id integer primary key, name text);
create table tickets (id integer primary key, ticket bigint, v text, doc text);
alter table tickets alter doc set storage external;
create table split (id integer, region text, slot integer, primary key (id, region));
create table tree (id integer primary key, parent integer, place integer);
insert into spans select i, int4range(i * 10, i * 10 + 10) from generate_series(1, 6) i;
insert into live select i, 's' || i, true from generate_series(1, 6) i;
insert into lower_names select i, 'n' || i from generate_series(1, 6) i;
insert into tickets select i, i * 10, 'v', repeat(i::text, 9000) from generate_series(1, 6) i;
insert into split select i, case when i > 3 then 'b' else 'a' end, i from generate_series(1, 6) i;
insert into tree select i, nullif(i - 1, 0), i from generate_series(1, 6) i;
"""
NEW = """
create table spans (id integer primary key, during int4range, mine text default 'nobody''s',
                    exclude using gist (during with &&));
create table live (id integer primary key, slot text, on_air boolean, mine text default 'nobody''s');
create unique index on live (slot) where on_air;
create table lower_names (id integer primary key, name text, mine text default 'nobody''s');
create unique index on lower_names (lower(name));
create table tickets (id integer primary key, ticket bigint generated always as identity unique, v text, doc text,
                      mine text default 'nobody''s');
create table split (id integer, region text, slot integer, mine text default 'nobody''s', primary key (id, region),
                    unique (region, slot)) partition by list (region);
create table split_a partition of split for values in ('a');
create table split_b partition of split for values in ('b');
create table tree (id integer primary key, parent integer references tree on delete cascade, place integer unique,
                   mine text default 'nobody''s');
"""
TABLES = ("spans", "live", "lower_names", "tickets", "split", "tree")


@pytest.fixture(scope="module")
def filling(postgres_dsn: str) -> Iterator[Filling]:
    with contextlib.ExitStack() as stack:
        old, new = (stack.enter_context(fresh_database(postgres_dsn, side)) for side in ("old", "new"))
        mapping = f"copy: [{', '.join(TABLES)}]\n"
        made = stack.enter_context(contextlib.closing(Filling(Databases(old=old, new=new), OLD, NEW, mapping)))
        with made.backfill(), made.streaming():
            made.filled()
        made.engine.begin(holder="test", lock="exclusive")
        for table in TABLES:
            made.engine.run(f"update app.{table} set mine = 'of ' || id")
        made.engine.commit()
        yield made


def holds(filling: Filling) -> None:
    """Both sides agree, nothing was set aside, and each row of the first ones still has what only new holds."""
    filling.agrees()
    assert apart(filling) == set()
    for table in TABLES:
        rows: list[Any] = filling.new.execute(f"select id, mine from app.{table}".encode()).fetchall()
        first = {row[0]: row[1] for row in rows if row[0] < 7}
        assert first == {number: f"of {number}" for number in first}, table


def apart(filling: Filling) -> set[tuple[str, str]]:
    """(table, SQLSTATE) of what stands in quarantine."""
    rows: list[Any] = filling.new.execute("select load, sqlstate from slackwater.quarantine").fetchall()
    return {(load, state) for load, state in rows}


SWAPS = [
    "update spans set during = int4range((7 - id) * 10, (7 - id) * 10 + 10)",
    "update live set slot = 's' || 7 - id",
    "update live set on_air = id <> 1, slot = case id when 2 then 's6' else slot end where id < 3",
    "update lower_names set name = 'N' || 7 - id",
    "update tickets set ticket = (7 - id) * 10",
    "update split set slot = case id when 1 then 2 when 2 then 3 when 3 then 1 else slot end",
    "update split set region = case region when 'a' then 'b' else 'a' end",
    "update tree set place = 7 - id, parent = case id when 6 then null else id + 1 end",
]


@pytest.mark.parametrize("statement", SWAPS)
def test_values_that_move_between_rows(filling: Filling, statement: str) -> None:
    filling.old.execute(statement.encode())
    filling.advance()
    holds(filling)


def test_an_identity_that_is_mapped_and_generated_always(filling: Filling) -> None:
    """No UPDATE can set it: the row is taken out and put back, also where a value of it was not sent."""
    filling.old.execute("update tickets set ticket = 999 where id = 1; update tickets set v = 'w' where id = 1")
    filling.advance()
    holds(filling)
    filling.old.execute("update tickets set v = 'x', ticket = ticket where id < 4; delete from tickets where id = 6")
    filling.advance()
    holds(filling)
    filling.old.execute("update tickets set id = 7, ticket = 7 where id = 5")
    filling.advance()
    filling.agrees()
    assert filling.one("select mine from app.tickets where id = 7", on="new") == "of 5"
    filling.old.execute("update tickets set id = 5 where id = 7")
    filling.advance()
    holds(filling)


def test_a_parent_and_its_children_change_places(filling: Filling) -> None:
    with filling.old.transaction():
        filling.old.execute("update tree set parent = 5 where id = 4; update tree set parent = null where id = 5")
        filling.old.execute("delete from tree where id = 6; update tree set place = 6 where id = 1")
        filling.old.execute("insert into tree values (9, 10, 9), (10, 9, 10)")
    filling.advance()
    holds(filling)


def test_a_row_that_no_order_helps_is_set_aside_alone(filling: Filling) -> None:
    """New is stricter than old: one row wants what another one keeps, amid a swap that is fine."""
    with filling.old.transaction():
        filling.old.execute("update spans set during = int4range(id * 100, id * 100 + 10)")
        filling.old.execute("insert into spans values (7, int4range(305, 307))")
    filling.advance()
    assert apart(filling) == {("spans", "23P01")}
    assert filling.one("select key->>'id' from slackwater.quarantine", on="new") in ("3", "7")
    filling.old.execute("delete from spans where id = 7")
    filling.advance()
    retried(filling)
    holds(filling)


@pytest.mark.parametrize(
    ("table", "column", "swap"),
    [
        ("spans", "during", "int4range((7 - id) * 1000, (7 - id) * 1000 + 10)"),
        ("lower_names", "name", "'m' || 7 - id"),
    ],
)
def test_rows_in_quarantine_that_swap_values_are_tried_again_together(
    filling: Filling, table: str, column: str, swap: str
) -> None:
    filling.old.execute(f"update {table} set {column} = {swap.replace('7 - id', 'id')}".encode())
    filling.advance()
    filling.new.execute(f"alter table app.{table} add constraint held check (id > 2) not valid".encode())
    filling.old.execute(f"update {table} set {column} = {swap} where id in (1, 6)".encode())
    filling.old.execute(f"update {table} set {column} = {swap} where id in (2, 5)".encode())
    filling.advance()
    assert {load for load, _ in apart(filling)} == {table}
    filling.new.execute(f"alter table app.{table} drop constraint held".encode())
    retried(filling)
    holds(filling)


def retried(filling: Filling) -> None:
    quarantine.retry(filling.new, MIGRATION, FORWARD, None)
    with filling.backfill():
        filling.settle()
