"""The catalog, read into `schemas.table.Table`: what can be streamed from, and what can be written to.

Invariant: a table is described as a writer of rows sees it: its live columns in attnum order, partitioned roots and
never their leaves, and the replica identity as the server resolves it, not as its letter suggests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.table import Column, Identity, Reference, Table

# The columns of each index of table `c` that tells any two of its rows apart at every moment, the primary key's aside.
UNIQUES = """
       coalesce((select json_agg(u.columns order by u.columns::text) from (
         select json_agg(a.attname order by k.ord) as columns
           from pg_catalog.pg_index i,
                pg_catalog.unnest(i.indkey) with ordinality k(attnum, ord)
                join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum and a.attnotnull
          where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indimmediate and not i.indisprimary
            and i.indpred is null and i.indexprs is null and k.ord <= i.indnkeyatts
          group by i.indexrelid, i.indnkeyatts having count(*) = i.indnkeyatts) u), '[]')
"""

# The foreign keys of table `c` that hold for all of its rows at the end of every transaction. A temporal one means
# something else by its columns.
REFERENCES = """
       coalesce((select pg_catalog.json_agg(pg_catalog.json_build_object(
                   'name', k.conname, 'schema', pn.nspname, 'table', p.relname,
                   'columns', (select pg_catalog.json_agg(a.attname order by x.n)
                                 from pg_catalog.unnest(k.conkey) with ordinality x(c, n)
                                 join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = x.c),
                   'to', (select pg_catalog.json_agg(a.attname order by x.n)
                            from pg_catalog.unnest(k.confkey) with ordinality x(c, n)
                            join pg_catalog.pg_attribute a on a.attrelid = k.confrelid and a.attnum = x.c))
                   order by k.conname)
                   from pg_catalog.pg_constraint k
                   join pg_catalog.pg_class p on p.oid = k.confrelid
                   join pg_catalog.pg_namespace pn on pn.oid = p.relnamespace
                  where k.conrelid = c.oid and k.contype = 'f' and k.conparentid = 0 and k.convalidated
                    and coalesce((pg_catalog.to_jsonb(k) operator(pg_catalog.->>) 'conenforced')::bool, true)
                    and not coalesce((pg_catalog.to_jsonb(k) operator(pg_catalog.->>) 'conperiod')::bool, false)), '[]')
"""

# A primary key that is checked only later is none here: rows may share a key for a while, so that a change does not say
# which of them it means; nor is it one to a logical stream, which sends no old key for it.

# An extension's tables come and go with it: they are the application's no more than its functions are.
_USERS_OWN = """
not exists (select from pg_catalog.pg_depend d
             where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype = 'e')
"""

# Ordinary tables (also inheritance children: those hold rows of their own) and partitioned roots. For a partitioned
# root, the estimates are its leaves' sums: its own are zero.
_TABLES = (
    """
select c.oid::bigint, c.relname, c.relkind = 'p', c.relreplident,
       coalesce((select array_agg(a.attname order by k.ord)
                   from pg_catalog.pg_index i,
                        pg_catalog.unnest(i.indkey) with ordinality k(attnum, ord)
                        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
                  where i.indrelid = c.oid and i.indisprimary and i.indimmediate and k.ord <= i.indnkeyatts),
                '{}')::text[],
       coalesce((select array_agg(a.attname order by k.ord)
                   from pg_catalog.pg_index i,
                        pg_catalog.unnest(i.indkey) with ordinality k(attnum, ord)
                        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
                  where i.indrelid = c.oid and i.indisreplident and i.indisvalid
                    and k.ord <= i.indnkeyatts), '{}')::text[],
       case when c.relkind = 'p'
            then (select coalesce(sum(greatest(l.reltuples, 0)), 0) from pg_catalog.pg_partition_tree(c.oid) t
                    join pg_catalog.pg_class l on l.oid = t.relid where t.isleaf)
            else greatest(c.reltuples, 0) end::bigint,
       case when c.relkind = 'p'
            then (select coalesce(sum(pg_catalog.pg_table_size(t.relid)), 0)
                    from pg_catalog.pg_partition_tree(c.oid) t where t.isleaf)
            else pg_catalog.pg_table_size(c.oid) end::bigint,
       /* uniques */,
       /* references */,
       case when c.relkind = 'p' then array(
         select distinct a.attname::text
           from pg_catalog.pg_partition_tree(c.oid) l
                join pg_catalog.pg_partitioned_table p on p.partrelid = l.relid
                join pg_catalog.pg_attribute a on a.attrelid = p.partrelid and a.attnum = any(p.partattrs::int2[])
          order by 1) else '{}' end
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where n.nspname = %s and c.relkind in ('r', 'p') and not c.relispartition and /* own */
 order by c.relname
""".replace("/* uniques */", UNIQUES)
    .replace("/* references */", REFERENCES)
    .replace("/* own */", _USERS_OWN)
)

_UNIQUES_OF = """
select coalesce((select json_agg(a.attname)
                   from pg_catalog.pg_index i, pg_catalog.unnest(i.indkey) with ordinality k(n, o)
                   join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.n
                  where i.indrelid = c.oid and i.indisprimary and i.indimmediate and k.o <= i.indnkeyatts), '[]'),
       /* uniques */
  from pg_catalog.pg_class c where c.oid = %s::oid
""".replace("/* uniques */", UNIQUES)

_COLUMNS = """
select a.attrelid::bigint, a.attname, a.atttypid::bigint, pg_catalog.format_type(a.atttypid, -1),
       pg_catalog.format_type(a.atttypid, a.atttypmod), t.typtype, a.attnotnull, a.atthasdef and a.attgenerated = '',
       a.attidentity, a.attgenerated,
       coalesce((with recursive base(type) as (
                   select a.atttypid
                   union all
                   select b.typbasetype from base join pg_catalog.pg_type b on b.oid = base.type and b.typtype = 'd')
                 select pg_catalog.quote_ident(s.nspname) || '.' || pg_catalog.quote_ident(l.collname)
                   from base join pg_catalog.pg_type b on b.oid = base.type and b.typtype <> 'd'
                   join pg_catalog.pg_collation l on l.oid = a.attcollation and l.oid <> b.typcollation
                   join pg_catalog.pg_namespace s on s.oid = l.collnamespace
                  where a.attcollation <> 0), '')
  from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
 where a.attrelid = any(%s::oid[]) and a.attnum > 0 and not a.attisdropped
 order by a.attrelid, a.attnum
"""


def tables(conn: Connection, schema: str) -> dict[str, Table]:
    """Every table of `schema` by its unqualified name, but for those of extensions; empty when there is no such schema.

    Shape:  ordinary tables and partitioned roots; columns in attnum order; key columns in key order.
    Units:  `bytes_estimate` is heap and TOAST without indexes; `rows_estimate` is the planner's, 0 before an ANALYZE.
    """
    with translated(f"cannot read the tables of schema {schema}"):
        heads = conn.execute(_TABLES, (schema,)).fetchall()
        oids = [row[0] for row in heads]
        columns: dict[int, list[Column]] = {oid: [] for oid in oids}
        for oid, *rest in conn.execute(_COLUMNS, (oids,)).fetchall():
            columns[oid].append(_column(rest))
    found = (_table(schema, row, tuple(columns[row[0]])) for row in heads)
    return {table.name: table for table in found}


def column_names(conn: Connection, schema: str) -> dict[str, frozenset[str]]:
    """The columns of every table that `tables` would give, by its unqualified name: what a look each second can ask."""
    with translated(f"cannot read the tables of schema {schema}"):
        rows: list[Any] = conn.execute(
            "select c.relname,"
            " coalesce(pg_catalog.array_agg(a.attname::text) filter (where a.attname is not null), '{}')"
            " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
            " where n.nspname = %s and c.relkind in ('r', 'p') and not c.relispartition"
            f" and {_USERS_OWN} group by c.oid, c.relname",
            (schema,),
        ).fetchall()
    return {name: frozenset(columns) for name, columns in rows}


def _column(row: list[Any]) -> Column:
    name, type_oid, type_, full, kind, not_null, has_default, identity, generated, collation = row
    return Column(
        name=name,
        type_oid=type_oid,
        type=type_,
        type_full=full,
        type_kind=kind,
        not_null=not_null,
        has_default=has_default,
        identity=identity,
        generated=generated,
        collation=collation,
    )


def _table(schema: str, row: tuple[Any, ...], columns: tuple[Column, ...]) -> Table:
    oid, name, partitioned, letter, key, by_index, rows, size, uniques, references, split_by = row
    identity = Identity(letter)
    sent: tuple[str, ...]
    match identity:
        case Identity.FULL:
            sent = tuple(c.name for c in columns)
        case Identity.INDEX:
            sent = tuple(by_index)  # empty when the index was dropped since: the server then sends nothing
        case Identity.NOTHING:
            sent = ()
        case Identity.DEFAULT:
            sent = tuple(key)
    return Table(
        schema=schema,
        name=name,
        columns=columns,
        key=tuple(key),
        identity=identity,
        identity_columns=sent,
        partitioned=partitioned,
        oid=oid,
        rows_estimate=rows,
        bytes_estimate=size,
        uniques=tuple(tuple(columns) for columns in uniques),
        references=tuple(Reference.of(found) for found in references),
        split_by=tuple(split_by),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Who answers: what `prepare` pins and every connect asserts."""

    system_id: str  # pg_control_system().system_identifier
    timeline: int
    version: int  # server_version_num, 170004
    database: str
    database_oid: int
    in_recovery: bool
    encoding: str

    @property
    def identity(self) -> str:
        """The database among all of the world's, as far as PostgreSQL itself can tell: cluster, then database."""
        return f"{self.system_id}/{self.database_oid}"

    @property
    def major(self) -> int:
        return self.version // 10_000


def server(conn: Connection) -> Server:
    """The server's identity, as it stands now."""
    with translated("cannot read the server's identity"):
        row = conn.execute(
            # the last checkpoint's timeline is stale right after a promotion, the WAL file's name is not
            "select s.system_identifier::text, case when pg_is_in_recovery() then c.timeline_id"
            " else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end,"
            " current_setting('server_version_num')::int, current_database(), d.oid::bigint,"
            " pg_is_in_recovery(), current_setting('server_encoding')"
            " from pg_control_system() s, pg_control_checkpoint() c, pg_database d"
            " where d.datname = current_database()"
        ).fetchone()
    assert row is not None  # one row each
    system_id, timeline, version, database, oid, recovery, encoding = row
    return Server(
        system_id=system_id,
        timeline=timeline,
        version=version,
        database=database,
        database_oid=oid,
        in_recovery=recovery,
        encoding=encoding,
    )


def same_database(one: Connection, other: Connection) -> bool:
    """Whether both sessions are in one database."""
    here, there = server(one), server(other)
    return (here.system_id, here.database_oid) == (there.system_id, there.database_oid)


def leaves(conn: Connection, table: Table) -> list[tuple[str, str]]:
    """(schema, name) of what holds the table's rows: itself, or its partition leaves as they are now."""
    if not table.partitioned:
        return [(table.schema, table.name)]
    with translated(f"cannot list the partitions of {table.schema}.{table.name}"):
        rows = conn.execute(
            "select n.nspname, c.relname from pg_catalog.pg_partition_tree(%s::oid) t"
            " join pg_catalog.pg_class c on c.oid = t.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where t.isleaf and c.relkind = 'r' order by t.level, n.nspname, c.relname",
            (table.oid,),
        ).fetchall()
    return [(str(schema), str(name)) for schema, name in rows]


def partitions(conn: Connection, table: Table) -> list[tuple[str, str]]:
    """(schema, name) of every partition below the table, inner ones included; empty when it is not partitioned."""
    if not table.partitioned:
        return []
    with translated(f"cannot list the partitions of {table.schema}.{table.name}"):
        rows = conn.execute(
            "select n.nspname, c.relname from pg_catalog.pg_partition_tree(%s::oid) t"
            " join pg_catalog.pg_class c on c.oid = t.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where t.relid <> %s::oid and c.relkind in ('r', 'p') order by t.level, n.nspname, c.relname",
            (table.oid, table.oid),
        ).fetchall()
    return [(str(schema), str(name)) for schema, name in rows]


def uniques(conn: Connection, table: Table) -> list[frozenset[str]]:
    """What tells any two of the table's rows apart now: its primary key's columns, and `Table.uniques`."""
    with translated(f"cannot read the unique indexes of {table.schema}.{table.name}"):
        row: Any = conn.execute(_UNIQUES_OF, (table.oid,)).fetchone()
    return [] if row is None else [frozenset(columns) for columns in (row[0], *row[1]) if columns]


def identities(conn: Connection, relations: list[tuple[str, str]]) -> list[tuple[str, str, str, str | None]]:
    """(schema, name, relreplident, its index's name) of each relation, in the order given; what is gone is left out."""
    found: list[tuple[str, str, str, str | None]] = []
    with translated("cannot read replica identities"):
        for schema, name in relations:
            row = conn.execute(
                "select c.relreplident::text, (select x.relname from pg_catalog.pg_index i join pg_catalog.pg_class x"
                " on x.oid = i.indexrelid where i.indrelid = c.oid and i.indisreplident)"
                " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
                " where n.nspname = %s and c.relname = %s",
                (schema, name),
            ).fetchone()
            if row is not None:
                found.append((schema, name, row[0], row[1]))
    return found


def schemas(conn: Connection) -> list[str]:
    """Schemas of a user's that hold tables."""
    with translated("cannot list the schemas"):
        rows = conn.execute(
            "select distinct n.nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n"
            " on n.oid = c.relnamespace where c.relkind in ('r', 'p') and n.nspname !~ '^pg_'"
            " and n.nspname not in ('information_schema', 'slackwater', 'slackwater_mirror') order by 1"
        ).fetchall()
    return [row[0] for row in rows]
