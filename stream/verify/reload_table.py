"""Repair of a table without a key: its rows cannot be asked for one by one, so it is emptied and loaded anew.

Invariants: in one transaction, under the applier's lock, the table is emptied and its load begins from a barrier of its
own: the stream leaves out what that load's snapshot shows, and brings the rest. Only what this migration has filled, on
a side that is closed, before the way back stands on it. Rows that the source does not have are kept first; where nobody
asked for rows to be deleted, there must be none.
"""

from __future__ import annotations

import secrets

from connectors.postgres import control, fence, targets
from connectors.postgres.chunks import record_barrier
from connectors.postgres.own_writes import still_closed
from connectors.postgres.session import Connection
from schemas import digest
from schemas.control import ECHO_PREFIX
from schemas.direction import Direction, Side
from schemas.errors import Refused
from schemas.plan import Plan
from schemas.repair import Action, Repair, keep
from stream.migration import phase_store
from stream.migration.phases import Phase
from stream.migration.silent_changes import settle, standing, watched
from stream.verify.coverage import EVERYTHING
from stream.verify.digests import SCAN_S, Pair
from stream.verify.queries import View

HOLDER = "verify --repair"
PHASES = (Phase.BACKFILLING, Phase.STREAMING)


def why_not(target: Connection, plan: Plan) -> str | None:
    """Why a table without a key may not be loaded anew now; None when it may."""
    if plan.direction is not Direction.FORWARD:
        return "it has no key, and old is not emptied to be loaded anew: mend it by hand"
    if (phase := phase_store.phase(target, plan.migration)) not in PHASES:
        return f"it has no key, and is loaded anew only before the way back stands on it; the phase is {phase}"
    return None


def load_anew(pair: Pair, target: Connection, plan: Plan, view: View, repair: Repair) -> None:
    """Empty the table and have it loaded again; only a later clean pass makes it clean.

    Errors: Refused where rows would be lost by that, and the repair may not delete; Halt, Contended.
    """
    migration, direction, name = plan.migration, plan.direction, view.name
    source, mapping = pair.source.primary, next(m for m in plan.mappings if m.target == view.name)
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
        _keep(pair, target, plan, view, repair)
        secret = secrets.token_hex(32)
        fence.give_pass(target, migration, Side.NEW, HOLDER, secret)
        fence.show_pass(target, secret)
        targets.empty(target, [(plan.target_schema, name)], replica=replica, path=plan.target_path)
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


def _keep(pair: Pair, target: Connection, plan: Plan, view: View, repair: Repair) -> None:
    """Keep the rows of which the target has more than the source, in the caller's transaction."""
    there, name = view.target(target, EVERYTHING), view.name
    target.execute("create temporary table slackwater_there (m text, n bigint) on commit drop")
    with pair.source.look(view.sources, timeout_s=SCAN_S):
        query = digest.listed(view.source(pair.source.rows, EVERYTHING), view.how)
        with (
            pair.source.rows.cursor().copy(f"copy ({query}) to stdout".encode()) as rows,
            target.cursor().copy("copy pg_temp.slackwater_there from stdin") as into,
        ):
            for part in rows:
                into.write(part)
    image = f'{view.how.digest(there.image)} collate "C"'
    columns = [c.name for c in view.table.columns if not c.generated]
    head = keep(plan.migration, str(plan.direction), name, Action.DELETED, repair, (), columns)
    kept = target.execute(
        f"{head} (select q.*, {image} as slackwater_m, row_number() over (partition by {image}) as slackwater_i"
        f" from {there.source} where {there.where}) g left join pg_temp.slackwater_there x on x.m = g.slackwater_m"
        " where g.slackwater_i > coalesce(x.n, 0)".encode()
    )
    if kept.rowcount and not repair.deletes:
        raise Refused(
            f"{kept.rowcount:,} rows of {name} are on {plan.direction.target} alone, and to load it anew deletes them",
            hint="slackwater verify --repair --delete, which keeps them until `finalize`",
        )
