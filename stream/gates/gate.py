"""A gate, judged: one condition that must hold before writes may move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition. `detail` says what was found; `remedy` what to do when it does not pass.

    One that does not block is a warning: the turn may go on over it. One that the file switches off (`off`) is shown
    apart from the others, with the state that it would have. `wrong`: rows are known to be wrong, so that no turn is
    called safe over it, be it a warning.
    """

    gate: str
    state: State
    detail: str
    remedy: str | None = None
    blocks: bool = True
    off: bool = False
    wrong: bool = False

    @property
    def stops(self) -> bool:
        return self.blocks and not self.off and self.state is not State.PASSED


def all_passed(gates: Iterable[Gate]) -> bool:
    """Whether nothing stands in the way; unknown does. False without any gate: then nothing was judged."""
    gates = list(gates)
    return bool(gates) and not any(g.stops for g in gates)


def passed(gate: str, detail: str) -> Gate:
    return Gate(gate=gate, state=State.PASSED, detail=detail)


def failed(gate: str, detail: str, remedy: str | None = None) -> Gate:
    return Gate(gate=gate, state=State.FAILED, detail=detail, remedy=remedy)


def unknown(gate: str, detail: str, remedy: str | None = None) -> Gate:
    return Gate(gate=gate, state=State.UNKNOWN, detail=detail, remedy=remedy)


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
