"""What a repair asks for along with the rows to be read again, and how rows are kept that it deletes or writes over.

A row is kept column by column, each as PostgreSQL's own text, which is what the type's input reads back unchanged:
JSON's own numbers and booleans would not come back as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from schemas.names import quote


class Action(StrEnum):
    """What became of a row that was kept."""

    DELETED = "deleted"
    OVERWRITTEN = "overwritten"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """`deletes`: whether rows of the target that nothing makes may go; else only what is missing or differs is written.

    `by` and `reason`: who asked, and by which command. `owners`: the keys are those of target rows' owners, by the
    target's columns, because nothing says which source row they came from.
    """

    deletes: bool
    by: str
    reason: str
    owners: bool = False

    def document(self) -> dict[str, Any]:
        """As `slackwater.reread` keeps it."""
        return {"deletes": self.deletes, "by": self.by, "reason": self.reason, "owners": self.owners}

    @classmethod
    def of(cls, document: Mapping[str, Any] | None) -> Repair | None:
        """What `document` gave, read back; None for a row that is read again for any other reason."""
        return None if document is None else cls(**document)


def texts(columns: Sequence[str], alias: str) -> str:
    """A jsonb document of a row's columns, each as its type's output; SQL. `format` is that, and no cast function.

    (A composite of NULLs is no NULL: `num_nulls` tells them apart, `is null` does not.)
    """
    if not columns:
        return "'{}'::pg_catalog.jsonb"
    names = ", ".join(_literal(c) for c in columns)
    values = ", ".join(
        f"case when pg_catalog.num_nulls({alias}.{quote(c)}) operator(pg_catalog.=) 0"
        f" then pg_catalog.format('%s', {alias}.{quote(c)}) end"
        for c in columns
    )
    return f"pg_catalog.jsonb_object(array[{names}]::pg_catalog.text[], array[{values}]::pg_catalog.text[])"


def keep(
    migration: str,
    direction: str,
    load: str,
    action: Action,
    repair: Repair,
    key: Sequence[str],
    columns: Sequence[str],
) -> str:
    """The head of an INSERT that keeps the rows of a FROM item called `g`; it follows that item, or a WITH."""
    words = ", ".join(_literal(w) for w in (migration, direction, load, action.value, repair.by, repair.reason))
    return (
        "insert into slackwater.repaired (migration, direction, load, action, by, reason, key, image)\n"
        f"select {words}, {texts(key, 'g')}, {texts(columns, 'g')} from"
    )


def _literal(text: str) -> str:
    """A string constant (standard_conforming_strings is pinned)."""
    return "'" + text.replace("'", "''") + "'"
