"""Hazard J5, the code: a function that computes rows is replaced, and what it computed before is computed again."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from connectors.postgres import called_code, fingerprint, session
from schemas.fingerprint import Kind, Parts, compare
from tests.fixtures.databases import fresh_database
from tests.fixtures.plain import fresh_shop, program_on
from tests.fixtures.preparing import Shop

CODE = """
create schema lib;
create function lib.inner_(x text) returns text language sql immutable as $$ select upper(x) $$;
create function lib.label(x text) returns text language plpgsql immutable as
  $$ begin return '<' || lib.inner_(x) || '>'; end $$;
create function lib.joined_(x text, y text) returns text language sql immutable as $$ select x || y $$;
create operator lib.||| (leftarg = text, rightarg = text, function = lib.joined_);
create function lib.other(x text) returns text language sql immutable as $$ select x $$;
"""
OLD = f"""
create schema shop; {CODE}
create table shop.item (id int primary key, v text);
create table shop.plain (id int primary key, v text);
insert into shop.item select i, 'v' || i from generate_series(1, 200) i;
insert into shop.plain select i, 'v' || i from generate_series(1, 50) i;
"""
NEW = f"""
create schema app; {CODE}
create table app.item (id int primary key, label text);
create table app.plain (id int primary key, v text);
"""
TABLES = """
copy: [plain]
tables:
  - {to: item, select: "select id, lib.label(v) as label from item"}
reverse:
  - {to: item, select: "select id, lower(btrim(label, '<>')) as v from item"}
"""
INNER = "create or replace function lib.inner_(x text) returns text language sql immutable as $$ select {} $$"


def test_each_row_is_computed_again(postgres_dsn: str, bootstrap: str, tmp_path: Path) -> None:
    """Though the digests of both sides agree: old computes with a function of its own, which nobody has replaced."""
    with (
        fresh_shop(postgres_dsn, bootstrap, OLD, NEW) as made,
        program_on(made.with_(tables=TABLES), tmp_path) as program,
    ):
        program.streaming()
        program("verify")
        made.on_new("grant execute on function lib.inner_(text) to public")
        made.on_new("create or replace function lib.other(x text) returns text language sql immutable return x || x")
        made.on_new(INNER.format("reverse(x)"))
        program.until(lambda: "inner_(x text)" in causes(made), 60)
        program.until(lambda: not waiting(made), 120)
        assert made.on_new("select label from app.item where id = 17") == [("<71v>",)]
        assert made.on_new("select count(*) from app.item where label <> '<' || reverse('v' || id) || '>'") == [(0,)]
        assert "item" in causes(made)
        assert "other" not in causes(made)
        assert "plain" not in causes(made)
        program("verify")  # 0: clean, as new computes it
        gates = {gate["gate"]: gate["state"] for gate in program.status()["gates"]}
        assert gates["silent_changes"] == "passed"
        made.on_old(INNER.format("reverse(x)"))  # the oracle, which looks afterwards, computes on old


def causes(shop: Shop) -> str:
    return "\n".join(str(cause) for (cause,) in shop.on_new("select cause from slackwater.silent_change"))


def waiting(shop: Shop) -> list[object]:
    return [cause for (cause,) in shop.on_new("select cause from slackwater.silent_change where state <> 'done'")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (INNER.format("lower(x)"), "lib.inner_(x text), by which rows of t are computed, was replaced"),
        ("alter function lib.label(text) set search_path = lib", "function lib.label(x text)"),
        (
            "alter function lib.inner_(text) rename to gone",
            "lib.inner_(x text), by which rows of t are computed, was dro",
        ),
        (
            "create function lib.label(x varchar) returns text language sql immutable return 'better'",
            "function lib.label(x character varying), by which rows of t are computed, was added",
        ),
        (
            "create or replace function lib.joined_(x text, y text) returns text language sql immutable return y || x",
            "function lib.joined_(x text, y text), by which rows of t are computed, was replaced",
        ),
        ("create extension citext schema lib", ""),  # with a function of its own called replace()
        ("create or replace function lib.other(x text) returns text language sql immutable return 'o'", ""),
        ("alter function lib.label(text) cost 7", ""),
        ("grant execute on function lib.label(text) to public", ""),
    ],
)
def test_what_is_called_is_followed(postgres_dsn: str, change: str, said: str) -> None:
    calls = {"t": {"label", "coalesce", "replace", "|||", "="}}
    with fresh_database(postgres_dsn, "code") as dsn, session.connect(dsn) as conn:
        conn.execute(f"{CODE} create schema s; create table s.t (id int primary key, v text)".encode())
        before, _, seen, _ = fingerprint.survey(conn, "s", ["t"], "pub", calls)
        try:
            conn.execute(change.encode())
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this server has not got that extension")
        now, glance, _, _ = fingerprint.survey(conn, "s", ["t"], "pub", calls)
        change_ = compare("t", before["t"], now["t"], used={"id", "v"}, source=False)
        assert (said in change_.cause) if change_ is not None else not said
        assert change_ is None or change_.kind is Kind.CODE
        known = {"coalesce", "inner_", "joined_", "label", "replace"}
        assert known - set(glance.functions) <= {"inner_"}
        assert Parts.of(before["t"].document()) == before["t"]
        assert seen


def test_a_glance_sees_it(postgres_dsn: str) -> None:
    calls = {"t": {"label"}}
    with fresh_database(postgres_dsn, "code") as dsn, session.connect(dsn) as conn:
        conn.execute(f"{CODE} create schema s; create table s.t (id int primary key, v text)".encode())
        _, glance, seen, _ = fingerprint.survey(conn, "s", ["t"], "pub", calls)
        for statement in (
            INNER.format("lower(x)"),
            "create function lib.label(x varchar) returns text language sql immutable return 'better'",
            "create extension if not exists plpgsql; alter extension plpgsql update",
        ):
            assert glance.take(conn)[0] == seen
            try:
                conn.execute(statement.encode())
            except psycopg.Error:
                continue
            if "extension" not in statement:
                assert glance.take(conn)[0] != seen
            seen = glance.take(conn)[0]


def test_names_are_read_as_the_catalog_has_them() -> None:
    assert called_code.words('Select "Odd""Name"(x), Lib.Label(y)') >= {'Odd"Name', "lib", "label", "x"}
