"""Hazard J5, as far as the catalogs tell: every form of ALTER that can move values, or their text, is seen and named;
what moves nothing is not called a change; and a look costs next to nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from connectors.postgres import fingerprint, session
from connectors.postgres.session import Connection
from schemas.fingerprint import Kind, Parts, compare
from tests.fixtures.databases import fresh_database, major

DDL = """
create schema s;
create type s.mood as enum ('sad', 'ok');
create type s.addr as (street text, n int);
create type s.deep as (a s.addr, moods s.mood[]);
create domain s.feeling as s.mood;
create domain s.amount as numeric(10, 4);
create collation s.odd (locale = 'C');
create table s.t (
  id int primary key, v text, w text, n numeric(10, 4), c varchar(20), a text collate s.odd, f s.feeling, d s.deep,
  m s.amount, k int not null default 7
);
insert into s.t values (1, 'v', 'w', 1.2345, 'c', 'a', 'sad', row(row('x', 1), '{ok}'), 2.5);
alter table s.t add column fresh text default 'later';
create table s.p (id int primary key, v text) partition by range (id);
create table s.p1 partition of s.p for values from (0) to (100);
create table s.p2 partition of s.p for values from (100) to (200);
insert into s.p values (1, 'x'), (101, 'y');
create table s.apart (like s.p including all);
create unlogged table s.apart_unlogged (like s.p including all);
create publication pub for table s.t, s.p with (publish_via_partition_root = true);
"""
USED = {
    "t": {"id", "v", "w", "n", "c", "a", "f", "d", "m", "fresh"},
    "p": {"id", "v"},
}

# (what is done, the kind, what its cause says); None: nothing that matters
FORMS: list[tuple[str, Kind | None, str]] = [
    # the rewriting forms of ALTER COLUMN
    ("alter table s.t alter v type text using upper(v)", Kind.VALUES, "column v of t was rewritten"),
    ("alter table s.t alter n type numeric(10, 4) using n * 2", Kind.VALUES, "column n of t was rewritten"),
    ("alter table s.t alter n type numeric(10, 2)", Kind.VALUES, "n of t was rewritten with another length or prec"),
    ("alter table s.t alter c type varchar(5)", Kind.VALUES, "c of t was rewritten with another length"),
    ("alter table s.t alter c type varchar(40)", None, ""),
    ("alter table s.t alter c type text", Kind.SHAPE, "column c of t has another type"),
    ("alter table s.t alter id type bigint", Kind.SHAPE, "column id of t has another type"),
    ('alter table s.t alter v type text collate "C"', Kind.VALUES, "column v of t was altered"),
    ("alter table s.p alter v type text using upper(v)", Kind.VALUES, "column v of p was rewritten"),
    # columns that go, come and change places
    (
        "alter table s.t drop v; alter table s.t add v text default 'x'",
        Kind.VALUES,
        "v of t was dropped and added anew",
    ),
    ("alter table s.t drop v", Kind.SHAPE, "column v of t was dropped"),
    ("alter table s.t drop k", None, ""),
    ("alter table s.t rename v to x", Kind.SHAPE, "column v of t was renamed to x"),
    (
        "alter table s.t rename v to x; alter table s.t rename w to v; alter table s.t rename x to w",
        Kind.VALUES,
        "replaced by another one under its name",
    ),
    ("alter table s.t rename k to kk", None, ""),
    ("alter table s.t add extra text", None, ""),
    ("alter table s.t add extra text default 'x'", None, ""),
    ("alter table s.t add extra uuid default gen_random_uuid()", Kind.FILE, "t was rewritten, value for value"),
    ("alter table s.t add g text generated always as (v || w) stored", Kind.FILE, "t was rewritten"),
    # types
    ("alter type s.mood rename value 'sad' to 'gloomy'", Kind.VALUES, "a label of type s.mood, which t uses"),
    ("alter type s.mood add value 'fine' before 'ok'", None, ""),
    ("alter type s.mood rename to humour", Kind.SHAPE, "type s.mood, which t uses, was renamed to s.humour"),
    ("alter type s.addr add attribute zip text", Kind.VALUES, "composite type s.addr"),
    ("alter type s.addr drop attribute n", Kind.VALUES, "composite type s.addr"),
    ("alter type s.deep add attribute x int cascade", Kind.VALUES, "composite type s.deep"),
    ("alter type s.addr rename attribute n to nr", None, ""),
    ("alter domain s.feeling add constraint one check (value <> 'ok')", None, ""),
    ("alter domain s.amount set default 3", None, ""),
    (
        "set local allow_system_table_mods = on; update pg_collation set collversion = '1' where collname = 'odd'",
        Kind.VALUES,
        "collation odd, which t uses, has another version",
    ),
    # files
    ("vacuum full s.t", Kind.FILE, "t was rewritten, value for value"),
    ("cluster s.t using t_pkey", Kind.FILE, "t was rewritten, value for value"),
    ("truncate s.t", Kind.FILE, "t was rewritten, value for value"),
    ("truncate s.p2", Kind.FILE, "p was rewritten, value for value"),
    ("vacuum full s.p1", Kind.FILE, "p was rewritten, value for value"),
    # persistence
    ("alter table s.p2 set unlogged", Kind.LOST, "partition s.p2 of p is unlogged: its changes are in no stream"),
    ("alter publication pub drop table s.t; alter table s.t set unlogged", Kind.LOST, "t is unlogged"),
    ("alter table s.p2 set unlogged; alter table s.p2 set logged", Kind.FILE, "p was rewritten, value for value"),
    # partitions
    ("alter table s.p detach partition s.p2", Kind.VALUES, "partition s.p2 of p was detached or dropped"),
    ("drop table s.p2", Kind.VALUES, "partition s.p2 of p was detached or dropped"),
    (
        "alter table s.p attach partition s.apart for values from (200) to (300)",
        Kind.VALUES,
        "partition s.apart was attached to p",
    ),
    (
        "alter table s.p attach partition s.apart_unlogged for values from (200) to (300)",
        Kind.LOST,
        "partition s.apart_unlogged of p is unlogged",
    ),
    (
        "alter table s.p detach partition s.p2; alter table s.p attach partition s.p2 for values from (100) to (200)",
        Kind.VALUES,
        "partition s.p2 was detached from p and attached again",
    ),
    ("create table s.p3 partition of s.p for values from (200) to (300)", None, ""),
    (
        "alter table s.p alter v set default 'x'; create table s.p3 partition of s.p for values from (200) to (300)",
        None,
        "",
    ),
    (
        (
            "create table s.p3 partition of s.p for values from (200) to (300) partition by range (id);"
            " create table s.p3a partition of s.p3 for values from (200) to (250)"
        ),
        None,
        "",
    ),
    (
        (
            "create table s.p3 (id int not null, v text); insert into s.p3 values (250, 'x');"
            " alter table s.p attach partition s.p3 for values from (200) to (300)"
        ),
        Kind.VALUES,
        "partition s.p3 was attached to p",
    ),
    (
        (
            "create table s.p3 as select 250 as id, 'x'::text as v; alter table s.p3 alter id set not null;"
            " alter table s.p attach partition s.p3 for values from (200) to (300)"
        ),
        Kind.VALUES,
        "partition s.p3 was attached to p",
    ),
    ("create unlogged table s.p3 partition of s.p for values from (200) to (300)", Kind.LOST, "s.p3 of p is unlogged"),
    # the table itself
    ("drop table s.t", Kind.LOST, "t was dropped or renamed"),
    ("alter table s.t rename to t_old", Kind.LOST, "t was dropped or renamed"),
    ("alter table s.t set schema public", Kind.LOST, "t was dropped or renamed"),
    (
        "create table s.t_load (like s.t including all); drop table s.t; alter table s.t_load rename to t",
        Kind.LOST,
        "t was replaced: another table has taken its name",
    ),
    ("alter publication pub drop table s.t", Kind.LOST, "t has left the publication"),
    (
        "alter publication pub drop table s.t; alter publication pub add table s.t",
        Kind.LOST,
        "t left the publication and got it back",
    ),
    # what moves nothing
    ("analyze s.t; vacuum s.t", None, ""),
    ("alter table s.t alter v set statistics 500", None, ""),
    ("alter table s.t alter v set storage external", None, ""),
    ("alter table s.t alter v set default 'x'", None, ""),
    ("alter table s.t alter v set not null", None, ""),
    ("alter table s.t add constraint positive check (n > 0)", None, ""),
    ("comment on column s.t.v is 'x'", None, ""),
    ("grant select on s.t to public", None, ""),
    ("create index on s.t (v)", None, ""),
    ("alter table s.t set (fillfactor = 70)", None, ""),
    ("alter table s.t replica identity full", None, ""),
    ("update s.t set v = 'y'", None, ""),
    ("alter table s.t disable trigger all", None, ""),
]


def read(conn: Connection) -> dict[str, Parts]:
    return fingerprint.read(conn, "s", USED, "pub")[0]


@pytest.fixture(scope="module")
def shared(postgres_dsn: str) -> Iterator[str]:
    """One database for every form: each is rolled back."""
    with fresh_database(postgres_dsn, "fp") as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            for statement in DDL.split(";\n"):
                conn.execute(statement.encode())
        yield dsn


@pytest.mark.parametrize(("form", "kind", "cause"), FORMS, ids=[form[:60] for form, _, _ in FORMS])
def test_each_form_is_seen_and_named(shared: str, form: str, kind: Kind | None, cause: str) -> None:
    with session.connect(shared) as conn:
        before, glance, seen, _ = fingerprint.survey(conn, "s", USED, "pub")
        assert glance.take(conn)[0] == seen
        assert {t: Parts.of(json.loads(json.dumps(p.document()))) for t, p in before.items()} == before
        if "vacuum" not in form:
            conn.execute("begin")
        for statement in form.split("; "):
            conn.execute(statement.encode())
        now = read(conn)
        changed = glance.take(conn)[0] != seen
        if "vacuum" not in form:
            conn.execute("rollback")
    found = [compare(t, before[t], now.get(t), used=used, source=True) for t, used in USED.items()]
    kinds = [(change.kind, change.cause) for change in found if change is not None]
    if kind is None:
        assert kinds == []
        return
    assert changed, "a glance has to differ where anything does"
    ((seen_kind, said),) = kinds
    assert (seen_kind, cause in said) == (kind, True), said


def test_defaults_that_are_written_out_are_no_change_of_a_column(make_database: Callable[[str], str]) -> None:
    """VACUUM FULL writes them out, and the catalog forgets that they were missing: no value moved."""
    dsn = make_database("fp")
    with session.connect(dsn) as conn:
        for statement in DDL.split(";\n"):
            conn.execute(statement.encode())
        before = read(conn)
        assert any(column.missing for column in before["t"].columns.values())
        conn.execute("vacuum full s.t")
        change = compare("t", before["t"], read(conn)["t"], used=USED["t"], source=True)
    assert change is not None
    assert change.kind is Kind.FILE


def test_an_extension_that_is_updated_is_named(make_database: Callable[[str], str]) -> None:
    with session.connect(make_database("fp")) as conn:
        conn.execute("create schema s; create publication pub")
        try:
            conn.execute("create extension citext schema s version '1.4'")
        except psycopg.Error:
            pytest.skip("this server has no citext that can be updated")
        conn.execute("create table s.t (id int primary key, v s.citext); create table s.u (id int primary key)")
        used = {"t": {"id", "v"}, "u": {"id"}}
        before, glance, seen, _ = fingerprint.survey(conn, "s", used, "pub")
        conn.execute("alter extension citext update to '1.6'")
        assert glance.take(conn)[0] != seen
        now = fingerprint.read(conn, "s", used, "pub")[0]
    change = compare("t", before["t"], now["t"], used=used["t"], source=True)
    assert change is not None
    assert change.kind is Kind.VALUES
    assert "extension citext 1.4, whose type t uses, is another version now" in change.cause
    assert compare("u", before["u"], now["u"], used=used["u"], source=True) is None


def test_a_virtual_column_may_come(shared: str) -> None:
    if major(shared) < 18:
        pytest.skip("virtual generated columns came with 18")
    with session.connect(shared) as conn:
        before = read(conn)
        conn.execute("begin; alter table s.t add g text generated always as (v || w) virtual")
        assert compare("t", before["t"], read(conn)["t"], used=USED["t"], source=True) is None
        conn.execute("rollback")


def test_a_look_at_a_thousand_tables_costs_a_hundredth_of_a_core(make_database: Callable[[str], str]) -> None:
    """At one look a second: 10 ms of the server's CPU. Four times that is allowed here, for slower machines."""
    dsn = make_database("fp")
    columns = ", ".join(f"c{n} text" for n in range(9))
    names = [f"t{n}" for n in range(1000)]
    with session.connect(dsn, settings={"jit": "off"}) as conn:
        with conn.transaction():
            conn.execute("create schema s")
            for name in names:
                conn.execute(f"create table s.{name} (id bigint primary key, {columns})".encode())
            conn.execute(f"create publication pub for table {', '.join(f's.{name}' for name in names)}".encode())
        conn.execute("analyze")
        parts, glance, seen, _ = fingerprint.survey(conn, "s", names, "pub")
        assert len(parts) == 1000
        backend = Path(f"/proc/{conn.info.backend_pid}/stat")
        if not backend.exists() or conn.info.host not in ("127.0.0.1", "localhost"):
            pytest.skip("the server runs elsewhere: its CPU cannot be read")
        looks = 50
        for _ in range(10):
            assert glance.take(conn)[0] == seen
        before, mine = _cpu_s(backend), time.process_time()
        for _ in range(looks):
            glance.take(conn)
        theirs, ours = _cpu_s(backend) - before, time.process_time() - mine
    print(f"a glance at 1,000 tables: {1000 * theirs / looks:.1f} ms on the server, {1000 * ours / looks:.1f} ms here")
    assert (theirs + ours) / looks < 0.040


def _cpu_s(stat: Path) -> float:
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
