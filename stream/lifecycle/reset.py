"""The one transaction an edit ends in: changed targets are emptied, their backfills begin anew, the file is recorded.

Invariants: it holds the applier's lock and reads the turn, like every transaction of ours that writes rows; only what
this migration itself has filled is emptied; a target and its chunks are reset together or not at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

from connectors.failpoint import failpoint
from connectors.postgres import control, fence, mirror, targets
from connectors.postgres.own_writes import still_closed
from connectors.postgres.session import Connection
from schemas.collated import collated
from schemas.control import ECHO_PREFIX
from schemas.direction import Side
from schemas.plan import Plan
from stream.lifecycle.build import owner_columns
from stream.lifecycle.difference import Difference
from stream.migration.journal import Actor, append
from stream.migration.prepared import Prepared
from stream.migration.silent_changes import Standing, settle, standing

HOLDER = "prepare"


def reload(
    conn: Connection,
    plan: Plan,
    prepared: Prepared,
    difference: Difference,
    loads: Iterable[control.Load],
    offsets: Mapping[str, Mapping[int, int]],
    stand: Standing,
    *,
    actor: Actor,
) -> None:
    """Carry out `difference` on new. `loads` are those to begin anew; `offsets` where new topics are read from;
    `stand` is new as it was read before anything was emptied.

    Errors: Contended, Halt when new is open to the application.
    """
    migration, direction = plan.migration, plan.direction
    replica = targets.may_be_replica(conn)
    with control.transaction(conn, "cannot record the new file"):
        conn.execute(
            "select pg_catalog.pg_logical_emit_message(true, %s, %s)", (ECHO_PREFIX, f"{migration}.{direction}")
        )
        conn.execute(
            "select pg_catalog.pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"slackwater.{migration}.{direction}",)
        )
        still_closed(conn, migration)
        _empty(conn, plan, difference, replica)
        for name in difference.removed:
            control.drop_load(conn, migration, direction, name)
            if name.startswith("mirror:"):
                mirror.drop_mirror(conn, migration, direction, name.removeprefix("mirror:"))
        for load in loads:
            control.reset_load(conn, migration, direction, load)
        anew = [name for name in difference.loads_anew if name in plan.targets]
        settle(conn, stand, anew, standing(conn, stand.what, anew).parts)
        control.add_offsets(conn, migration, direction, offsets)
        control.put_migration(
            conn,
            migration,
            phase="prepared",
            fingerprint=prepared.fingerprint,
            prepared=prepared.to_json(),
        )
        append(
            conn,
            migration,
            actor=actor,
            step="prepare",
            detail={"fingerprint": prepared.fingerprint, "difference": difference.lines()},
        )
        failpoint("prepare.before_commit")


def _empty(conn: Connection, plan: Plan, difference: Difference, replica: bool) -> None:
    """Throw away what changed loads hold: mirrors are made anew, targets are emptied under the fence's pass."""
    changed = [name for name in difference.changed if name.startswith("mirror:")]
    for name in changed:
        source = name.removeprefix("mirror:")
        mirror.drop_mirror(conn, plan.migration, plan.direction, source)
        ordered = collated(plan.mappings, source)
        mirror.create_mirror(conn, plan.migration, plan.direction, plan.sources[source], ordered)
    for source, columns in owner_columns(plan):
        mirror.index_mirror(conn, plan.migration, plan.direction, plan.sources[source], columns)
    tables: Sequence[str] = [name for name in difference.changed if name in plan.targets]
    if not tables:
        return
    secret = secrets.token_hex(32)
    fence.give_pass(conn, plan.migration, Side.NEW, HOLDER, secret)
    fence.show_pass(conn, secret)
    targets.empty(conn, [(plan.target_schema, name) for name in tables], replica=replica, path=plan.target_path)
    fence.take_pass(conn, plan.migration, Side.NEW, HOLDER)
