"""The sequences of both sides, for the gate that asks whether those of the side that opens can go on.

Invariant: what is remembered from an earlier look is at most KEPT_S old, or PART times what the look took (thousands of
tables) and MOST_S at most; what could not be read is unknown.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from connectors.postgres import sequence_survey
from schemas.direction import Direction, Side
from schemas.errors import Refused, SlackwaterError
from schemas.plan import Plan
from schemas.sequence_check import Surveyed, examined
from schemas.sequence_links import named
from schemas.spec import Spec
from stream.gates.facts import Facts
from stream.migration.prepared import Prepared, plan_for
from stream.monitoring.sessions import Sides

KEPT_S = 30.0
PART = 100
MOST_S = 300.0


class SequenceLooks:
    """Looks at both sides, at most every KEPT_S. For one watch, and one file."""

    def __init__(self, spec: Spec, sides: Sides) -> None:
        self._spec = spec
        self._sides = sides
        self._plans: tuple[Prepared, dict[Direction, Plan]] | None = None
        self._kept: tuple[float, tuple[str, bool], Facts] | None = None

    def add(self, facts: Facts, document: Prepared) -> Facts:
        """`facts`, with what the sequences are found to be."""
        prepared = (document.fingerprint, document.reverse is not None)
        if self._kept is not None:
            until, of, kept = self._kept
            if time.monotonic() < until and of == prepared:
                return replace(facts, sequences=kept.sequences)
        plans = self._planned(document)
        if not plans:
            return facts
        began = time.monotonic()
        found: dict[Side, Surveyed] = {}
        for side, schema in ((Side.OLD, document.old_schema), (Side.NEW, document.new_schema)):
            also = named(self._spec, side)
            answer = self._sides.attempt(side, partial(sequence_survey.survey, schema=schema, also=also))
            if isinstance(answer, SlackwaterError):
                return replace(facts, sequences_blind=f"{side}: {answer.cause}")
            found[side] = answer
        forward = plans[Direction.FORWARD].mappings
        told = {d: examined(self._spec, d, plan.mappings, forward, found) for d, plan in plans.items()}
        facts = replace(facts, sequences=told)
        now = time.monotonic()
        self._kept = (now + min(MOST_S, max(KEPT_S, PART * (now - began))), prepared, facts)
        return facts

    def _planned(self, document: Prepared) -> dict[Direction, Plan]:
        """The plans of what was prepared; none where the file is another one: the gate `prepared` says so."""
        if self._plans is None or self._plans[0] != document:
            directions = [d for d in Direction if d is Direction.FORWARD or document.reverse is not None]
            try:
                self._plans = (document, {d: plan_for(self._spec, document, d) for d in directions})
            except Refused:
                self._plans = (document, {})
        return self._plans[1]
