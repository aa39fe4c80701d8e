"""A target that was emptied, analysed, and filled again: statistics that say it is empty stop nobody for minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from stream.backfill.bulk_insert import apply_chunk
from tests.fixtures.databases import Databases
from tests.fixtures.tape import Tape

ROWS = 1500
PROMPT_S = 10.0  # well under a second; two minutes and more where the plan believes the statistics


@pytest.fixture
def emptied(databases: Databases) -> Iterator[Tape]:
    """Rows were there, and are deleted; then somebody analysed the tables; then rows came again."""
    tape = Tape(
        databases,
        "create table orders (id integer primary key, items integer[] not null, note text)",
        "create table item (order_id integer, line_no integer, item integer, primary key (order_id, line_no));"
        " create table note (id integer primary key, note text)",
        "tables:\n"
        "  - to: item\n    select: select o.id as order_id, i.n as line_no, i.item"
        " from orders o, unnest(o.items) with ordinality as i(item, n)\n"
        "  - {to: note, from: orders, drop: [items]}\n",
    )
    fill = f"insert into orders select i, array[i, i], 'n' from generate_series(1, {ROWS}) i"
    with closing(tape):
        tape.old.execute(fill.encode())
        tape.advance()
        tape.old.execute("delete from orders")
        tape.advance()
        tape.new.execute("analyze app.item, app.note")
        tape.old.execute(fill.encode())
        with prompt():
            tape.advance()
        misled = "select count(*) from pg_class where relname in ('item', 'note') and reltuples = 0 and relpages > 0"
        assert tape.new.execute(misled.encode()).fetchone() == (2,)
        yield tape


@contextmanager
def prompt() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PROMPT_S


def test_by_the_stream(emptied: Tape) -> None:
    emptied.old.execute("update orders set items = items[2:] || id, note = 'm' where id <= 1000")
    with prompt():
        emptied.advance()
    emptied.agrees()


def test_by_a_chunk(emptied: Tape) -> None:
    e = emptied.engine
    rows = emptied.old.execute("select id, items::text, note from orders where id <= 1000").fetchall()
    emptied.new.execute("delete from app.item where order_id <= 1000 and order_id % 2 = 0")
    for load, text in (("item", "{0}\t{1}\n"), ("note", "{0}\t{2}\n")):
        e.begin(holder="test", lock="exclusive")
        with e.chunk.stage(load) as copy:
            copy.write("".join(text.format(*row) for row in rows))
        with prompt():
            apply_chunk(e, load)
        e.commit()
    emptied.agrees()
