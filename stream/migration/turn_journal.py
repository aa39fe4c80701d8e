"""The journal's word on turns: what was intended, what was finished. History, never the authority."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from connectors.postgres import control
from connectors.postgres.session import Connection, translated

VERBS = ("cutover", "rollback", "failover")

_LATEST = """
select step, outcome, detail, at, actor, host from slackwater.journal
 where migration = %s and step = any(%s) and (%s::text is null or outcome = %s) order by seq desc limit 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An entry of a verb that turns. `outcome`: intent, done, aborted, refused."""

    verb: str
    outcome: str
    detail: dict[str, Any]
    at: datetime
    actor: str
    host: str

    @property
    def turn(self) -> int:
        return int(self.detail.get("turn", -1))

    @property
    def pause_s(self) -> float | None:
        """How long writers were paused; None where it is not known."""
        return self.detail.get("pause_seconds")


def latest(conn: Connection, migration: str, outcome: str | None = None) -> Past | None:
    """The newest entry of the verbs that turn; with an outcome, of those that came to it."""
    if not control.installed(conn):
        return None
    with translated("reading the journal"):
        row = conn.execute(_LATEST, (migration, list(VERBS), outcome, outcome)).fetchone()
    if row is None:
        return None
    names = ("verb", "outcome", "detail", "at", "actor", "host")
    return Past(**cast("dict[str, Any]", dict(zip(names, row, strict=True))))


def begun_as(conn: Connection, migration: str, turn: int) -> str | None:
    """The verb that last meant to bring about `turn`; None where none did."""
    last = latest(conn, migration, "intent")
    return last.verb if last is not None and last.turn == turn else None
