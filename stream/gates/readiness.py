"""Gates on the turn itself: the way back is built, alive and proven, and nobody has written to a closed side."""

from __future__ import annotations

from schemas.direction import Direction
from schemas.spec import Spec, Window
from stream.gates import pipeline
from stream.gates.facts import Facts, Stream
from stream.gates.gate import Gate, State, failed, passed, unknown
from stream.migration.phases import Phase


def armed(facts: Facts, c: str) -> Gate:
    """The phase says that it was proven once; the roles, that it runs now."""
    if facts.phase is None:
        return unknown("armed", "new does not answer", f"{c} status")
    if facts.phase not in (Phase.ARMED, Phase.SWITCHING, Phase.SWITCHED):
        return failed("armed", "the reverse direction is not armed", f"{c} arm")
    alive = pipeline.roles(facts, Direction.REVERSE, c)
    if alive.state is not State.PASSED:
        return Gate(gate="armed", state=alive.state, detail=f"reverse: {alive.detail}", remedy=alive.remedy)
    return passed("armed", "the reverse direction runs")


def canary_age(reverse: Stream, spec: Spec, c: str) -> Gate:
    """How long ago a row went the whole way from new to old, by new's clock."""
    limit = spec.cutover.gates.canary_age.max_s
    if reverse.source is None or reverse.target is None:
        return unknown("canary_age", "the reverse direction is not armed, or a side does not answer", f"{c} arm")
    age_s = reverse.canary_age_s
    if age_s is None:
        return unknown("canary_age", "no canary has come through", f"{c} status")
    if age_s > limit:
        return failed("canary_age", f"the newest canary is {age_s:.0f} s old, more than {limit:g} s", f"{c} status")
    return passed("canary_age", f"a row went from new to old {age_s:.0f} s ago")


def window(facts: Facts, hours: Window) -> Gate:
    """Absent where the file has none. A rollback asks for no hour."""
    if hours.contains(facts.at):
        return passed("window", f"within cutover.window, {hours}")
    return failed("window", f"outside cutover.window, {hours}", "wait for it, or change cutover.window in the file")


def foreign_writes(facts: Facts, c: str) -> Gate:
    if facts.foreign_writes is None:
        return unknown("foreign_writes", "a side does not answer", f"{c} status")
    if facts.foreign_writes:
        rows = f"{facts.foreign_writes} rows were written to a closed side"
        return failed("foreign_writes", rows, f"{c} foreign-writes list")
    return passed("foreign_writes", "nobody wrote to a closed side")
