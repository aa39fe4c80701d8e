"""Where a migration stands: its phase, read and moved. New is its home.

Invariant: a phase moves by compare-and-set, along `phases.TRANSITIONS`, with its journal entry in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.errors import Halt
from stream.migration.journal import Actor, append
from stream.migration.phases import Phase, require


def phase(conn: Connection, migration: str, *, lock: bool = False) -> Phase:
    """The phase that new holds; `planned` where nothing was prepared. `lock` keeps it as it is until the commit.

    Errors: Halt for a phase that this version does not know.
    """
    with translated("reading the phase"):
        if conn.execute("select to_regclass('slackwater.migration')").fetchone() == (None,):
            return Phase.PLANNED
        query = "select phase from slackwater.migration where migration = %s" + (" for update" if lock else "")
        row = conn.execute(query, (migration,)).fetchone()
    if row is None:
        return Phase.PLANNED
    try:
        return Phase(str(row[0]))
    except ValueError as error:
        raise Halt(
            f"migration {migration} is in phase {row[0]!r}, which this version does not know",
            hint="use the version of slackwater that wrote it, or a newer one",
        ) from error


def advance(
    conn: Connection, migration: str, to: Phase, *, actor: Actor, detail: Mapping[str, Any] | None = None
) -> bool:
    """Moves the migration to `to`; False when it is there already.

    Errors: Refused when `to` may not follow. In the caller's transaction if there is one.
    """
    with translated(f"moving to phase {to}"), conn.transaction():
        current = phase(conn, migration, lock=True)
        if current is to:
            return False
        require(current, to)
        conn.execute(
            "update slackwater.migration set phase = %s, changed_at = clock_timestamp() where migration = %s",
            (str(to), migration),
        )
        append(
            conn, migration, actor=actor, step="phase", detail={"from": str(current), "to": str(to), **(detail or {})}
        )
    return True


def due(conn: Connection, migration: str) -> Phase | None:
    """The phase that the forward stream's own progress calls for, or None: prepared -> backfilling -> streaming.

    Streaming means that every load is done and no row waits to be read again. A `prepare` that loads tables anew
    makes a streaming or armed migration backfill once more.
    """
    match phase(conn, migration):
        case Phase.PREPARED:
            return Phase.BACKFILLING
        case Phase.BACKFILLING if _loaded(conn, migration) and not _rereads(conn, migration):
            return Phase.STREAMING
        case Phase.STREAMING | Phase.ARMED if not _loaded(conn, migration):
            return Phase.BACKFILLING
    return None


def settle(conn: Connection, migration: str, *, actor: Actor) -> Phase | None:
    """Moves to the phase that is due, if one is; called by the forward applier's housekeeping. Returns it."""
    with translated("settling the phase"), conn.transaction():
        phase(conn, migration, lock=True)
        to = due(conn, migration)
        if to is not None:
            advance(conn, migration, to, actor=actor)
    return to


def _loaded(conn: Connection, migration: str) -> bool:
    with translated("reading the loads"):
        row = conn.execute(
            "select not exists (select from slackwater.load where migration = %s and direction = 'forward' "
            "and state <> 'done')",
            (migration,),
        ).fetchone()
    return row == (True,)


def _rereads(conn: Connection, migration: str) -> bool:
    with translated("reading the reread queue"):
        row = conn.execute(
            "select exists (select from slackwater.reread where migration = %s and direction = 'forward')", (migration,)
        ).fetchone()
    return row == (True,)
