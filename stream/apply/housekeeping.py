"""What the applier does between transactions: wake mappings, fence new partitions, prune, count what waits.

Invariant: a sleeping mapping wakes only when each of its mirrors is complete and applied past its newest chunk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from connectors.failpoint import failpoint
from connectors.postgres import catalog, control, fence
from connectors.postgres.control import Checkpoint
from connectors.postgres.session import Connection, translated
from connectors.postgres.target import Key, Target
from schemas.direction import Side
from schemas.errors import Contended, PrivilegeMissing, RowRejected, StatementRefused
from schemas.repair import Repair
from stream.apply.healing import Partitions
from stream.engine import Engine
from stream.migration.silent_changes import Lookout, watched
from stream.monitoring.metrics import Metrics

log = logging.getLogger("slackwater.apply")

T = TypeVar("T")

KEEP_EPOCHS = 10_000
MINUTE_S = 60.0
FENCE_PATIENCE_S = 2.0
ANEW = Repair(deletes=True, by="slackwater", reason="computed anew, because a mirror was")
"""Where a table is computed from mirrors for the first time nothing is there to be kept."""


class Tending:
    """Called by the applier between its transactions, about once a second."""

    def __init__(
        self, engine: Engine, target: Target, metrics: Metrics, housekeeping: Callable[[Connection], None]
    ) -> None:
        self._engine = engine
        self._target = target
        self._metrics = metrics
        self._housekeeping = housekeeping
        self._looked_at = -MINUTE_S
        self._unfenced: str | None = None  # why a fence could not be made, once said
        self._partitions = Partitions(engine.plan, target)
        self._catalogs = Lookout(watched(engine.plan, engine.plan.direction.target))

    def run(self, checkpoint: Checkpoint) -> None:
        with translated("tending the control tables"):
            states = self._target.loads()
            waiting = self._target.rereads()
            self._metrics.reread(len(waiting))
            self._metrics.quarantined(apart := self._target.open_quarantine())
            asked = self._target.owners_asked()
        if self._partitions.look(apart):
            self._fence()
        asleep = [name for name, state in states.items() if state.state == "asleep"]
        for name in asleep:
            mirrors = [f"mirror:{s}" for s in self._engine.loads[name].mapping.sources]
            if all(
                states[m].state == "done" and states[m].newest_lsn <= checkpoint.end_lsn for m in mirrors
            ) and not any(load in mirrors for load, _ in waiting):
                self._wake(name)
        for (name, repair), owners in asked.items():
            if name not in asleep:
                self._retry(name, owners, repair)
        if time.monotonic() - self._looked_at > MINUTE_S:
            self._target.prune(KEEP_EPOCHS)
            self._fence()
            self._looked_at = time.monotonic()
        self._catalogs.look(self._target.conn)  # what it finds is kept; the gate `silent_changes` speaks of it
        self._housekeeping(self._target.conn)

    def _wake(self, name: str) -> None:
        def wake() -> int:
            if self._engine.mirrors_only:  # the target is open: it is right as it is, by definition
                self._engine.target.woken(name, 0)
                return 0
            self._engine.repairs.asked = ANEW
            rows = self._engine.owners.wake(name)
            failpoint("apply.before_wake")
            return rows

        try:
            rows = self._alone(wake)
        except (RowRejected, StatementRefused):
            rows = self._alone(wake, isolate=name)
        log.info("%s is computed from its mirrors: %d rows", name, rows)

    def _retry(self, name: str, owners: list[Key], repair: Repair | None) -> None:
        """Owners that an operator wants to see computed again: because they are in quarantine, or for a repair."""
        e = self._engine

        def retry() -> None:
            if not e.mirrors_only:
                e.repairs.asked = repair
                e.owners.retry(e.loads[name], owners)

        try:
            self._alone(retry)
        except RowRejected as error:  # not one owner's fault: nobody leaves
            log.error("%s is refused as before: %s", name, error.cause)
            self._alone(lambda: e.target.owners_read(name, owners, []))

    def _alone(self, work: Callable[[], T], *, isolate: str | None = None) -> T:
        """A transaction of its own under the applier's lock."""
        e = self._engine
        e.begin(holder=f"apply.{e.plan.direction}", lock="exclusive", mirrors_only=None)
        try:
            if isolate is not None:
                e.owners.isolate.add(isolate)
            done = work()
        except BaseException:
            e.abandon()
            raise
        e.commit()
        return done

    def _fence(self) -> None:
        """The fence on tables and partitions of the target that were made since it was last looked at."""
        plan, conn = self._engine.plan, self._target.conn
        side = plan.direction.target
        turn = control.turn(conn, plan.migration, side)
        if turn is None or turn.fence_turn is None:
            return
        tables = list(catalog.tables(conn, plan.target_schema).values())
        if side is Side.OLD:  # what stays behind on old is not ours to close
            tables = [table for table in tables if table.name in plan.targets]
        try:
            made = fence.ensure(conn, plan.migration, side, turn.fence_turn, tables, patience_s=FENCE_PATIENCE_S)
        except (PrivilegeMissing, Contended) as error:
            if error.cause != self._unfenced:  # the gate `fence` says so for as long as it is so
                log.warning("%s; `slackwater prepare` as the tables' owner fences them", error.cause)
            self._unfenced = error.cause
            return
        self._unfenced = None
        for schema, table in made:
            log.warning("%s.%s had no fence: it has one now", schema, table)
