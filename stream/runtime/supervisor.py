"""`slackwater run` without a role: every role as a child process, started again when it dies, stopped together.

Invariant: a role that says another process owns it now is not started again: two owners would take it from each other.
"""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from schemas.direction import Direction

log = logging.getLogger("slackwater.run")

POLL_S = 0.2
LOOK_S = 1.0  # how often it is asked which roles are needed: whoever arms waits for the new ones
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 20.0
SETTLED_S = 15.0
PATIENCE_S = 10.0

DONE, FAILED, USAGE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class RoleName:
    """A role of a direction."""

    role: str
    direction: Direction

    def __str__(self) -> str:
        return self.role if self.direction is Direction.FORWARD else f"{self.direction} {self.role}"


@dataclass(slots=True)
class Child:
    """One role's process, over its lives."""

    name: RoleName
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    again_at: float = field(default=0.0)  # monotonic; when it may be started (again)
    given_up: bool = False


class Supervisor:
    """`command` is how a role is started; `wanted` are the roles needed now, asked again every few seconds."""

    def __init__(
        self, *, command: Callable[[RoleName], Sequence[str]], wanted: Callable[[], Sequence[RoleName]]
    ) -> None:
        self._command = command
        self._wanted = wanted
        self._children: dict[RoleName, Child] = {}
        self._looked = 0.0

    def run(self, stop: threading.Event) -> int:
        """Until `stop`: 0. 2 when a role finds the file unusable, 1 when no role is left to run."""
        outcome = DONE
        while not stop.is_set():
            self._look()
            for child in self._children.values():
                status = self._attend(child)
                if status is not None:
                    outcome = max(outcome, status)
            if outcome == USAGE or (self._children and all(c.given_up for c in self._children.values())):
                break
            stop.wait(POLL_S)
        self._stop()
        return outcome

    def hang_up(self) -> None:
        """Hands SIGHUP on to every role."""
        for child in list(self._children.values()):
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGHUP)

    def _look(self) -> None:
        if self._children and time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        for name in self._wanted():
            self._children.setdefault(name, Child(name))

    def _attend(self, child: Child) -> int | None:
        """Starts a role that should run, and sees to one that has ended; an exit status when it is given up."""
        if child.given_up:
            return None
        if child.process is None:
            if time.monotonic() >= child.again_at:
                # A group of its own: Ctrl-C on the terminal reaches this process alone, which stops the roles in turn.
                child.process = subprocess.Popen(self._command(child.name), stdin=subprocess.DEVNULL, process_group=0)
                child.started = time.monotonic()
            return None
        status = child.process.poll()
        if status is None:
            return None
        child.process = None
        if status in (FAILED, USAGE):
            log.error("%s ended with exit status %d and is not started again", child.name, status)
            child.given_up = True
            return status
        if time.monotonic() - child.started > SETTLED_S:
            child.deaths = 0
        pause_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0**child.deaths) * random.uniform(0.8, 1.2)
        child.deaths = min(child.deaths + 1, 10)
        child.again_at = time.monotonic() + pause_s
        log.warning("%s %s; started again in %.1f s", child.name, _ending(status), pause_s)
        return None

    def _stop(self) -> None:
        """All at once, each at its next safe point. A role that hangs is named, never killed: a person decides."""
        running = [c for c in self._children.values() if c.process is not None and c.process.poll() is None]
        for child in running:
            if child.process is not None:
                child.process.terminate()
        since, told = time.monotonic(), False
        while running := [c for c in running if c.process is not None and c.process.poll() is None]:
            if not told and time.monotonic() - since > PATIENCE_S:
                told = True
                names = ", ".join(f"{c.name} (pid {c.process.pid})" for c in running if c.process is not None)
                log.warning("waiting for %s to reach a safe point; once more ends this at once", names)
            time.sleep(0.05)


def _ending(status: int) -> str:
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return "ended" if status == 0 else f"ended with exit status {status}"
