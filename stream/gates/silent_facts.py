"""What has changed tables without an event and is not done with, as both sides say: for the gate `silent_changes`.

Invariant: nothing is remembered but that the catalogs looked exactly so when nothing differed from what was accepted; a
side that does not answer leaves all of it unknown.
"""

from __future__ import annotations

from dataclasses import replace

from schemas.direction import Direction, Side
from schemas.errors import Refused, SlackwaterError
from schemas.fingerprint import Change
from schemas.spec import Spec
from stream.gates.facts import Facts
from stream.migration.prepared import Prepared, plan_for
from stream.migration.silent_changes import Onlooker, watched
from stream.monitoring.sessions import Sides


class SilentLooks:
    """Looks each time at all that either direction has on each side. For one watch."""

    def __init__(self, spec: Spec, sides: Sides) -> None:
        self._spec = spec
        self._sides = sides
        self._onlookers: tuple[Prepared, dict[Side, Onlooker]] | None = None

    def add(self, facts: Facts, document: Prepared) -> Facts:
        """`facts`, with what stands between the tables and a turn."""
        if self._onlookers is None or self._onlookers[0] != document:
            try:
                self._onlookers = (document, self._made(document))
            except Refused:  # the file is not the one that was prepared: the gate `prepared` says so
                return facts
        found: list[Change] = []
        said: list[str] = []
        for side, onlooker in self._onlookers[1].items():
            answer = self._sides.attempt(side, onlooker.look)
            if isinstance(answer, SlackwaterError):
                return replace(facts, blind=facts.blind or answer.cause)
            found += answer
            said += [f"{side}: {change.cause}" for change in answer]
        mends = any(change.kind.stays for change in found)
        return replace(facts, silent=tuple(dict.fromkeys(said)), prepare_mends=mends)

    def _made(self, document: Prepared) -> dict[Side, Onlooker]:
        ways = [d for d in Direction if d is Direction.FORWARD or document.reverse is not None]
        plans = [plan_for(self._spec, document, way) for way in ways]
        return {side: Onlooker(*(watched(plan, side) for plan in plans)) for side in Side}
