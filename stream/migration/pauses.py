"""The emergency brake: a row per thing that is paused, on new, read by the roles it names."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import cast

from connectors.postgres.session import Connection, translated

PAUSABLE = ("backfill", "verify", "apply")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Why, by whom and since when. `clause` is how it reads wherever the pause shows."""

    what: str
    reason: str | None
    by: str
    at: datetime

    @property
    def clause(self) -> str:
        return f"paused by {self.by}: {self.reason}" if self.reason else f"paused by {self.by}"


def pauses(conn: Connection, migration: str) -> dict[str, Pause]:
    """Everything that is paused, by its name."""
    with translated("reading the pauses"):
        rows = conn.execute(
            "select what, reason, by, at from slackwater.pause where migration = %s", (migration,)
        ).fetchall()
    found = (Pause(what=str(w), reason=cast("str | None", r), by=str(b), at=cast("datetime", a)) for w, r, b, a in rows)
    return {p.what: p for p in found}


def paused(conn: Connection, migration: str, what: str) -> Pause | None:
    """The pause of `what`, or None. `conn` reaches new, whichever side the role writes to."""
    return pauses(conn, migration).get(what)


def pause(conn: Connection, migration: str, what: str, *, reason: str | None, by: str) -> bool:
    """Pauses; a second pause replaces the reason. False when nothing changed."""
    with translated(f"pausing {what}"):
        changed = conn.execute(
            "insert into slackwater.pause as p (migration, what, reason, by) values (%s, %s, %s, %s) "
            "on conflict (migration, what) do update set reason = excluded.reason, by = excluded.by, at = excluded.at "
            "where p.reason is distinct from excluded.reason returning 1",
            (migration, what, reason, by),
        ).fetchone()
    return changed is not None


def resume(conn: Connection, migration: str, what: str) -> bool:
    """Lifts the pause. False when there was none."""
    with translated(f"resuming {what}"):
        lifted = conn.execute(
            "delete from slackwater.pause where migration = %s and what = %s returning 1", (migration, what)
        )
        return lifted.fetchone() is not None
