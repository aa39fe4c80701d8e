"""Verification where the world is not as it was when the migration was prepared: an answer, and never a clean one."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from connectors.postgres import catalog
from connectors.postgres.session import connect
from connectors.postgres.target import Target
from schemas.digest import held
from schemas.direction import Direction
from schemas.resolve import resolve
from stream.verify import judge, queries
from stream.verify.sweep import Sweep
from stream.verify.verdicts import Verdict
from tests.fixtures.databases import Databases, drop_database, fresh_database, with_database
from tests.fixtures.filling import Filling
from tests.fixtures.tape import MIGRATION
from tests.fixtures.verifying import corrupt, found, swept, task, verdict

OLD = """
create function shout(text) returns text language sql immutable return upper($1);
create table customers (id integer primary key, nm text);
insert into customers select i, 'name ' || i from generate_series(1, 1200) i;
create table products (sku text primary key, tags text not null);
insert into products select 's' || i, array_to_string((array['a', 'b', 'c'])[1 + i % 2 : 1 + i % 3], ',')
  from generate_series(1, 60) i;
create table users (id integer primary key, login text not null);
insert into users select i, 'l' || i from generate_series(1, 50) i;
create table profiles (user_id integer primary key, bio text);
insert into profiles select i, 'b' || i from generate_series(1, 50, 2) i;
"""
NEW = """
create function public.shout(text) returns text language sql immutable return upper($1);
create table customer (id integer primary key, nm text);
create table tag (sku text, tag text, primary key (sku, tag));
create table account (id integer primary key, login text, bio text);
"""
MAPPING = """
tables:
  - {to: customer, select: "select id, public.shout(nm) as nm from customers where id <> 13"}
  - to: tag
    key: [sku, tag]
    select: >
      select p.sku, t.tag from products p
      cross join lateral unnest(string_to_array(public.shout(p.tags), ',')) as t(tag)
  - {to: account, select: "select u.id, public.shout(u.login) as login, p.bio from users u
     left join profiles p on p.user_id = u.id"}
"""


@pytest.fixture
def loaded(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Filling]:
    monkeypatch.setattr(queries, "CHUNK_ROWS", 500)
    made = Filling(databases, OLD, NEW, MAPPING)
    try:
        with made.streaming(), made.backfill():
            made.filled()
        yield made
    finally:
        made.close()


def test_a_function_that_the_source_lacks(loaded: Filling) -> None:
    """The comparison goes on without it: each row is judged on the target, which has it."""
    loaded.unlike = "the source cannot compute it"
    loaded.old.execute("drop function public.shout")
    with loaded.streaming():
        tallies = swept(loaded)
        assert found(tallies) == {}
        assert {name: t.rows for name, t in tallies.items()} == {"customer": 1199, "tag": 90, "account": 50}
        assert verdict(loaded).state is Verdict.CLEAN
        corrupt(
            loaded,
            "update app.customer set nm = lower(nm) where id = 700; delete from app.customer where id = 1200;"
            " insert into app.customer values (13, 'x'); delete from app.tag where (sku, tag) = ('s2', 'B');"
            " insert into app.tag values ('s2', 'Z'), ('zz', 'Z'); update app.account set login = 'l1' where id = 1",
        )
        assert found(swept(loaded)) == {
            "customer": [("different", ("700",), ("nm",)), ("extra", ("13",), ()), ("missing", ("1200",), ())],
            "tag": [("extra", ("s2", "Z"), ()), ("extra", ("zz", "Z"), ()), ("missing", ("s2", "B"), ())],
            "account": [("different", ("1",), ("login",))],
        }


def test_a_table_that_goes_under_the_pass(loaded: Filling) -> None:
    for dsn, table in (
        (loaded.databases.old, "public.customers"),
        (loaded.databases.new, "app.customer"),
    ):
        with connect(dsn) as conn, loaded.streaming():
            gone: list[int] = []

            def go(rows: int, conn: psycopg.Connection = conn, table: str = table, gone: list[int] = gone) -> None:
                if not gone:
                    conn.execute(f"alter table {table} rename to gone".encode())
                gone.append(rows)

            one = task(loaded, workers=1)
            tallies = dict(Sweep(one, throttle=None, only=["customer"], resume=False, count=go).run(threading.Event()))
            assert tallies["customer"].problem is not None, table
            assert verdict(loaded).tables["customer"].state in (Verdict.RUNNING, Verdict.PENDING)
            conn.execute(f"alter table {table.partition('.')[0]}.gone rename to {table.partition('.')[2]}".encode())


def test_timeouts_of_the_role_do_not_count(loaded: Filling) -> None:
    for dsn in loaded.databases:
        with connect(dsn) as conn:
            (name,) = conn.execute("select quote_ident(current_database())").fetchone() or ("",)
            for setting in ("statement_timeout = '1ms'", "lock_timeout = '1ms'", "row_security = on"):
                conn.execute(f"alter database {name} set {setting}".encode())
    with loaded.streaming():
        assert found(swept(loaded)) == {}
    assert verdict(loaded).state is Verdict.CLEAN


def test_a_row_that_waits_to_be_read_again_is_no_mismatch(loaded: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(loaded, "delete from app.customer where id = 5", "delete from app.account where id = 7")
    Target(loaded.new, MIGRATION, Direction.FORWARD).ask_reread("customer", "customers", [{"id": "5"}], "a test")
    monkeypatch.setattr(judge, "ROUNDS", 12)
    with loaded.streaming():
        tallies = swept(loaded)
        assert "wait to be read again" in str(tallies["customer"].problem)
        assert tallies["customer"].total == 0
        assert verdict(loaded).tables["customer"].state is not Verdict.CLEAN
        assert [f.key for f in tallies["account"].found] == [("7",)]  # the queue of one table is not another's
        monkeypatch.setattr(judge, "ROUNDS", 40)
        with loaded.backfill():
            assert found(swept(loaded, only=["customer"])) == {}


def test_servers_that_do_not_agree_on_letters(postgres_dsn: str) -> None:
    """The old database knows the letters of ASCII alone; what counts is what the stream makes of them, on new."""
    old = f"old_{secrets.token_hex(5)}"
    with psycopg.connect(postgres_dsn, autocommit=True) as conn:
        conn.execute(
            sql.SQL("create database {} template template0 encoding 'UTF8' locale 'C'").format(sql.Identifier(old))
        )
    try:
        with fresh_database(postgres_dsn, "new") as new:
            made = Filling(
                Databases(old=with_database(postgres_dsn, old), new=new),
                "create table people (email text primary key, nm text); insert into people select 'I' || i, 'IĞ' || i"
                " from generate_series(1, 300) i; create table towns (id integer primary key, nm text);"
                " insert into towns select i, 'IĞ' || i from generate_series(1, 300) i",
                "create table person (email text primary key, nm text);"
                " create table town (id integer primary key, nm text)",
                "tables: [{to: person, from: people, set: {nm: lower(nm)}},"
                " {to: town, from: towns, set: {nm: lower(nm)}}]\n",
            )
            try:
                assert made.one("select lower('Ğ')") != made.one("select lower('Ğ')", on="new")
                with made.streaming(), made.backfill():
                    made.filled()
                with made.streaming():
                    assert found(swept(made)) == {}
                    corrupt(made, "update app.town set nm = 'x' where id = 9")
                    assert found(swept(made)) == {"town": [("different", ("9",), ("nm",))]}
            finally:
                made.unlike = "the servers disagree"
                made.close()
    finally:
        drop_database(postgres_dsn, old)


def test_rows_that_a_join_leaves_out_are_not_spoken_of(databases: Databases) -> None:
    """Old rows of which the forward mapping makes nothing are not extra in the eyes of the way back."""
    made = Filling(
        databases,
        "create table users (id integer primary key, login text not null);"
        " create table profiles (user_id integer primary key, bio text not null);"
        " insert into users select i, 'l' || i from generate_series(1, 9) i;"
        " insert into profiles values (3, 'x'), (4, 'y'), (99, 'z')",
        "create table account (id integer primary key, login text not null, bio text not null)",
        'tables: [{to: account, select: "select u.id, u.login, p.bio from users u join profiles p on p.user_id = u.id'
        " where u.login <> 'l4'\"}]\n",
    )
    try:
        olds, news = catalog.tables(made.old, "public"), catalog.tables(made.new, "app")
        back = resolve(made.spec, Direction.REVERSE, news, olds)
        assert not back.problems
        meant = {}
        for mapping in back.mappings:
            rows = held(mapping, olds[mapping.target], {})
            meant[mapping.target] = made.old.execute(
                f"select {rows.keys[0]} from {rows.source} where {rows.where} order by 1".encode()
            ).fetchall()
        assert meant == {"users": [("3",)], "profiles": [("3",)]}
    finally:
        made.unlike = "nothing was loaded"
        made.close()
