"""What no mapping writes stays with its row when the row takes another key, whatever way the row goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stream.remediation import quarantine
from tests.fixtures.databases import Databases
from tests.fixtures.filling import FORWARD, Filling
from tests.fixtures.tape import MIGRATION

OLD = """
create table t (id bigint primary key, nm text, doc text);
alter table t alter doc set storage external;
create table u (id integer primary key, email text);
create table p (user_id integer primary key, bio text);
create table o (id integer primary key, items integer[]);
alter table o replica identity full;
"""
NEW = """
create table t (id integer primary key, label text, doc text, mine text default 'nobody''s',
                no bigint generated always as identity);
create table item (order_id integer, line_no integer, item integer, mine text default 'nobody''s',
                   primary key (order_id, line_no));
create table account (id integer primary key, email text check (email <> 'bad'), bio text,
                      mine text default 'nobody''s');
"""
MAPPING = """
tables:
  - {to: t, select: "select id, nm || doc as label, doc from t"}
  - to: account
    select: select u.id, u.email, p.bio from u left join p on p.user_id = u.id
    feeds: {u: id, p: user_id}
  - to: item
    select: select o.id as order_id, i.n as line_no, i.item from o, unnest(o.items) with ordinality as i(item, n)
"""


@pytest.fixture
def filling(databases: Databases) -> Iterator[Filling]:
    made = Filling(databases, OLD, NEW, MAPPING)
    with made.backfill(), made.streaming():
        made.filled()
    yield made
    made.close()


def write(filling: Filling, statement: str) -> None:
    """What new's own application wrote while it was open."""
    filling.engine.begin(holder="test", lock="exclusive")
    filling.engine.run(statement)
    filling.engine.commit()


def mine(filling: Filling, table: str = "t", key: str = "id") -> list[tuple[Any, ...]]:
    number = ", no" if table == "t" else ""
    return filling.new.execute(f"select {key}, mine{number} from app.{table} order by 1, 2".encode()).fetchall()


def test_a_row_that_is_read_again_under_its_new_key(filling: Filling) -> None:
    filling.old.execute("insert into t select i, 'n', repeat(i::text, 9000) from generate_series(1, 4) i")
    filling.advance()
    write(filling, "update app.t set mine = 'of ' || id")
    # two rows swap their keys, one moves twice, and none of them says what its label is
    filling.old.execute(
        "update t set id = -1, nm = 'm' where id = 1; update t set id = 1, nm = 'm' where id = 2;"
        "update t set id = 2 where id = -1; update t set id = 30, nm = 'm' where id = 3"
    )
    filling.advance()
    assert [row[0] for row in mine(filling)] == [4]
    filling.old.execute("update t set id = 31, nm = 'o' where id = 30")
    filling.advance()
    assert {key["id"] for _, key in filling.rereads()} == {"1", "2", "30", "31"}
    with filling.backfill():
        filling.settle()
    filling.agrees()
    assert mine(filling) == [(1, "of 2", 2), (2, "of 1", 1), (4, "of 4", 4), (31, "of 3", 3)]


def test_a_row_that_takes_yet_another_key_whole_before_it_was_read_again(filling: Filling) -> None:
    filling.old.execute("insert into t values (1, 'n', repeat('1', 9000))")
    filling.advance()
    write(filling, "update app.t set mine = 'of 1'")
    filling.old.execute("update t set id = 2, nm = 'm' where id = 1")
    filling.advance()
    filling.old.execute("update t set id = 3, doc = 'short' where id = 2")
    filling.advance()
    assert mine(filling) == [(3, "of 1", 1)]
    with filling.backfill():
        filling.settle()
    filling.agrees()
    assert mine(filling) == [(3, "of 1", 1)]


def test_the_rows_of_an_owner_whose_key_changed(filling: Filling) -> None:
    filling.old.execute("insert into o values (1, '{5,6}'), (2, '{7}')")
    filling.advance()
    write(filling, "update app.item set mine = order_id || '/' || line_no")
    filling.old.execute("update o set id = 9 where id = 1; update o set id = 1, items = '{7,8}' where id = 2")
    filling.advance()
    filling.agrees()
    assert mine(filling, "item", "order_id") == [(1, "2/1"), (1, "nobody's"), (9, "1/1"), (9, "1/2")]


def test_what_one_part_of_a_transaction_set_aside_is_not_the_next_parts(filling: Filling) -> None:
    """A transaction larger than an epoch is applied in parts; a key may be taken by one row after the other."""
    filling.old.execute("insert into t select i, 'n', 'd' from generate_series(1, 3) i")
    filling.advance()
    write(filling, "update app.t set mine = 'of ' || id")
    with filling.old.transaction():
        for was, now in ((1, 20), (20, 21), (2, 20)):
            filling.old.execute("update t set id = %s where id = %s", (now, was))
    filling.write_in_parts(filling.read(), 1)
    filling.agrees()
    assert mine(filling) == [(3, "of 3", 3), (20, "of 2", 2), (21, "of 1", 1)]


def test_a_row_that_comes_where_another_one_was(filling: Filling) -> None:
    """In the same epoch, too, it has what the target gives a new row, and nothing of the row that had its key."""
    filling.new.execute(
        "create unique index on app.t (mine) where mine <> 'nobody''s'; alter table app.t add unique (no)"
    )
    filling.old.execute("insert into t select i, 'n', 'd' from generate_series(1, 4) i")
    filling.advance()
    write(filling, "update app.t set mine = 'of ' || id")
    filling.old.execute(
        "update t set id = 10 where id = 1; insert into t values (1, 'new', 'd'); delete from t where id = 2"
    )
    filling.old.execute(
        "insert into t values (2, 'new', 'd'); update t set nm = 'm' where id = 3;"
        "update t set id = 40 where id = 4; update t set id = 4 where id = 40"
    )
    filling.advance()
    filling.agrees()
    found = {key: (kept, no) for key, kept, no in mine(filling)}
    assert {key: found[key] for key in (3, 4, 10)} == {3: ("of 3", 3), 4: ("of 4", 4), 10: ("of 1", 1)}
    assert [found[key][0] for key in (1, 2)] == ["nobody's", "nobody's"]
    assert min(no for _, no in (found[1], found[2])) > 4


def refuse(filling: Filling) -> None:
    filling.new.execute("alter table app.t add constraint good check (label not like 'bad%')")


def apart(filling: Filling) -> set[str]:
    return {str(row.key["id"]) for row in quarantine.rows(filling.new, MIGRATION, FORWARD)}


def retried(filling: Filling) -> None:
    """The cause is put right on the source, and what is in quarantine tried again."""
    filling.old.execute("update t set nm = 'good'")
    filling.advance()
    quarantine.retry(filling.new, MIGRATION, FORWARD, None)
    with filling.backfill():
        filling.settle()
    assert apart(filling) == set()
    filling.agrees()


def test_a_row_that_is_refused_when_it_is_read_again(filling: Filling) -> None:
    refuse(filling)
    filling.old.execute("insert into t select i, 'n', repeat(i::text, 9000) from generate_series(1, 3) i")
    filling.advance()
    write(filling, "update app.t set mine = 'of ' || id")
    filling.old.execute("update t set id = id * 10, nm = 'bad'")
    filling.advance()
    with filling.backfill():
        filling.settle()
    assert apart(filling) == {"10", "20", "30"}
    filling.old.execute("update t set id = 11 where id = 10; update t set id = 21, doc = 'short' where id = 20")
    filling.advance()
    assert apart(filling) == {"10", "11", "20", "21", "30"}
    retried(filling)
    assert mine(filling) == [(11, "of 1", 1), (21, "of 2", 2), (30, "of 3", 3)]


def test_a_row_that_the_stream_sets_aside_under_its_new_key(filling: Filling) -> None:
    refuse(filling)
    filling.old.execute("insert into t select i, 'n', repeat(i::text, 9000) from generate_series(1, 4) i")
    filling.advance()
    write(filling, "update app.t set mine = 'of ' || id")
    filling.old.execute("update t set id = 10, nm = 'bad', doc = 'short' where id = 1")
    filling.old.execute("update t set nm = 'bad', doc = 'short' where id = 2")
    filling.advance()
    assert apart(filling) == {"1", "10", "2"}  # one that takes another key has to be read again under both
    filling.old.execute("update t set id = 20 where id = 2; update t set id = 2 where id = 3")
    filling.advance()
    assert apart(filling) == {"1", "10", "2", "20", "3"}
    retried(filling)
    assert mine(filling) == [(2, "of 3", 3), (4, "of 4", 4), (10, "of 1", 1), (20, "of 2", 2)]


def test_a_row_that_waits_gives_its_key_to_another_one(filling: Filling) -> None:
    filling.old.execute("insert into t select i, 'n', repeat(i::text, 9000) from generate_series(1, 4) i")
    filling.advance()
    write(filling, "update app.t set mine = 'of ' || id")
    filling.old.execute("update t set id = id * 10, nm = 'm' where id <> 2")
    filling.advance()
    # 10 leaves and 2 comes in its place; 30 is another row now, and 40 too
    filling.old.execute("update t set id = 11, nm = 'o' where id = 10; update t set id = 10, nm = 'o' where id = 2")
    filling.old.execute("delete from t where id = 30")
    filling.old.execute("insert into t values (30, 'new', 'd')")
    filling.advance()
    filling.old.execute("update t set id = 41, doc = 'short' where id = 40; insert into t values (40, 'new', 'd')")
    filling.advance()
    with filling.backfill():
        filling.settle()
    filling.agrees()
    kept = [row[:2] for row in mine(filling)]
    assert kept == [(10, "of 2"), (11, "of 1"), (30, "nobody's"), (40, "nobody's"), (41, "of 4")]


def test_rows_that_wait_while_their_table_is_emptied(filling: Filling) -> None:
    filling.old.execute("insert into t select i, 'n', repeat(i::text, 9000) from generate_series(1, 2) i")
    filling.advance()
    write(filling, "update app.t set mine = 'of ' || id")
    filling.old.execute("update t set id = id * 10, nm = 'm'")
    filling.advance()
    filling.old.execute("truncate t; insert into t values (10, 'new', 'd')")
    filling.advance()
    with filling.backfill():
        filling.settle()
    filling.agrees()
    assert [row[:2] for row in mine(filling)] == [(10, "nobody's")]


def test_the_rows_of_an_owner_that_is_set_aside(filling: Filling) -> None:
    filling.new.execute("alter table app.item add constraint good check (item <> 13)")
    filling.old.execute("insert into o values (1, '{5,6}'), (2, '{7}')")
    filling.advance()
    write(filling, "update app.item set mine = order_id || '/' || line_no")
    filling.old.execute("update o set id = 9, items = '{13,6,7}' where id = 1")
    filling.advance()
    assert apart(filling) == {"1", "9"}
    filling.old.execute("update o set id = 8, items = '{5,6}' where id = 9; update o set id = 1 where id = 2")
    filling.advance()
    retried(filling)
    assert mine(filling, "item", "order_id") == [(1, "2/1"), (8, "1/1"), (8, "1/2")]


def test_a_row_whose_keys_the_target_cannot_hold(filling: Filling) -> None:
    filling.old.execute("insert into t values (1, 'n', 'd')")
    filling.advance()
    write(filling, "update app.t set mine = 'of 1'")
    for was, now in ((1, 5_000_000_000), (5_000_000_000, 6_000_000_000), (6_000_000_000, 7)):
        filling.old.execute("update t set id = %s where id = %s", (now, was))
        filling.advance()
    assert apart(filling) == {"1", "5000000000", "6000000000", "7"}
    quarantine.retry(filling.new, MIGRATION, FORWARD, None)
    with filling.backfill():
        filling.settle()
    filling.agrees()
    assert mine(filling) == [(7, "of 1", 1)]


def test_a_row_of_a_join_whose_key_changed(filling: Filling) -> None:
    filling.old.execute("insert into u select i, 'e' || i from generate_series(1, 6) i; insert into p values (1, 'b')")
    filling.advance()
    write(filling, "update app.account set mine = 'of ' || id")
    # two rows swap their keys, a new one comes where another one was, a profile goes to somebody else
    filling.old.execute(
        "update u set id = -1 where id = 1; update u set id = 1 where id = 2; update u set id = 2 where id = -1;"
        "update u set id = 30 where id = 3; insert into u values (3, 'new'); update p set user_id = 4 where user_id = 1"
    )
    filling.advance()
    filling.agrees()
    expected = [(1, "of 2"), (2, "of 1"), (3, "nobody's"), (4, "of 4"), (5, "of 5"), (6, "of 6"), (30, "of 3")]
    assert mine(filling, "account") == expected
    # refused under its new key, and under the next one
    filling.old.execute("update u set id = 50, email = 'bad' where id = 5")
    filling.advance()
    filling.old.execute("update u set id = 51 where id = 50; truncate p; update u set id = 60 where id = 6")
    filling.advance()
    filling.old.execute("update u set email = 'good' where id = 51")
    filling.advance()
    quarantine.retry(filling.new, MIGRATION, FORWARD, None)
    filling.advance()
    assert apart(filling) == set()
    filling.agrees()
    assert mine(filling, "account") == [*expected[:4], (30, "of 3"), (51, "of 5"), (60, "of 6")]
