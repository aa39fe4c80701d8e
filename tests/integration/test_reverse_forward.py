"""reverse . forward = identity, for all that is declared lossless: every form, over values chosen to break it.

The rows really are written into new's column and back into old's, by assignment, as the engine does it; what a column
refuses is not lost, for it never gets there in silence.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import psycopg
import pytest
from sqlglot import exp

from connectors.postgres import session
from connectors.postgres.session import Connection
from schemas.constants import NoWay
from schemas.inverse import invert
from schemas.sql_text import parse
from schemas.table import Column
from tests.fixtures.databases import fresh_database

NUMBERS = ["0", "1", "-1", "2", "7", "100", "-32768", "32767", "999", "12345"]
LARGE = [*NUMBERS, "2147483647", "-2147483648"]
HUGE = [*LARGE, "9223372036854775807", "-9223372036854775808", "9007199254740993", "12345678901234567"]
DIGITS = [*LARGE, "0.1", "0.10", "1.00", "1.005", "-0.005", "123456.789", "'NaN'", "1e20"]
TEXTS = ["''", "' '", "'a'", "'A'", "'a '", "' a'", "'Y'", "'y'", "'N'", "'x'", "'1'", "'01'", "'true'", "'2026-01-31'"]
TEXTS += ["'31.01.2026'", "'Ünïcode'", "'C-1'", "'C-'", "'a much longer text than most columns would hold'", "'good'"]
DATES = [
    "'2026-01-31'",
    "'0001-01-01'",
    "'9999-12-31'",
    "'10000-01-01'",
    "'0044-03-15 BC'",
    "'infinity'",
    "'-infinity'",
]
MOMENTS = [f"{d[:-1]} 02:30:00.123456'" for d in ("'2026-03-29'", "'2026-10-25'", "'1893-04-01'", "'0001-01-01'")]
MOMENTS += ["'2026-01-01'", "'infinity'", "'-infinity'", "'2026-10-25 01:30:00'"]
VALUES = {
    "smallint": NUMBERS, "integer": LARGE, "bigint": HUGE, "numeric": DIGITS, "numeric(12,2)": DIGITS,
    "numeric(5,0)": DIGITS, "real": [*DIGITS, "'-0'"], "double precision": [*DIGITS, "'-0'", "1e-300", "'Infinity'"],
    "boolean": ["true", "false"], "text": TEXTS, "character varying(10)": TEXTS, "character(4)": TEXTS, "date": DATES,
    "timestamp without time zone": MOMENTS, "timestamp with time zone": MOMENTS,
    "timestamp(0) without time zone": MOMENTS,
    "uuid": ["'00000000-0000-0000-0000-00000000000A'"], "json": ["'{\"a\":  1, \"a\": 2}'", "'1.0'"],
    "jsonb": ["'{\"b\": 1.0, \"a\": []}'"], "bytea": ["'\\x00ff'", "''"], "app.mood": ["'good'", "'bad'"],
}  # fmt: skip
EXPRESSIONS = [
    "a", "-a", "not a", "a + 7", "a - 7", "100 - a", "a * 3", "a * 100", "a * 0.01", "a / 100", "a / 100.0", "a / 3.0",
    "a + 0.5", "7 + a", "(a * 2)", "a::text", "a::integer", "a::bigint", "a::numeric", "a::numeric(12, 2)",
    "a::double precision", "a::real", "a::boolean", "a::date", "a::timestamp", "a::timestamptz", "a::jsonb",
    "a::text::app.mood", "a::varchar(3)", "a::char(4)", "a::integer::text", "a::text::integer",
    "coalesce(a, '1')", "coalesce(a, 0)", "nullif(a, '')", "lower(a)", "upper(a)", "trim(a)", "rtrim(a)", "round(a)",
    "round(a, 1)", "trunc(a)", "floor(a)", "left(a, 3)", "'C-' || a", "a || '!'", "'<' || a || '>'", "'n' || a::text",
    "concat('C-', a)", "to_date(a, 'YYYY-MM-DD')", "to_date(a, 'DD.MM.YYYY')", "to_char(a, 'YYYY-MM-DD')",
    "to_char(a, 'YYYYMMDD')", "a at time zone 'UTC'", "a at time zone 'Europe/Berlin'",
    "case a when 1 then 'x' when 2 then 'y' end", "case a when 'Y' then true when 'N' then false end",
    "case when a then 'Y' else 'N' end", "case a when true then 1 when false then 0 end",
    "case when a = 'Y' then 'good' when a = 'N' then 'bad' end", "case a when 'good' then 1 when 'bad' then 2 end",
    "case a when 'a' then 'A' when 'A' then 'B' end", "case a when 1 then 10 when 2 then 20 else 30 end",
    "case when not a then 'n' else 'y' end", "case a when 1.0 then 'one' when 0.1 then 'tenth' end",
]  # fmt: skip


@pytest.fixture(scope="module")
def conn(postgres_dsn: str) -> Iterator[Connection]:
    with fresh_database(postgres_dsn, "old") as dsn, session.connect(dsn) as conn:
        conn.execute("create schema app")
        conn.execute("create type app.mood as enum ('good', 'bad')")
        yield conn


def column(name: str, full: str, *, not_null: bool = False) -> Column:
    bare = full.partition("(")[0] + full.partition(")")[2]
    return Column(
        name=name,
        type_oid=0,
        type="bpchar" if bare == "character" else bare,
        type_full=full,
        type_kind="e" if full.startswith("app.") else "b",
        not_null=not_null,
    )


def parsed(expression: str) -> exp.Expr:
    query = parse(f"select {expression} as b from o").query
    assert query is not None
    return query.selects[0].unalias()


def derived(node: exp.Expr, old: Column, new: Column) -> str | None:
    """The SELECT that brings `o.a` back, where it is called lossless."""
    try:
        inverse = invert(node, new, "b", lambda _: old)
    except NoWay:
        return None
    return None if inverse.loses else f"select id, {inverse.sql} as a from n"


def test_what_is_called_lossless_comes_back_as_it_was(conn: Connection) -> None:
    judged, wrong = 0, []
    for expression in EXPRESSIONS:
        node = parsed(expression)
        for old_type, new_type, strict in itertools.product(VALUES, VALUES, (False, True)):
            old, new = column("a", old_type, not_null=strict), column("b", new_type, not_null=strict)
            back = derived(node, old, new)
            lost = None if back is None else differing(conn, expression, old, new, back)
            judged += lost is not None
            if lost:
                wrong.append(f"{expression}: {old_type} -> {new_type} by {back}: {'; '.join(lost[:3])}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong[:60])
    assert judged > 1000


def differing(conn: Connection, expression: str, old: Column, new: Column, back: str) -> list[str] | None:
    """Values that came back otherwise; None where PostgreSQL does not take the expression at all."""
    text = "::" + new.type if new.type_kind == "e" else ""
    forward = f"insert into n select id, ({expression}){text} from pg_temp.o"
    returning = f"insert into r select q.id, q.a{_cast(old)} from (\n{back}\n) q"
    lost: list[str] = []
    values = filled(conn, old)
    with conn.transaction(force_rollback=True):
        for name, c, this in (("n", new, "b"), ("r", old, "a")):
            null = "not null" if c.not_null else ""
            conn.execute(f"create temp table {name} (id integer primary key, {this} {c.type_full} {null})".encode())
        conn.execute(f"create temp table o as select * from {values}".encode())
        if old.not_null:
            conn.execute("delete from pg_temp.o where a is null")
        if not ran(conn, f"{forward} where false"):
            return None
        if not ran(conn, forward):
            rows = conn.execute("select id from pg_temp.o").fetchall()
            for (n,) in rows:  # what new's column refuses does not get there
                ran(conn, f"{forward} where id = {n}")
        if not ran(conn, returning.replace("from n", "from pg_temp.n")):
            there = conn.execute("select count(*) from pg_temp.n").fetchone()
            lost += ["the way back is refused"] if there != (0,) else []
        lost += [
            f"{a!r} came back as {b!r}"
            for a, b in conn.execute(
                "select o.a::text, r.a::text from pg_temp.o join pg_temp.n using (id) left join pg_temp.r using (id)"
                " where row(o.a)::record operator(pg_catalog.*<>) row(r.a)::record"
            ).fetchall()
        ]
    return lost


def filled(conn: Connection, old: Column) -> str:
    """A table of the column's values, made once: those that its type takes, and NULL."""
    name = "pg_temp.values_" + re.sub(r"\W+", "_", old.type_full)
    if conn.execute("select to_regclass(%s)", (name,)).fetchone() != (None,):
        return name
    conn.execute(f"create temp table {name.partition('.')[2]} (id integer, a {old.type_full})".encode())
    for n, value in enumerate([*VALUES[old.type_full], "null"]):
        ran(conn, f"insert into {name} values ({n}, {value})")
    return name


def ran(conn: Connection, statement: str) -> bool:
    try:
        with conn.transaction():
            conn.execute(statement.encode())
    except psycopg.Error:
        return False
    return True


def _cast(old: Column) -> str:
    """What the engine puts where text meets a column that is not text."""
    return f"::{old.type}" if old.type_kind == "e" or old.type in ("json", "jsonb", "uuid", "bytea", "boolean") else ""
