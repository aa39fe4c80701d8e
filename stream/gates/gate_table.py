"""What is kept about gates: since when each is as it is, on new; what the last look for orphans found, on the side that
was looked at.

Invariant: one writer, that side's applier (or whoever asks for a look by hand); everybody else reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast

from connectors.postgres.orphans import Orphans
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction
from stream.gates.facts import Look
from stream.gates.gate import State

FOREIGN_KEYS = "foreign_keys"

Since = Mapping[tuple[Direction, str], tuple[State, datetime]]
"""(direction, gate) -> (state, since when)."""


def since(conn: Connection, migration: str) -> Since:
    with translated("reading since when gates are as they are"):
        rows = conn.execute(
            "select direction, gate, state, since from slackwater.gate where migration = %s", (migration,)
        ).fetchall()
    return {(Direction(d), str(g)): (State(s), cast("datetime", at)) for d, g, s, at in rows}


def keep(conn: Connection, migration: str, judged: Iterable[tuple[Direction, str, State]]) -> None:
    """Writes down those that have changed."""
    rows = [{"d": d.value, "g": g, "s": s.value} for d, g, s in judged]
    with translated("keeping since when gates are as they are"):
        conn.execute(
            "insert into slackwater.gate as k (migration, direction, gate, state)"
            " select %s, x.d, x.g, x.s from json_to_recordset(%s::json) x(d text, g text, s text)"
            " on conflict (migration, direction, gate) do update"
            " set state = excluded.state, since = excluded.since where k.state <> excluded.state",
            (migration, json.dumps(rows)),
        )


def loaded(conn: Connection, migration: str, direction: Direction) -> dict[str, tuple[int, datetime]]:
    """Target table -> (rows loaded, when its last chunk came, or it woke), of the loads that are done."""
    with translated("reading the loads"):
        rows: list[Any] = conn.execute(
            "select l.name, l.rows, coalesce(max(c.done_at), l.done_at) from slackwater.load l"
            " left join slackwater.backfill_chunk c"
            " on (c.migration, c.direction, c.load) = (l.migration, l.direction, l.name)"
            " where l.migration = %s and l.direction = %s and l.state = 'done'"
            " group by l.migration, l.direction, l.name",
            (migration, direction.value),
        ).fetchall()
    return {name: (rows_, at) for name, rows_, at in rows if at is not None}


def newest(conn: Connection, migration: str, direction: Direction, fingerprint: str) -> Look | None:
    """The last look for orphans on the direction's target; None before the first. `fingerprint` is the keys' now."""
    with translated("reading the last look for orphans"):
        row: Any = conn.execute(
            "select result, at, extract(epoch from clock_timestamp() - at)::float8, fingerprint, seconds"
            " from slackwater.finding where migration = %s and direction = %s and what = %s",
            (migration, direction.value, FOREIGN_KEYS),
        ).fetchone()
    if row is None:
        return None
    result, at, age_s, then, seconds = row
    found = tuple(Orphans(**o) for o in result)
    return Look(orphans=found, at=at, age_s=age_s, current=then == fingerprint, seconds=seconds)


def put(
    conn: Connection,
    migration: str,
    direction: Direction,
    found: Iterable[Orphans],
    *,
    fingerprint: str,
    seconds: float,
) -> None:
    """A look for orphans that was taken."""
    with translated("keeping a look for orphans"):
        conn.execute(
            "insert into slackwater.finding (migration, direction, what, fingerprint, seconds, result)"
            " values (%s, %s, %s, %s, %s, %s::jsonb) on conflict (migration, direction, what) do update"
            " set fingerprint = excluded.fingerprint, at = excluded.at, seconds = excluded.seconds,"
            " result = excluded.result",
            (migration, direction.value, FOREIGN_KEYS, fingerprint, seconds, json.dumps([asdict(o) for o in found])),
        )
