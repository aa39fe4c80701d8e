"""The `search_path` under which users' code runs: indexes, checks, triggers, mappings.

Invariant: a session of ours has none (see `session.PINS`). A path is in force for statements that fire users' code
alone, until `leave` or the transaction's end, and each of its schemas is one in which nobody else may make anything: a
function or an operator that somebody puts there would run with our rights. PostgreSQL's own names come first in it
(pg_catalog, which no path may list) and a session's temporary ones last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import conninfo, errors

from connectors.postgres.session import Connection, translated
from schemas.errors import Halt
from schemas.names import quote, readable
from schemas.table import Table

Path = tuple[str, ...]
"""Schemas, the first first. Empty: PostgreSQL's own names alone."""

UNNAMED = (errors.UndefinedFunction, errors.UndefinedTable, errors.UndefinedObject, errors.InvalidSchemaName)
"""What a function that names something bare ends in where its path does not lead there."""

SET = "select pg_catalog.set_config('search_path', %s, true)"


def spelled(path: Sequence[str]) -> str:
    """As `set_config` takes it."""
    return ", ".join([*map(quote, path), "pg_temp"]) if path else ""


def local(path: Sequence[str]) -> str:
    """As a statement that takes no snapshot, for the transaction that is open."""
    return f"set local search_path = {spelled(path)}" if path else "set local search_path = ''"


def enter(conn: Connection, path: Sequence[str]) -> None:
    """For what follows in the caller's transaction. Our own SQL names PostgreSQL's operators by their schema there."""
    if path:
        conn.execute(SET, (spelled(path),))


def leave(conn: Connection, path: Sequence[str]) -> None:
    """The end of `enter`, where the transaction goes on."""
    if path:
        conn.execute(SET, ("",))


@contextmanager
def within(conn: Connection, path: Sequence[str]) -> Iterator[None]:
    """Both, around a statement or a few. After an error it is the transaction's end that takes the path off."""
    enter(conn, path)
    yield
    leave(conn, path)


# Who may make objects in a schema: beside its owner, superusers, this session's role, and the roles that can write code
# for the tables themselves (their owners: triggers and indexes of theirs run with our rights as it is).
_MAKERS = """
select n.nspname, case a.grantee when 0 then 'public' else pg_catalog.pg_get_userbyid(a.grantee)::text end
  from pg_catalog.pg_namespace n
 cross join lateral pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a
 where n.nspname = any(%(path)s::text[]) and a.privilege_type = 'CREATE' and a.grantee <> n.nspowner
   and (a.grantee = 0 or not (
         (select r.rolsuper from pg_catalog.pg_roles r where r.oid = a.grantee)
         or pg_catalog.pg_has_role(a.grantee, n.nspowner, 'MEMBER')
         or a.grantee = (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user)
         or exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace s on s.oid = c.relnamespace
                     where s.nspname = %(schema)s and c.relkind in ('r', 'p')
                       and pg_catalog.pg_has_role(a.grantee, c.relowner, 'MEMBER'))))
 order by 1, 2
"""


def makers(conn: Connection, path: Sequence[str], schema: str) -> dict[str, list[str]]:
    """Schema of `path` -> roles (or public) that may make objects in it and own none of the tables of `schema`."""
    found: dict[str, list[str]] = {}
    with translated("cannot read who may create in the schemas of the search_path"):
        rows: list[Any] = conn.execute(_MAKERS, {"path": list(path), "schema": schema}).fetchall()
    for name, role in rows:
        found.setdefault(str(name), []).append(str(role))
    return found


def revoked(found: Mapping[str, Sequence[str]]) -> str:
    """The statements that mend what `makers` finds."""
    return "; ".join(
        f"revoke create on schema {readable(schema)} from"
        f" {', '.join(role if role == 'public' else readable(role) for role in roles)}"
        for schema, roles in found.items()
    )


def missing(conn: Connection, path: Sequence[str]) -> list[str]:
    """Schemas of `path` that are not there, or that this role may not use."""
    with translated("cannot look for the schemas of the search_path"):
        rows: list[Any] = conn.execute(
            "select p from pg_catalog.unnest(%s::text[]) with ordinality u(p, n) where not exists"
            " (select from pg_catalog.pg_namespace n where n.nspname = p"
            "   and pg_catalog.has_schema_privilege(n.oid, 'USAGE')) order by n",
            (list(path),),
        ).fetchall()
    return [str(row[0]) for row in rows]


def usual(dsn: str) -> Path:
    """What this login's own path leads to, by its, its role's and its database's settings."""
    parts = conninfo.conninfo_to_dict(dsn)
    made = conninfo.make_conninfo("", **{k: v for k, v in parts.items() if v is not None})
    with (
        translated("cannot read the login's own search_path"),
        psycopg.connect(made, autocommit=True, application_name="slackwater init") as conn,
    ):
        row: Any = conn.execute("select pg_catalog.current_schemas(false)::text[]").fetchone()
    return tuple(row[0])


# Base types that are not PostgreSQL's own, below the domains and arrays of some types.
_BASES = """
with recursive used(oid) as (
  select distinct a.atttypid
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
   where n.nspname = %s and c.relkind in ('r', 'p') and a.atttypid >= 16384
  union
  select case t.typtype when 'd' then t.typbasetype else t.typelem end
    from used join pg_catalog.pg_type t on t.oid = used.oid
   where t.typtype = 'd' or (t.typcategory = 'A' and t.typelem <> 0)
)
select n.nspname, t.typname
  from used join pg_catalog.pg_type t on t.oid = used.oid and t.typtype = 'b'
   and not (t.typcategory = 'A' and t.typelem <> 0)
  join pg_catalog.pg_namespace n on n.oid = t.typnamespace
 where n.nspname <> 'pg_catalog'
 order by 1, 2
"""

# Where such types live here: under the same name in the same schema, or in the one into which an extension was put.
_HOMES = """
select distinct n.nspname
  from unnest(%s::text[], %s::text[]) w(schema, name)
  join pg_catalog.pg_type t on t.typname = w.name and t.typtype = 'b'
  join pg_catalog.pg_namespace n on n.oid = t.typnamespace
 where n.nspname = w.schema
    or exists (select from pg_catalog.pg_depend d
                where d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass and d.objid = t.oid and d.deptype = 'e')
 order by 1
"""


def base_types(conn: Connection, schema: str) -> list[tuple[str, str]]:
    """(schema, name) of the base types behind the columns of a schema's tables that are not PostgreSQL's own."""
    with translated("cannot read the types of the columns"):
        rows: list[Any] = conn.execute(_BASES, (schema,)).fetchall()
    return [(str(home), str(name)) for home, name in rows]


def homes(conn: Connection, types: Sequence[tuple[str, str]]) -> list[str]:
    """The schemas in which base types live in this database, and with them the operators that are theirs."""
    if not types:
        return []
    with translated("cannot read where the types of the columns live"):
        rows: list[Any] = conn.execute(_HOMES, ([s for s, _ in types], [n for _, n in types])).fetchall()
    return [str(row[0]) for row in rows]


def named(conn: Connection, path: Sequence[str], tables: Collection[Table]) -> list[str]:
    """Schemas of this database in which SQL of ours looks something up by name: those of the path, and those of the
    types and collations of the columns of both sides, as far as they are there."""
    columns = [c for t in tables for c in t.columns]
    types = sorted({c.type.removesuffix("[]") for c in columns if "." in c.type})
    sorts = sorted({c.collation for c in columns if c.collation})
    with translated("cannot read where the types of the columns live"):
        rows: list[Any] = conn.execute(_NAMED, {"path": list(path), "types": types, "sorts": sorts}).fetchall()
    found = [(t.rpartition(".")[0].strip('"'), t.rpartition(".")[2].strip('"')) for t in types]
    for schema in sorted({t.schema for t in tables}):  # and below domains
        found += base_types(conn, schema)
    return list(dict.fromkeys([*(str(row[0]) for row in rows), *homes(conn, found)]))


_NAMED = """
select n.nspname from pg_catalog.pg_namespace n
 where n.nspname <> 'pg_catalog'
   and (n.nspname = any(%(path)s::text[])
     or n.oid in (select t.typnamespace from pg_catalog.unnest(%(types)s::text[]) w(name)
                    join pg_catalog.pg_type t on t.oid = pg_catalog.to_regtype(w.name)::oid)
     or n.oid in (select c.collnamespace from pg_catalog.unnest(%(sorts)s::text[]) w(name)
                    join pg_catalog.pg_collation c on c.oid = pg_catalog.to_regcollation(w.name)::oid))
 order by 1
"""


def own(conn: Connection, schema: str, types: Sequence[tuple[str, str]] = ()) -> Path:
    """Where the file gives none: the side's own schema, then those of the base types of both sides' columns: without
    them `=` between two values of citext would be text's.

    Left out are those in which somebody else may create, that are not there, or that are not open to this role.
    """
    wanted = list(dict.fromkeys([schema, *homes(conn, types)]))
    shut = {*missing(conn, wanted), *makers(conn, wanted, schema)}
    return tuple(name for name in wanted if name not in shut)


def assert_safe(conn: Connection, path: Path, schema: str) -> None:
    """Before a session fires users' code under it. Errors: Halt when somebody else may create in one of its schemas."""
    if path and (found := makers(conn, path, schema)):
        names = ", ".join(f"{name} ({', '.join(roles)})" for name, roles in found.items())
        raise Halt(
            f"search_path: others may create objects in {names}; what they make would run with slackwater's rights",
            hint=f"{revoked(found)}; then start it again",
        )
