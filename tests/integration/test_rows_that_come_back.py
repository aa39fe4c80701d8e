"""What only the target holds stays with a row that leaves and comes back, however many changes one epoch folds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.databases import Databases, fresh_database
from tests.fixtures.filling import Filling

OLD = """
create table t (id bigint primary key, nm text, doc text);
create table part (id integer, region text, nm text, primary key (id, region)) partition by list (region);
create table part_a partition of part for values in ('a');
create table part_b partition of part for values in ('b');
create table moved (id integer, region text, nm text, primary key (region, id)) partition by list (region);
create table moved_a partition of moved for values in ('a');
create table moved_b partition of moved for values in ('b', 'c') partition by list (region);
create table moved_b_b partition of moved_b for values in ('b');
create table moved_b_c partition of moved_b for values in ('c');
create table pair (id integer unique, region text, nm text, primary key (id, region));
create table g (id integer primary key, grp integer, doc text);
alter table g alter doc set storage external;
create table bio (id integer primary key, bio text);
create table f (id integer primary key, grp integer, doc text);
alter table f alter doc set storage external;
"""
NEW = """
create table t (id integer primary key, nm text, doc text, mine text default 'nobody''s',
                no bigint generated always as identity);
create table part (id integer, region text, nm text, primary key (id, region), mine text default 'nobody''s',
                   no bigint generated always as identity);
create table moved (id integer, region text, nm text, mine text default 'nobody''s',
                    no bigint generated always as identity, primary key (region, id));
create table g (id integer primary key, grp integer, doc text, mine text default 'nobody''s',
                no bigint generated always as identity);
create table pair (id integer primary key, region text, nm text, mine text default 'nobody''s',
                   no bigint generated always as identity);
create table profile (id integer primary key, nm text, bio text, mine text default 'nobody''s',
                      no bigint generated always as identity);
create table sums (grp integer primary key, n bigint);
create table f (id integer primary key, doc text, mine text default 'nobody''s',
                no bigint generated always as identity);
"""
MAPPING = """
copy: [t, part, moved, pair, g]
tables:
  - {to: profile, select: "select t.id, t.nm, b.bio from t left join bio b on b.id = t.id"}
  - {to: sums, select: "select grp, count(*) as n from g group by grp"}
  - {to: f, select: "select id, doc from f where grp = 1"}
"""


@pytest.fixture(scope="module")
def filling(postgres_dsn: str) -> Iterator[Filling]:
    with contextlib.ExitStack() as stack:
        old, new = (stack.enter_context(fresh_database(postgres_dsn, side)) for side in ("old", "new"))
        made = stack.enter_context(contextlib.closing(Filling(Databases(old=old, new=new), OLD, NEW, MAPPING)))
        _fill(made)
        yield made


def _fill(made: Filling) -> None:
    for table in ("t", "g", "f"):
        made.old.execute(
            f"insert into {table} select i, {'i::text' if table == 't' else 1}, repeat(i::text, 9000)"
            " from generate_series(1, 8) i".encode()
        )
    for table in ("part", "moved", "pair"):
        made.old.execute(
            f"insert into {table} (id, region, nm) select i, 'a', 'n' from generate_series(1, 8) i".encode()
        )
    with made.backfill(), made.streaming():
        made.filled()
    made.engine.begin(holder="test", lock="exclusive")
    for table in ("t", "part", "moved", "pair", "g", "f", "profile"):
        made.engine.run(f"update app.{table} set mine = 'of ' || id, no = default")
    made.engine.commit()


def mine(filling: Filling, table: str) -> dict[int, tuple[str, int]]:
    """By id, what only new holds."""
    rows: list[Any] = filling.new.execute(f"select id, mine, no from app.{table} order by 1".encode()).fetchall()
    return {row[0]: (row[1], row[2]) for row in rows}


def test_a_row_that_one_transaction_deletes_and_inserts(filling: Filling) -> None:
    before = mine(filling, "t")
    with filling.old.transaction():
        filling.old.execute(
            "delete from t where id in (1, 2, 3); insert into t values (1, 'new', 'd'), (2, 'new', 'd')"
        )
        filling.old.execute("update t set nm = 'newer' where id = 2; update t set id = 30 where id = 4")
        filling.old.execute("delete from t where id = 30; insert into t values (30, 'back', 'd')")
    filling.advance()
    filling.agrees()
    assert mine(filling, "t") == {
        1: before[1], 2: before[2], **{n: before[n] for n in range(5, 9)}, 30: before[4],
    }  # fmt: skip


def test_the_same_in_a_batch_too_large_for_arrays(filling: Filling) -> None:
    filling.old.execute("insert into t select i, 'n', 'd' from generate_series(1001, 1600) i")
    filling.advance()
    before = mine(filling, "t")
    with filling.old.transaction():
        filling.old.execute("delete from t where id > 1000; insert into t select i, 'again', 'e' from"
                            " generate_series(1001, 1600) i")  # fmt: skip
    filling.advance()
    filling.agrees()
    assert mine(filling, "t") == before


def test_the_same_in_a_transaction_that_is_applied_in_parts(filling: Filling) -> None:
    before = mine(filling, "t")
    rows = "select i, 'again', 'e' from generate_series(1001, 1600) i"
    with filling.old.transaction():
        filling.old.execute("update t set id = 500 where id = 1600; insert into t values (1600, 'another', 'd')")
        filling.old.execute(f"delete from t where id > 1000; insert into t {rows}".encode())
        filling.old.execute("delete from t where id = 1001; insert into t values (1001, 'once more', 'd')")
    filling.write_in_parts(filling.read(), 100)
    filling.agrees()
    after = mine(filling, "t")
    assert after.pop(500) == before[1600]  # what the row that took its key had is not its own
    assert after.pop(1600)[0] == "nobody's"
    assert after == {n: kept for n, kept in before.items() if n != 1600}


@pytest.mark.parametrize("together", [True, False], ids=["in one epoch", "in two"])
def test_a_row_of_another_transaction_is_another_row(filling: Filling, together: bool) -> None:
    """What becomes of it does not depend on which transactions happened to share an epoch."""
    number = 7 if together else 8
    before = {table: mine(filling, table) for table in ("t", "profile")}
    filling.old.execute("delete from t where id = %s", (number,))
    if not together:
        filling.advance()
    filling.old.execute("insert into t values (%s, 'another', 'd')", (number,))
    filling.advance()
    filling.agrees()
    for table, was in before.items():
        after = mine(filling, table)
        assert after[number][0] == "nobody's"
        assert after[number][1] > max(no for _, no in was.values())
        assert {n: kept for n, kept in after.items() if n != number} == {n: k for n, k in was.items() if n != number}


@pytest.mark.parametrize("table", ["part", "moved"])
def test_a_row_that_goes_to_another_partition(filling: Filling, table: str) -> None:
    before = mine(filling, table)
    run = filling.old.execute
    run(f"update {table} set region = 'b' where id in (1, 2, 3)".encode())
    filling.advance()
    filling.agrees()
    assert mine(filling, table) == before
    with filling.old.transaction():  # and on, within a partition that is split itself, and back, in several steps
        run(f"update {table} set region = case id when 1 then 'a' else {_third(table)} end where id < 4".encode())
        run(f"update {table} set nm = 'm' where id in (1, 2)".encode())
        run(f"update {table} set region = 'a' where id = 2".encode())
    run(f"update {table} set region = 'b' where id = 2".encode())
    run(f"update {table} set region = 'a' where id = 2".encode())
    filling.advance()
    filling.agrees()
    assert mine(filling, table) == before


def test_a_row_that_new_knows_by_a_part_of_its_key(filling: Filling) -> None:
    before = mine(filling, "pair")
    with filling.old.transaction():
        filling.old.execute("delete from pair where id < 4; insert into pair values (9, 'z', 'n')")
        filling.old.execute("insert into pair values (3, 'b', 'm'), (1, 'b', 'm'), (2, 'a', 'm')")
    filling.advance()
    filling.agrees()
    after = mine(filling, "pair")
    assert after.pop(9)[0] == "nobody's"
    assert after == before


def _third(table: str) -> str:
    return "'c'" if table == "moved" else "'a'"


def test_rows_of_one_transaction_that_are_not_one_row(filling: Filling) -> None:
    """By the same region, or not one after the other: nothing says that they are."""
    before = mine(filling, "moved")
    with filling.old.transaction():
        filling.old.execute("delete from moved where id = 8; insert into moved values (9, 'a', 'another')")
        filling.old.execute("delete from moved where id in (6, 7); insert into moved values (6, 'b', 'another')")
    filling.advance()
    filling.agrees()
    after = mine(filling, "moved")
    assert (after[9][0], after[6][0]) == ("nobody's", "nobody's")
    assert {n: after[n] for n in (4, 5)} == {n: before[n] for n in (4, 5)}


def test_a_row_whose_group_changes_there_and_back_while_values_are_not_sent(filling: Filling) -> None:
    before = mine(filling, "g")
    for group in (2, 1, 3, 1):
        filling.old.execute("update g set grp = %s where id in (1, 2)", (group,))
    filling.old.execute("update g set grp = 2 where id = 3; update g set grp = 4 where id = 3")
    filling.advance()
    assert filling.rereads() == []
    filling.agrees()
    assert mine(filling, "g") == before


def test_a_row_that_a_filter_leaves_out_for_a_while(filling: Filling) -> None:
    before = mine(filling, "f")
    for group in (2, 1):
        filling.old.execute("update f set grp = %s where id in (1, 2)", (group,))
    filling.advance()
    filling.agrees()
    assert mine(filling, "f") == before
