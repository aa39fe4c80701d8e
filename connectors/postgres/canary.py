"""The canary: a row on a direction's source that nobody marks as ours, and the trace of it on the target.

Invariant: its age is judged by the source's clock alone, which wrote it: two servers' clocks are never compared.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.postgres.session import Connection, translated

SING = """
insert into slackwater.canary (migration, token, at) values (%s, %s, clock_timestamp())
on conflict (migration) do update set token = excluded.token, at = excluded.at
returning at
"""

SEEN = """
insert into slackwater.canary_seen as s (migration, direction, token, written_at, epoch)
values (%s, %s, %s, %s::timestamptz, %s)
on conflict (migration, direction) do update set token = excluded.token, written_at = excluded.written_at,
       epoch = excluded.epoch, seen_at = clock_timestamp()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The newest canary that came through; `written_at` is by the source's clock."""

    token: str
    written_at: datetime


def sing(conn: Connection, migration: str) -> datetime:
    """Write the migration's canary on this source; when, by this server's clock. No echo mark goes with it."""
    row: Any = conn.execute(SING, (migration, secrets.token_hex(8))).fetchone()
    at: datetime = row[0]
    return at


def note(conn: Connection, migration: str, direction: str, token: str, written_at: str, epoch: int) -> None:
    """Record on the target that it has come through, in the caller's transaction."""
    conn.execute(SEEN, (migration, direction, token, written_at, epoch))


def seen(conn: Connection, migration: str, direction: str) -> Seen | None:
    """The newest one that this target has seen, or None."""
    with translated("looking for the canary"):
        row: Any = conn.execute(
            "select token, written_at from slackwater.canary_seen where migration = %s and direction = %s",
            (migration, direction),
        ).fetchone()
    return None if row is None else Seen(token=row[0], written_at=row[1])
