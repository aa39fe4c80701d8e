"""Where an application writes, as it reads it itself: `slackwater.route`, on either side.

Each side's row is written in the transaction that closes or opens that side, so the later turn's word holds; where both
speak of the same turn, `none` was said after the name. Where neither has a row, nobody says: it may be before
`prepare`, or after the end of a migration that left its writes on new.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.direction import Side
from schemas.errors import Refused, SlackwaterError
from stream.monitoring.clock import rfc3339
from stream.monitoring.sessions import Sides

NOBODY = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One side's row. `writes`: old, new or none."""

    migration: str
    writes: str
    turn: int
    changed_at: datetime | None = None


def read(conn: Connection, migration: str) -> Route | None:
    """The row of this database; None where there is none."""
    found = [r for r in every(conn) if r.migration == migration]
    return found[0] if found else None


def every(conn: Connection) -> list[Route]:
    """The rows of every migration in this database."""
    with translated("reading the route"):
        if conn.execute("select pg_catalog.to_regclass('slackwater.route')").fetchone() == (None,):
            return []
        rows: list[Any] = conn.execute(
            "select migration, writes, turn, changed_at from slackwater.route order by migration"
        ).fetchall()
    return [Route(migration=m, writes=w, turn=t, changed_at=at) for m, w, t, at in rows]


def of(conn: Connection, migration: str | None) -> Route:
    """The row to go by in a database that is all one has. Refused when there is none, or it is not clear which."""
    found = every(conn)
    if migration is not None:
        found = [r for r in found if r.migration == migration]
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused(
            "more than one migration has a route here",
            reasons=tuple(r.migration for r in found),
            hint="--migration NAME",
        )
    raise Refused(
        f"there is no route of {migration or 'any migration'} in this database",
        hint="the migration is not prepared yet, or it was finalized or cancelled",
    )


def newest(rows: list[Route]) -> Route:
    """The one that holds."""
    return max(rows, key=lambda r: (r.turn, r.writes == NOBODY))


def current(sides: Sides, migration: str) -> Route | None:
    """What both sides say, or the one that answers; None where neither has a row.

    Errors: SlackwaterError when neither answers, or one does not and the other has no row.
    """
    answers = [sides.attempt(side, lambda conn: read(conn, migration)) for side in Side]
    rows = [a for a in answers if isinstance(a, Route)]
    failures = [a for a in answers if isinstance(a, SlackwaterError)]
    if rows:
        return newest(rows)
    if failures:
        raise failures[0]
    return None


def document(migration: str | None, found: Route | None) -> dict[str, Any]:
    """A route as JSON has it; null where there is none."""
    if found is None:
        return {"migration": migration, "writes": None, "turn": None, "changed_at": None}
    changed = None if found.changed_at is None else rfc3339(found.changed_at)
    return {"migration": found.migration, "writes": found.writes, "turn": found.turn, "changed_at": changed}
