"""How a source table is cut into chunks: ranges of its key, hash buckets, or the whole.

Invariant (hazard B5): ranges are [lower, upper), open at both ends of the key space, and each boundary stands once as
an upper and once as a lower end. `key >= b` and `key < b` contradict each other for every b, so each row lies in at
least one range whatever the order of the boundaries is: no collation, however wrong, can lose one. Comparisons are the
server's own, in the order of the key's own index, so that each range is one scan of that index. Where the type's
operators are not PostgreSQL's own (`search_path` is empty), rows go by the hash of the key's text instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from psycopg import sql

from connectors.postgres import column_types
from connectors.postgres.session import Connection, translated
from schemas.names import EQ, qualified, quote
from schemas.table import Identity, Table

MAX_BUCKETS = 256  # each bucket is a scan of the whole table
DENSE = 2.0  # key values per row, up to which a range of integers is cut by arithmetic instead of a look into the index

Key = tuple[str, ...]
"""A key's values as PostgreSQL prints them, in key order."""


class Kind(StrEnum):
    """How a chunk names its rows."""

    RANGE = "range"  # key in [lower, upper)
    BUCKET = "bucket"  # hash of the key's text modulo a count; lower holds 'bucket/of'
    WHOLE = "whole"  # all of them, from one snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One unit of reading. `lower` and `upper` are packed keys; None is open."""

    number: int
    kind: Kind = Kind.RANGE
    lower: str | None = None
    upper: str | None = None


def pack(key: Key) -> str:
    """A key as one text: the bare value of a single column, a JSON array of several."""
    return key[0] if len(key) == 1 else json.dumps(key, ensure_ascii=False)


def unpack(text: str, columns: int) -> Key:
    return (text,) if columns == 1 else tuple(json.loads(text))


def chunk_key(table: Table) -> tuple[str, ...]:
    """The columns that tell the table's rows apart: its primary key, or its replica identity's index; else empty."""
    return table.key or (table.identity_columns if table.identity is Identity.INDEX else ())


def relation(table: Table) -> str:
    """The table in a FROM or LOCK: `only` unless it is partitioned, for children are tables of their own."""
    name = qualified(table.schema, table.name)
    return name if table.partitioned else f"only {name}"


# Whether a key's type is compared by operators of pg_catalog, which are found with an empty search_path, and is an
# integer. Domains are looked through. An enum's operators are pg_catalog's, for anyenum.
_KEY_TYPES = """
with recursive base as (
  select a.attname, a.atttypid as oid from pg_catalog.pg_attribute a
   where a.attrelid = %s::oid and a.attname = any(%s::text[]) and a.attnum > 0 and not a.attisdropped
  union all
  select b.attname, t.typbasetype from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typtype = 'd'
)
select bool_and(t.typnamespace = 'pg_catalog'::regnamespace or t.typtype = 'e'),
       bool_and(t.oid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)), count(*)
  from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typtype <> 'd'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpace:
    """How one table's rows are told apart and cut. `integer`: a single column of an integer type."""

    table: Table
    key: tuple[str, ...]
    kind: Kind
    integer: bool

    @classmethod
    def of(cls, conn: Connection, table: Table, *, whole: bool) -> KeySpace:
        """Look at the key's types. `whole` asks for one chunk (the rows have no key on the other side)."""
        key = chunk_key(table)
        if whole or not key:
            return cls(table=table, key=key, kind=Kind.WHOLE, integer=False)
        with translated(f"cannot read the key of {table.schema}.{table.name}"):
            row = conn.execute(_KEY_TYPES, (table.oid or qualified(table.schema, table.name), list(key))).fetchone()
        assert row is not None
        ours, integer, found = row
        kind = Kind.RANGE if ours and found == len(key) else Kind.BUCKET
        return cls(table=table, key=key, kind=kind, integer=bool(integer) and len(key) == 1 and kind is Kind.RANGE)

    def first(self, buckets: int) -> list[Chunk]:
        """The chunks to begin with, which cover every row: one open range, cut as it is read, or all buckets."""
        if self.kind is not Kind.BUCKET:
            return [Chunk(number=0, kind=self.kind)]
        of = max(1, min(buckets, MAX_BUCKETS))
        return [Chunk(number=n, kind=Kind.BUCKET, lower=f"{n}/{of}") for n in range(of)]

    def condition(self, conn: Connection, chunk: Chunk) -> str:
        """The chunk's rows as a condition on the table's columns; `true` for all of them."""
        if chunk.kind is Kind.BUCKET:
            assert chunk.lower is not None
            bucket, of = map(int, chunk.lower.split("/"))
            # the same on every server; & keeps it positive, where abs() of the least bigint would fail
            text = f"row({self._names()})::text"
            number = f'pg_catalog.hashtextextended({text} collate "C", 0::bigint)'
            positive = f"({number} operator(pg_catalog.&) 9223372036854775807::bigint)"
            return f"({positive} operator(pg_catalog.%) {of}::bigint) {EQ} {bucket}::bigint"
        parts = []
        if chunk.lower is not None:
            parts.append(f"({self._names()}) operator(pg_catalog.>=) ({self._values(conn, chunk.lower)})")
        if chunk.upper is not None:
            parts.append(f"({self._names()}) operator(pg_catalog.<) ({self._values(conn, chunk.upper)})")
        return " and ".join(parts) or "true"

    def select(self, conn: Connection, chunk: Chunk, columns: Sequence[str]) -> str:
        """The chunk's rows."""
        names = ", ".join(quote(c) for c in columns)
        return f"select {names} from {relation(self.table)} where {self.condition(conn, chunk)}"

    def boundary(self, conn: Connection, chunk: Chunk, rows: int) -> str | None:
        """The key of the chunk's row number `rows` (from 0), where it can be cut; None when it has no more rows."""
        # Named otherwise: ORDER BY would take a column of the result, which is text, before one of the table.
        texts = ", ".join(f"{quote(c)}::text as slackwater_{i}" for i, c in enumerate(self.key))
        query = (
            f"select {texts} from {relation(self.table)} where {self.condition(conn, chunk)}"
            f" order by {self._names()} offset {max(1, rows)} limit 1"
        )
        with translated(f"cannot plan chunks of {self.table.schema}.{self.table.name}"):
            row = conn.execute(query).fetchone()
        at = None if row is None else pack(tuple(map(str, row)))
        return None if at in (chunk.lower, chunk.upper) else at

    def span(self, conn: Connection) -> tuple[int, int] | None:
        """The least and the greatest key of a table with an integer key; None while it is empty."""
        name = quote(self.key[0])
        with translated(f"cannot plan chunks of {self.table.schema}.{self.table.name}"):
            row = conn.execute(
                f"select pg_catalog.min({name})::bigint, pg_catalog.max({name})::bigint from {relation(self.table)}"
            ).fetchone()
        if row is None or row[0] is None:
            return None
        return int(str(row[0])), int(str(row[1]))

    def keys(self, conn: Connection, chunk: Chunk, limit: int) -> list[dict[str, str]]:
        """Up to `limit` keys of the chunk's rows."""
        texts = ", ".join(f"{quote(c)}::text" for c in self.key)
        query = f"select {texts} from {relation(self.table)} where {self.condition(conn, chunk)} limit {limit}"
        with translated(f"cannot read keys of {self.table.schema}.{self.table.name}"):
            return [dict(zip(self.key, map(str, row), strict=True)) for row in conn.execute(query).fetchall()]

    def matching(self, conn: Connection, keys: Sequence[Mapping[str, str | None]], columns: Sequence[str]) -> str:
        """A SELECT of the rows that have one of `keys`, each a value (as text) per key column."""
        names = list(keys[0])
        rows = ", ".join(
            "(" + ", ".join("null" if k[n] is None else _literal(conn, str(k[n])) for n in names) + ")" for k in keys
        )
        types = {n: self.table.column(n).type_full for n in names}
        # `values` makes text of the literals; the casts are to the column's type with its length, which they came from.
        name = qualified(self.table.schema, self.table.name)
        held = column_types.of_columns(conn, [name])[name] if any("." in t for t in types.values()) else {}
        equal = " and ".join(
            f"t.{quote(n)} {held[n].equal if n in held else EQ} k.c{i}::{types[n]}" for i, n in enumerate(names)
        )
        aliases = ", ".join(f"c{i}" for i in range(len(names)))
        return (
            f"select {', '.join(f't.{quote(c)}' for c in columns)} from {relation(self.table)} t"
            f" join (values {rows}) k({aliases}) on {equal}"
        )

    def count(self, conn: Connection, chunk: Chunk) -> int:
        """How many rows the chunk has now."""
        query = f"select pg_catalog.count(*) from {relation(self.table)} where {self.condition(conn, chunk)}"
        with translated(f"cannot count rows of {self.table.schema}.{self.table.name}"):
            row = conn.execute(query).fetchone()
        assert row is not None
        return int(str(row[0]))

    def halves(self, conn: Connection, chunk: Chunk, rows: int) -> tuple[Chunk, Chunk] | None:
        """The chunk's first `rows` rows and the rest (of a bucket: two halves); None when there is no rest."""
        if chunk.kind is Kind.BUCKET:
            assert chunk.lower is not None
            bucket, of = map(int, chunk.lower.split("/"))
            return replace(chunk, lower=f"{bucket}/{of * 2}"), replace(chunk, lower=f"{bucket + of}/{of * 2}")
        at = None if chunk.kind is Kind.WHOLE else self.boundary(conn, chunk, rows)
        return None if at is None else self.cut_at(chunk, at)

    @staticmethod
    def cut_at(chunk: Chunk, at: str) -> tuple[Chunk, Chunk]:
        """The range below the key `at`, and the one from it on."""
        return replace(chunk, upper=at), replace(chunk, lower=at)

    def plan_cut(self, conn: Connection, chunk: Chunk, rows_estimate: int, rows: int) -> str | None:
        """Where to cut a range so that about `rows` rows lie below; None when it has no more than that."""
        if self.integer:
            span = self.span(conn)
            if span is None:
                return None
            if is_dense(span, rows_estimate):
                return cut(chunk, span, rows_estimate, rows)
        return self.boundary(conn, chunk, rows)

    def _names(self) -> str:
        return ", ".join(quote(c) for c in self.key)

    def _values(self, conn: Connection, packed: str) -> str:
        # Bare literals take the column's type, without a length that could cut them.
        return ", ".join(_literal(conn, v) for v in unpack(packed, len(self.key)))


def _literal(conn: Connection, text: str) -> str:
    return sql.Literal(text).as_string(conn)


def is_dense(span: tuple[int, int], rows_estimate: int) -> bool:
    """Whether so few integers lie between the keys that arithmetic cuts well enough."""
    return rows_estimate > 0 and (span[1] - span[0] + 1) / rows_estimate <= DENSE


def cut(chunk: Chunk, span: tuple[int, int], rows_estimate: int, rows: int) -> str | None:
    """Where to cut a range of a dense integer key, without a look into the index; None past its greatest key.

    Keys are unique: w values hold at most w rows, so a chunk is at most `DENSE` times too large, on average none.
    """
    least, greatest = span
    per_row = max(1.0, (greatest - least + 1) / rows_estimate)
    lower = least if chunk.lower is None else max(int(chunk.lower), least)
    upper = lower + max(1, int(rows * per_row))
    return str(upper) if upper <= greatest and (chunk.upper is None or upper < int(chunk.upper)) else None
