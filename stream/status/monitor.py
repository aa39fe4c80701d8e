"""The applier's second pair of eyes: it probes the lag twice a second, and keeps the migration-wide metrics.

Invariant: the lag that is scraped is computed at that moment, so it goes on growing when a look, or everything, hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial

from schemas.direction import Direction, Side
from schemas.errors import SlackwaterError
from stream.gates import gate_table
from stream.monitoring import views
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics
from stream.monitoring.sessions import Sides
from stream.status.document import Seen, Watch
from stream.status.survey import Document

log = logging.getLogger("slackwater.monitor")

PROBE_S = 0.5
WIDE_S = 5.0


class Monitor:
    """Watches one direction from its applier's process; the forward one watches the migration as well.

    One that does not speak (backfill's) knows the lag, and leaves metrics and heartbeat alone.
    """

    def __init__(
        self,
        *,
        migration: str,
        direction: Direction,
        sides: Sides,
        watch: Watch,
        heartbeat: Heartbeat,
        metrics: Metrics,
        speaks: bool = True,
    ) -> None:
        self._migration = migration
        self._direction = direction
        self._sides = sides
        self._watch = watch
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._speaks = speaks
        self._offset_s = (
            time.time() - time.monotonic()
        )  # from our monotonic clock to the source's; ours until it answers
        self._stuck: str | None = None
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._probe, name="lag", daemon=True)]
        if direction is Direction.FORWARD and speaks:
            self._threads.append(threading.Thread(target=self._look_wide, name="status", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()

    def refresh(self) -> None:
        """Sets the lag's metrics to what they are now; called by whoever renders them."""
        if not self._speaks:
            return
        lag = self._watch.trackers[self._direction].lag(self._now())
        self._metrics.lag(lag.seconds, lag.bytes, lag.freshness_s)

    def lag_s(self) -> float | None:
        """The lag now, in seconds; None when it is not known."""
        return self._watch.trackers[self._direction].lag(self._now()).seconds

    def _now(self) -> float:
        return time.monotonic() + self._offset_s

    def _probe(self) -> None:
        tracker = self._watch.trackers[self._direction]
        looking = True
        while looking:
            from_, to = self._direction.source, self._direction.target
            source = self._sides.attempt(
                from_, partial(views.source, migration=self._migration, direction=self._direction)
            )
            target = self._sides.attempt(
                to, partial(views.target, migration=self._migration, direction=self._direction)
            )
            view = None if isinstance(source, SlackwaterError) else source
            held = None if isinstance(target, SlackwaterError) else target
            if held is not None and held.apply is not None:
                tracker.remember(held.apply.figures.get("lag"))  # known at the first look, where the applier knows it
            tracker.seen(view, held)
            if view is not None:
                self._offset_s = view.at - time.monotonic()
            if self._speaks:
                self._metrics.slot_retained(view.slot.retained_bytes if view and view.slot else None)
                self._heartbeat.measured["lag"] = tracker.memory()
                stuck = tracker.stuck(self._now())
                self._tell(stuck.cause if stuck else None)
            looking = not self._ended.wait(PROBE_S)

    def _tell(self, stuck: str | None) -> None:
        """One line when something gets stuck, and one when it moves again."""
        if (stuck is None) != (self._stuck is None):
            if stuck is not None:
                log.warning("stuck: %s", stuck)
            else:
                log.info("it moves again")
        self._stuck = stuck

    def _look_wide(self) -> None:
        while True:
            try:
                seen = self._watch.look()
                self._show(seen.document)
                self._keep(seen)
            except SlackwaterError as error:
                log.warning("cannot see the migration as a whole: %s", error.cause)
                self._show(None)
            if self._ended.wait(WIDE_S):
                return

    def _keep(self, seen: Seen) -> None:
        """Since when each gate is as it is; whoever looks reads it from new."""
        judged = [(direction, g.gate, g.state) for direction, gates in seen.gates.items() for g in gates]
        if judged:
            self._sides.ask(Side.NEW, partial(gate_table.keep, migration=self._migration, judged=judged))

    def _show(self, document: Document | None) -> None:
        if document is None:
            document = {"gates": [], "phase": None, "writes": None, "safe_to_cutover": None, "safe_to_rollback": None}
        self._metrics.foreign_writes((document.get("foreign_writes") or {}).get("rows"))
        reverse = (document.get("directions") or {}).get(Direction.REVERSE.value) or {}
        self._metrics.canary_age(reverse.get("canary_age_seconds"))
        verified = (document.get("verification") or {}).get(self._direction.value)
        if verified is None or verified["state"] in ("pending", "running"):
            self._metrics.verification(None, None)
        else:
            self._metrics.verification(verified["age_seconds"], verified["mismatched"])
        turned = document.get("cutover") or {}
        self._metrics.pause(turned.get("turn"), turned.get("pause_seconds"))
        self._metrics.safe_to_cutover(document["safe_to_cutover"])
        self._metrics.safe_to_rollback(document["safe_to_rollback"])
        self._metrics.phase(document["phase"])
        self._metrics.writes(document["writes"])
        self._metrics.gates((gate["gate"], gate["state"]) for gate in document["gates"])
