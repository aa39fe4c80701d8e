"""`slackwater.foreign_write`: rows that were written to a side while it was closed, kept on that side.

Invariant: a row is known by its table, its key and its place in the WAL, never by its values; a decision is final.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.postgres import control
from connectors.postgres.session import Connection, translated
from schemas.direction import Side
from schemas.position import Position, format_lsn

_RECORD = """
insert into slackwater.foreign_write (migration, side, source, key, op, commit_lsn, seq, committed_at)
select %s, %s, f->>0, f->1, f->>2, (f->>3)::pg_lsn, (f->>4)::bigint, to_timestamp((f->>5)::float8)
  from json_array_elements(%s::json) f
on conflict do nothing
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRow:
    """One row change that nobody but the open side's stream may make. `key` is empty for TRUNCATE, or without a key."""

    source: str
    key: Mapping[str, str | None]
    op: str  # Debezium's letter
    position: Position
    committed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A row of the table. `state`: open, accepted, discarded."""

    id: int
    side: str
    source: str
    key: Mapping[str, str | None]
    op: str
    committed_at: datetime
    state: str


def record(conn: Connection, migration: str, side: Side, rows: Iterable[ForeignRow]) -> None:
    """Keep them; those that are known already are left as they are."""
    documents = [
        [r.source, dict(r.key), r.op, format_lsn(r.position.commit_lsn), r.position.seq, r.committed_at] for r in rows
    ]
    with translated("recording foreign writes"):
        conn.execute(_RECORD, (migration, side.value, json.dumps(documents)))


def decided(conn: Connection, migration: str, side: Side, commit_lsn: int) -> int:
    """The ordinal up to which somebody has decided about the transaction that committed there; -1: about nothing of it.

    Rows are recorded in their order, and of a large transaction only the first ones at a time.
    """
    with translated("looking for a decision about foreign writes"):
        row: Any = conn.execute(
            "select coalesce(min(seq) filter (where state = 'open') - 1, max(seq), -1) from slackwater.foreign_write"
            " where migration = %s and side = %s and commit_lsn = %s::pg_lsn",
            (migration, side.value, format_lsn(commit_lsn)),
        ).fetchone()
    return int(row[0])


def waiting(conn: Connection, migration: str, side: Side) -> int:
    """How many wait for a decision."""
    if not control.installed(conn):
        return 0
    with translated("counting foreign writes"):
        row: Any = conn.execute(
            "select count(*) from slackwater.foreign_write where migration = %s and side = %s and state = 'open'",
            (migration, side.value),
        ).fetchone()
    return int(row[0])


def listed(conn: Connection, migration: str, side: Side, *, every: bool = False) -> list[Recorded]:
    """Those that wait for a decision, or `every` one, in the order in which they were written."""
    with translated("listing foreign writes"):
        rows: list[Any] = conn.execute(
            "select id, side, source, key, op, committed_at, state from slackwater.foreign_write"
            " where migration = %s and side = %s and (%s or state = 'open') order by commit_lsn, seq",
            (migration, side.value, every),
        ).fetchall()
    names = ("id", "side", "source", "key", "op", "committed_at", "state")
    return [Recorded(**dict(zip(names, row, strict=True))) for row in rows]


def decide(conn: Connection, rows: Sequence[Recorded], state: str, by: str, reason: str | None) -> None:
    """Record what was decided, in the caller's transaction."""
    conn.execute(
        "update slackwater.foreign_write set state = %s, decided_by = %s, reason = %s, decided_at = clock_timestamp()"
        " where id = any(%s) and state = 'open'",
        (state, by, reason, [row.id for row in rows]),
    )
