"""Replica identities: which tables of a source need REPLICA IDENTITY FULL, how to set it, and how it was before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from connectors.postgres import catalog
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side
from schemas.names import qualified, quote
from schemas.resolve import resolve
from schemas.spec import Spec
from schemas.table import Identity, Table
from stream.migration.journal import entries
from stream.preflight.tables import identity_statements


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityChange:
    """One table whose identity is to become FULL. `statements` do it, `restore` undoes it; the partitions' too."""

    table: str
    statements: tuple[str, ...]
    restore: tuple[str, ...]


def as_full(table: Table) -> Table:
    """The table as it will be under REPLICA IDENTITY FULL."""
    return replace(table, identity=Identity.FULL, identity_columns=table.column_names)


def needing_full(
    spec: Spec, direction: Direction, sources: Mapping[str, Table], targets: Mapping[str, Table]
) -> list[str]:
    """Streamed tables that have no usable identity, or of whose old rows a mapping needs more than they send."""
    every = {name: as_full(table) for name, table in sources.items()}
    best = resolve(spec, direction, every, targets)
    # As a rule nothing lacks anything; only where something does is it asked table by table which one it is.
    enough = len(resolve(spec, direction, sources, targets).problems) <= len(best.problems)
    needing: list[str] = []
    for name in best.streamed:
        table = sources[name]
        if table.identity is Identity.FULL:
            continue
        lacks = not table.identity_columns
        if not lacks and not enough:
            without = resolve(spec, direction, {**every, name: table}, targets)
            lacks = len(without.problems) > len(best.problems)
        if lacks:
            needing.append(name)
    return needing


def changes(
    conn: Connection, spec: Spec, direction: Direction, sources: Mapping[str, Table], targets: Mapping[str, Table]
) -> list[IdentityChange]:
    """What `--set-replica-identity` would do on the direction's source, in order."""
    found: list[IdentityChange] = []
    for name in needing_full(spec, direction, sources, targets):
        table = sources[name]
        partitions = catalog.partitions(conn, table)
        identities = catalog.identities(conn, [(table.schema, table.name), *partitions])
        found.append(
            IdentityChange(
                table=name,
                statements=tuple(identity_statements(table, partitions)),
                restore=tuple(_restore(*entry) for entry in identities),
            )
        )
    return found


def _restore(schema: str, name: str, identity: str, index: str | None) -> str:
    how = {"d": "default", "n": "nothing", "f": "full"}.get(identity)
    if how is None:
        how = f"using index {quote(index)}" if index is not None else "default"
    return f"alter table {qualified(schema, name)} replica identity {how}"


def restores(conn: Connection, migration: str, side: Side) -> dict[str, list[str]]:
    """Table of a side -> the statements that put its identity back, by what the journal says was changed.

    The first change of a table tells how it was.
    """
    found: dict[str, list[str]] = {}
    for entry in entries(conn, migration):
        if entry.step == "replica_identity" and entry.detail.get("side", "old") == side:
            found.setdefault(str(entry.detail["table"]), [str(s) for s in entry.detail["restore"]])
    return found
