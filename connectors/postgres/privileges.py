"""Who may write which tables: read from the catalog for every role at once, memberships included.

Invariant: superusers and the server's own roles are left out, for they may write anything anywhere; everybody else who
may write is named, whether the right came by a grant, by ownership or through a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from connectors.postgres.session import Connection, translated
from schemas.table import Table

Verbs = frozenset[str]
"""Of INSERT, UPDATE and DELETE."""

_VERBS = """array_remove(array[
    case when has_any_column_privilege(r.oid, t.oid, 'INSERT') then 'INSERT' end,
    case when has_any_column_privilege(r.oid, t.oid, 'UPDATE') then 'UPDATE' end,
    case when has_table_privilege(r.oid, t.oid, 'DELETE') then 'DELETE' end], null)"""

# slackwater's own roles are not the application's.
_WRITERS = f"""
select r.rolname, c.relname, {_VERBS}
  from pg_catalog.pg_roles r, pg_catalog.unnest(%s::oid[]) t(oid) join pg_catalog.pg_class c on c.oid = t.oid
 where not r.rolsuper and r.rolname !~ '^(pg_|slackwater_)' and has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
   and (has_any_column_privilege(r.oid, t.oid, 'INSERT, UPDATE') or has_table_privilege(r.oid, t.oid, 'DELETE'))
"""

_RIGHTS = f"""
select r.rolname, c.relname, {_VERBS}, has_schema_privilege(r.oid, c.relnamespace, 'USAGE'),
       coalesce((select array_agg(distinct s.oid::regclass::text)
                   from pg_catalog.pg_attrdef a join pg_catalog.pg_depend d
                     on d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = a.oid
                    and d.refclassid = 'pg_catalog.pg_class'::regclass
                   join pg_catalog.pg_class s on s.oid = d.refobjid
                  where a.adrelid = t.oid  -- CASE: the server is free to ask in another order, of a table too
                    and case when s.relkind = 'S' then not has_sequence_privilege(r.oid, s.oid, 'USAGE, UPDATE') end),
                '{{}}')
  from pg_catalog.pg_roles r, pg_catalog.unnest(%s::oid[]) t(oid) join pg_catalog.pg_class c on c.oid = t.oid
 where r.rolname = any(%s::text[])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What a role may do to a table. `sequences`: those of its defaults that the role may not use."""

    verbs: Verbs
    schema: bool  # USAGE on the schema
    sequences: tuple[str, ...]


def writers(conn: Connection, tables: Iterable[Table]) -> dict[str, dict[str, Verbs]]:
    """Role -> table -> what it may do there; only roles and tables where that is something."""
    found: dict[str, dict[str, Verbs]] = {}
    with translated("cannot read who may write the tables"):
        rows = conn.execute(_WRITERS, ([t.oid for t in tables],)).fetchall()
    for role, table, verbs in rows:
        found.setdefault(role, {})[table] = frozenset(verbs)
    return found


def rights(conn: Connection, tables: Iterable[Table], roles: Iterable[str]) -> Mapping[str, Mapping[str, Rights]]:
    """Role -> table -> rights, for each of `roles` that there is."""
    found: dict[str, dict[str, Rights]] = {}
    with translated("cannot read who may write the tables"):
        rows = conn.execute(_RIGHTS, ([t.oid for t in tables], list(roles))).fetchall()
    for role, table, verbs, schema, sequences in rows:
        found.setdefault(role, {})[table] = Rights(verbs=frozenset(verbs), schema=schema, sequences=tuple(sequences))
    return found
