"""Named places in the code at which a test can make the process die, stop, stall or fail.

    SLACKWATER_FAILPOINTS="apply.before_commit=kill@3;capture.after_flush=sleep:5;backfill.after_chunk=raise"

Each entry is `name=action`, with `@n` for the nth time that the place is reached and that time only (without it: every
time). Actions: `kill` (SIGKILL to ourselves: no handler runs, nothing is flushed), `stop` (SIGSTOP, until somebody
sends SIGCONT), `sleep:SECONDS`, `raise` (FailpointReached). Hits are counted per process.

Where the variable is unset, which is always outside tests, `failpoint` returns at once. A variable that cannot be read
is an error at import: a fault test that silently injects no fault would pass.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from schemas.errors import ConfigError, SlackwaterError

VARIABLE = "SLACKWATER_FAILPOINTS"
ACTIONS = ("kill", "stop", "sleep", "raise")


class FailpointReached(SlackwaterError):
    """A test asked for a failure here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens at one failpoint."""

    name: str
    action: str  # one of ACTIONS
    seconds: float  # of sleep
    hit: int | None  # which time the place is reached, from 1; None: every time

    def strike(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "stop":
            # To this thread: one that is sent to the process may be taken by another, while this one walks on.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        elif self.action == "sleep":
            time.sleep(self.seconds)
        else:
            raise FailpointReached(f"failpoint {self.name}")


def parse(text: str) -> dict[str, Fault]:
    """Read the variable's text. Errors: ConfigError naming the entry that cannot be read."""
    faults: dict[str, Fault] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, rest = entry.partition("=")
        action, at, hit = rest.partition("@")
        action, _, seconds = action.partition(":")
        try:
            if not name or action not in ACTIONS or (action == "sleep") != bool(seconds):
                raise ValueError(entry)
            fault = Fault(name=name, action=action, seconds=float(seconds or 0), hit=int(hit) if at else None)
            if fault.hit is not None and fault.hit < 1:
                raise ValueError(entry)
        except ValueError as error:
            raise ConfigError(
                f"{VARIABLE}: cannot read '{entry}'",
                hint="name=kill, name=stop, name=sleep:SECONDS or name=raise, each with @N for the Nth time only",
            ) from error
        faults[name] = fault
    return faults


def armed(faults: dict[str, Fault]) -> Callable[[str], None]:
    """The function that `failpoint` is where faults are asked for."""
    hits: Counter[str] = Counter()
    counting = threading.Lock()

    def reach(name: str) -> None:
        fault = faults.get(name)
        if fault is None:
            return
        with counting:
            hits[name] += 1
            strikes = fault.hit in (None, hits[name])
        if strikes:
            fault.strike()

    return reach


def _disarmed(name: str) -> None:
    """Nothing happens here."""


_reach: Callable[[str], None] = _disarmed


def read_environment() -> None:
    """Arms what the variable asks for now, and nothing else. Errors: ConfigError."""
    global _reach
    text = os.environ.get(VARIABLE)
    _reach = armed(parse(text)) if text else _disarmed


def failpoint(name: str) -> None:
    """The process reaches the place `name`."""
    _reach(name)


read_environment()
