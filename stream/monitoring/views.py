"""What both sides of a direction say of themselves, read in one look each.

Invariant: a side that could not be read is an absent view with its cause, never a view full of zeroes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from connectors.postgres import catalog
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, slot_name
from schemas.position import Lsn, parse_lsn
from stream.monitoring.heartbeat import Beat, beats


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """The replication slot as the source has it."""

    name: str
    active: bool
    retained_bytes: int | None
    wal_status: str | None  # reserved, extended, unreserved, lost
    safe_bytes: int | None  # how much more WAL before it is in danger; None: no limit is set
    xmin_age: int | None  # how many transactions its catalog_xmin is behind


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """The source at `at` (seconds since 1970 by its own clock)."""

    at: float
    insert_lsn: Lsn
    system_id: str
    timeline: int
    slot: SlotView | None
    capture: Beat | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetView:
    """The target's checkpoint and what writes there. Times are seconds since 1970, ages by the target's own clock."""

    epoch: int
    end_lsn: Lsn
    committed_at: float | None  # the source's commit time of the newest transaction applied
    applied_age_s: float
    system_id: str
    timeline: int
    apply: Beat | None
    backfill: Beat | None
    rows_per_second: float | None


SOURCE = """
select extract(epoch from clock_timestamp())::float8, pg_current_wal_insert_lsn()::text
"""

SLOT = """
select active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, wal_status, safe_wal_size, age(catalog_xmin)
  from pg_replication_slots where slot_name = %s
"""

CHECKPOINT = """
select epoch, end_lsn::text, extract(epoch from committed_at)::float8,
       extract(epoch from clock_timestamp() - applied_at)::float8, system_id, timeline
  from slackwater.checkpoint where migration = %s and direction = %s
"""

# Over the last ten seconds; pruned epochs are older than that.
RATE = """
select coalesce(sum(rows), 0)::float8 / 10 from slackwater.epoch
 where migration = %s and direction = %s and applied_at > clock_timestamp() - interval '10 seconds'
"""


def source(conn: Connection, migration: str, direction: Direction) -> SourceView:
    """The source now. Unavailable when it does not answer."""
    server = catalog.server(conn)
    beat = beats(conn, migration).get((direction.value, "capture"))
    with translated("reading the source's position"):
        slot = conn.execute(SLOT, (slot_name(migration, direction),)).fetchone()
        at, insert = cast("tuple[float, str]", conn.execute(SOURCE).fetchone())
    return SourceView(
        at=at,
        insert_lsn=parse_lsn(insert),
        system_id=server.system_id,
        timeline=server.timeline,
        slot=None if slot is None else _slot(slot_name(migration, direction), slot),
        capture=beat,
    )


def _slot(name: str, row: tuple[Any, ...]) -> SlotView:
    active, retained, status, safe, age = row
    return SlotView(name=name, active=active, retained_bytes=retained, wal_status=status, safe_bytes=safe, xmin_age=age)


def target(conn: Connection, migration: str, direction: Direction) -> TargetView | None:
    """The target now; None where the direction was not prepared. Unavailable when it does not answer."""
    found = beats(conn, migration)
    with translated("reading the checkpoint"):
        row = conn.execute(CHECKPOINT, (migration, direction.value)).fetchone()
        rate = conn.execute(RATE, (migration, direction.value)).fetchone()
    if row is None:
        return None
    epoch, end_lsn, committed_at, age, system_id, timeline = cast("tuple[int, str, float | None, float, str, int]", row)
    return TargetView(
        epoch=epoch,
        end_lsn=parse_lsn(end_lsn),
        committed_at=committed_at,
        applied_age_s=age,
        system_id=system_id,
        timeline=timeline,
        apply=found.get((direction.value, "apply")),
        backfill=found.get((direction.value, "backfill")),
        rows_per_second=None if rate is None else cast("float", rate[0]),
    )
