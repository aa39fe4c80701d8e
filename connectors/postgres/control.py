"""The control schema on one database: made, read, and taken away again.

Invariant: it is only ever added to; rows are keyed by migration; it is dropped only when no migration is left in it,
under the same lock under which it is made, and without CASCADE, so nothing of a user's goes with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from psycopg import errors

from connectors.postgres import control_version
from connectors.postgres.session import Connection, translated
from schemas import control
from schemas.direction import Direction, Side
from schemas.errors import Refused
from schemas.position import Lsn, Position, format_lsn, parse_lsn

CONTROL_TABLES: tuple[str, ...] = tuple(
    name for name in re.findall(r"create table if not exists slackwater\.(\w+)", control.TABLES) if name != "version"
)
"""The tables whose rows are a migration's; `version` is the schema's own."""

# Application roles may read where to write, and anybody which version this is; nothing else of ours.
_GRANTS = """
grant usage on schema slackwater to public;
grant select on slackwater.route, slackwater.version to public;
"""


@contextmanager
def transaction(conn: Connection, doing: str) -> Iterator[None]:
    """One transaction, with its errors translated. `doing` opens the message."""
    with translated(doing), conn.transaction():
        yield


def installed(conn: Connection) -> bool:
    """Whether this database has the control schema. Errors: OtherVersion where it is not of this program's version."""
    return control_version.current(conn)


def install(conn: Connection) -> None:
    """Make what is missing of the control schema; call it inside `transaction`. Nothing is dropped or rewritten.

    Errors: OtherVersion where it is there in another version: `upgrade` brings it to this one.
    """
    conn.execute(control_version.LOCK)
    fresh = not control_version.current(conn)
    conn.execute(control.TABLES.encode())
    conn.execute(control.FUNCTIONS.encode())
    if fresh:
        control_version.record(conn)
    row = conn.execute(
        "select exists (select from pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a"
        " where c.oid = 'slackwater.route'::regclass and a.grantee = 0 and a.privilege_type = 'SELECT')"
    ).fetchone()
    if row != (True,):
        conn.execute(_GRANTS.encode())


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationRow:
    """What `slackwater.migration` says; `prepared` is the document that `stream.migration.prepared` reads."""

    migration: str
    phase: str
    fingerprint: str
    prepared: dict[str, Any]
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A side's own `turn` row: the authority on whether that side takes the application's writes."""

    side: Side
    open_turn: int
    fence_turn: int | None

    @property
    def open(self) -> bool:
        """Whether the side takes the application's writes."""
        return self.fence_turn is None or self.open_turn >= self.fence_turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far a direction's target has come. `offsets`: topic -> partition -> next offset, the epochs topic's too."""

    epoch: int
    end_lsn: Lsn
    last: Position
    offsets: dict[str, dict[int, int]]
    system_id: str
    timeline: int
    slot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A `slackwater.load` row as `prepare` writes it: one backfill to come, or a sleeping join mapping."""

    name: str
    source: str
    fingerprint: str
    state: str  # pending, asleep; done: the target's rows are there already
    barrier_xid: str
    barrier_lsn: Lsn
    rows_estimate: int = 0
    bytes_estimate: int = 0
    snapshot: str | None = None  # a table without a key whose rows are there already: what shows them


def migration(conn: Connection, name: str) -> MigrationRow | None:
    """The migration's row, or None where it, or the control schema, is not there."""
    if not installed(conn):
        return None
    with translated(f"cannot read migration {name}"):
        row: Any = conn.execute(
            "select migration, phase, fingerprint, prepared::text, created_at, changed_at"
            " from slackwater.migration where migration = %s",
            (name,),
        ).fetchone()
    if row is None:
        return None
    return MigrationRow(
        migration=row[0],
        phase=row[1],
        fingerprint=row[2],
        prepared=json.loads(row[3]),
        created_at=row[4],
        changed_at=row[5],
    )


def put_migration(conn: Connection, name: str, *, phase: str, fingerprint: str, prepared: str) -> None:
    """Record what was prepared. An existing row keeps its phase: only a transition changes that."""
    conn.execute(
        "insert into slackwater.migration (migration, phase, fingerprint, prepared) values (%s, %s, %s, %s::jsonb)"
        " on conflict (migration) do update set fingerprint = excluded.fingerprint, prepared = excluded.prepared,"
        " changed_at = clock_timestamp()",
        (name, phase, fingerprint, prepared),
    )


def keep_spare(conn: Connection, name: str, prepared: str) -> None:
    """On old: what new has prepared, so that the way back can be gone to its end without new."""
    conn.execute(
        "insert into slackwater.spare (migration, prepared) values (%s, %s::jsonb) on conflict (migration) do update"
        " set prepared = excluded.prepared, kept_at = clock_timestamp()",
        (name, prepared),
    )


def spare(conn: Connection, name: str) -> dict[str, Any] | None:
    """What old was given to keep; None before that."""
    if not installed(conn):
        return None
    with translated(f"cannot read what is kept of migration {name}"):
        row: Any = conn.execute("select prepared::text from slackwater.spare where migration = %s", (name,)).fetchone()
    return None if row is None else json.loads(row[0])


def set_phase(conn: Connection, name: str, phase: str) -> None:
    """Move the migration to `phase`; whoever calls has asked `stream.migration.phases` whether it may."""
    conn.execute(
        "update slackwater.migration set phase = %s, changed_at = clock_timestamp()"
        " where migration = %s and phase <> %s",
        (phase, name, phase),
    )


def turn(conn: Connection, name: str, side: Side, *, lock: bool = False) -> Turn | None:
    """The side's turn row; None where there is none. `lock` takes it `for update`, inside the caller's transaction."""
    if not installed(conn):
        return None
    query = b"select open_turn, fence_turn from slackwater.turn where migration = %s and side = %s"
    with translated(f"cannot read whose turn it is on {side}"):
        row = conn.execute(query + (b" for update" if lock else b""), (name, side.value)).fetchone()
    if row is None:
        return None
    return Turn(side=side, open_turn=cast("int", row[0]), fence_turn=cast("int | None", row[1]))


def put_turn(conn: Connection, name: str, side: Side, *, open_turn: int, fence_turn: int | None) -> None:
    """The side's first turn row; one that is there already is left as it is: turns only grow, and not here."""
    conn.execute(
        "insert into slackwater.turn (migration, side, open_turn, fence_turn) values (%s, %s, %s, %s)"
        " on conflict (migration, side) do nothing",
        (name, side.value, open_turn, fence_turn),
    )


def put_route(conn: Connection, name: str, *, writes: Side, turn: int) -> None:
    """The first route row, for applications; one that is there already is left as it is."""
    conn.execute(
        "insert into slackwater.route (migration, writes, turn, changed_at) values (%s, %s, %s, clock_timestamp())"
        " on conflict (migration) do nothing",
        (name, writes.value, turn),
    )


def checkpoint(conn: Connection, name: str, direction: Direction) -> Checkpoint | None:
    """The direction's checkpoint on its target, or None."""
    if not installed(conn):
        return None
    with translated(f"cannot read the {direction} checkpoint"):
        row: Any = conn.execute(
            "select epoch, end_lsn::text, last_commit_lsn::text, last_seq, offsets::text, system_id, timeline, slot"
            " from slackwater.checkpoint where migration = %s and direction = %s",
            (name, direction.value),
        ).fetchone()
    if row is None:
        return None
    return Checkpoint(
        epoch=row[0],
        end_lsn=parse_lsn(row[1]),
        last=Position(parse_lsn(row[2]), row[3]),
        offsets={t: {int(p): o for p, o in parts.items()} for t, parts in json.loads(row[4]).items()},
        system_id=row[5],
        timeline=row[6],
        slot=row[7],
    )


def put_checkpoint(conn: Connection, name: str, direction: Direction, value: Checkpoint) -> None:
    """The first checkpoint of a direction; an error where there is one: from then on it is apply's alone."""
    conn.execute(
        "insert into slackwater.checkpoint (migration, direction, epoch, end_lsn, last_commit_lsn, last_seq, offsets,"
        " system_id, timeline, slot) values (%s, %s, %s, %s::pg_lsn, %s::pg_lsn, %s, %s::jsonb, %s, %s, %s)",
        (
            name,
            direction.value,
            value.epoch,
            format_lsn(value.end_lsn),
            format_lsn(value.last.commit_lsn),
            value.last.seq,
            json.dumps(value.offsets),
            value.system_id,
            value.timeline,
            value.slot,
        ),
    )


def add_offsets(conn: Connection, name: str, direction: Direction, topics: Mapping[str, Mapping[int, int]]) -> None:
    """Start offsets of topics that the checkpoint does not know yet; known ones keep theirs."""
    conn.execute(
        "update slackwater.checkpoint set offsets = %s::jsonb || offsets where migration = %s and direction = %s",
        (json.dumps(topics), name, direction.value),
    )


def loads(conn: Connection, name: str, direction: Direction) -> dict[str, tuple[str, str]]:
    """Load name -> (fingerprint, state)."""
    if not installed(conn):
        return {}
    with translated("cannot read the backfills"):
        rows = conn.execute(
            "select name, fingerprint, state from slackwater.load where migration = %s and direction = %s",
            (name, direction.value),
        ).fetchall()
    return {str(load): (str(fingerprint), str(state)) for load, fingerprint, state in rows}


def computed(conn: Connection, name: str, direction: Direction) -> list[str]:
    """The targets that are computed from mirrors."""
    with translated("cannot read the backfills"):
        rows = conn.execute(
            "select name from slackwater.load where migration = %s and direction = %s and source = '' order by name",
            (name, direction.value),
        ).fetchall()
    return [str(load) for (load,) in rows]


_OF_LOAD = ("backfill_chunk", "quarantine", "reread", "verification", "verify_chunk", "uncompared")


def reset_load(conn: Connection, name: str, direction: Direction, load: Load) -> None:
    """Start one backfill anew: its chunks, quarantined rows and reread queue go with what was loaded before."""
    drop_load(conn, name, direction, load.name)
    conn.execute(
        "insert into slackwater.load (migration, direction, name, source, fingerprint, state, barrier_xid, barrier_lsn,"
        " rows_estimate, bytes_estimate, snapshot, done_at)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s::pg_lsn, %s, %s, %s,"
        " case when %s = 'done' then clock_timestamp() end)",
        (
            name,
            direction.value,
            load.name,
            load.source,
            load.fingerprint,
            load.state,
            load.barrier_xid,
            format_lsn(load.barrier_lsn),
            load.rows_estimate,
            load.bytes_estimate,
            load.snapshot,
            load.state,
        ),
    )


def keep_load(conn: Connection, name: str, direction: Direction, load: Load) -> None:
    """A backfill of another text, or of another shape, from now on, whose rows stay where they are."""
    conn.execute(
        "update slackwater.load set source = %s, fingerprint = %s, state = %s, barrier_xid = %s,"
        " barrier_lsn = %s::pg_lsn where migration = %s and direction = %s and name = %s",
        (
            load.source,
            load.fingerprint,
            load.state,
            load.barrier_xid,
            format_lsn(load.barrier_lsn),
            name,
            direction.value,
            load.name,
        ),
    )


def drop_load(conn: Connection, name: str, direction: Direction, load: str) -> None:
    """Forget one backfill, with everything kept about its rows."""
    for table in _OF_LOAD:
        conn.execute(
            f"delete from slackwater.{table} where migration = %s and direction = %s and load = %s".encode(),
            (name, direction.value, load),
        )
    conn.execute(
        "delete from slackwater.load where migration = %s and direction = %s and name = %s",
        (name, direction.value, load),
    )


_OF_DIRECTION = ("checkpoint", "epoch", "token", "canary_seen", "load", *_OF_LOAD)


def forget_direction(conn: Connection, name: str, direction: Direction) -> None:
    """Forget what a direction's target keeps of it, in the caller's transaction: its checkpoint and its loads."""
    for table in _OF_DIRECTION:
        conn.execute(
            f"delete from slackwater.{table} where migration = %s and direction = %s".encode(), (name, direction.value)
        )


def alive(conn: Connection, name: str, within_s: float = 5.0) -> list[str]:
    """Roles with a heartbeat younger than `within_s`, as 'forward apply (pid 12 on host a)'; by the server's clock."""
    if not installed(conn):
        return []
    with translated("cannot read the roles' heartbeats"):
        rows = conn.execute(
            "select direction, role, pid, host from slackwater.role where migration = %s and state <> 'stopped'"
            " and seen_at > clock_timestamp() - make_interval(secs => %s) order by 1, 2",
            (name, within_s),
        ).fetchall()
    return [f"{direction} {role} (pid {pid} on {host})" for direction, role, pid, host in rows]


# -- the end ----------------------------------------------------------------------------------------------------------


def others(conn: Connection, name: str) -> list[str]:
    """Other migrations that have rows in this database's control schema."""
    if not installed(conn):
        return []
    union = " union ".join(f"select migration from slackwater.{table}" for table in CONTROL_TABLES)
    with translated("cannot list the migrations of this database"):
        rows = conn.execute(
            f"select migration from ({union}) m where migration <> %s order by 1".encode(), (name,)
        ).fetchall()
    return [str(row[0]) for row in rows]


def forget(conn: Connection, name: str) -> None:
    """Delete every row of the migration in this database; call it inside `transaction`."""
    conn.execute(control_version.LOCK)
    for table in CONTROL_TABLES:
        conn.execute(f"delete from slackwater.{table} where migration = %s".encode(), (name,))


def uninstall(conn: Connection, name: str) -> bool:
    """Drop the control schema if no other migration is in it; call it inside `transaction`, after `forget`.

    Errors: Refused when something that is not ours depends on it, or lives in it.
    """
    conn.execute(control_version.LOCK)
    if others(conn, name):
        return False
    try:
        conn.execute(
            f"drop table {', '.join(f'slackwater.{table}' for table in ('version', *CONTROL_TABLES))}".encode()
        )
        conn.execute("drop function slackwater.refuse(), slackwater.truncated(), slackwater.watch(text, text, oid)")
        conn.execute("drop function slackwater.end_stalled(text, text, integer)")
        conn.execute("drop schema if exists slackwater_mirror")
        conn.execute("drop schema slackwater")
    except errors.DependentObjectsStillExist as error:
        raise Refused(
            "the control schema cannot be dropped: something that slackwater did not make lives in it or depends on it",
            reasons=tuple(_first_lines(error.diag.message_detail)),
            hint="drop or move those objects, then run `slackwater cancel` again",
        ) from error
    return True


def _first_lines(text: str | None, most: int = 20) -> Sequence[str]:
    return (text or "").splitlines()[:most]
