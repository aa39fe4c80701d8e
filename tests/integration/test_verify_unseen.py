"""Rows that a look-up by their key does not see: the counts of both sides stay apart, and that is never clean."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from stream.verify.final_check import Standstill
from stream.verify.verdicts import Verdict
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling
from tests.fixtures.verifying import corrupt, found, swept, verdict

OLD = """
create table sales (id integer primary key, grp text, region text, amount numeric);
insert into sales select i, 'g' || i % 3, 'r' || i % 2, i from generate_series(1, 60) i;
create table prices (price numeric(10, 4) primary key, label text);
insert into prices values (1.2345, 'a'), (2.5, 'b'), (7, 'c');
"""
NEW = """
create table totals (grp text primary key, total numeric);
create table regions (grp text, region text, total numeric, primary key (grp, region));
create table prices (price numeric(10, 2) primary key, label text);
"""
MAPPING = """
copy: [prices]
drop: [sales.id]
tables:
  - {to: totals, select: "select grp, sum(amount) as total from sales group by grp"}
  - {to: regions, select: "select grp, region, sum(amount) as total from sales group by grp, region"}
"""


@pytest.fixture
def loaded(databases: Databases) -> Iterator[Filling]:
    made = Filling(databases, OLD, NEW, MAPPING)
    try:
        with made.streaming(), made.backfill():
            made.filled()
        yield made
    finally:
        made.close()


def test_a_group_without_a_name(loaded: Filling) -> None:
    """New cannot hold it: its key is NULL. It is missing there, under that very key."""
    loaded.unlike = "new cannot hold it"
    loaded.old.execute("alter table sales disable trigger all; insert into sales values (1000, null, 'r0', 5)")
    loaded.advance()
    with loaded.streaming():
        assert found(swept(loaded)) == {
            "regions": [("missing", (None, "r0"), ())],
            "totals": [("missing", (None,), ())],
        }
    tables = verdict(loaded).tables
    assert {name: table.state for name, table in tables.items()} == {
        "prices": Verdict.CLEAN, "regions": Verdict.MISMATCHED, "totals": Verdict.MISMATCHED
    }  # fmt: skip
    assert [dict(m.key) for m in tables["totals"].listed] == [{"grp": None}]


def test_a_key_that_is_not_the_source_s_own(loaded: Filling) -> None:
    """Old holds 1.2345, new would hold 1.23: by the one nothing is found on new, by the other nothing on old."""
    with loaded.streaming():
        assert found(swept(loaded)) == {}
        corrupt(loaded, "delete from app.prices where price = 1.23")
        assert found(swept(loaded)) == {"prices": [("missing", ("1.23",), ())]}
        corrupt(loaded, "insert into app.prices values (1.23, 'b')")
        assert found(swept(loaded)) == {"prices": [("different", ("1.23",), ("label",))]}
        corrupt(loaded, "update app.prices set label = 'a' where price = 1.23; insert into app.prices values (9, 'x')")
        assert found(swept(loaded)) == {"prices": [("extra", ("9.00",), ())]}
        corrupt(loaded, "delete from app.prices where price in (9, 1.23)")
        # Under a hold as well.
        with closing(Standstill(loaded.databases.old, loaded.databases.new, loaded.plan)) as still:
            still.freeze(for_s=60)
            looked = still.rest(deadline_s=time.monotonic() + 60, stop=threading.Event())
        assert {name: [str(m) for m in rows] for name, rows in looked.mismatches.items()} == {
            "prices": ["price=1.23 (missing)"]
        }


def test_traffic_is_no_such_row(loaded: Filling) -> None:
    """Rows that come and go all the time, under keys that nobody finds again."""
    stop = threading.Event()

    def come_and_go() -> None:
        i = 0
        while not stop.wait(0.005):
            i += 1
            with loaded.old.transaction():
                loaded.old.execute(f"insert into prices values ({100 + i}.5, 'x')".encode())
            with loaded.old.transaction():
                loaded.old.execute(f"delete from prices where price = {100 + i}.5".encode())

    with loaded.streaming():
        writing = threading.Thread(target=come_and_go)
        writing.start()
        try:
            for _ in range(3):
                assert found(swept(loaded, only=["prices"])) == {}
        finally:
            stop.set()
            writing.join()
