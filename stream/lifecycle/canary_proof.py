"""That the reverse direction works: its roles are alive, its mirrors are filled, and a canary went the whole way.

Invariant: alive means that a row written now, unmarked, was committed on old by the reverse applier; neither a
heartbeat nor a lag of zero says that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from connectors.postgres import canary
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction
from schemas.errors import Aborted
from schemas.spec import Spec
from stream.monitoring.heartbeat import Beat, beats
from stream.monitoring.lag import describe

REVERSE = Direction.REVERSE
POLL_S = 0.2
TELL_S = 10.0


class Proof:
    """Waits for it. `steps` are (what, seconds), as they were taken."""

    def __init__(
        self,
        spec: Spec,
        old: Connection,
        new: Connection,
        *,
        say: Callable[[str], None],
        stop: threading.Event | None = None,
    ) -> None:
        self._spec = spec
        self._old = old
        self._new = new
        self._say = say
        self._stop = stop or threading.Event()
        self._told: str | None = None
        self._told_at = 0.0
        self.steps: list[tuple[str, float]] = []

    def wait(self, timeout_s: float | None) -> None:
        """Errors: Aborted after `timeout_s`, or when told to stop: what is missing is named, and what stands stays."""
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        self._step("mirrors", self._unfilled, give_up)
        with translated("writing the canary"):
            at = canary.sing(self._new, self._spec.migration)

        def missing() -> str | None:
            found = canary.seen(self._old, self._spec.migration, REVERSE.value)
            return None if found is not None and found.written_at >= at else "the canary has not come through"

        self._step("canary", missing, give_up)

    def _step(self, name: str, missing: Callable[[], str | None], give_up: float | None) -> None:
        began = time.monotonic()
        while (what := missing()) is not None:
            idle = self._idle(*(["backfill"] if name == "mirrors" else []))
            self._tell(idle or what)
            if self._stop.wait(POLL_S) or (give_up is not None and time.monotonic() > give_up):
                stopped = "stopped: " if self._stop.is_set() else ""
                raise Aborted(
                    f"{stopped}the way back is built but not proven: {idle or what}",
                    hint="see that `slackwater run` is running (slackwater status says what holds it up), then arm"
                    " again: it goes on from here; old is open as before",
                )
        self.steps.append((name, time.monotonic() - began))

    def _unfilled(self) -> str | None:
        """Mirrors of new on old, and what is computed from them, that are not ready."""
        with translated("reading the reverse loads"):
            rows = self._old.execute(
                "select name, state from slackwater.load where migration = %s and direction = %s and state <> 'done'"
                " order by name",
                (self._spec.migration, REVERSE.value),
            ).fetchall()
        waiting = [f"{name} is {state}" for name, state in rows]
        return None if not waiting else "; ".join(waiting)

    def _idle(self, *more: str) -> str | None:
        """A reverse role that does not do its work, in one clause. `more`: roles beside the stream's two."""
        for role in ("capture", "apply", *more):
            conn = self._new if role == "capture" else self._old
            beat = beats(conn, self._spec.migration).get((REVERSE.value, role))
            if beat is None or not _works(beat):
                gone = beat is None or not beat.alive
                return f"reverse {describe(role, beat)}" + (": start `slackwater run`" if gone else "")
        return None

    def _tell(self, what: str) -> None:
        now = time.monotonic()
        if what != self._told or now - self._told_at > TELL_S:
            self._told, self._told_at = what, now
            self._say(f"waiting: {what}")


def _works(beat: Beat) -> bool:
    return beat.alive and beat.state in ("running", "waiting")
