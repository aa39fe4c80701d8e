"""Rows that could not be applied: listed, tried again, or given up by name and for a reason.

Invariant: nothing leaves the quarantine but by the applier's success or by a person who is named in the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from connectors.postgres.session import Connection, translated
from connectors.postgres.void import void
from schemas.direction import Direction
from stream.backfill.load_table import MIRROR
from stream.backfill.reread import assert_closed
from stream.migration.journal import Actor

READ = """
select id, load, source, key, commit_lsn::text, sqlstate, error, state, changes, at, waived_by, waived_reason, waived_at
  from slackwater.quarantine where migration = %s and direction = %s order by id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quarantined row. `key` is the source row's; `state` is open, retrying or waived."""

    id: int
    load: str
    source: str
    key: dict[str, Any]
    commit_lsn: str | None
    sqlstate: str | None
    error: str
    state: str
    changes: int
    at: datetime
    waived_by: str | None
    waived_reason: str | None
    waived_at: datetime | None


def rows(conn: Connection, migration: str, direction: Direction) -> list[Row]:
    """All of a direction, oldest first; `conn` reaches the direction's target."""
    names = tuple(Row.__dataclass_fields__)
    with translated("reading the quarantine"):
        found = conn.execute(READ, (migration, direction.value)).fetchall()
    return [Row(**cast("dict[str, Any]", dict(zip(names, row, strict=True)))) for row in found]


def retry(conn: Connection, migration: str, direction: Direction, ids: Sequence[int] | None) -> list[int]:
    """Asks for the rows to be read again from the source; None: all that are not waived. Returns their ids.

    Errors: Refused while the target is open to the application, but for rows of mirrors.
    """
    with translated("asking for another try"), conn.transaction():
        found = conn.execute(
            "update slackwater.quarantine set state = 'retrying' where migration = %s and direction = %s "
            "and (%s::bigint[] is null and state <> 'waived' or id = any(%s)) returning id, load",
            (migration, direction.value, _array(ids), _array(ids)),
        ).fetchall()
        if any(not str(load).startswith(MIRROR) for _, load in found):
            assert_closed(conn, migration, direction)
        retried = sorted(cast("int", row[0]) for row in found)
        conn.execute(
            "insert into slackwater.reread as r (migration, direction, load, source, key, reason, carried) "
            "select migration, direction, load, source, key, 'quarantine retry', carried from slackwater.quarantine "
            "where migration = %s and direction = %s and id = any(%s) "
            "on conflict (migration, direction, load, source, key) do update set carried = excluded.carried "
            "where excluded.carried is not null",
            (migration, direction.value, retried),
        )
    return retried


def waive(
    conn: Connection, migration: str, direction: Direction, ids: Sequence[int], *, actor: Actor, reason: str
) -> list[int]:
    """Gives rows up: they stay listed, and no longer block. Returns the ids that were not waived before."""
    with translated("waiving"), conn.transaction():
        found = conn.execute(
            "update slackwater.quarantine set state = 'waived', waived_by = %s, waived_reason = %s, "
            "waived_at = clock_timestamp() where migration = %s and direction = %s and id = any(%s) "
            "and state <> 'waived' returning id, load",
            (actor.identity, reason, migration, direction.value, list(ids)),
        ).fetchall()
        waived = sorted(cast("int", row[0]) for row in found)
        loads = {str(row[1]) for row in found}
        if found:  # a mirror's row may feed any table
            mirrored = any(load.startswith(MIRROR) for load in loads)
            tables = None if mirrored else loads
            void(conn, migration, direction, tables=tables, cause="quarantined rows were waived")
        # What was asked to be read again is given up with it.
        conn.execute(
            "delete from slackwater.reread r using slackwater.quarantine q where q.migration = %s and q.direction = %s "
            "and q.id = any(%s) and (r.migration, r.direction, r.load, r.source, r.key) = "
            "(q.migration, q.direction, q.load, q.source, q.key) and r.reason = 'quarantine retry'",
            (migration, direction.value, waived),
        )
    return waived


def _array(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)
