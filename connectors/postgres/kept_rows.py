"""Rows that repairs deleted or wrote over, counted: for whoever is about to drop them with the control schema."""

from __future__ import annotations

from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from schemas.repair import Action

_COUNTED = """
select pg_catalog.count(*) filter (where action operator(pg_catalog.=) 'deleted' and restored_at is null),
       pg_catalog.count(*) filter (where action operator(pg_catalog.=) 'overwritten')
  from slackwater.repaired where migration operator(pg_catalog.=) %s and direction operator(pg_catalog.=) %s
"""


def kept(conn: Connection, migration: str, side: Side) -> dict[Action, int]:
    """How many rows of a side are kept here and nowhere else: those that are back in their table do not count."""
    direction = next(d for d in Direction if d.target is side)
    with translated("counting the rows that repairs have kept"):
        there: Any = conn.execute("select pg_catalog.to_regclass('slackwater.repaired') is not null").fetchone()
        if not there[0]:
            return dict.fromkeys(Action, 0)
        row: Any = conn.execute(_COUNTED, (migration, direction.value)).fetchone()
    return {Action.DELETED: int(row[0]), Action.OVERWRITTEN: int(row[1])}


def clause(side: Side, found: dict[Action, int]) -> str | None:
    """What goes with them, for a question; None where there is nothing."""
    deleted, overwritten = found[Action.DELETED], found[Action.OVERWRITTEN]
    parts = [f"{deleted:,} that a repair deleted"] if deleted else []
    parts += [f"{overwritten:,} that a repair wrote over"] if overwritten else []
    return f"on {side} {' and '.join(parts)}" if parts else None
