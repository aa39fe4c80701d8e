"""One target table written as a SELECT over source tables, and what must be known about that text to run it."""

from __future__ import annotations

from dataclasses import dataclass

Ref = tuple[str, str]
"""(source table, column)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One mapped target column. `expression` is its SQL over the source columns, for people to read.

    `deps` are the source columns it is computed from; `plain` is the single column it is a bare copy of, if it is.
    `cast` asks for an explicit cast to the target's type without a length: text that meets a target that is not text.
    """

    name: str
    expression: str
    deps: frozenset[Ref]
    plain: Ref | None = None
    cast: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """How a changed row of `source` finds the owners of the target rows that it feeds.

    `query` selects the owner columns, in order, from `source` by its unqualified name; the engine binds that name to
    staged images, and every other relation in it to its mirror. (Where a table is joined to itself, the query names
    that table's mirror itself, with its schema.) `restrict`, where known, are expressions over `source`'s
    columns that equal the owner columns: they bound the recomputation to the owners touched.
    """

    source: str
    query: str
    columns: frozenset[str]  # columns of `source` that the query reads
    restrict: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A target table and the SELECT that defines it.

    Row-local means exactly one relation reference and no aggregate, window, distinct or set operation: a source row's
    target rows depend on nothing else, so no mirror is needed. `key` is the target's key; `owner` is the subset of it
    that identifies the source row (or the owner row of a join): fan-out when `owner` is shorter than `key`. Both are
    empty for a table without a key. `row_deps` are the columns that decide whether and how many rows appear.
    `scope` is a condition over the target's columns: the mapping speaks of those target rows alone, and leaves others
    as they are (the way back from a table that took only some of the rows). None: of all of them.
    """

    target: str
    text: str
    origin: str  # copy, from, select, derived
    sources: tuple[str, ...]
    row_local: bool
    key: tuple[str, ...]
    owner: tuple[str, ...]
    feeds: dict[str, Feed]
    outputs: tuple[Output, ...]
    row_deps: frozenset[Ref]
    reads: dict[str, tuple[str, ...]]  # source -> columns read, in the table's order
    fingerprint: str  # of everything above that changes what is written
    scope: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(o.name for o in self.outputs)

    def output(self, name: str) -> Output:
        """KeyError when no output is called that."""
        for o in self.outputs:
            if o.name == name:
                return o
        raise KeyError(name)
