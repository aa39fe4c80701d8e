"""What of the target nothing of ours fills or fires: tables, columns, triggers. Good to know before it is missed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from connectors.postgres import survey
from connectors.postgres.session import Connection
from schemas.direction import Side
from schemas.mapping import Mapping as TableMapping
from schemas.table import Table
from stream.preflight.finding import Findings, listed


def examine(
    conn: Connection, side: Side, mappings: Iterable[TableMapping], tables: Mapping[str, Table], found: Findings
) -> None:
    """`tables` are all of the target's schema."""
    mapped = {m.target: set(m.columns) for m in mappings if m.target in tables}
    if idle := tables.keys() - mapped.keys():
        found.note("unfilled", f"no mapping writes {listed(idle)}: what is there stays as it is", where=side)
    for name, columns in mapped.items():
        empty = [
            c.name
            for c in tables[name].columns
            if c.name not in columns and not (c.generated or c.identity or c.has_default)
        ]
        if empty:
            found.note(
                "unfilled", f"nothing fills {listed(empty)}: NULL in each row that comes", where=f"{side}.{name}"
            )
    if not survey.role(conn).replica:
        return  # they do fire, and are problems
    silent: dict[str, list[str]] = {}
    for trait in survey.traits(conn, [tables[name] for name in mapped]):
        if trait.kind in ("trigger", "rule"):
            silent.setdefault(trait.table, []).append(f"{trait.kind} {trait.detail}")
    for name, names in silent.items():
        found.note(
            "silent_triggers",
            f"the {listed(names)} will not fire on rows that come from {side.other}: what it computes or writes"
            " elsewhere has to come from a mapping",
            where=f"{side}.{name}",
        )
