"""`run verify`: passes without end, at a budget, the chunks that were written last first.

Invariant: it makes way for a person's `verify`, and holds back as backfill does; a pass that was interrupted is gone on
with, so that a budget too small for a day still ends a pass in two.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from connectors.postgres.session import Connection, connect
from schemas.errors import Unavailable
from schemas.spec import Backfill, Verify
from stream.backfill.throttle import Health, Throttle, read_health
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics
from stream.verify.judge import Stopped
from stream.verify.preconditions import NotReady, assert_loaded, guard, is_wanted, release
from stream.verify.sweep import Sweep
from stream.verify.task import Tally, Task
from stream.verify.verdicts import Verdict, latest

log = logging.getLogger("slackwater.verify")

SHARE = 0.005  # of the time, where no rate is set: less than the hundredth that a p99 looks at
REST_S = 5.0  # between two passes, at least
HEALTH_S = 5.0


def throttled(options: Verify, max_lag_s: float) -> Backfill:
    """A verification's budget, as the throttle reads it."""
    return Backfill(max_lag_s=max_lag_s, max_rows_per_s=options.max_rows_per_s, window=options.window)


class Continuous:
    """The role. `task` is asked anew before each pass: who leads can change."""

    def __init__(
        self,
        *,
        task: Callable[[], Task],
        options: Verify,
        max_lag_s: float,
        heartbeat: Heartbeat,
        metrics: Metrics,
        lag_s: Callable[[], float | None],
        paused: Callable[[Connection], str | None],
    ) -> None:
        self._task = task
        self._options = options
        self._max_lag_s = max_lag_s
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._lag_s = lag_s
        self._paused = paused
        self._throttle: Throttle | None = None

    def reconfigure(self, options: Verify, max_lag_s: float) -> None:
        """Rate, window and lag from now on; workers and replica need a restart."""
        self._options = options
        self._max_lag_s = max_lag_s
        if self._throttle is not None:
            self._throttle.reconfigure(throttled(options, self._max_lag_s))

    def run(self, stop: threading.Event) -> None:
        task = self._task()
        with contextlib.ExitStack() as stack:
            control = stack.enter_context(contextlib.closing(connect(task.target_dsn, application="slackwater verify")))
            source = stack.enter_context(contextlib.closing(connect(task.source_dsn, application="slackwater verify")))
            self._throttle = Throttle(
                throttled(self._options, self._max_lag_s),
                lag_s=self._lag_s,
                paused=lambda: self._paused(control),
                health=health_of(source),
            )
            while not stop.is_set():
                self._heartbeat.waiting("waits for its turn to verify this direction")
                if not guard(control, task.plan, stop, patience_s=None):
                    return
                try:
                    rest_s = self._pass(control, stop)
                finally:
                    release(control, task.plan)
                stop.wait(rest_s)

    def _pass(self, control: Connection, stop: threading.Event) -> float:
        """One pass; how long to rest after it."""
        try:
            task = self._task()
            assert_loaded(control, task.plan, [m.target for m in task.plan.mappings])
        except NotReady as error:
            self._heartbeat.waiting(error.cause)
            return REST_S
        sweep = Sweep(
            replace(task, workers=1),  # a burst on one core a side: latency is felt at its edges
            throttle=self._throttle,
            hurry=1.0 if self._options.max_rows_per_s else SHARE,
            count=self._metrics.verify_rows,
            progress=self._show,
            yielding=lambda: is_wanted(control, task.plan),
        )
        began = time.monotonic()
        try:
            tallies = sweep.run(stop)
        except Stopped:
            return 1.0
        except NotReady as error:
            self._heartbeat.waiting(error.cause)
            return 1.0
        wrong = [name for name, t in tallies.items() if t.verdict is Verdict.MISMATCHED]
        if wrong:
            log.error("rows differ in %s: `slackwater verify` lists them", ", ".join(wrong))
        problems = [t.problem for t in tallies.values() if t.problem is not None]
        if problems:
            raise problems[0] if not isinstance(problems[0], Unavailable) else Unavailable(problems[0].cause)
        found = latest(control, task.plan.migration, task.plan.direction, fingerprint=task.fingerprint)
        self._metrics.verification(found.age_s, found.mismatched)
        self._heartbeat.waiting(f"a pass has ended ({found.state})")
        return max(REST_S, 0.1 * (time.monotonic() - began))

    def _show(self, sweep: Sweep) -> None:
        assert self._throttle is not None
        if self._throttle.reason is not None:
            self._heartbeat.paused(self._throttle.reason)
        elif self._throttle.bucket.wait_s() > 1.0:
            self._heartbeat.paused(f"max_rows_per_s is {self._throttle.rate}")
        else:
            self._heartbeat.running()
        self._heartbeat.figures["verify"] = figures(sweep.tallies, time.monotonic() - sweep.began_s)


def figures(tallies: Mapping[str, Tally], seconds: float) -> dict[str, Any]:
    """Rows compared and to be compared, per second, and the time that is left; None where it is not known."""
    rows = sum(t.rows for t in tallies.values())
    # Of a table that is not done, at least a row more than were seen.
    total = sum(t.rows if t.concluded else max(t.rows, t.view.rows_estimate) for t in tallies.values())
    rate = rows / seconds if seconds > 1 and rows else None
    return {
        "rows": rows,
        "rows_estimate": total,
        "tables": len(tallies),
        "tables_done": sum(t.concluded for t in tallies.values()),
        "mismatched": sum(t.total for t in tallies.values()),
        "rows_per_second": None if rate is None else round(rate, 1),
        "seconds_left": None if rate is None else round((total - rows) / rate, 1),
    }


def health_of(source: Connection) -> Callable[[], Health]:
    """The source's health, looked at every few seconds."""
    kept, looked = Health(), 0.0

    def look() -> Health:
        nonlocal kept, looked
        if time.monotonic() - looked > HEALTH_S:
            kept, looked = read_health(source), time.monotonic()
        return kept

    return look
