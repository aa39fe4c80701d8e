"""The judge's own settings, bent on one side: whatever the role, the database or its collation say, what
is right is called right, and what is wrong is found; and the same rows arrive as without.

The settings are those of the role that slackwater logs in as; this test looks through another one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from tests.fixtures import lies, world
from tests.fixtures.databases import fresh_database
from tests.fixtures.running import Program, started_with

BENT: Mapping[str, str] = {
    "search_path": "evil, shop, app",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Pacific/Chatham",
    "client_encoding": "LATIN1",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "xmloption": "document",
    "xmlbinary": "hex",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "backslash_quote": "off",
    "quote_all_identifiers": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "300ms",
    "row_security": "off",
    "session_replication_role": "replica",
    "synchronous_commit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_indexscan": "off",
    "enable_hashagg": "off",
    "enable_sort": "off",
    "debug_parallel_query": "on",
    "parallel_setup_cost": "0",
    "min_parallel_table_scan_size": "0",
    "join_collapse_limit": "1",
    "work_mem": "64kB",
    "jit_above_cost": "0",
    "check_function_bodies": "off",
    "client_min_messages": "error",
    "default_text_search_config": "pg_catalog.german",
    "plpgsql.variable_conflict": "use_column",
}

KINDS = """
create table {s}.word (w text primary key, n int not null, at timestamptz, span interval, f float8, raw bytea,
  tags text[], amount numeric, day date, on_ boolean);
"""
WORDS = """
insert into shop.word values
  ('a', 1, '2024-03-10 01:30:00.123456+00', '1 day 02:03:04', 0.1::float8 + 0.2::float8, '\\x00ff41', array['x', null],
   1.0, '2024-04-03', true),
  ('A', 2, '0044-03-15 12:00:00+00 BC', '-1 mons +1 day', 'NaN', '\\x5c', array['NULL', '', 'y"z'], 1.00,
   'infinity', null),
  ('\u00e4', 3, 'infinity', '24:00:00', 1e-300, '', '{}', 'NaN', '1999-12-31', false),
  ('B \\', 4, null, null, null, null, null, null, null, null),
  ('\u00df', 5, '2024-10-27 01:30:00+00', '1 year', 12345678.901234567, '\\xdeadbeef', array['\u00e4', 'a,b'], 1e20,
   '0001-01-01 BC', true);
insert into shop.customers values (900, 'Zo\u00eb \u00dcnal', 'Stra\u00dfe', 'K\u00f6ln'),
  (901, 'O''Neil \\ x', null, null);
"""
EVIL = """
create schema evil;
create function evil.hijacked(text) returns text language plpgsql as $$ begin raise exception 'hijacked'; end $$;
create function evil.md5(varchar) returns text language plpgsql as $$ begin raise exception 'hijacked'; end $$;
"""
OPTIONS = "cutover: {max_pause_s: 20, attempts: 8}\nverify: {workers: 1}\n"

# Table of new -> what is done to it, as the applier would; and back. Each of another kind.
WRONG = {
    "customer": ("update app.customer set name = 'Zoe \u00dcnal' where id = 900", 1),
    "customer_address": ("delete from app.customer_address where customer_id = 1", 1),
    "doc": ("update app.doc set weight = 5.126 where id = 5", 1),
    "event": ("insert into app.event values (777, '2023-07-07', 'lie')", 1),
    "log": ("insert into app.log values (3, 'lie')", 1),
    "orders": ("update app.orders set id = 7777 where id = 7", 2),
    "pref": ("update app.pref set agreed = not agreed where id = 3", 1),
    "spending": ("update app.spending set total = total + 0.01 where customer_id = 4", 1),
    "ticket": ("delete from app.ticket where no = 101", 1),
    "word": (
        """update app.word set tags = array['x', 'NULL'] where w = 'a';
        update app.word set amount = 1.0 where w = 'A'; update app.word set at = 'infinity' where w = 'B \\';
        update app.word set w = '\u00fc' where w = '\u00e4'""",
        5,
    ),
}
PAIRS = {**world.PAIRS, **world.FORWARD, "word": ("select * from shop.word", "select * from app.word")}


@dataclass(kw_only=True)
class Bent:
    """An armed migration one of whose sides has settings of its own; `dsns` lead there without them."""

    program: Program
    dsns: dict[str, str]
    migration: str

    def on(self, side: str, what: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsns[side], autocommit=True, client_encoding="UTF8") as conn:
            cursor = conn.execute(what.encode())
            return cursor.fetchall() if cursor.description is not None else []

    def hidden(self, side: str, what: str) -> None:
        lies.hidden(self.dsns[side], self.migration, side, what)

    def apart(self, writes: str) -> list[str]:
        """Tables that are not the same on both sides: in plain SQL, through sessions with the server's own settings."""
        pairs = PAIRS if writes == "old" else {**world.PAIRS, "word": PAIRS["word"]}
        return [name for name, (old, new) in pairs.items() if self._rows("old", old) != self._rows("new", new)]

    def _rows(self, side: str, query: str) -> list[tuple[Any, ...]]:
        return sorted(self.on(side, f"select (q.*)::text from ({query}) q"))

    def mismatched(self, direction: str, code: int) -> dict[str, int]:
        found = self.program.document("verify", "--direction", direction, "--fresh", code=code)["tables"]
        return {name: len(table["mismatches"]) for name, table in found.items() if table["mismatches"]}


def made(stack: ExitStack, server: str, side: str, form: str, login: str, bent: bool) -> tuple[str, str]:
    """(the DSN of whoever looks, and slackwater's), to a database of that form; the role's settings are bent there."""
    dsn = stack.enter_context(fresh_database(server, side, form))
    own = conninfo.make_conninfo(dsn, user=login, password="unused")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(EVIL.encode())
        if bent:
            database = conn.info.dbname
            for name, value in BENT.items():
                # A list is several values; what is one of them is quoted by itself.
                values = sql.SQL(", ").join(sql.Literal(part.strip()) for part in value.split(","))
                conn.execute(
                    sql.SQL("alter role {} in database {} set {} = {}").format(
                        sql.Identifier(login), sql.Identifier(database), sql.SQL(name), values
                    )
                )
    return dsn, own


LETTERS = "locale_provider builtin builtin_locale 'C.UTF-8' locale 'C' encoding 'UTF8'"
PLAIN = "locale_provider libc locale 'C' encoding 'UTF8'"


@pytest.fixture(
    params=[("old", PLAIN, LETTERS), ("new", LETTERS, PLAIN)],
    ids=["old", "new"],
)
def bent(request: pytest.FixtureRequest, postgres_dsn: str, bootstrap: str, tmp_path: Path) -> Iterator[Bent]:
    which, *forms = request.param
    login, name = f"judge_{secrets.token_hex(4)}", f"m{secrets.token_hex(5)}"
    with psycopg.connect(postgres_dsn, autocommit=True) as admin, ExitStack() as stack:
        admin.execute(f"create role {login} superuser login".encode())
        stack.callback(lambda: admin.execute(f"drop role {login}".encode()))
        sides = {
            side: made(stack, postgres_dsn, side, form, login, side == which)
            for side, form in zip(("old", "new"), forms, strict=True)
        }
        dsns = {side: dsn for side, (dsn, _) in sides.items()}
        for side, schema, ddl in (("old", "shop", lies.OLD), ("new", "app", lies.NEW)):
            with psycopg.connect(dsns[side], autocommit=True, client_encoding="UTF8") as conn:
                conn.execute((ddl + KINDS.format(s=schema)).encode())
                if side == "old":
                    conn.execute(WORDS.encode())
        text = (
            f'migration: {name}\nold: {{dsn: "${{OLD_DSN}}", schema: shop}}\n'
            f'new: {{dsn: "${{NEW_DSN}}", schema: app}}\n'
            f'kafka: {{bootstrap: "${{KAFKA}}", topic_prefix: {name}, partitions: 2}}\n{OPTIONS}{lies.MAPPING}'
        )
        env = {"OLD_DSN": sides["old"][1], "NEW_DSN": sides["new"][1], "KAFKA": bootstrap}
        program = stack.enter_context(started_with(tmp_path, text, env))
        program.armed()
        yield Bent(program=program, dsns=dsns, migration=name)


def test_a_bent_judge_is_not_blind(bent: Bent) -> None:
    program = bent.program
    bent.on("old", "update shop.word set n = n + 10, tags = tags || '{NULL,\u00fc}' where w = '\u00e4'")
    bent.on(
        "old", "insert into shop.customers values (902, '\u00c4rger', null, null); delete from shop.doc where id = 9"
    )
    program.until(lambda: not bent.apart("old"))
    # What is right is called right.
    assert bent.mismatched("forward", 0) == {}
    assert program.document("roundtrip")["losses"] == []
    program("gates", "--recheck", code=None)
    assert not [g for g in program.document("gates")["gates"] if g["state"] != "passed"]
    # What is wrong is found, in each kind of table.
    for what, _ in WRONG.values():
        bent.hidden("new", what)
    assert bent.mismatched("forward", 3) == {name: rows for name, (_, rows) in WRONG.items()}
    refused = program.document("cutover", "--yes", code=3)
    assert any(reason.startswith("verification: not as they should be") for reason in refused["reasons"])
    bent.on("old", "insert into shop.pref values (99, 'maybe')")
    assert program.document("roundtrip", code=3)["losses"] == ["pref.answer"]
    bent.on("old", "delete from shop.pref where id = 99")
    assert program.document("roundtrip")["losses"] == []
