"""Both sides' catalogs, read before the hold and once more under it: changes that no event tells.

Invariant (hazard J5): no turn goes over rows that are in no stream, over values that moved and were not read again, or
over a table that is not, by its oid, the one that was prepared. Under the hold nothing changes any more: what differs
there from what was accepted is the last that can.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from connectors.failpoint import failpoint
from schemas.direction import Side
from schemas.errors import Aborted, Refused
from schemas.fingerprint import Change, Kind
from stream.cutover.attempt import PACE_S, Turning
from stream.migration.prepared import plan_for
from stream.migration.silent_changes import Onlooker, watched

GATE = "silent_changes"
ACCEPTED_S = 2.5  # how long the role that reads the stream is given to accept a TRUNCATE that has just come
ACCEPTED_PART = 0.5  # of what is left of the pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogs:
    """What was read before the hold."""

    onlookers: Mapping[Side, Onlooker]


def look(t: Turning) -> Catalogs:
    """Before the hold. Errors: Refused, with each cause, unless the gate is waived."""
    assert t.prepared is not None
    plan = plan_for(t.spec, t.prepared, t.direction)
    onlookers = {side: Onlooker(watched(plan, side)) for side in Side}
    reasons = [f"{side}: {change.cause}" for side, x in onlookers.items() for change in x.look(t.conns[side])]
    if reasons and GATE not in t.order.waive:
        raise Refused(
            "tables have changed without an event, and were not compared since",
            reasons=tuple(reasons),
            hint=f"{t.command} gates",
        )
    return Catalogs(onlookers=onlookers)


def held(t: Turning, found: Catalogs) -> None:
    """Under the hold, at once: what stands still now is what was looked at. Errors: Aborted, with each cause."""
    with t.steps.step("catalogs"):
        _refuse(t, _differing(t, found))


def still(t: Turning, found: Catalogs) -> None:
    """Under the hold, when the target has everything: types, too, are what they were. Errors: Aborted, with each cause.

    A table that lies in another file was truncated, and the role that has seen that in the stream accepts it within a
    second; or it was rewritten, and has to be compared first.
    """
    with t.steps.step("catalogs"):
        failpoint("turn.before_catalogs")
        until = time.monotonic() + min(ACCEPTED_S, ACCEPTED_PART * max(0.0, t.left_s()))
        while _refuse(t, differing := _differing(t, found)) and t.to is Side.NEW and time.monotonic() < until:
            time.sleep(PACE_S * 10)
        if GATE not in t.order.waive:
            _abort(t, [f"{side}: {c.cause}" for side, c in differing if t.to is Side.NEW])


def _differing(t: Turning, found: Catalogs) -> list[tuple[Side, Change]]:
    """A role may have seen a change already, and accepted it: then it is in the side's list of what waits."""
    return [
        (side, c)
        for side, x in found.onlookers.items()
        for c in dict.fromkeys([*x.differing(t.conns[side]), *x.look(t.conns[side])])
    ]


def _refuse(t: Turning, differing: list[tuple[Side, Change]]) -> bool:
    """Whether there is anything left that may turn out to be nothing. Errors: Aborted for what cannot."""
    reasons = [f"{side}: {c.cause}" for side, c in differing if c.kind is not Kind.FILE]
    if GATE not in t.order.waive:
        _abort(t, reasons)
    for line in reasons:
        t.note(f"gone over: {line}")
    return any(c.kind is Kind.FILE for _, c in differing)


def _abort(t: Turning, reasons: list[str]) -> None:
    if reasons:
        raise Aborted(
            "tables have changed without an event since they were last looked at",
            reasons=tuple(reasons),
            hint=f"{t.command} gates says when that was seen to; then {t.again}",
        )
