"""Where a turn stands, from the two turn rows and nothing else. Pure.

Each side's own row is the authority for that side, and a turn only grows: even turns are old's, odd ones new's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from connectors.postgres.control import Turn
from schemas.direction import Side


class How(StrEnum):
    BEFORE = "before"  # the other side is open, this one closed: nothing has happened
    CLOSED = "closed"  # both are closed, and this one is to be opened
    ELSEWHERE = "elsewhere"  # both are closed, and the other one is to be opened
    OPEN = "open"  # this one is open, the other closed
    BOTH = "both"  # both are open: a failover has lost a fence


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`turn` is the turn that opens (or has opened) the side it was asked for."""

    how: How
    turn: int


def standing(rows: Mapping[Side, Turn], to: Side) -> Standing:
    """Where a turn towards `to` stands."""
    here, there = rows[to], rows[to.other]
    if here.open and there.open:
        return Standing(how=How.BOTH, turn=max(here.open_turn, there.open_turn))
    if here.open:
        return Standing(how=How.OPEN, turn=here.open_turn)
    if there.open:
        return Standing(how=How.BEFORE, turn=there.open_turn + 1)
    pending = min(here.fence_turn or 0, there.fence_turn or 0)
    if pending == here.fence_turn:
        return Standing(how=How.CLOSED, turn=pending)
    return Standing(how=How.ELSEWHERE, turn=pending)


def writes(rows: Mapping[Side, Turn]) -> str | None:
    """old, new or none: who takes the application's writes; None when both do, which nobody wants to hear as a name."""
    opened = [side.value for side, row in rows.items() if row.open]
    return {0: "none", 1: opened[0] if opened else None}.get(len(opened))


def verb(to: Side) -> str:
    return "cutover" if to is Side.NEW else "rollback"
