"""What a column is made of below its type's name, and how rows of two tables are found equal by such columns.

Guards: rows are staged, matched and compared as PostgreSQL itself would in the column. The equality of a type is that
of its default operator class, wherever that lies; another `=` may be another type's (citext has text's beside its own).
A domain is its base type: NULL stands in for what was not sent, and a domain may refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.names import EQ, quote

DEFAULT = 'pg_catalog."default"'
"""The database's own collation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnType:
    """`base` is the type below every domain, without a length, `full` with it; `equal` its equality,
    `operator(schema.=)`.

    `collation` is the column's own, with its schema, even where it is the type's default; '' where there can be none.
    """

    base: str
    full: str = ""
    equal: str = EQ
    collation: str = ""

    @property
    def plain(self) -> bool:
        """Whether PostgreSQL's own `=` finds equal values, under whatever collation the other side brings.

        (The default collation gives way to it; what is then found equal is the same, or more.)
        """
        return self.equal == EQ and self.collation in ("", DEFAULT)

    def cast(self, value: str) -> str:
        """A value as the column's type, to be compared with the column; never cut to a length."""
        cast = f"{value}::{self.base}"
        return f"({cast} collate {self.collation})" if self.collation else cast


def matches(names: Sequence[str], left: str, right: str, types: Mapping[str, ColumnType]) -> str:
    """`l."k1" = r."k1" and ...`, over columns of the same types and collations on both sides."""
    return " and ".join(f"{left}.{quote(n)} {types[n].equal} {right}.{quote(n)}" for n in names)


def among(expressions: Sequence[str], types: Sequence[ColumnType], table: str, names: Sequence[str]) -> str:
    """A condition: the expressions are what one of `table`'s rows has under `names`, columns of these types.

    A row of expressions has one operator for all of its columns, which is PostgreSQL's own `=`. Where a type brings
    its own, or a collation decides, each column is compared by itself, under a name that no expression can mean.
    """
    if all(t.plain for t in types):
        picked = ", ".join(map(quote, names))
        return f"({', '.join(expressions)}) {EQ} any (select {picked} from {table})"
    aliases = [f"slackwater_{i}" for i in range(len(names))]
    held = ", ".join(f"{quote(n)} as {a}" for n, a in zip(names, aliases, strict=True))
    tests = " and ".join(
        f"{e if t.plain else t.cast(f'({e})')} {t.equal} w.{a}"
        for e, t, a in zip(expressions, types, aliases, strict=True)
    )
    return f"exists (select from (select {held} from {table}) w where {tests})"
