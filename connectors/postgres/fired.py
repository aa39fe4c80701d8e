"""Users' code that a written row fires, expression by expression: indexes, checks, generated columns, defaults.

Invariant: evaluating it changes nothing. It happens over rows given as text, in a transaction that is undone, and
read-only, so that not even a sequence moves. A trigger cannot be asked so: `trial` fires them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres import user_path
from connectors.postgres.ranges import relation
from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import Path
from schemas.bind import bound
from schemas.mapping import Mapping as TableMapping
from schemas.names import quote, readable
from schemas.table import Column, Table

Row = Mapping[str, str | None]
"""Column -> its text."""

SERVERS_OWN: Path = ("pg_catalog",)
"""Under which the server itself evaluates indexes and statistics, from PostgreSQL 17 on (pg_temp follows)."""
STATEMENT_S = 5
SAMPLES = 3
SOURCE_ROWS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """One that is evaluated when a row of `table` is written; `kind` and `name` are those of what it belongs to."""

    table: str
    kind: str  # index, constraint, generated column, default, partition key, statistics
    name: str
    text: str
    functions: tuple[str, ...]  # of users, as signatures that ALTER FUNCTION takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unnamed:
    """Code that names something which its path does not lead to, or which the role may not use.

    `missing` is what it names; `there` are the schemas that hold something of that name; `within` the function whose
    body failed, as far as the server says.
    """

    table: str
    what: str
    message: str
    missing: str
    there: tuple[str, ...]
    within: str
    functions: tuple[str, ...]


_USERS = """
       (select coalesce(pg_catalog.array_agg(distinct p.oid::pg_catalog.regprocedure::text), '{}')
          from pg_catalog.pg_depend dep join pg_catalog.pg_proc p on p.oid = dep.refobjid
          join pg_catalog.pg_namespace n on n.oid = p.pronamespace
         where dep.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass and n.nspname <> 'pg_catalog'
           and (dep.classid = /* class */ and dep.objid = /* object */ /* or */))
"""

_EXPRESSIONS = """
with t as (select c.oid, c.relname from pg_catalog.pg_class c where c.oid = any(%(oids)s::oid[])),
     rel as (select t.oid as root, t.relname, coalesce(p.relid::oid, t.oid) as oid
               from t left join lateral pg_catalog.pg_partition_tree(t.oid) p on true)
select rel.relname, 'index', x.relname, pg_catalog.pg_get_indexdef(i.indexrelid, k.n::int, false), /* of index */
  from rel join pg_catalog.pg_index i on i.indrelid = rel.oid join pg_catalog.pg_class x on x.oid = i.indexrelid
 cross join lateral pg_catalog.unnest(i.indkey) with ordinality k(attnum, n)
 where k.attnum = 0 and i.indisready
union all
select rel.relname, 'index', x.relname, pg_catalog.pg_get_expr(i.indpred, i.indrelid), /* of index */
  from rel join pg_catalog.pg_index i on i.indrelid = rel.oid join pg_catalog.pg_class x on x.oid = i.indexrelid
 where i.indpred is not null and i.indisready
union all
select rel.relname, 'constraint', k.conname, pg_catalog.pg_get_expr(k.conbin, k.conrelid), /* of constraint */
  from rel join pg_catalog.pg_constraint k on k.conrelid = rel.oid where k.contype = 'c'
union all
select rel.relname, case a.attgenerated when '' then 'default' else 'generated column' end, a.attname,
       pg_catalog.pg_get_expr(d.adbin, d.adrelid), /* of default */
  from rel join pg_catalog.pg_attrdef d on d.adrelid = rel.oid
  join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
union all
select rel.relname, 'partition key', rel.relname, pg_catalog.pg_get_expr(p.partexprs, p.partrelid), /* of table */
  from rel join pg_catalog.pg_partitioned_table p on p.partrelid = rel.oid where p.partexprs is not null
union all
select rel.relname, 'statistics', s.stxname, e.text, /* of statistics */
  from rel join pg_catalog.pg_statistic_ext s on s.stxrelid = rel.oid
 cross join lateral pg_catalog.unnest(pg_catalog.pg_get_statisticsobjdef_expressions(s.oid)) e(text)
"""
_CLASS = "'pg_catalog.%s'::pg_catalog.regclass"
for _name, _class, _object in (
    ("index", "pg_class", "i.indexrelid"),
    ("constraint", "pg_constraint", "k.oid"),
    ("default", "pg_attrdef", "d.oid"),
    ("table", "pg_class", "rel.oid"),
    ("statistics", "pg_statistic_ext", "s.oid"),
):
    _of = _USERS.replace("/* class */", _CLASS % _class)
    # PostgreSQL 14 hangs what a generated column calls on the column.
    _also = f"or dep.classid = {_CLASS % 'pg_class'} and dep.objid = a.attrelid and dep.objsubid = a.attnum"
    _of = _of.replace("/* or */", _also if _name == "default" else "")
    _EXPRESSIONS = _EXPRESSIONS.replace(f"/* of {_name} */", _of.replace("/* object */", _object))


def expressions(conn: Connection, tables: Iterable[Table]) -> list[Expression]:
    """Those of the tables, and of their partitions, that call a function of users; each once."""
    with translated("cannot read what the tables' indexes and checks call"):
        rows: list[Any] = conn.execute(_EXPRESSIONS, {"oids": [t.oid for t in tables]}).fetchall()
    found = (
        Expression(table=table, kind=kind, name=name, text=text, functions=tuple(functions))
        for table, kind, name, text, functions in rows
        if functions and text
    )
    return list(dict.fromkeys(found))


# -- rows -------------------------------------------------------------------------------------------------------------


def stored(conn: Connection, table: Table) -> list[Row]:
    """A few of its rows; empty where it has none, or they cannot be read now."""
    columns = given(table)
    shown = ", ".join(f"{quote(c.name)}::text" for c in columns)
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(f"set local statement_timeout = '{STATEMENT_S}s'; set local lock_timeout = '100ms'")
            rows = conn.execute(f"select {shown} from {relation(table)} limit {SAMPLES}".encode()).fetchall()
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege):
        return []
    return [dict(zip((c.name for c in columns), row, strict=True)) for row in rows]


def computed(
    conn: Connection, mapping: TableMapping, sources: Mapping[str, Table], path: Path
) -> list[dict[str, str | None]]:
    """A few of the rows that a mapping makes of a few of its sources'; empty where that says nothing."""
    bindings = {
        s: f"select {', '.join(map(quote, mapping.reads[s]))} from {relation(sources[s])} limit {SOURCE_ROWS}"
        for s in mapping.sources
    }
    shown = ", ".join(f"q.{quote(name)}::text" for name in mapping.columns)
    query = f"select {shown} from (\n{bound(mapping.text, bindings)}\n) q limit {SAMPLES}"
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(
                f"set local statement_timeout = '{STATEMENT_S}s'; set local lock_timeout = '100ms';"
                f" set local transaction_read_only = on; {user_path.local(path)}"
            )
            rows = conn.execute(query.encode()).fetchall()
    except psycopg.Error:
        if conn.broken:
            raise
        return []
    return [dict(zip(mapping.columns, row, strict=True)) for row in rows]


def given(table: Table) -> list[Column]:
    """The columns that a row is written with: all but those that the server computes."""
    return [c for c in table.columns if not c.generated]


_TYPES = """
with recursive base as (
  select t.oid as type, t.oid, t.typtypmod as mod from pg_catalog.pg_type t where t.oid = any(%s::oid[])
  union all
  select b.type, t.typbasetype, t.typtypmod from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typtype = 'd'
)
select b.type::bigint, t.typname, t.typcategory::text, b.mod,
       (select e.enumlabel from pg_catalog.pg_enum e where e.enumtypid = t.oid order by e.enumsortorder limit 1)
  from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typtype <> 'd'
"""
_BY_NAME = {
    "time": "12:00", "timetz": "12:00+00", "uuid": "00000000-0000-4000-8000-000000000001", "bytea": "\\x01",
    "json": "{}", "jsonb": "{}", "xml": "<a/>", "macaddr": "08:00:2b:01:02:03", "macaddr8": "08:00:2b:01:02:03:04:05",
    "cidr": "10.0.0.0/8", "bit": "1", "varbit": "1", "pg_lsn": "0/1", "tsvector": "a", "hstore": "a=>1",
}  # fmt: skip
_BY_CATEGORY = {
    "N": "1", "S": "a", "B": "true", "D": "2000-01-01", "T": "1 day", "I": "10.0.0.1", "A": "{}", "R": "empty",
}  # fmt: skip


def made(conn: Connection, table: Table) -> Row:
    """A row made from the columns' types; NULL where nothing is known of one."""
    columns = given(table)
    with translated("cannot read the types of the columns"):
        rows: list[Any] = conn.execute(_TYPES, ([c.type_oid for c in columns],)).fetchall()
    values: dict[int, str | None] = {}
    for oid, name, category, mod, label in rows:
        value = _BY_NAME.get(name, _BY_CATEGORY.get(category)) if label is None else label
        values[oid] = "1" * mod if name == "bit" and mod > 0 else value
    row = {c.name: values.get(c.type_oid) for c in columns}
    for c in columns:  # a length that the column itself has
        if c.type == '"bit"' or c.type == "bit":
            length = re.search(r"\((\d+)\)", c.type_full)
            row[c.name] = "1" * int(length[1]) if length else "1"
    return row


def typed(columns: Sequence[Column], row: Row) -> list[str]:
    """Its values as constants of the columns' types, in order."""
    return [f"{_literal(row.get(c.name))}::{c.type}" for c in columns]


def _literal(text: str | None) -> str:
    """A string constant (standard_conforming_strings is pinned)."""
    return "null" if text is None else "'" + text.replace("'", "''") + "'"


# -- evaluating -------------------------------------------------------------------------------------------------------


def unnamed(
    conn: Connection, table: Table, wanted: Iterable[Expression], rows: Sequence[Row], path: Path
) -> list[Unnamed]:
    """Those of the expressions that, over one of the rows, name what `path` does not lead to."""
    found: list[Unnamed] = []
    columns = given(table)
    for expression in wanted:
        for row in rows:
            values = ", ".join(f"{v} as {quote(c.name)}" for c, v in zip(columns, typed(columns, row), strict=True))
            query = f"select ({expression.text}) from (select {values}) {quote(table.name)}"
            error = _tried(conn, query, path)
            if error is not None:
                what = f"{expression.kind} {expression.name}"
                found.append(explained(conn, table, what, error, expression.functions))
                break
    return found


def _tried(conn: Connection, query: str, path: Path) -> psycopg.Error | None:
    """The error, if it is about names or rights; what else a value is refused for is not asked here."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(
                "set local transaction_read_only = on;"
                f" set local statement_timeout = '{STATEMENT_S}s'; {user_path.local(path)}"
            )
            conn.execute(query.encode())
    except psycopg.OperationalError as error:
        if error.sqlstate is None or (error.sqlstate[:2] in ("08", "57") and conn.broken):
            raise
    except psycopg.Error as error:
        if about_names(error):
            return error
    return None


def about_names(error: psycopg.Error) -> bool:
    """Whether a name was not found, or may not be used: class 42, and a schema that is not there."""
    return error.sqlstate is not None and error.sqlstate[:2] in ("42", "3F")


_NAMED = re.compile(r'(function|relation|type|schema|operator|procedure|table|sequence) "?([\w$.]+|[^\s"]+)"?')
_WITHIN = re.compile(r'(?:PL/\w+ function|SQL function) "?([^"\s(]+(?:\([^)]*\))?)"?')
_THERE = """
select n.nspname from pg_catalog.pg_namespace n
 where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'slackwater', 'slackwater_mirror')
   and n.nspname !~ '^pg_(toast_)?temp_'
   and (exists (select from pg_catalog.pg_proc p where p.pronamespace = n.oid and p.proname = %(name)s)
        or exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relname = %(name)s)
        or exists (select from pg_catalog.pg_type t where t.typnamespace = n.oid and t.typname = %(name)s)
        or exists (select from pg_catalog.pg_operator o where o.oprnamespace = n.oid and o.oprname = %(name)s))
 order by 1
"""


def explained(
    conn: Connection, table: Table, what: str, error: psycopg.Error, functions: Collection[str] = ()
) -> Unnamed:
    """What an error is about; outside the transaction that it has ended."""
    message = error.diag.message_primary or str(error)
    named = _NAMED.search(message)
    missing = named[2] if named else ""
    rows: list[Any] = []
    if missing and "." not in missing:
        with translated("cannot look for what a function names"):
            rows = conn.execute(_THERE, {"name": missing}).fetchall()
    there = [str(row[0]) for row in rows]
    within = _WITHIN.search(error.diag.context or "")
    return Unnamed(
        table=table.name,
        what=what,
        message=message,
        missing=missing,
        there=(table.schema,) if table.schema in there else tuple(there),
        within=within[1] if within else "",
        functions=tuple(functions),
    )


def pinned(functions: Iterable[str], path: Sequence[str]) -> str:
    """The statements that give functions a path of their own."""
    spelled = ", ".join([*map(readable, path), "pg_temp"])
    return "; ".join(f"alter function {f} set search_path = {spelled}" for f in functions)
