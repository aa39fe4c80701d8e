"""A small batch without temporary tables: the staged rows travel as the statement's own arrays.

The usual epoch is a few whole rows of several tables. Clearing temporary tables at a commit costs a few file operations
for each one that the session ever made, which for such an epoch is most of the time it takes. The outcome is that of
the engine's steps: nothing is missing, nothing that went away comes back under its key, and no owner loses rows that
only `rows` could tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from connectors.postgres.target import key_text
from schemas.bind import bound
from schemas.names import EQ, quote
from stream.engine.fold import Folded
from stream.engine.mapping_sql import Load, columns

SMALL_ROWS = 500

Images = list[list[str | None]]
"""Column by column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """A fold as arrays: rows as they are now, and the old images of rows that are gone or took another key."""

    new: Images
    old: Images


def small(folded: Folded) -> bool:
    """Whether a fold is sent as arrays rather than by COPY."""
    return len(folded.rows) + len(folded.gone) < SMALL_ROWS


def plain(folded: Folded) -> bool:
    """Whether all that happened is whole rows written and rows gone for good."""
    if folded.truncated or any(row.missing or row.origin not in (None, key) for key, row in folded.rows.items()):
        return False
    return all(row.origin not in folded.rows for row in folded.gone)


def by_column(rows: Sequence[Sequence[object]], width: int) -> Images:
    """Rows as arrays of text, one for each column."""
    return [[key_text(row[i]) for row in rows] for i in range(width)]


@cache
def source(columns: tuple[tuple[str, str, str], ...]) -> str:
    """The SQL that stands for a source over the arrays given; `columns` as in `Stage.declared`."""
    aliases = ", ".join(f"c{i}" for i in range(len(columns)))
    values = ", ".join(
        (f"(u.c{i}::{held})::{domain}" if domain else f"u.c{i}::{held}") + f" as {quote(name)}"
        for i, (name, held, domain) in enumerate(columns)
    )
    arrays = ", ".join(["pg_catalog.unnest($slackwater::text[])"] * len(columns))
    return f"select {values} from rows from ({arrays}) as u({aliases})"


def write(load: Load, images: str) -> str:
    """Update the rows that differ and insert those that are not there, in one statement."""
    m = load.mapping
    text = bound(m.text, {m.sources[0]: images})
    rows = f"rows as materialized (select {_values(load)} from (\n{text}\n) q)"
    insert = (
        f"insert into {load.into} ({columns(m.columns)}) overriding system value\nselect {columns(m.columns, 's')} "
        f"from rows s where not exists (select from {load.into} t where {load.matches(m.key, 't', 's')})"
    )
    update = load.update(rows="rows")
    return _parameters(f"with {rows}" + (f",\nupdated as ({update})" if update else "") + f"\n{insert}")


def _values(load: Load) -> str:
    """The SELECT's outputs, the key's as the target's columns: what `rows` of a larger batch is by its making."""
    keys = {k: load.type(k) for k in load.mapping.key}
    return ", ".join(
        f"{keys[o.name].cast(f'q.{quote(o.name)}')} as {quote(o.name)}"
        if o.name in keys and (keys[o.name].collation or keys[o.name].equal != EQ)
        else f"q.{quote(o.name)}" + (f"::{load.type(o.name).base} as {quote(o.name)}" if o.cast else "")
        for o in load.mapping.outputs
    )


def delete(load: Load, images: str) -> str:
    """Delete the target rows of the old images' owners."""
    return _parameters(load.delete_left(load.mapping.sources[0], images))


def _parameters(sql: str) -> str:
    return sql.replace("%", "%%").replace("$slackwater", "%s")
