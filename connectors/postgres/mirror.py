"""`slackwater_mirror` on the target: whole copies of the tables that joins read, and the types that the target lacks.

Invariant: a source's value always has a column that holds it as it is. Where the target has a type of that name which
cannot (another set of labels, other attributes, a narrower check), a stand-in without checks is made beside it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres.session import Connection, translated
from schemas.control import MIRROR_SCHEMA, mirror_name
from schemas.direction import Direction
from schemas.errors import Refused
from schemas.names import qualified, quote
from schemas.table import Identity, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class UserType:
    """A type that PostgreSQL does not come with. `parts`: labels, attributes as (name, type), or the one base type."""

    schema: str
    name: str
    kind: str  # e enum, d domain, c composite, r range, b base
    parts: tuple[tuple[str, str], ...]
    checks: tuple[str, ...] = ()  # a domain's constraints, as SQL

    @property
    def spelled(self) -> str:
        return qualified(self.schema, self.name)


_TYPES = """
with recursive used(oid, depth) as (
  select o, 0 from pg_catalog.unnest(%s::oid[]) o
  union all
  select next.oid, used.depth + 1 from used join pg_catalog.pg_type t on t.oid = used.oid
  cross join lateral (
    select t.typelem as oid where t.typelem <> 0 and t.typcategory = 'A'
    union all select t.typbasetype where t.typtype = 'd'
    union all select a.atttypid from pg_catalog.pg_attribute a
               where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
    union all select r.rngsubtype from pg_catalog.pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
    union all select r.rngtypid from pg_catalog.pg_range r where t.oid = r.rngmultitypid
  ) next
  where used.depth < 20
)
select n.nspname, t.typname, t.typtype,
       case t.typtype
         when 'e' then (select array_agg(array[e.enumlabel::text, ''] order by e.enumsortorder)
                          from pg_catalog.pg_enum e where e.enumtypid = t.oid)
         when 'd' then array[array['', pg_catalog.format_type(t.typbasetype, t.typtypmod)]]
         when 'c' then (select array_agg(array[a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod)]
                                         order by a.attnum) from pg_catalog.pg_attribute a
                         where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)
         when 'r' then (select array[array['', pg_catalog.format_type(r.rngsubtype, -1)]]
                          from pg_catalog.pg_range r where r.rngtypid = t.oid)
       end,
       (select array_agg(pg_catalog.pg_get_constraintdef(k.oid) order by k.conname)
          from pg_catalog.pg_constraint k where k.contypid = t.oid)
  from (select oid, max(depth) as depth from used group by oid) u
  join pg_catalog.pg_type t on t.oid = u.oid join pg_catalog.pg_namespace n on n.oid = t.typnamespace
 where n.nspname <> 'pg_catalog' and t.typtype in ('b', 'e', 'd', 'c', 'r')
   and not (t.typelem <> 0 and t.typcategory = 'A')
 order by u.depth desc, n.nspname, t.typname
"""


def user_types(conn: Connection, type_oids: Iterable[int]) -> list[UserType]:
    """The types behind these, the ones that others are made of first; PostgreSQL's own are left out."""
    with translated("cannot read the types of the columns"):
        rows: list[Any] = conn.execute(_TYPES, (sorted(set(type_oids)),)).fetchall()
    return [
        UserType(
            schema=schema,
            name=name,
            kind=kind,
            parts=tuple((a, b) for a, b in parts or ()),
            checks=tuple(checks or ()),
        )
        for schema, name, kind, parts, checks in rows
    ]


def _named(conn: Connection, schema: str, name: str) -> UserType | None:
    """The type of that name in this database, or None."""
    with translated(f"cannot look up the type {schema}.{name}"):
        row = conn.execute("select pg_catalog.to_regtype(%s)::oid::bigint", (qualified(schema, name),)).fetchone()
        found = user_types(conn, [int(str(row[0]))]) if row is not None and row[0] is not None else []
    return found[-1] if found else None


def _moved(conn: Connection, name: str) -> str | None:
    """An extension's type where the extension lives in another schema than on the source, as format_type() prints it;
    None where there is none of that name, or more than one."""
    with translated(f"cannot look up the type {name}"):
        rows: list[Any] = conn.execute(_MOVED, (name,)).fetchall()
    return str(rows[0][0]) if len(rows) == 1 else None


_MOVED = """
select pg_catalog.quote_ident(n.nspname) operator(pg_catalog.||) '.' operator(pg_catalog.||)
       pg_catalog.quote_ident(t.typname)
  from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) t.typnamespace
 where t.typname operator(pg_catalog.=) %s and t.typtype operator(pg_catalog.=) 'b'
   and exists (select from pg_catalog.pg_depend d
                where d.classid operator(pg_catalog.=) 'pg_catalog.pg_type'::pg_catalog.regclass
                  and d.objid operator(pg_catalog.=) t.oid and d.deptype operator(pg_catalog.=) 'e')
"""


def _holds(target: UserType, wanted: UserType) -> bool:
    """Whether every value of `wanted` is one of `target`, and orders there as it does here."""
    if target.kind != wanted.kind:
        return False
    match wanted.kind:
        case "e":
            labels = iter(label for label, _ in target.parts)
            return all(label in labels for label, _ in wanted.parts)  # a subsequence: each search goes on from the last
        case "d":
            return target.parts == wanted.parts and set(target.checks) <= set(wanted.checks)
        case _:
            return target.parts == wanted.parts


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns:
    """What has to be made: `statements` in order, and the types that cannot be made as `impossible`."""

    statements: tuple[str, ...]
    names: tuple[str, ...]
    impossible: tuple[str, ...]


def stand_ins(conn: Connection, wanted: Sequence[UserType], schema: str = MIRROR_SCHEMA) -> StandIns:
    """Which of a source's types the target cannot hold, and how to make stand-ins for them in `schema`."""
    statements: list[str] = []
    names: list[str] = []
    impossible: list[str] = []
    replaced: dict[str, str] = {}  # spelled by format_type -> its stand-in
    for type_ in wanted:
        present = _named(conn, type_.schema, type_.name)
        if present is None and type_.kind == "b" and (moved := _moved(conn, type_.name)) is not None:
            replaced[_as_printed(conn, type_.schema, type_.name)] = moved
            continue
        needs_stand_in = any(_base(part) in replaced for _, part in type_.parts)
        if present is not None and _holds(present, type_) and not needs_stand_in:
            continue
        if type_.kind == "b":
            if present is None:
                impossible.append(f"{type_.schema}.{type_.name}")
            continue
        stand_in = _named(conn, schema, type_.name)
        shape = _respelled(type_, replaced, schema)
        if stand_in is None:
            statements.append(_create(shape))
        elif not _holds(stand_in, shape):
            if type_.kind != "e" or stand_in.kind != "e":
                impossible.append(f"{type_.schema}.{type_.name} (another type of that name is in {schema})")
                continue
            statements += _labels(stand_in, shape)
        names.append(type_.name)
        replaced[_as_printed(conn, type_.schema, type_.name)] = _as_printed(conn, schema, type_.name)
    return StandIns(statements=tuple(statements), names=tuple(names), impossible=tuple(impossible))


_BASE = re.compile(r'^((?:"(?:[^"]|"")+"|[^\s.("\[]+)\.(?:"(?:[^"]|"")+"|[^\s.("\[]+))(.*)$', re.DOTALL)


def _base(spelled: str) -> str:
    """A user type's name without a length and without `[]`; what is not qualified is PostgreSQL's own."""
    found = _BASE.match(spelled)
    return found[1] if found else spelled


def _as_printed(conn: Connection, schema: str, name: str) -> str:
    """A type as format_type() prints it: with quotes only where they are needed."""
    with translated("cannot spell a type"):
        row: Any = conn.execute(
            "select pg_catalog.quote_ident(%s) || '.' || pg_catalog.quote_ident(%s)", (schema, name)
        ).fetchone()
    return str(row[0])


def _respelled(type_: UserType, replaced: dict[str, str], schema: str) -> UserType:
    """The stand-in for a type: its own parts' stand-ins in place of them, and no checks."""

    def through(part: str) -> str:
        base = _base(part)
        return replaced[base] + part[len(base) :] if base in replaced else part

    return UserType(
        schema=schema,
        name=type_.name,
        kind=type_.kind,
        parts=tuple((name, part if type_.kind == "e" else through(part)) for name, part in type_.parts),
    )


def _create(type_: UserType) -> str:
    match type_.kind:
        case "e":
            return f"create type {type_.spelled} as enum ({', '.join(_literal(label) for label, _ in type_.parts)})"
        case "d":
            return f"create domain {type_.spelled} as {type_.parts[0][1]}"
        case "c":
            return f"create type {type_.spelled} as ({', '.join(f'{quote(n)} {t}' for n, t in type_.parts)})"
        case _:
            return f"create type {type_.spelled} as range (subtype = {type_.parts[0][1]})"


def _labels(present: UserType, wanted: UserType) -> list[str]:
    """Labels that a stand-in from an earlier `prepare` lacks, each after the one that it follows on the source."""
    have = [label for label, _ in present.parts]
    made: list[str] = []
    previous: str | None = None
    for label, _ in wanted.parts:
        if label not in have:
            place = f" after {_literal(previous)}" if previous is not None else f" before {_literal(have[0])}"
            made.append(f"alter type {present.spelled} add value if not exists {_literal(label)}{place}")
            have.append(label)
        previous = label
    return made


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# -- the schema's contents --------------------------------------------------------------------------------------------


def create_types(conn: Connection, migration: str, made: StandIns) -> None:
    """Make the stand-ins; call it inside a transaction. A type's comment lists the migrations that need it."""
    if made.impossible:
        raise Refused(
            "types of old that new cannot hold",
            reasons=made.impossible,
            hint="create them on new too: usually the same extension (create extension ...)",
        )
    for statement in made.statements:
        conn.execute(statement.encode())
    for name in made.names:
        users = _users(conn, name) | {migration}
        _set_users(conn, name, users)


def _users(conn: Connection, name: str) -> set[str]:
    row: Any = conn.execute(
        "select pg_catalog.obj_description(pg_catalog.to_regtype(%s), 'pg_type')", (qualified(MIRROR_SCHEMA, name),)
    ).fetchone()
    return set(filter(None, (row[0] or "").removeprefix("slackwater: ").split(" ")))


def _set_users(conn: Connection, name: str, users: Iterable[str]) -> None:
    kind = _named(conn, MIRROR_SCHEMA, name)
    word = "domain" if kind is not None and kind.kind == "d" else "type"
    conn.execute(
        sql.SQL("comment on {} {} is {}").format(
            sql.SQL(word), sql.Identifier(MIRROR_SCHEMA, name), sql.Literal("slackwater: " + " ".join(sorted(users)))
        )
    )


def mirror_key(source: Table) -> tuple[str, ...]:
    """What tells a mirror's rows apart: the columns that an UPDATE or DELETE is sure to send; none under FULL alone."""
    if source.identity is Identity.INDEX:
        return source.identity_columns
    return source.key


def create_mirror(
    conn: Connection, migration: str, direction: Direction, source: Table, collated: Collection[str] = ()
) -> bool:
    """Make the mirror of `source` if it is not there; True when it was made. Inside a transaction, after its types.

    `collated`: the columns that have to have the collation that they have in `source`.
    """
    name = mirror_name(migration, direction, source.name)
    row = conn.execute("select pg_catalog.to_regclass(%s) is not null", (qualified(MIRROR_SCHEMA, name),)).fetchone()
    named = {c.name: c.collation for c in source.columns if c.collation and c.name in collated}
    if row == (True,):
        _collate(conn, name, source, named)
        return False
    columns = [
        f"{quote(c.name)} {spelled(conn, c.type)}" + (f" collate {named[c.name]}" if c.name in named else "")
        for c in source.columns
        if not c.generated
    ]
    key = mirror_key(source)
    if key:
        columns.append(f"primary key ({', '.join(map(quote, key))})")
    conn.execute(f"create table {qualified(MIRROR_SCHEMA, name)} ({', '.join(columns)})".encode())
    return True


def _collate(conn: Connection, name: str, source: Table, named: Mapping[str, str]) -> None:
    """Give a mirror that is there the collations that it was made without, or that have changed."""
    rows: list[Any] = conn.execute(
        "select a.attname, pg_catalog.quote_ident(s.nspname) || '.' || pg_catalog.quote_ident(l.collname)"
        " from pg_catalog.pg_attribute a left join pg_catalog.pg_collation l on l.oid = a.attcollation"
        " left join pg_catalog.pg_namespace s on s.oid = l.collnamespace"
        " where a.attrelid = pg_catalog.to_regclass(%s)::oid and a.attnum > 0 and not a.attisdropped",
        (qualified(MIRROR_SCHEMA, name),),
    ).fetchall()
    changed = {column: named[column] for column, collation in rows if named.get(column, collation) != collation}
    alter = ", ".join(
        f"alter column {quote(c)} type {spelled(conn, source.column(c).type)} collate {collation}"
        for c, collation in changed.items()
    )
    if alter:
        conn.execute(f"alter table {qualified(MIRROR_SCHEMA, name)} {alter}".encode())


def index_mirror(
    conn: Connection, migration: str, direction: Direction, source: Table, expressions: Sequence[str]
) -> bool:
    """Index the mirror's rows by the owner that they feed, or each epoch would read the whole mirror to find them.

    False where the key leads with these columns, the index is there, or there can be none: a type without an order,
    an expression that is not immutable.
    """
    if tuple(expressions) == tuple(map(quote, mirror_key(source)))[: len(expressions)]:
        return False
    table = qualified(MIRROR_SCHEMA, mirror_name(migration, direction, source.name))
    listed = ", ".join(f"({expression})" for expression in expressions)
    name = f"slackwater_{hashlib.sha256(f'{table} ({listed})'.encode()).hexdigest()[:16]}"
    there = conn.execute("select pg_catalog.to_regclass(%s) is not null", (qualified(MIRROR_SCHEMA, name),)).fetchone()
    if there == (True,):
        return False
    try:
        with conn.transaction():
            conn.execute(f"create index {quote(name)} on {table} ({listed})".encode())
    except (psycopg.errors.UndefinedObject, psycopg.errors.InvalidObjectDefinition):
        return False
    return True


def spelled(conn: Connection, type_: str, schema: str = MIRROR_SCHEMA) -> str:
    """How the target spells a source's type: its stand-in in `schema` where there is one; an extension's type by the
    schema in which the extension lives here."""
    base = _base(type_)
    if base == type_ and "." not in type_:
        return type_
    name = re.sub(r'^(?:"(?:[^"]|"")+"|[^\s.("\[]+)\.', "", base, count=1)
    stand_in = f"{schema}.{name}"
    row: Any = conn.execute(
        "select pg_catalog.to_regtype(%s) is not null, pg_catalog.to_regtype(%s) is not null", (stand_in, base)
    ).fetchone()
    if row[0]:
        return stand_in + type_[len(base) :]
    moved = None if row[1] else _moved(conn, name[1:-1].replace('""', '"') if name.startswith('"') else name)
    return type_ if moved is None else moved + type_[len(base) :]


def drop_mirror(conn: Connection, migration: str, direction: Direction, source: str) -> None:
    """Drop one mirror that nothing reads any more."""
    name = mirror_name(migration, direction, source)
    conn.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(MIRROR_SCHEMA, name)))


def drop_all(conn: Connection, migration: str) -> list[str]:
    """Drop every mirror of the migration, and the types that only it needed; call it inside a transaction."""
    rows: list[Any] = conn.execute(
        "select c.relname from pg_catalog.pg_class c where c.relnamespace = to_regnamespace(%s)"
        " and c.relkind = 'r' and starts_with(c.relname, %s)",
        (MIRROR_SCHEMA, f"{migration}."),
    ).fetchall()
    dropped = [row[0] for row in rows]
    for name in dropped:
        conn.execute(sql.SQL("drop table {}").format(sql.Identifier(MIRROR_SCHEMA, name)))
    types: list[Any] = conn.execute(
        "select t.typname, t.typtype from pg_catalog.pg_type t where t.typnamespace = to_regnamespace(%s)"
        " and t.typtype in ('e', 'd', 'c', 'r')"
        " and (t.typrelid = 0 or (select relkind from pg_catalog.pg_class c where c.oid = t.typrelid) = 'c')"
        " order by t.oid desc",
        (MIRROR_SCHEMA,),
    ).fetchall()
    for name, kind in types:
        users = _users(conn, name)
        if users == {migration}:
            word = "domain" if kind == "d" else "type"
            conn.execute(sql.SQL("drop {} {}").format(sql.SQL(word), sql.Identifier(MIRROR_SCHEMA, name)))
            dropped.append(name)
        elif migration in users:
            _set_users(conn, name, users - {migration})
    return dropped
