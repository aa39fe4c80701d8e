"""Repair of a table without a key: its rows cannot be asked for one by one, so it is emptied and loaded anew.

Invariants: in one transaction, under the applier's lock, the table is emptied and its load begins from a barrier of its
own: the stream leaves out what that load's snapshot shows, and brings the rest. Only what this migration has filled, on
a side that is closed, before the way back stands on it.
"""

from __future__ import annotations

import secrets

from connectors.postgres import control, fence, targets
from connectors.postgres.chunks import record_barrier
from connectors.postgres.own_writes import still_closed
from connectors.postgres.session import Connection
from schemas.control import ECHO_PREFIX
from schemas.direction import Direction, Side
from schemas.plan import Plan
from stream.migration import phase_store
from stream.migration.phases import Phase
from stream.migration.silent_changes import settle, standing, watched

HOLDER = "verify --repair"
PHASES = (Phase.BACKFILLING, Phase.STREAMING)


def why_not(target: Connection, plan: Plan) -> str | None:
    """Why a table without a key may not be loaded anew now; None when it may."""
    if plan.direction is not Direction.FORWARD:
        return "it has no key, and old is not emptied to be loaded anew: mend it by hand"
    if (phase := phase_store.phase(target, plan.migration)) not in PHASES:
        return f"it has no key, and is loaded anew only before the way back stands on it; the phase is {phase}"
    return None


def load_anew(source: Connection, target: Connection, plan: Plan, name: str) -> None:
    """Empty the table and have it loaded again; only a later clean pass makes it clean. Errors: Halt, Contended."""
    migration, direction = plan.migration, plan.direction
    mapping = next(m for m in plan.mappings if m.target == name)
    table = plan.sources[mapping.sources[0]]
    barrier = record_barrier(source)
    replica = targets.may_be_replica(target)
    with control.transaction(target, f"cannot have {name} loaded anew"):
        target.execute(
            "select pg_catalog.pg_logical_emit_message(true, %s, %s)", (ECHO_PREFIX, f"{migration}.{direction}")
        )
        target.execute(
            "select pg_catalog.pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"slackwater.{migration}.{direction}",)
        )
        still_closed(target, migration)
        secret = secrets.token_hex(32)
        fence.give_pass(target, migration, Side.NEW, HOLDER, secret)
        fence.show_pass(target, secret)
        targets.empty(target, [(plan.target_schema, name)], replica=replica)
        fence.take_pass(target, migration, Side.NEW, HOLDER)
        emptied = standing(target, watched(plan, Side.NEW), [name])
        settle(target, emptied, [name])  # that it lies in another file now is our own work
        control.reset_load(
            target,
            migration,
            direction,
            control.Load(
                name=name,
                source=table.name,
                fingerprint=mapping.fingerprint,
                state="pending",
                barrier_xid=barrier.xid,
                barrier_lsn=barrier.lsn,
                rows_estimate=max(0, table.rows_estimate),
                bytes_estimate=max(0, table.bytes_estimate),
            ),
        )
        target.execute(  # what was known of it went with its load; that it was wrong did not
            "insert into slackwater.verification (migration, direction, load, state) values (%s, %s, %s, 'repaired')",
            (migration, direction.value, name),
        )
