"""A SELECT's shape: its relations, what joins them, what each output is made of. Built by `lineage`, read by `feeds`.

A *place* is a column of one relation within one scope of the text. Two places of one table differ: a self-join has two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlglot import exp

from schemas.mapping import Ref
from schemas.table import Column

_EXACT = {
    **dict.fromkeys(("smallint", "integer", "bigint"), "int"),
    **dict.fromkeys(("text", "character varying"), "text"),
    **{t: t for t in ("uuid", "date", "boolean", "bytea", "oid", "time without time zone", "name", "inet", "cidr")},
    **{t: t for t in ("timestamp without time zone", "timestamp with time zone", "macaddr")},
}


def kind_of(column: Column) -> str:
    """What a type calls equal. Equal values of an exact kind are one value; of others (`=numeric`: 1.0 = 1.00,
    `=citext`) only the type itself can be trusted to agree."""
    return _EXACT.get(column.type, column.type if column.type_kind == "e" else f"={column.type}")


class Place(NamedTuple):
    relation: int
    column: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A column of a relation, or an output of a SELECT.

    `deps` are the old columns it is computed from. `origin` is the old column it is a copy of, or NULL where an outer
    join found nothing; `exact` says that it is never that NULL. `many` marks what differs between the rows that one old
    row gives (it comes out of a set-returning function). `place` is where a bare output stands in its own scope;
    `merged` are the places that a full join's USING, or a coalesce over joined columns, takes it from.
    """

    name: str
    deps: frozenset[Ref] = frozenset()
    origin: Ref | None = None
    exact: bool = False
    many: bool = False
    kind: str = ""  # what its type calls equal; empty where the type is not known
    place: Place | None = None
    merged: tuple[Place, ...] = ()
    node: exp.Expr | None = None

    @property
    def plain(self) -> Ref | None:
        return self.origin if self.exact else None

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.place,) if self.place is not None else self.merged


@dataclass(slots=True, kw_only=True)
class Relation:
    """One item of a FROM: a table (`table`), a subquery or CTE (`shape`), or a function or VALUES (neither).

    `open` relations have columns that only the server knows; any name is taken to be one of theirs, with `open_deps`.
    """

    id: int
    alias: str
    items: dict[str, Item]
    table: str | None = None
    shape: Shape | None = None
    order: tuple[str, ...] = ()  # a subquery's column names by position
    open: bool = False
    open_deps: frozenset[Ref] = frozenset()
    many: bool = False
    nullable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """`kind` is inner, left, right or full; the sides are relation ids."""

    kind: str
    left: frozenset[int]
    right: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Equality:
    """`a = b`, asked for by every row (`join` None, the WHERE) or by a join's condition."""

    a: Place
    b: Place
    join: Join | None = None


@dataclass(slots=True, kw_only=True)
class Shape:
    """One SELECT (or a set operation: its `branches`).

    `together` are the places by which rows are gathered (grouped, or seen together by a window), None where each row
    stands for itself. `nested` are the subqueries in its expressions; those under a join's condition in `nested_on`.
    """

    outputs: list[Item] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    equalities: list[Equality] = field(default_factory=list)
    row_deps: set[Ref] = field(default_factory=set)
    together: set[Place] | None = None
    one_row: bool = False  # an aggregate without GROUP BY
    nested: list[Shape] = field(default_factory=list)
    nested_on: list[Shape] = field(default_factory=list)
    branches: list[Shape] = field(default_factory=list)
    distinct_on: set[Place] | None = None
    recursive: bool = False
    gathers: bool = False  # aggregate, window, distinct, grouping or set operation of its own
    many: bool = False  # one row of its relations can give several
    open: bool = False  # a part of it could not be followed

    def deps(self) -> set[Ref]:
        """Everything that any of it depends on."""
        return set(self.row_deps).union(*(o.deps for o in self.outputs))

    def parts(self) -> Iterator[Shape]:
        """Itself and every SELECT within, as often as each is run."""
        yield self
        for relation in self.relations:
            if relation.shape is not None:
                yield from relation.shape.parts()
        for shape in (*self.nested, *self.nested_on, *self.branches):
            yield from shape.parts()

    def tables(self) -> list[str]:
        """Every reference to a table, within too; a table that is read twice appears twice."""
        return [r.table for part in self.parts() for r in part.relations if r.table is not None]
