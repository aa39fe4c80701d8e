"""What the target's constraints will say of rows that the source has: asked of the source, before any row is moved.

Invariant: nothing is changed; a constraint that cannot be tried on the source is named with the reason, never passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres import user_path
from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import Path
from schemas.bind import bound
from schemas.mapping import Mapping
from schemas.names import qualified, quote
from schemas.table import Table

LONG_BYTES = 2_704  # of an index entry: a third of a page, which a B-tree takes at most

# Expressions are spelled for an empty search_path: what is not PostgreSQL's own is named with its schema. A constraint
# that a partition has of its own is not the table's, and NOT NULL is a column's.
_CHECKS = """
select t.oid::bigint, k.conname, k.convalidated, pg_catalog.pg_get_expr(k.conbin, k.conrelid),
       array(select a.attname::text from pg_catalog.pg_attribute a
              where a.attrelid = k.conrelid and a.attnum = any(k.conkey))
  from pg_catalog.pg_constraint k join pg_catalog.pg_class t on t.oid = k.conrelid
 where k.conrelid = any(%s::oid[]) and k.contype = 'c'
   and coalesce((pg_catalog.to_jsonb(k) ->> 'conenforced')::bool, true)
 order by 1, 2
"""

# What the leaves of a partitioned table take, together: a row that none of them takes is refused. Of hash partitions
# nothing can be said elsewhere; a table without partitions takes nothing.
_PARTITIONS = """
select t.oid::bigint, '', true,
       coalesce(pg_catalog.string_agg('(' || pg_catalog.pg_get_partition_constraintdef(l.relid) || ')', ' or '),
                'false'),
       array(select distinct a.attname::text from pg_catalog.pg_partition_tree(t.oid) s
               join pg_catalog.pg_partitioned_table p on p.partrelid = s.relid
               join pg_catalog.pg_attribute a on a.attrelid = s.relid and a.attnum = any(p.partattrs::int2[]))
  from pg_catalog.pg_class t left join lateral pg_catalog.pg_partition_tree(t.oid) l on l.isleaf and l.level > 0
 where t.oid = any(%s::oid[]) and t.relkind = 'p' and not exists (
         select from pg_catalog.pg_partition_tree(t.oid) s
           join pg_catalog.pg_partitioned_table p on p.partrelid = s.relid where p.partstrat = 'h')
 group by t.oid having coalesce(pg_catalog.bool_and(pg_catalog.pg_get_partition_constraintdef(l.relid) is not null
                                                      or l.relid is null), true)
 order by 1
"""

# The single columns of text or bytes that a B-tree holds whole.
_INDEXED = """
select i.indrelid::bigint, c.relname, a.attname
  from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
  join pg_catalog.pg_am m on m.oid = c.relam and m.amname = 'btree'
 cross join lateral pg_catalog.unnest(i.indkey::int2[]) k(attnum)
  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
  join pg_catalog.pg_type y on y.oid = a.atttypid
 where i.indrelid = any(%s::oid[]) and i.indpred is null and y.typlen = -1 and y.typcategory in ('S', 'U', 'A')
 order by 1, 2, 3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A CHECK of the table with this oid, and the columns that it reads; without a name, what its partitions take."""

    table: int
    name: str
    valid: bool
    expression: str
    columns: tuple[str, ...]


def checks(conn: Connection, tables: Iterable[Table]) -> list[Check]:
    """The CHECK constraints of the tables themselves, enforced ones; and what their partitions take."""
    oids = [t.oid for t in tables]
    with translated("cannot read the CHECK constraints"):
        rows: list[Any] = [*conn.execute(_CHECKS, (oids,)).fetchall(), *conn.execute(_PARTITIONS, (oids,)).fetchall()]
    return [
        Check(table=oid, name=name, valid=valid, expression=expression, columns=tuple(columns))
        for oid, name, valid, expression, columns in rows
    ]


def indexed(conn: Connection, tables: Iterable[Table]) -> list[tuple[int, str, str]]:
    """(table's oid, index, column) of every column without a fixed length that a B-tree over all rows holds."""
    with translated("cannot read the indexes"):
        rows: list[Any] = conn.execute(_INDEXED, ([t.oid for t in tables],)).fetchall()
    return [(oid, index, column) for oid, index, column in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How many rows break a condition; None, and `why`, where that could not be asked."""

    rows: int | None
    why: str = ""


def breaking(
    conn: Connection,
    mapping: Mapping,
    sources: dict[str, Table],
    table: Table,
    conditions: Sequence[str],
    path: Path,
    *,
    timeout_s: float,
) -> list[Counted]:
    """Of the rows that the mapping makes of what the source has now, those for which each condition is false.

    Conditions are over the target's columns. One pass for all of them; where that fails, each by itself. `timeout_s` is
    for each statement.
    """
    try:
        return [Counted(rows=n) for n in _ask(conn, mapping, sources, table, conditions, path, timeout_s)]
    except psycopg.Error as error:
        if conn.closed:
            raise
        if len(conditions) == 1:
            return [Counted(rows=None, why=_why(error))]
    found: list[Counted] = []
    for condition in conditions:
        found += breaking(conn, mapping, sources, table, [condition], path, timeout_s=timeout_s)
    return found


def _ask(
    conn: Connection,
    mapping: Mapping,
    sources: dict[str, Table],
    table: Table,
    conditions: Sequence[str],
    path: Path,
    timeout_s: float,
) -> list[int]:
    over = {s: f"select * from {'' if sources[s].partitioned else 'only '}{_name(sources[s])}" for s in mapping.sources}
    outputs = ", ".join(f"q.{quote(o.name)}::{table.column(o.name).type} as {quote(o.name)}" for o in mapping.outputs)
    counts = ", ".join(f"pg_catalog.count(*) filter (where ({c}) is false)" for c in conditions)
    with conn.transaction():
        conn.execute("set transaction read only")
        conn.execute(f"set local statement_timeout = {int(timeout_s * 1000)}".encode())
        with user_path.within(conn, path):
            row: Any = conn.execute(
                f"select {counts} from (select {outputs} from (\n{bound(mapping.text, over)}\n) q) t".encode()
            ).fetchone()
    return [int(n) for n in row]


def _name(table: Table) -> str:
    return qualified(table.schema, table.name)


def _why(error: psycopg.Error) -> str:
    """Without the message, which may hold a value."""
    match error:
        case psycopg.errors.QueryCanceled():
            return "it takes too long"
        case psycopg.errors.UndefinedFunction() | psycopg.errors.UndefinedObject() | psycopg.errors.InvalidSchemaName():
            return "it names what this side lacks"
        case psycopg.errors.InsufficientPrivilege():
            return "the role may not read what it reads"
    return f"SQLSTATE {error.sqlstate}"
