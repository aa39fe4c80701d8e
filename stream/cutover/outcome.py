"""What a turn came to, as `--json` prints it on every exit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import Aborted, Ambiguous, Refused, SlackwaterError
from schemas.remedy import on_file

EXITS = {"done": 0, "already": 0, "failed": 1, "refused": 3, "aborted": 4, "ambiguous": 5}


@dataclass(slots=True)
class Steps:
    """The steps taken, with the seconds that each took."""

    taken: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.taken.append((name, time.monotonic() - began))

    def seconds(self) -> list[dict[str, Any]]:
        return [{"step": name, "seconds": round(seconds, 4)} for name, seconds in self.taken]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The document. `notes` are what went wrong after the point of no return, and does not undo it."""

    verb: str
    result: str
    writes: str | None = None
    turn: int | None = None
    pause_seconds: float | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    error: dict[str, str] | None = None
    next: str | None = None
    notes: list[str] = field(default_factory=list)
    dry_run: bool = False
    expected_pause_seconds: float | None = None
    uncompared: dict[str, int] | None = None  # parts of tables that nobody has compared; None: that was not reached

    @property
    def exit_code(self) -> int:
        return EXITS[self.result]

    def document(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "result": self.result,
            "writes": self.writes,
            "turn": self.turn,
            "pause_seconds": None if self.pause_seconds is None else round(self.pause_seconds, 3),
            "steps": self.steps,
            "reasons": self.reasons,
            "error": self.error,
            "next": self.next,
            "notes": self.notes,
            "uncompared": self.uncompared,
        }
        if self.dry_run:
            expected = self.expected_pause_seconds
            shown |= {"dry_run": True, "expected_pause_seconds": None if expected is None else round(expected, 3)}
        return shown


def follows(result: str, remedy: str, *, command: str, again: str) -> str:
    """What to run after a turn that was not done: where it was refused, what its remedy says, if that can be run."""
    if result != "refused":
        return again
    return runnable(remedy, command) or f"{command} status"


def runnable(remedy: str, command: str = "slackwater") -> str | None:
    """A remedy that is a command line and nothing else, on the file of `command`."""
    line = on_file(remedy, command)
    return line if re.fullmatch(r"( [^\s,;]+(,[^\s,;]+)*)+", line.removeprefix(command)) else None


def result_of(error: SlackwaterError) -> str:
    match error:
        case Refused():
            return "refused"
        case Aborted():
            return "aborted"
        case Ambiguous():
            return "ambiguous"
    return "failed"
