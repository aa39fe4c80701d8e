"""What a table is, as the catalog or a Relation message describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Identity(StrEnum):
    """REPLICA IDENTITY, by its letter in pg_class.relreplident."""

    DEFAULT = "d"
    NOTHING = "n"
    FULL = "f"
    INDEX = "i"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One live column, in attnum order within its table."""

    name: str
    type_oid: int
    type: str  # format_type(oid, -1): "integer", "bpchar", "app.mood"; a cast to it never truncates
    type_full: str  # format_type() with its length or precision: "character varying(40)"
    type_kind: str = "b"  # pg_type.typtype: b base, e enum, d domain, c composite, r range, m multirange
    not_null: bool = False
    has_default: bool = False
    identity: str = ""  # '' none, 'a' generated always, 'd' by default
    generated: str = ""  # '' none, 's' stored, 'v' virtual
    # With its schema, where it is not the type's default. Not compared: documents from before it was read lack it, and
    # that a column's collation was altered is the fingerprint's to tell.
    collation: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One foreign key that PostgreSQL enforces, over every row: `columns` of the table refer to `to` of another."""

    name: str
    columns: tuple[str, ...]
    schema: str
    table: str
    to: tuple[str, ...]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Reference:
        """From what the catalog, or a document that was kept, says of it."""
        return cls(**{**document, "columns": tuple(document["columns"]), "to": tuple(document["to"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that can be read or written: ordinary or partitioned, never a leaf of a partitioned one.

    `key` is the primary key's columns in key order, empty where there is none.
    `identity_columns` are what an UPDATE or DELETE sends of the old row: the primary key (DEFAULT), an index's
    columns (INDEX), every column (FULL), nothing (NOTHING, or DEFAULT without a primary key).
    `uniques` are the columns of each unique index that tells any two rows apart at every moment, as the primary key
    does: valid, immediate, over all rows, of NOT NULL columns alone. `references` are its foreign keys. `split_by` are
    the columns that say, at any level, which partition a row is in.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    identity: Identity = Identity.DEFAULT
    identity_columns: tuple[str, ...] = ()
    partitioned: bool = False
    oid: int = 0
    rows_estimate: int = 0
    bytes_estimate: int = 0
    uniques: tuple[tuple[str, ...], ...] = ()
    references: tuple[Reference, ...] = ()
    split_by: tuple[str, ...] = ()

    @property
    def shape(self) -> Table:
        """The table without what may change meanwhile: the planner's estimates, unique indexes, how it is split."""
        return replace(self, rows_estimate=0, bytes_estimate=0, uniques=(), split_by=())

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    def column(self, name: str) -> Column:
        """KeyError when there is none of that name."""
        for c in self.columns:
            if c.name == name:
                return c
        raise KeyError(name)
