"""The backfill on real servers: what it loads, while the stream writes the same rows, equals the source."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from connectors.postgres import catalog, fence
from connectors.postgres.session import Connection, connect
from schemas.direction import Side
from schemas.errors import Halt, RowRejected
from stream.migration.pauses import pause, paused, resume
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling, background, wait_for
from tests.fixtures.tape import MIGRATION

OLD = """
create table customers (id integer primary key, nm text not null, email text, doc text);
insert into customers select i, 'name ' || i, 'M' || i || '@x', repeat('d', i % 50) from generate_series(1, 3000) i;
create table orders (region text, no uuid, at timestamptz, total numeric(12,4), primary key (region, no));
insert into orders select 'r' || i % 7, gen_random_uuid(), now() - i * interval '1 min', i / 3.0
  from generate_series(1, 2000) i;
create table sparse (id bigint primary key, v text);
insert into sparse select i * 1000000007::bigint - 4000000000000000000, 'v' || i from generate_series(1, 500) i;
create table events (kind text, amount numeric);
alter table events replica identity full;
insert into events select 'k' || i % 3, i % 5 + 0.50 from generate_series(1, 300) i;
create table nothing (id integer primary key);
"""
NEW = """
create table customer (id bigint primary key, name text not null, email text, doc text);
create table orders (region text, no uuid, at timestamptz, total numeric(12,4), primary key (region, no));
create table sparse (id bigint primary key, v text);
create table events (kind text, amount numeric);
create table nothing (id integer primary key);
"""
MAPPING = """
copy: [orders, sparse, events, nothing]
tables:
  - {to: customer, from: customers, rename: {nm: name}, set: {email: lower(email)}}
"""


@pytest.fixture
def filling(databases: Databases) -> Iterator[Filling]:
    made = Filling(databases, OLD, NEW, MAPPING)
    yield made
    made.close()


@pytest.fixture
def make(databases: Databases) -> Iterator[Callable[[str, str, str], Filling]]:
    """A migration of one's own tables."""
    made: list[Filling] = []

    def build(old: str, new: str, mapping: str) -> Filling:
        made.append(Filling(databases, old, new, mapping))
        return made[-1]

    yield build
    for each in made:
        each.close()


def small(filling: Filling) -> dict[str, object]:
    """Chunks of about a hundred rows."""
    return {"chunk_bytes": 8192}


def chunks(filling: Filling, load: str) -> list[tuple[str, str | None, str | None, str, int]]:
    with connect(filling.databases.new) as conn:
        rows = conn.execute(
            "select kind, lower, upper, state, rows from slackwater.backfill_chunk where load = %s order by chunk",
            (load,),
        ).fetchall()
    return [(str(k), low, up, str(s), n) for k, low, up, s, n in rows]


def test_every_form_of_table_is_loaded_in_chunks(filling: Filling) -> None:
    with filling.backfill(**small(filling)):
        filling.filled()
    filling.agrees()
    loads = filling.rows()
    assert {name: row.rows for name, row in loads.items()} == {
        "customer": 3000,
        "orders": 2000,
        "sparse": 500,
        "events": 300,
        "nothing": 0,
    }
    for load, least in (("customer", 10), ("orders", 10), ("sparse", 2)):
        made = chunks(filling, load)
        assert len(made) >= least
        assert {c[0] for c in made} == {"range"}
        assert {c[3] for c in made} == {"done"}
        assert max(c[4] for c in made) <= 1000
        # Every boundary once below, once above: nothing between two chunks.
        assert sorted(c[1] for c in made if c[1] is not None) == sorted(c[2] for c in made if c[2] is not None)
        assert [c[1] for c in made].count(None) == [c[2] for c in made].count(None) == 1
    assert [c[0] for c in chunks(filling, "events")] == ["whole"]
    assert filling.one("select snapshot from slackwater.load where name = 'events'", on="new")
    assert filling.one("select min(newest_lsn - barrier_lsn) >= 0 from slackwater.load", on="new")


def test_the_stream_goes_on_from_what_was_loaded(filling: Filling) -> None:
    with filling.backfill(**small(filling)):
        filling.filled()
        filling.old.execute("update customers set nm = 'x' where id % 3 = 0; delete from orders where region = 'r1'")
        filling.old.execute("insert into events values ('new', 1.00); delete from events where amount = 0.50")
        filling.old.execute("insert into nothing values (1); delete from sparse where id > 0")
        filling.settle()
    filling.agrees()


def churn(dsn: str, seed: int, stop: threading.Event) -> None:
    """Hot rows: inserts, updates, deletes, key changes and reinserts, in transactions of a few."""
    chance = random.Random(seed)
    with connect(dsn, application="test load", settings={"search_path": "public"}) as conn:
        while not stop.is_set():
            with conn.transaction():
                for _ in range(chance.randint(1, 4)):
                    work(conn, chance, seed)


def work(conn: Connection, chance: random.Random, seed: int) -> None:
    # Each thread has its own rows: what matters is the order of a row's changes, not how two writers queue for it.
    i = chance.randrange(1, 1500) * 2 + seed % 2
    match chance.randrange(7):
        case 0:
            conn.execute("delete from customers where id = %s", (i,))
        case 1:
            conn.execute("insert into customers values (%s, 'back', 'B@x', 'd') on conflict do nothing", (i,))
        case 2:
            conn.execute(
                "update customers set id = id + 100000 where id = %s"
                " and not exists (select from customers where id = %s)",
                (i, i + 100000),
            )
        case 3:
            conn.execute("insert into events values ('k0', %s)", (chance.randrange(5) + 0.5,))
        case 4:
            conn.execute(
                "delete from events where ctid ="
                " (select ctid from events where kind = %s limit 1 for update skip locked)",
                (f"k{chance.randrange(3)}",),
            )
        case _:
            conn.execute("update customers set nm = %s, email = %s where id = %s", (f"n{i}", f"E{chance.random()}", i))


def test_chunks_among_hot_updates_deletes_and_reinserts(filling: Filling) -> None:
    dsn = filling.databases.old
    with (
        background(lambda stop: churn(dsn, 1, stop)),
        background(lambda stop: churn(dsn, 2, stop)),
        filling.streaming(),
        filling.backfill(max_rows_per_s=2000, **small(filling)),
    ):
        filling.filled(timeout_s=60)
    with filling.backfill(**small(filling)):
        filling.settle()
    filling.agrees()
    assert filling.checkpoint().epoch > 10  # the stream did not stand still meanwhile


def test_both_schemas_in_one_database(databases: Databases) -> None:
    """One server: its decoder sees our own chunks too, which must not count as changes of the source."""
    filling = Filling(Databases(old=databases.old, new=databases.old), OLD, NEW, MAPPING)
    try:
        with (
            background(lambda stop: churn(databases.old, 1, stop)),
            filling.streaming(),
            filling.backfill(max_rows_per_s=4000, **small(filling)),
        ):
            filling.filled(timeout_s=60)
        with filling.backfill():
            filling.settle()
        filling.agrees()
    finally:
        filling.close()


def test_a_load_that_was_begun_anew_takes_no_older_chunk(filling: Filling) -> None:
    with filling.backfill(max_rows_per_s=300, **small(filling)):
        wait_for(lambda: sum(c[3] == "done" for c in chunks(filling, "customer")) >= 1)
        filling.new.execute("delete from app.customer; delete from app.orders; delete from app.sparse")
        filling.reset()  # `prepare` stops the roles first: this one was not told
    kept = filling.one("select count(*) from slackwater.backfill_chunk where state = 'done'", on="new")
    loaded = filling.one("select sum(rows) from slackwater.load", on="new")
    assert (kept, loaded) == (0, 0)


def test_a_second_process_waits_for_the_first(filling: Filling) -> None:
    with filling.backfill(**small(filling)):
        wait_for(lambda: filling.rows()["customer"].state != "pending")
        second = filling.role()
        heartbeat = filling.heartbeat
        with background(second.run):
            wait_for(lambda: heartbeat.reason == "another process backfills this direction")
            assert heartbeat.state == "waiting"
            filling.filled()


def test_it_resumes_at_the_chunk(filling: Filling) -> None:
    with filling.backfill(max_rows_per_s=500, **small(filling)):
        wait_for(lambda: sum(c[3] == "done" for c in chunks(filling, "customer")) >= 2)
    done = [c for c in chunks(filling, "customer") if c[3] == "done"]
    before = filling.one("select array_agg(xmin::text) from app.customer", on="new")
    assert done
    assert filling.rows()["customer"].state == "running"
    with filling.backfill(**small(filling)):
        filling.filled()
    assert [c for c in chunks(filling, "customer") if c in done] == done
    kept = filling.one("select count(*) from app.customer where xmin::text = any(%s)", before, on="new")
    assert kept == len(before)  # what was loaded was not written again
    filling.agrees()


def test_pauses_say_why_and_let_go(filling: Filling) -> None:
    lag: list[float | None] = [None]
    role = filling.role(lag_s=lambda: lag[0], max_lag_s=5)
    role._paused = lambda conn: clause.clause if (clause := paused(conn, MIGRATION, "backfill")) else None
    heartbeat = filling.heartbeat
    with background(role.run):
        wait_for(lambda: heartbeat.reason == "the stream's lag is not known")
        assert heartbeat.state == "paused"
        lag[0] = 7.5
        wait_for(lambda: heartbeat.reason == "the stream is 7.5 s behind (max_lag_s is 5)")
        lag[0] = 0.0
        pause(filling.new, MIGRATION, "backfill", reason="too busy", by="ann")
        filling.old.execute("update customers set nm = 'x' where id = 1")
        wait_for(lambda: heartbeat.reason == "paused by ann: too busy")
        assert heartbeat.figures["loads"]["customer"]["paused"] == "paused by ann: too busy"
        assert filling.one("select count(*) from app.customer", on="new") == 0
        resume(filling.new, MIGRATION, "backfill")
        filling.filled()
        wait_for(lambda: heartbeat.reason == "everything is loaded")
    figures = heartbeat.figures["loads"]["customer"]
    assert (figures["rows"], figures["rows_estimate"], figures["seconds_left"]) == (3000, 3000, 0.0)
    assert figures["chunks"] == figures["chunks_done"] >= 1
    assert figures["bytes"] > 50_000


def test_a_row_that_the_target_refuses_is_set_aside_alone(make: Callable[[str, str, str], Filling]) -> None:
    filling = make(
        "create table t (id integer primary key, v text);"
        "insert into t select i, case i when 700 then 'poison' when 1500 then null else 'v' end"
        " from generate_series(1, 2000) i",
        "create table t (id integer primary key, v text not null check (v <> 'poison'))",
        "copy: [t]",
    )
    with filling.backfill():
        filling.filled()
    assert filling.one("select count(*) from app.t", on="new") == 1998
    rows = filling.new.execute("select key, sqlstate, state from slackwater.quarantine order by key->>'id'").fetchall()
    assert rows == [({"id": "1500"}, "23502", "open"), ({"id": "700"}, "23514", "open")]
    # Mended at the source, and sent through the reread queue as `quarantine retry` does.
    filling.old.execute("update t set v = 'good' where id = 700")
    filling.advance()
    assert filling.one("select count(*) from app.t where id = 700", on="new") == 0  # its changes join it
    filling.new.execute("update slackwater.quarantine set state = 'retrying'")
    filling.new.execute(
        "insert into slackwater.reread (migration, direction, load, source, key, reason)"
        " select migration, direction, load, source, key, 'retry' from slackwater.quarantine"
    )
    with filling.backfill():
        wait_for(lambda: not filling.rereads())
    assert filling.one("select v from app.t where id = 700", on="new") == "good"
    left = filling.new.execute("select key, state, sqlstate from slackwater.quarantine").fetchall()
    assert left == [({"id": "1500"}, "open", "23502")]


def test_more_refused_rows_than_the_limit_stop_it(make: Callable[[str, str, str], Filling]) -> None:
    filling = make(
        "create table t (id integer primary key, v text); insert into t select i, null from generate_series(1, 50) i",
        "create table t (id integer primary key, v text not null)",
        "copy: [t]",
    )
    role = filling.role(quarantine_limit=3)
    with (
        pytest.raises(RowRejected, match="4 rows would stand in quarantine, and the limit is 3"),
        background(role.run) as errors,
    ):
        wait_for(lambda: bool(errors))
    assert filling.one("select count(*) from slackwater.quarantine", on="new") == 3


def test_a_unique_value_that_moved_is_left_to_the_stream(make: Callable[[str, str, str], Filling]) -> None:
    """The target holds a row as the stream applied it; a chunk read later shows its value on another row."""
    filling = make(
        "create table t (id integer primary key, v text);"
        "insert into t select i, 'v' || i from generate_series(1, 1000) i",
        "create table t (id integer primary key, v text unique)",
        "copy: [t]",
    )
    filling.old.execute("update t set v = 'free' where id = 990")
    filling.advance()  # the target has row 990, with a value that is about to move
    filling.old.execute("update t set v = 'other' where id = 990; update t set v = 'free' where id = 1")
    with filling.backfill(workers=1, **small(filling)):
        wait_for(lambda: filling.heartbeat.state == "waiting")
        assert str(filling.heartbeat.reason).startswith("chunks wait for the stream")
        assert filling.one("select count(*) from slackwater.quarantine", on="new") == 0
        with filling.streaming():
            filling.filled()
    filling.advance()
    filling.agrees()


def test_a_unique_value_that_two_rows_have_is_set_aside(make: Callable[[str, str, str], Filling]) -> None:
    filling = make(
        "create table t (id integer primary key, v text);"
        "insert into t select i, case when i in (40, 80) then 'same' else 'v' || i end from generate_series(1, 100) i",
        "create table t (id integer primary key, v text unique)",
        "copy: [t]",
    )
    with filling.streaming(), filling.backfill():
        filling.filled()
    rows = filling.new.execute("select key, sqlstate from slackwater.quarantine").fetchall()
    assert rows in ([({"id": "40"}, "23505")], [({"id": "80"}, "23505")])
    assert filling.one("select count(*) from app.t", on="new") == 99


def test_a_statement_afterwards_may_fill_what_no_mapping_writes(filling: Filling) -> None:
    filling.new.execute("alter table app.customer add slug text")
    fence.ensure(filling.new, MIGRATION, Side.NEW, 1, catalog.tables(filling.new, "app").values())
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        filling.new.execute("update app.customer set slug = 'x'")
    filling.old.execute("insert into customers values (5000, 'N', 'E', '')")
    after = ["update customer set slug = lower(name)"]
    with filling.backfill(after=after):
        filling.filled()
        wait_for(lambda: filling.one("select count(*) from app.customer where slug is not null", on="new") == 3001)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        filling.new.execute("update app.customer set slug = 'x'")
    filling.advance()
    filling.agrees()
    filling.new.execute("update slackwater.turn set open_turn = 1")
    with (
        pytest.raises(Halt, match="new is open to the application") as halt,
        filling.backfill(after=["update app.customer set slug = 'again'"]),
    ):
        wait_for(lambda: bool(filling._errors))
    assert "the statement under backfill.after" in halt.value.hint
    assert filling.one("select count(*) from app.customer where slug = 'again'", on="new") == 0


def test_indexes_that_were_left_for_later_are_built_once(filling: Filling) -> None:
    after = [
        "create index customer_email on customer (email)",
        "create unique index concurrently if not exists orders_no on app.orders using btree (no)",
        "insert into notes.done values (-1)",
    ]
    filling.new.execute("create schema notes; create table notes.done (n integer)")  # what is not new's is not fenced
    # One that was interrupted: PostgreSQL leaves it behind, invalid.
    filling.new.execute("create index customer_email on app.customer (email)")
    filling.new.execute("update pg_index set indisvalid = false where indexrelid = 'app.customer_email'::regclass")
    with filling.streaming(), filling.backfill(after=after):
        filling.filled()
        wait_for(lambda: filling.one("select count(*) from notes.done", on="new") == 1)
    with filling.backfill(after=after):
        wait_for(lambda: filling.heartbeat.reason == "everything is loaded")
    valid = filling.new.execute(
        "select c.relname, i.indisvalid, i.indisunique from pg_index i join pg_class c on c.oid = i.indexrelid"
        " where c.relname in ('customer_email', 'orders_no') order by 1"
    ).fetchall()
    assert valid == [("customer_email", True, False), ("orders_no", True, True)]
    assert filling.one("select count(*) from notes.done", on="new") == 1  # once
    journal = filling.new.execute("select count(*) from slackwater.journal where step = 'backfill.after'").fetchone()
    assert journal == (3,)
    assert (
        filling.one("select reltuples from pg_class where oid = 'app.customer'::regclass", on="new") == 3000
    )  # ANALYZE


def test_a_chunk_far_larger_than_planned_is_split(make: Callable[[str, str, str], Filling]) -> None:
    """Statistics that say small rows, and a stretch of the table that holds large ones."""
    filling = make(
        "create table t (id integer primary key, v text); insert into t select i, 'v' from generate_series(1, 400) i;"
        "analyze t; update t set v = repeat('0123456789', 2000) where id > 200",
        "create table t (id integer primary key, v text)",
        "copy: [t]",
    )
    filling.new.execute("update slackwater.load set rows_estimate = 400, bytes_estimate = 8000")
    with filling.backfill(chunk_bytes=16384):
        filling.filled()
    filling.agrees()
    assert max(c[4] for c in chunks(filling, "t")[1:]) < 200
    # 200 chunks of one row: where the server compiles a statement of each, they take a minute.
    assert filling.engine.conn.execute("show jit").fetchone() == ("off",)


def test_keys_without_operators_in_pg_catalog_go_by_hash(make: Callable[[str, str, str], Filling]) -> None:
    filling = make(
        "create type pair as (a integer, b text); create table t (k pair primary key, v text);"
        'create domain code as text; create table d (k code collate "C" primary key, v text);'
        "create type mood as enum ('sad', 'ok'); create table e (k mood, n integer, primary key (k, n));"
        "insert into t select row(i, 'x')::pair, 'v' from generate_series(1, 500) i;"
        "insert into d select 'c' || i, 'v' from generate_series(1, 500) i;"
        "insert into e select (case when i % 2 = 0 then 'ok' else 'sad' end)::mood, i from generate_series(1, 500) i",
        "create type pair as (a integer, b text); create table t (k text primary key, v text);"
        "create table d (k text primary key, v text); create table e (k text, n integer, primary key (k, n))",
        "copy: [d]\ntables:\n  - {to: t, from: t, set: {k: 'k::text'}}\n  - {to: e, from: e, set: {k: 'k::text'}}",
    )
    with filling.backfill(chunk_bytes=4096):
        filling.filled()
    filling.agrees()
    assert {c[0] for c in chunks(filling, "t")} == {"bucket"}
    assert len(chunks(filling, "t")) > 2
    assert {c[0] for c in chunks(filling, "d")} == {c[0] for c in chunks(filling, "e")} == {"range"}
    assert len(chunks(filling, "e")) > 2


def test_partitions_and_children(make: Callable[[str, str, str], Filling]) -> None:
    filling = make(
        "create table p (id integer, at date, primary key (id, at)) partition by range (at);"
        "create table p1 partition of p for values from (minvalue) to ('2020-01-01');"
        "create table p2 partition of p for values from ('2020-01-01') to (maxvalue);"
        "insert into p select i, date '2019-01-01' + i from generate_series(1, 800) i;"
        "create table c (id integer primary key, v text); create table child () inherits (c);"
        "insert into c values (1, 'own'); insert into child values (2, 'not ours')",
        "create table p (id integer, at date, primary key (id, at)); create table c (id integer primary key, v text)",
        "copy: [p, c]\nexclude: [child]",
    )
    with filling.backfill(chunk_bytes=4096):
        filling.filled()
    assert filling.one("select count(*) from app.p", on="new") == 800
    assert filling.one("select array_agg(v) from app.c", on="new") == ["own"]


def test_a_mapping_over_mirrors_sleeps_until_they_are_complete(make: Callable[[str, str, str], Filling]) -> None:
    select = (
        "select u.id, u.n, sum(o.v) as total, count(o.id) as n_o from u left join o on o.u = u.id group by u.id, u.n"
    )
    filling = make(
        "create table u (id integer primary key, n text);"
        "create table o (id integer primary key, u integer, v numeric);"
        "insert into u select i, 'n' || i from generate_series(1, 200) i;"
        "insert into o select i, i % 200 + 1, i from generate_series(1, 1000) i;"
        "alter table o replica identity full",
        "create table s (id integer primary key, n text, total numeric, n_o bigint)",
        f"tables:\n  - to: s\n    select: {select}\n    feeds: {{u: id, o: u}}",
    )
    assert filling.rows()["s"].state == "asleep"
    with filling.backfill(**small(filling)):
        wait_for(lambda: {r.state for n, r in filling.rows().items() if n != "s"} == {"done"})
        wait_for(lambda: filling.heartbeat.reason == "the stream has yet to pass the mirrors' newest chunks")
        filling.old.execute("update o set v = v + 1 where id < 50; delete from u where id = 7")
        with filling.streaming():
            filling.filled()
            filling.old.execute("update u set n = 'new' where id = 3; insert into o values (5000, 3, 1)")
    filling.advance()
    filling.agrees()


def test_rows_that_could_not_be_carried_are_read_again(filling: Filling) -> None:
    """What the engine asks for in `slackwater.reread` is read under the rule of every chunk."""
    with filling.backfill(**small(filling)):
        filling.filled()
        filling.new.execute("update app.customer set name = 'wrong' where id in (5, 6)")
        filling.new.execute("insert into app.customer values (999999, 'not there')")
        filling.new.execute(
            "insert into slackwater.reread (migration, direction, load, source, key, reason) select %s, 'forward',"
            " 'customer', 'customers', jsonb_build_object('id', i), 'test' from unnest(array['5', '6', '999999']) i",
            (MIGRATION,),
        )
        wait_for(lambda: not filling.rereads())
    filling.agrees()
