"""The watch over partitions: a TRUNCATE of one of them is in no logical stream, so a trigger says it in a message.

Invariant (hazard A15): every leaf of a streamed partitioned table carries the trigger before its slot or its place in
the publication exists, and a leaf made later gets it when capture next looks. A TRUNCATE of the whole table fires the
leaves' triggers too, and is streamed right after: whoever reads the stream takes the message back then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from connectors.postgres.fence import Relation, patiently
from connectors.postgres.session import Connection, translated
from schemas.control import truncate_trigger
from schemas.direction import Direction
from schemas.table import Table

# A table that was born with its file keeps its own oid as the file's number until something rewrites or truncates it.
_UNWATCHED = """
select c.oid::bigint, n.nspname, c.relname, pg_catalog.pg_relation_filenode(c.oid) = c.oid
  from pg_catalog.pg_partition_tree(%s::oid) t
  join pg_catalog.pg_class c on c.oid = t.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where t.isleaf and c.relkind = 'r'
   and not exists (select from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname = %s and g.tgenabled = 'A')
 order by t.level, n.nspname, c.relname
"""

_WATCHED = """
select n.nspname, c.relname
  from pg_catalog.pg_trigger g
  join pg_catalog.pg_class c on c.oid = g.tgrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where g.tgname = %s and not g.tgisinternal
 order by 1, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A partition that is not watched yet. `pristine`: nothing has truncated or rewritten it since it was made."""

    oid: int
    schema: str
    name: str
    pristine: bool


def unwatched(conn: Connection, migration: str, tables: Iterable[Table]) -> list[Leaf]:
    """The leaves of those of `tables` that are partitioned, as far as they lack the trigger."""
    found: list[Leaf] = []
    for table in tables:
        if not table.partitioned:
            continue
        with translated(f"cannot list the partitions of {table.schema}.{table.name}"):
            rows: list[Any] = conn.execute(_UNWATCHED, (table.oid, truncate_trigger(migration))).fetchall()
        found += [Leaf(oid=oid, schema=schema, name=name, pristine=same) for oid, schema, name, same in rows]
    return found


def watch(conn: Connection, migration: str, direction: Direction, leaf: Leaf, *, patience_s: float = 120.0) -> None:
    """Give one leaf its trigger: SHARE ROW EXCLUSIVE on it for a moment. Errors: Contended, PrivilegeMissing."""

    def make() -> None:
        conn.execute("select slackwater.watch(%s, %s, %s::oid)", (migration, direction.value, leaf.oid))

    patiently(conn, make, f"cannot watch {leaf.schema}.{leaf.name} for a TRUNCATE", patience_s)


def ensure(conn: Connection, migration: str, direction: Direction, tables: Iterable[Table]) -> list[Relation]:
    """Watch every leaf that is not watched yet; returns those that are now. For `prepare`, with patience."""
    missing = unwatched(conn, migration, tables)
    for leaf in missing:
        watch(conn, migration, direction, leaf)
    return [(leaf.schema, leaf.name) for leaf in missing]


def drop(conn: Connection, migration: str, *, patience_s: float = 120.0) -> list[Relation]:
    """Drop the migration's triggers in this database, detached partitions' too; returns what carried one."""
    trigger = truncate_trigger(migration)
    with translated("cannot list the triggers that watch partitions"):
        relations: list[Relation] = [(str(s), str(t)) for s, t in conn.execute(_WATCHED, (trigger,)).fetchall()]
    for relation in relations:

        def away(relation: Relation = relation) -> None:
            conn.execute(
                sql.SQL("drop trigger if exists {} on {}").format(sql.Identifier(trigger), sql.Identifier(*relation))
            )

        patiently(conn, away, f"cannot drop the trigger {trigger} of {relation[0]}.{relation[1]}", patience_s)
    return relations
