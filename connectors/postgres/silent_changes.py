"""What was last accepted of a side's tables, and what changed them without an event: kept on the side itself.

Invariant: a fingerprint is moved forward only in the transaction that keeps what the difference meant, so that a change
made while nobody was looking is found by whoever looks next.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.direction import Side
from schemas.fingerprint import Change, Kind, Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """A change that was found and is not done with.

    `voided_at`: since when verdicts on what it concerns say nothing, by the clock of the database that holds them.
    """

    id: int
    side: Side
    table: str
    kind: Kind
    cause: str
    voided_at: datetime | None
    found_at: datetime


def lock(conn: Connection, migration: str, side: Side) -> None:
    """In the caller's transaction: nobody else accepts or finds anything on that side meanwhile."""
    conn.execute(
        "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%s, 0))",
        (f"slackwater.fingerprint.{migration}.{side}",),
    )


def accepted(conn: Connection, migration: str, side: Side) -> dict[str, Parts]:
    """What was last accepted, by table."""
    with translated("reading what was accepted of the catalogs"):
        rows: list[Any] = conn.execute(
            "select relation, parts from slackwater.fingerprint where migration = %s and side = %s",
            (migration, side.value),
        ).fetchall()
    return {table: Parts.of(parts) for table, parts in rows}


def accept(conn: Connection, migration: str, side: Side, parts: Mapping[str, Parts]) -> None:
    """Take tables as they are."""
    if not parts:
        return
    rows = json.dumps([{"t": table, "p": found.document()} for table, found in parts.items()])
    with translated("accepting what the catalogs say"):
        conn.execute(
            "insert into slackwater.fingerprint (migration, side, relation, parts)"
            " select %s, %s, x.t, x.p from pg_catalog.jsonb_to_recordset(%s::jsonb) x(t text, p jsonb)"
            " on conflict (migration, side, relation) do update"
            " set parts = excluded.parts, accepted_at = pg_catalog.clock_timestamp()",
            (migration, side.value, rows),
        )


def record(conn: Connection, migration: str, side: Side, changes: Iterable[Change]) -> None:
    """Keep changes; one that waits already, of the same kind and cause, is not kept twice."""
    with translated("keeping what changed without an event"):
        for change in changes:
            conn.execute(
                "insert into slackwater.silent_change (migration, side, relation, kind, cause)"
                " select %(m)s, %(s)s, %(t)s, %(k)s, %(c)s where not exists (select from slackwater.silent_change"
                " where migration = %(m)s and side = %(s)s and relation = %(t)s and kind = %(k)s and cause = %(c)s"
                " and state <> 'done' and kind in ('shape', 'lost'))",
                {"m": migration, "s": side.value, "t": change.table, "k": change.kind.value, "c": change.cause},
            )


def waiting(conn: Connection, migration: str, side: Side) -> list[Silent]:
    """What was found on a side and is not done with, the oldest first."""
    with translated("reading what changed without an event"):
        rows: list[Any] = conn.execute(
            "select id, relation, kind, cause, voided_at, found_at from slackwater.silent_change"
            " where migration = %s and side = %s and state <> 'done' order by id",
            (migration, side.value),
        ).fetchall()
    return [
        Silent(id=i, side=side, table=table, kind=Kind(kind), cause=cause, voided_at=voided_at, found_at=at)
        for i, table, kind, cause, voided_at, at in rows
    ]


def voided(conn: Connection, one: Silent, at: datetime) -> None:
    """The verdicts on what it concerns say nothing since `at`, by the clock of the database that holds them."""
    with translated("writing down what became of a change"):
        conn.execute(
            "update slackwater.silent_change set state = 'voided', voided_at = %s where id = %s and state <> 'done'",
            (at, one.id),
        )


def done(conn: Connection, ids: Collection[int]) -> None:
    """What these concern is right again, or is loaded anew."""
    if not ids:
        return
    with translated("writing down what became of a change"):
        conn.execute(
            "update slackwater.silent_change set state = 'done', done_at = pg_catalog.clock_timestamp()"
            " where id = any(%s::bigint[]) and state <> 'done'",
            (sorted(ids),),
        )
