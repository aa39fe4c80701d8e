"""What no mapping writes stays with its row when the row takes another key, whatever way the row goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from schemas.position import Position
from stream.batch import Batch
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling
from tests.fixtures.stream import epoch_record

OLD = """
create table t (id integer primary key, nm text, doc text);
alter table t alter doc set storage external;
create table o (id integer primary key, items integer[]);
alter table o replica identity full;
"""
NEW = """
create table t (id integer primary key, label text, doc text, mine text default 'nobody''s',
                no bigint generated always as identity);
create table item (order_id integer, line_no integer, item integer, mine text default 'nobody''s',
                   primary key (order_id, line_no));
"""
MAPPING = """
tables:
  - {to: t, select: "select id, nm || doc as label, doc from t"}
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
    changes = filling.read()
    checkpoint = filling.checkpoint()
    works = []
    for number, change in enumerate(changes):
        epoch = replace(
            epoch_record(checkpoint.epoch + 1 + number, {}, complete=number == len(changes) - 1),
            end_lsn=change.position.commit_lsn,
            last=Position(change.position.commit_lsn, number),
        )
        work = filling._folding.work()
        filling._folding.add(work, epoch, [change], {})
        works.append(work)
    parts = iter(works[1:])
    batch = Batch(
        filling.engine,
        filling._folding,
        holder="test",
        quarantine_limit=lambda: 0,
        more=lambda: next(parts),
        overtaken=filling.overtaken,
    )
    batch.write(works[0], checkpoint)
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
        "update t set id = 10 where id = 1; insert into t values (1, 'new', 'd');"
        "delete from t where id = 2; insert into t values (2, 'new', 'd'); update t set nm = 'm' where id = 3;"
        "update t set id = 40 where id = 4; update t set id = 4 where id = 40"
    )
    filling.advance()
    filling.agrees()
    found = {key: (kept, no) for key, kept, no in mine(filling)}
    assert {key: found[key] for key in (3, 4, 10)} == {3: ("of 3", 3), 4: ("of 4", 4), 10: ("of 1", 1)}
    assert [found[key][0] for key in (1, 2)] == ["nobody's", "nobody's"]
    assert min(no for _, no in (found[1], found[2])) > 4
