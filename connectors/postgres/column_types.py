"""What a database's columns are made of below their types' names, read from its catalog: see `schemas.equality`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.equality import ColumnType
from schemas.names import EQ

# `base.type` is below every domain. Its equality: the default operator class's, a btree's before a hash's.
_OF = """
select base.n, base.name, pg_catalog.format_type(base.type, -1), pg_catalog.format_type(base.type, base.mod),
       (select pg_catalog.format('operator(%%I.%%s)', s.nspname, o.oprname)
          from pg_catalog.pg_opclass c
          join pg_catalog.pg_am m on m.oid = c.opcmethod and m.amname in ('btree', 'hash')
          join pg_catalog.pg_amop p on p.amopfamily = c.opcfamily and p.amoplefttype = c.opcintype
           and p.amoprighttype = c.opcintype and p.amopstrategy = case m.amname when 'btree' then 3 else 1 end
          join pg_catalog.pg_operator o on o.oid = p.amopopr
          join pg_catalog.pg_namespace s on s.oid = o.oprnamespace
         where c.opcintype = base.type and c.opcdefault
         order by m.amname limit 1),
       (select pg_catalog.quote_ident(s.nspname) || '.' || pg_catalog.quote_ident(l.collname)
          from pg_catalog.pg_collation l join pg_catalog.pg_namespace s on s.oid = l.collnamespace
         where l.oid = base.sorted)
  from base join pg_catalog.pg_type t on t.oid = base.type
 where t.typtype <> 'd'
"""

_TYPES = (
    """
with recursive base(n, name, type, mod, sorted) as (
  select u.n, '', t.oid, -1, t.typcollation
    from pg_catalog.unnest(%s::text[]) with ordinality u(spelled, n)
    join pg_catalog.pg_type t on t.oid = pg_catalog.to_regtype(u.spelled)::oid
  union all
  select base.n, base.name, t.typbasetype, case when t.typtypmod < 0 then base.mod else t.typtypmod end, base.sorted
    from base join pg_catalog.pg_type t on t.oid = base.type where t.typtype = 'd'
)
"""
    + _OF
)

_COLUMNS = (
    """
with recursive base(n, name, type, mod, sorted) as (
  select u.n, a.attname::text, a.atttypid, a.atttypmod, a.attcollation
    from pg_catalog.unnest(%s::text[]) with ordinality u(relation, n)
    join pg_catalog.pg_attribute a on a.attrelid = pg_catalog.to_regclass(u.relation)::oid
   where a.attnum > 0 and not a.attisdropped
  union all
  select base.n, base.name, t.typbasetype, case when t.typtypmod < 0 then base.mod else t.typtypmod end, base.sorted
    from base join pg_catalog.pg_type t on t.oid = base.type where t.typtype = 'd'
)
"""
    + _OF
)


def of_types(conn: Connection, spelled: Sequence[str]) -> dict[str, ColumnType]:
    """By a type's name as format_type() spells it; what the database lacks is left out."""
    names = list(dict.fromkeys(spelled))
    with translated("reading what types are made of"):
        rows: list[Any] = conn.execute(_TYPES, (names,)).fetchall()
    return {names[n - 1]: _column_type(*made) for n, _, *made in rows}


def of_columns(conn: Connection, relations: Sequence[str]) -> dict[str, Mapping[str, ColumnType]]:
    """By a table's qualified name and a column's; a table that is not there has none."""
    found: dict[str, dict[str, ColumnType]] = {name: {} for name in relations}
    names = list(found)
    with translated("reading what columns are made of"):
        rows: list[Any] = conn.execute(_COLUMNS, (names,)).fetchall()
    for n, column, *made in rows:
        found[names[n - 1]][column] = _column_type(*made)
    return dict(found)


def _column_type(base: str, full: str, equal: str | None, collation: str | None) -> ColumnType:
    return ColumnType(base=base, full=full, equal=equal or EQ, collation=collation or "")
