"""A few rows, read for people: old rows, the new rows they become, and the new rows that are there.

Invariant: read-only, bounded in rows and in time; a mapping's text runs bound to the source's own tables, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from connectors.postgres import user_path
from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import Path
from schemas.names import EQ, qualified, quote
from schemas.table import Table

STATEMENT_S = 30

Row = tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Columns, and rows of PostgreSQL's own text."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputColumn:
    """A SELECT's output as the server describes it: `type` as CREATE TABLE takes it, `base` without its length."""

    name: str
    type: str
    base: str


def relation(table: Table) -> str:
    """A whole table as a SELECT; children are tables of their own."""
    name = qualified(table.schema, table.name)
    return f"select * from {name if table.partitioned else f'only {name}'}"


def bindings(tables: Mapping[str, Table], names: Sequence[str]) -> dict[str, str]:
    """A mapping's relations, bound to the tables themselves."""
    return {name: relation(tables[name]) for name in names}


@contextmanager
def reading(conn: Connection, doing: str, path: Path = ()) -> Iterator[None]:
    """A read-only transaction that ends itself after half a minute a statement. `path`: the user's."""
    with translated(doing), conn.transaction(force_rollback=True):
        conn.execute("set transaction isolation level repeatable read, read only")
        conn.execute(f"set local statement_timeout = '{STATEMENT_S}s'")
        user_path.enter(conn, path)
        yield


def rows(conn: Connection, query: str, limit: int) -> Rows:
    """Up to `limit` rows of `query`, as text; call it inside `reading`."""
    names = [column.name for column in describe(conn, query)]
    shown = ", ".join(f"q.{quote(name)}::text" for name in names) or "null"
    found: list[Any] = conn.execute(f"select {shown} from (\n{query}\n) q limit {limit}".encode()).fetchall()
    return Rows(columns=tuple(names), rows=tuple(tuple(row) for row in found))


def describe(conn: Connection, query: str) -> list[OutputColumn]:
    """The outputs of `query`, without running it for a row; call it inside a transaction."""
    cursor = conn.execute(f"select * from (\n{query}\n) q limit 0".encode())
    description = cursor.description or []
    result = cursor.pgresult
    assert result is not None
    described: list[OutputColumn] = []
    for i, column in enumerate(description):
        row: Any = conn.execute(
            "select pg_catalog.format_type(%(oid)s::oid, %(mod)s::int), pg_catalog.format_type(%(oid)s::oid, -1)",
            {"oid": column.type_code, "mod": result.fmod(i)},
        ).fetchone()
        described.append(OutputColumn(name=column.name, type=row[0], base=row[1]))
    return described


def where_key(query: str, table: Table, key: Sequence[str], values: Sequence[str]) -> str:
    """`query` restricted to the rows of `table` (its outputs) whose key columns have these values, given as text."""
    typed = [table.column(name).type for name in key]
    tests = " and ".join(
        f"{_compared(f'q.{quote(name)}', type_)} {EQ} {_compared(_literal(value), type_, cast=True)}"
        for name, type_, value in zip(key, typed, values, strict=True)
    )
    return f"select q.* from (\n{query}\n) q where {tests}"


def where_in(query: str, columns: Sequence[str], types: Sequence[str], found: Rows) -> str:
    """`query` restricted to rows whose `columns` (SQL expressions over q) are among `found`'s, in order."""
    if not found.rows:
        return f"select q.* from (\n{query}\n) q where false"
    listed = ", ".join(
        "("
        + ", ".join(_compared(_literal(value), type_, cast=True) for value, type_ in zip(row, types, strict=True))
        + ")"
        for row in found.rows
    )
    compared = ", ".join(_compared(c, type_) for c, type_ in zip(columns, types, strict=True))
    return f"select q.* from (\n{query}\n) q where ({compared}) {EQ} any (values {listed})"


def _compared(value: str, type_: str, *, cast: bool = False) -> str:
    """A value to be looked for; of a type that is not PostgreSQL's own by its text, whose equality is at hand."""
    if "." in type_:
        return f"({value})::{type_}::text"
    return f"{value}::{type_}" if cast else value


def _literal(value: str | None) -> str:
    return "null" if value is None else sql.Literal(value).as_string(None)
