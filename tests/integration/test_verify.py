"""Verification on real servers: every corruption there is is found, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from connectors.postgres.sight import Sight
from schemas.errors import Refused, Unavailable
from schemas.repair import Repair
from stream.verify import queries
from stream.verify.digests import Pair
from stream.verify.final_check import Standstill, merged, pieces
from stream.verify.judge import Stopped
from stream.verify.preconditions import NotReady
from stream.verify.reload_table import load_anew
from stream.verify.sweep import Sweep
from stream.verify.verdicts import Verdict
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling, wait_for
from tests.fixtures.verifying import corrupt, found, swept, task, verdict

OLD = """
create table customers (id integer primary key, nm text, email text, amount text, score float8, at timestamptz);
insert into customers select i, 'name ' || i, 'M' || i || '@x', (i / 4.0)::text, i / 3.0, now() - i * interval '1 min'
  from generate_series(1, 3000) i;
create table addresses (id bigint primary key, customer_id integer not null, street text);
insert into addresses select i, i % 3000 + 1, 'street ' || i from generate_series(1, 1500) i;
create table orders (region text, no uuid, total numeric, primary key (region, no));
insert into orders select 'r' || i % 7, md5(i::text)::uuid, i / 4.0 from generate_series(1, 2000) i;
create table events (kind text, amount numeric);
alter table events replica identity full;
insert into events select 'k' || i % 3, i % 5 + 0.50 from generate_series(1, 300) i;
create table nothing (id integer primary key);
create table codes (code text primary key, label char(8), flags bit(3), n numeric(8, 3));
insert into codes select 'c' || i, 'l' || i, b'101', i / 8.0 from generate_series(1, 200) i;
"""
NEW = """
create domain short as varchar(20);
create type app.level as enum ('low', 'high');
create table customer (
  id bigint primary key, name text, email text, amount numeric(12, 2), score real, at timestamptz(0), note text);
create table account (customer_id integer primary key, name text, streets text);
create table orders (region text, no uuid, total numeric, primary key (region, no));
create table events (kind text, amount numeric);
create table nothing (id integer primary key);
create table codes (code short primary key, label char(10), flags bit(3), n numeric(8, 2), level app.level);
"""
MAPPING = """
copy: [orders, events, nothing]
tables:
  - {to: customer, from: customers, rename: {nm: name}, set: {email: lower(email)}}
  - to: account
    select: |
      select c.id as customer_id, c.nm as name, string_agg(a.street, ',' order by a.id) as streets
        from customers c left join addresses a on a.customer_id = c.id where c.id <= 400 group by c.id, c.nm
  - to: codes
    from: codes
    set: {level: "case when n > 10 then 'high' else 'low' end"}
"""


@pytest.fixture
def loaded(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Filling]:
    """Everything loaded, and small chunks, so that there are several of each table."""
    monkeypatch.setattr(queries, "CHUNK_ROWS", 500)
    made = Filling(databases, OLD, NEW, MAPPING)
    try:
        with made.streaming(), made.backfill():
            made.filled()
        yield made
    finally:
        made.close()


def test_what_agrees_is_clean(loaded: Filling) -> None:
    with loaded.streaming():
        tallies = swept(loaded)
    assert found(tallies) == {}
    assert {name: t.rows for name, t in tallies.items()} == {
        "customer": 3000, "account": 400, "orders": 2000, "events": 300, "nothing": 0, "codes": 200
    }  # fmt: skip
    found_clean = verdict(loaded)
    assert found_clean.state is Verdict.CLEAN
    assert found_clean.age_s is not None
    assert loaded.one("select count(*) > 5 from slackwater.verify_chunk where load = 'customer'", on="new")

    compared: list[int] = []

    def moved(rows: int) -> None:
        """After the first chunk the writes move to new, and one comes there that old does not have yet."""
        compared.append(rows)
        if len(compared) == 1:
            loaded.old.execute("update slackwater.turn set fence_turn = 2")
            corrupt(loaded, "update app.customer set name = 'written on new'")

    with loaded.streaming(), pytest.raises(NotReady, match="the writes moved away from old"):
        Sweep(task(loaded, workers=1), throttle=None, count=moved).run(threading.Event())
    assert compared
    assert {t.state for t in verdict(loaded).tables.values()} <= {Verdict.CLEAN, Verdict.RUNNING, Verdict.PENDING}
    loaded.unlike = "new has gone on"


FIVE = "e4da3b7f-bbce-2345-d777-2b0674a318d5"  # md5('5')
ONE = "00000000-0000-0000-0000-000000000001"
# table, what is done behind its back, what is found: kind, key, columns
CORRUPTIONS = [
    ("customer", "update app.customer set name = 'other' where id = 700", "different", ("700",), ("name",)),
    ("customer", "update app.customer set name = null where id = 1", "different", ("1",), ("name",)),
    ("customer", "update app.customer set email = '' where id = 501", "different", ("501",), ("email",)),
    ("customer", "update app.customer set email = 'x' where id = 500", "different", ("500",), ("email",)),
    ("customer", "update app.customer set score = -score where id = 3", "different", ("3",), ("score",)),
    ("customer", "delete from app.customer where id = 3000", "missing", ("3000",), ()),
    ("customer", "delete from app.customer where id = 1", "missing", ("1",), ()),
    ("customer", "insert into app.customer (id) values (999999999999)", "extra", ("999999999999",), ()),
    ("customer", "insert into app.customer (id) values (-5)", "extra", ("-5",), ()),
    ("orders", f"delete from app.orders where no = '{FIVE}'", "missing", ("r5", FIVE), ()),
    ("orders", f"insert into app.orders values ('zz', '{ONE}', 1)", "extra", ("zz", ONE), ()),
    ("orders", f"update app.orders set total = 1.250 where no = '{FIVE}'", "different", ("r5", FIVE), ("total",)),
    ("account", "update app.account set streets = '' where customer_id = 7", "different", ("7",), ("streets",)),
    ("account", "insert into app.account values (2999, 'x', null)", "extra", ("2999",), ()),
    ("account", "delete from app.account where customer_id = 9", "missing", ("9",), ()),
    ("codes", "update app.codes set level = 'low' where code = 'c99'", "different", ("c99",), ("level",)),
    ("codes", "update app.codes set flags = b'100' where code = 'c99'", "different", ("c99",), ("flags",)),
    ("codes", "update app.codes set label = 'l98' where code = 'c99'", "different", ("c99",), ("label",)),
    ("nothing", "insert into app.nothing values (1)", "extra", ("1",), ()),
]  # fmt: skip


def test_every_corruption_is_found(loaded: Filling) -> None:
    for table in sorted({c[0] for c in CORRUPTIONS}):
        loaded.new.execute(f"create table public.{table}_kept as select * from app.{table}".encode())
    with loaded.streaming():
        for table, statement, *expected in CORRUPTIONS:
            corrupt(loaded, statement)
            assert found(swept(loaded, only=[table])) == {table: [tuple(expected)]}, statement
            assert verdict(loaded).tables[table].state is Verdict.MISMATCHED
            mended = f"insert into app.{table} select * from public.{table}_kept"
            corrupt(loaded, f"delete from app.{table}", mended)
        assert verdict(loaded).state is Verdict.MISMATCHED  # what is mended stays so until it was compared
        assert found(swept(loaded)) == {}
        assert verdict(loaded).state is Verdict.CLEAN


ANOTHER = {
    "text": "coalesce({c}, '') || '!'",
    "numeric": "coalesce({c}, 0) + 1",
    "real": "{c} + 1",
    "timestamp with time zone": "{c} + interval '1 second'",
    "bpchar": "'other'",
    '"bit"': "~{c}",
    "app.level": "case {c} when 'low' then 'high'::app.level else 'low' end",
}


def test_every_expression_changed_on_the_target_side_only_is_found(loaded: Filling) -> None:
    """As if the engine computed one column of one mapping otherwise than its SELECT says."""
    with loaded.streaming():
        for mapping in loaded.plan.mappings:
            table = loaded.plan.targets[mapping.target]
            for name in [c for c in mapping.columns if c not in mapping.key and mapping.key]:
                wrong = ANOTHER[table.column(name).type].format(c=name)
                key = mapping.key[-1]
                three = f"{key}::text in (select min({key}::text) from app.{table.name} group by length({key}::text))"
                corrupt(loaded, f"create table public.was as select * from app.{table.name}")
                corrupt(loaded, f"update app.{table.name} set {name} = {wrong} where {three}")
                mismatches = found(swept(loaded, only=[table.name]))[table.name]
                assert {(kind, columns) for kind, _, columns in mismatches} == {("different", (name,))}
                assert len(mismatches) == loaded.one(
                    f"select count(*) from app.{table.name} where {three}", on="new"
                )  # fmt: skip
                corrupt(
                    loaded,
                    f"delete from app.{table.name}",
                    f"insert into app.{table.name} select * from public.was",
                    "drop table public.was",
                )


def test_values_swapped_between_rows(loaded: Filling) -> None:
    swap = "update app.customer a set name = b.name from app.customer b where (a.id, b.id) in ((10, 20), (20, 10))"
    corrupt(loaded, swap)
    with loaded.streaming():
        rows = found(swept(loaded))
    assert rows == {"customer": [("different", ("10",), ("name",)), ("different", ("20",), ("name",))]}


def test_a_table_without_a_key(loaded: Filling) -> None:
    """Rows are told apart by their images: one too many, one too few, one instead of another, NULL for a value."""
    with loaded.streaming():
        corrupt(loaded, "insert into app.events values ('k1', 1.50)")
        (extra,) = swept(loaded, only=["events"])["events"].found
        assert (extra.mismatch.kind.value, extra.mismatch.rows, extra.mismatch.key) == ("extra", 1, {})
        corrupt(loaded, "delete from app.events where ctid in (select ctid from app.events where amount = 1.5 limit 3)")
        tally = swept(loaded, only=["events"])["events"]
        assert tally.total == 2
        corrupt(loaded, "update app.events set amount = 0.5 where amount = 0.50")
        corrupt(loaded, "update app.events set kind = null where ctid = (select max(ctid) from app.events)")
        kinds = {f.mismatch.kind.value for f in swept(loaded, only=["events"])["events"].found}
        assert kinds == {"missing", "extra"}


def test_a_table_without_a_key_is_repaired_by_loading_it_anew(loaded: Filling) -> None:
    """By the roles that run already, beside writes: mismatched, then repaired, and clean once it was compared."""
    name = "events"
    with loaded.streaming(), loaded.backfill() as role:
        wait_for(lambda: "" in role._finishing)  # it has nothing to do
        corrupt(loaded, "delete from app.events where kind = 'k1'", "insert into app.events values ('x', 1)")
        tally = swept(loaded, only=[name])[name]
        assert tally.total == 101
        loaded.old.execute("insert into events values ('before', 1)")
        repair = Repair(deletes=True, by="tester", reason="a test")
        sides = (Sight(dsn, application="test") for dsn in (loaded.databases.old, loaded.databases.new))
        with closing(Pair(*sides)) as pair:
            with pytest.raises(Refused, match="1 rows of events are on new alone"):
                load_anew(pair, loaded.new, loaded.plan, tally.view, replace(repair, deletes=False))
            load_anew(pair, loaded.new, loaded.plan, tally.view, repair)
        kept = loaded.new.execute("select load, action, key, image->>'kind', by from slackwater.repaired").fetchall()
        assert kept == [(name, "deleted", {}, "x", "tester")]
        loaded.old.execute("insert into events values ('after', 1); delete from events where amount = 1.50")
        assert verdict(loaded).tables[name].state is Verdict.REPAIRED
        loaded.filled()
        assert verdict(loaded).tables[name].state is Verdict.REPAIRED
        assert found(swept(loaded, only=[name])) == {}
        assert verdict(loaded).tables[name].state is Verdict.CLEAN
    loaded.unlike = ""


def test_under_a_hold_every_chunk_is_compared_as_it_stands(loaded: Filling) -> None:
    """What a turn asks at the last moment: the chunks written last first, and what there was no time for by name."""
    loaded.advance()
    with loaded.streaming():
        swept(loaded)
    corrupt(loaded, "update app.customer set name = 'late' where id = 2345")
    names = [p.load for p in pieces(loaded.new, loaded.plan)]
    assert set(names) == set(loaded.plan.targets)
    assert names.count("customer") > 5
    with closing(Standstill(loaded.databases.old, loaded.databases.new, loaded.plan)) as still:
        still.freeze(for_s=60)
        late = still.sum_up(deadline_s=time.monotonic() - 1)
        assert (late.pieces, len(still.left), set(merged(still.left))) == (0, len(names), set(names))
        assert merged(still.left)["customer"] == [(None, None)]
        # What is written from now on, be it right or wrong, was not there at that moment.
        corrupt(loaded, "update app.customer set name = 'later' where id = 7; delete from app.orders")
        done = still.sum_up(deadline_s=time.monotonic() + 60)
        assert (still.left, done.causes, [p.load for p in still.suspects]) == ([], {}, ["customer"])
        lower, upper = int(still.suspects[0].chunk.lower or 0), int(still.suspects[0].chunk.upper or 9999)
        assert lower <= 2345 < upper
        still.judge(done, still.suspects, deadline_s=time.monotonic() + 60)
        assert [str(m) for m in done.mismatches["customer"]] == ["id=2345 (name)"]
        # A table that was rewritten is empty in an older snapshot: that says nothing.
        loaded.new.execute("vacuum full app.codes")
        corrupt(loaded, "truncate app.account")
        still.left = [p for p in pieces(loaded.new, loaded.plan) if p.load in ("codes", "account", "events")]
        rest = still.rest(deadline_s=time.monotonic() + 60, stop=threading.Event())
        assert (rest.mismatches, set(rest.causes), rest.pieces) == ({}, {"codes", "account"}, 1)
        assert {p.load for p in still.left} == {"codes", "account"}


def test_what_one_server_lacks_is_a_problem_of_its_table_alone(loaded: Filling) -> None:
    loaded.new.execute("alter table app.customer rename column email to mail")
    with loaded.streaming():
        tallies = swept(loaded)
        assert "email" in str(tallies["customer"].problem)
        assert {name for name, t in tallies.items() if t.verdict is Verdict.CLEAN} == set(tallies) - {"customer"}
        assert verdict(loaded).tables["customer"].state is Verdict.RUNNING
        loaded.new.execute("alter table app.customer rename column mail to email")
        assert found(swept(loaded)) == {}


def test_a_stream_that_stands_still_gives_no_verdict(loaded: Filling) -> None:
    corrupt(loaded, "update app.customer set name = 'wrong' where id = 5")
    with pytest.raises(Unavailable, match="apply is dead"):
        swept(loaded, standing=lambda: "apply is dead")
    assert verdict(loaded).state is Verdict.PENDING


def test_a_pass_goes_on_where_it_was_left(loaded: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after some chunks: the next pass compares the others, and has what the first one found."""
    corrupt(loaded, "delete from app.customer where id = 1")
    stop = threading.Event()
    counted: list[int] = []

    def count(rows: int) -> None:
        counted.append(rows)
        if len(counted) == 3:
            stop.set()
            first._ended.wait(30)  # or it would be done with the others before anybody looks

    with loaded.streaming():
        first = Sweep(task(loaded, workers=1), throttle=None, only=["customer"], count=count)
        with pytest.raises(Stopped):
            first.run(stop)
        assert verdict(loaded).tables["customer"].state is Verdict.RUNNING
        again: list[int] = []
        second = Sweep(task(loaded, workers=1), throttle=None, only=["customer"], count=again.append)
        tallies = dict(second.run(threading.Event()))
    assert sum(counted) + sum(again) == tallies["customer"].rows == 3000
    assert [f.mismatch.key for f in tallies["customer"].found] == [{"id": "1"}]
