"""Collations under which mappings compute: whether the target has each of them, and means the same by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from connectors.postgres import collations, column_types
from connectors.postgres.collations import Collation
from connectors.postgres.session import Connection
from schemas.collated import collated
from schemas.direction import Direction
from schemas.equality import DEFAULT
from schemas.mapping import Mapping as TableMapping
from schemas.names import qualified
from schemas.table import Column, Table
from stream.preflight.finding import Findings, listed


def examine(
    source: Connection,
    target: Connection,
    direction: Direction,
    sources: Mapping[str, Table],
    mappings: Sequence[TableMapping],
    found: Findings,
) -> bool:
    """Whether every collation is there that the mappings need; one of another version is a warning."""
    computed = [(t, t.column(n)) for s, t in sources.items() for n in sorted(collated(mappings, s))]
    users: dict[str, list[str]] = {}
    for table, column in computed:
        if column.collation:
            users.setdefault(column.collation, []).append(f"{table.name}.{column.name}")
    there, here = collations.read(source, users), collations.read(target, users)
    for name, columns in users.items():
        if (wanted := there.get(name)) is not None:
            _one(direction, wanted, here.get(name), columns, found)
    _default(source, target, direction, computed, found)
    return all(name in here for name in there)


def _one(
    direction: Direction, wanted: Collation, present: Collation | None, columns: Sequence[str], found: Findings
) -> None:
    side = direction.target
    said = f"the mapping computes with {listed(columns)} under the collation {wanted.spelled}"
    if present is None:
        library = " (first install the locale, or a PostgreSQL that is built with ICU)" * (
            wanted.schema == "pg_catalog"
        )
        found.problem("collation", f"{said}, which {side} lacks", f"run on {side}: {wanted.statement}{library}", side)
    elif present.meaning != wanted.meaning:
        found.problem(
            "collation",
            f"{said}, which is defined otherwise on {side}: values would be sorted and compared in another way there",
            f"run on {side}: alter collation {wanted.spelled} rename to ...; {wanted.statement}",
            side,
        )
    elif None not in (present.version, wanted.version) and present.version != wanted.version:
        found.warning(
            "collation_version",
            f"{said}: it is of version {wanted.version} on {direction.source} and of {present.version} on {side}, which"
            " may sort some texts otherwise; what rows hold there is what that server computes",
            "have both servers use one version of the library (ICU, glibc), or sort by another collation in the SELECT:"
            ' order by x collate "C"',
            side,
        )
    elif None not in (present.version, present.recorded) and present.version != present.recorded:
        found.warning(
            "collation_version",
            f"{said}: {side} recorded version {present.recorded} of it, and its library is of version {present.version}"
            " now; indexes from before may not find their rows",
            f"run on {side}: reindex database concurrently; alter collation {wanted.spelled} refresh version",
            side,
        )


def _default(
    source: Connection,
    target: Connection,
    direction: Direction,
    computed: Sequence[tuple[Table, Column]],
    found: Findings,
) -> None:
    """Text under the databases' own collations, where these differ."""
    if not computed or collations.default(source) == collations.default(target):
        return
    names = {t.name: qualified(t.schema, t.name) for t, _ in computed}
    types = column_types.of_columns(source, list(names.values()))
    texts = [
        f"{t.name}.{c.name}"
        for t, c in computed
        if (held := types[names[t.name]].get(c.name)) is not None and held.collation == DEFAULT
    ]
    if texts:
        found.warning(
            "default_collation",
            f"the databases sort text, and turn it into upper or lower case, each by a locale of its own; where the"
            f" mapping does so with {listed(texts)}, new rows hold what {direction.target} makes of it",
            'where that is not wanted, say by which in the SELECT: order by x collate "C"; or make the database'
            f" {direction.target} with {direction.source}'s locale",
            direction.target,
        )
