"""A table as SQLAlchemy reflects and writes it: what a copied table would be on the other side, whole.

Columns with their defaults and lengths, keys, checks, foreign keys and indexes come along; a serial becomes an
identity, because its sequence belongs to the old table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import AddConstraint, CreateIndex, CreateTable
from sqlalchemy.types import UserDefinedType

from connectors.postgres.session import Connection

_INTEGERS = {"smallint": sa.SmallInteger(), "integer": sa.Integer(), "bigint": sa.BigInteger()}
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


class Spelled(UserDefinedType[Any]):
    """A type by the name that PostgreSQL gave it."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class NewColumn:
    """A column of a table to be made. `type` is PostgreSQL's spelling, with its length."""

    name: str
    type: str
    not_null: bool


def create_table(schema: str, name: str, columns: Iterable[NewColumn], key: Iterable[str]) -> str:
    """CREATE TABLE for columns that are known by name and type alone."""
    key = tuple(key)
    parts: list[Any] = [sa.Column(c.name, Spelled(c.type), nullable=not c.not_null) for c in columns]
    if key:
        parts.append(sa.PrimaryKeyConstraint(*key))
    return _sql(CreateTable(sa.Table(name, sa.MetaData(), *parts, schema=schema)))


def create_like(conn: Connection, schema: str, name: str, into: str, there: Collection[str]) -> tuple[str, str]:
    """(CREATE TABLE and its indexes, its foreign keys) for a table of schema `into` that is what `schema`.`name` is.

    Only foreign keys to tables that `there` names come along; they are to be added once every table is made.
    """
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: conn, poolclass=StaticPool, use_native_hstore=False
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as reflecting:
        old = sa.Table(name, sa.MetaData(), schema=schema, autoload_with=reflecting, resolve_fks=False)
        types = _types(conn, schema, name)
    metadata = sa.MetaData()
    for constraint in old.foreign_key_constraints:  # named, so that they can be written; never looked into
        elements = constraint.elements
        other = elements[0].target_fullname.rsplit(".", 1)[0].rsplit(".", 1)[-1]
        if other != name:
            sa.Table(
                other,
                metadata,
                *(sa.Column(e.target_fullname.rsplit(".", 1)[1], Spelled("integer")) for e in elements),
                schema=into,
                extend_existing=True,
            )
    new = old.to_metadata(metadata, schema=into, referred_schema_fn=lambda *_: into)
    for column in new.columns:
        column.type = _INTEGERS.get(types[column.name]) or Spelled(types[column.name])
        default = column.server_default
        if isinstance(default, sa.DefaultClause) and str(default.arg).startswith("nextval("):
            column.server_default = None
            sa.Identity(always=False)._set_parent(column)
        elif column.identity is None:
            column.autoincrement = False  # or an integer key would become a serial
    for unique in new.constraints:
        if isinstance(unique, sa.UniqueConstraint) and not unique.dialect_options["postgresql"]["nulls_not_distinct"]:
            unique.dialect_options["postgresql"]["nulls_not_distinct"] = None  # PostgreSQL 14 cannot spell the default
    made = CreateTable(new, include_foreign_key_constraints=[])
    keys = [k for k in new.foreign_key_constraints if k.elements[0].target_fullname.split(".")[-2] in there]
    return (
        "\n".join([_sql(made), *(_sql(CreateIndex(i)) for i in sorted(new.indexes, key=_name))]),
        "".join(_sql(AddConstraint(k)) for k in sorted(keys, key=_name)),
    )


def _types(conn: Connection, schema: str, name: str) -> dict[str, str]:
    """By column; with its collation where it is not the type's default."""
    rows = conn.execute(
        "select a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) || coalesce((select ' COLLATE ' ||"
        " pg_catalog.quote_ident(s.nspname) || '.' || pg_catalog.quote_ident(l.collname) from pg_catalog.pg_collation l"
        " join pg_catalog.pg_namespace s on s.oid = l.collnamespace join pg_catalog.pg_type t on t.oid = a.atttypid"
        " where l.oid = a.attcollation and l.oid <> t.typcollation), '') from pg_catalog.pg_attribute a "
        "join pg_catalog.pg_class c on c.oid = a.attrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = %s and c.relname = %s and a.attnum > 0 and not a.attisdropped",
        (schema, name),
    ).fetchall()
    return dict(rows)


def _name(named: sa.Index | sa.Constraint) -> str:
    return str(named.name)


def _sql(element: sa.schema.DDLElement) -> str:
    lines = str(element.compile(dialect=_DIALECT)).strip().splitlines()
    return "\n".join(line.rstrip().replace("\t", "  ") for line in lines) + ";\n"
