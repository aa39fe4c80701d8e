"""Planned changes in a migration of weeks, as deploy/runbooks/schema-changes.md has them: under load, and none of them
loads more than the table concerned.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from tests.fixtures.databases import Databases
from tests.fixtures.running import Program, started_with

OLD = """
create schema shop;
create table shop.item (id int primary key, name text, n int, gone text);
create table shop.other (id int primary key, v text);
insert into shop.item select i, 'n' || i, i, 'g' from generate_series(1, 500) i;
insert into shop.other select i, 'v' || i from generate_series(1, 500) i;
"""
NEW = """
create schema app;
create table app.item (id int primary key, name text, n int, gone text);
create table app.other (id int primary key, v text);
"""


class Writing:
    """Somebody writes to old all the time: what fails while a table is altered is tried again."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.written = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        n = 1000
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._stop.wait(0.02):
                n += 1
                conn.execute("insert into shop.item (id) values (%s)", (n,))
                conn.execute("update shop.other set v = %s where id = %s", (f"x{n}", 1 + n % 500))
                conn.execute("delete from shop.item where id = %s", (n - 500,))
                self.written += 1


@pytest.fixture
def program(
    databases: Databases, bootstrap: str, topic_prefix: str, migration_name: str, tmp_path: Path
) -> Iterator[Program]:
    for dsn, ddl in ((databases.old, OLD), (databases.new, NEW)):
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(ddl.encode())
    text = (
        f'migration: {migration_name}\nold: {{dsn: "${{OLD_DSN}}", schema: shop}}\n'
        f'new: {{dsn: "${{NEW_DSN}}", schema: app}}\n'
        f'kafka: {{bootstrap: "${{KAFKA}}", topic_prefix: {topic_prefix}, partitions: 2}}\ncopy: "*"\n'
    )
    env = {"OLD_DSN": databases.old, "NEW_DSN": databases.new, "KAFKA": bootstrap}
    with started_with(tmp_path, text, env) as made:
        yield made


def on(program: Program, side: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(program.env["OLD_DSN" if side == "old" else "NEW_DSN"], autocommit=True) as conn:
        cursor = conn.execute(query.encode())
        return cursor.fetchall() if cursor.description is not None else []


CHANGES = [
    ("alter table {s}.item add colour text default 'blue'", "item"),
    ("alter table {s}.item drop gone", "item"),
    ("alter table {s}.item rename name to title", "item"),
    ("alter table {s}.item alter n type bigint", "item"),
    ("alter table {s}.item alter n type text using 'n' || n", "item"),
    ("create table {s}.more (id int primary key, v text)", "more"),
]
WAITING = "select count(*) from slackwater.silent_change where state <> 'done'"


def test_planned_changes_one_after_the_other(program: Program) -> None:
    run = program.streaming()
    with Writing(program.env["OLD_DSN"]) as writing:
        for change, concerned in CHANGES:
            before = dict(on(program, "new", "select name, started_at::text from slackwater.load"))
            run.terminate()
            run.wait(60)
            on(program, "old", change.format(s="shop"))
            on(program, "new", change.format(s="app"))
            if concerned == "more":
                on(program, "old", "insert into shop.more select i, 'v' || i from generate_series(1, 100) i")
            told = program("prepare", "--yes")
            run = program.start("run")
            program.until(lambda: program.status()["phase"] == "streaming", 120)
            after = dict(on(program, "new", "select name, started_at::text from slackwater.load"))
            anew = {name for name in after if after[name] != before.get(name)}
            assert anew <= {concerned}, (change, told)
            program.until(lambda: on(program, "old", WAITING) == [(0,)] == on(program, "new", WAITING), 120)
        assert writing.written > 10
    program.until(lambda: program.forward()["lag_seconds"] == 0, 60)
    for table in ("item", "other", "more"):
        rows = [
            sorted(on(program, side, f"select row_to_json(t)::jsonb::text from {schema}.{table} t"))
            for side, schema in (("old", "shop"), ("new", "app"))
        ]
        assert rows[0] == rows[1], table
    assert program.status()["quarantine"]["rows"] == 0
