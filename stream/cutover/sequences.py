"""The sequences of the side that opens: looked up and judged before anybody waits, judged again and set under the hold.

Invariant: on the way there no turn ends while a sequence of new cannot go on from old's: it is refused before the hold,
or aborted under it, and never told afterwards. On the way back what was said before the hold does not stop it; what
comes up under it does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from connectors.failpoint import failpoint
from connectors.postgres import sequences
from connectors.postgres.sequences import Pairs
from schemas.direction import Direction, Side
from schemas.errors import Aborted, Refused
from schemas.sequence_check import Judged
from stream.cutover.attempt import Turning
from stream.migration.prepared import plan_for

CATCH_UP_S = 60.0  # what is looked up after a failover's drain may take so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is set from what. `told` are the sequences of old that were said to be wrong before a turn back."""

    pairs: Pairs
    told: frozenset[str] = frozenset()


def look(t: Turning) -> Ready:
    """Before anybody waits. Errors: Refused where, on the way there, a sequence cannot go on."""
    found = _pairs(t)
    now = sequences.standing(t.conns[t.source], t.conns[t.to], found)
    undecided = [(u.cause, u.remedy) for u in found.links.undecided]
    undecided += [(f"{p.where}: {p.cause}", p.remedy) for p in found.links.problems]
    wrong = [(one.unknown or one.cause, one.remedy) for one in now if one.wrong or one.unknown]
    if (undecided or wrong) and t.to is Side.NEW:
        raise Refused(
            f"the sequences of {t.to} cannot go on from those of {t.source}",
            reasons=tuple(cause for cause, _ in (*undecided, *wrong)),
            hint=(*undecided, *wrong)[0][1],
        )
    for cause, remedy in undecided:
        t.note(f"not set: {cause}: {remedy}")
    for one in now:
        if one.wrong or one.unknown:
            t.note(_line(one))
    return Ready(pairs=found, told=frozenset(one.link.own.label for one in now if one.wrong or one.unknown))


def advance(t: Turning, ready: Ready) -> None:
    """Before `to` opens: set its sequences past the other side's, and past every value that is there.

    Errors: Aborted where one cannot go on that was not said to before.
    """

    def accept(now: list[Judged]) -> None:
        wrong = [one for one in now if (one.wrong or one.unknown) and one.link.own.label not in ready.told]
        if wrong:
            raise Aborted(
                f"the sequences of {t.to} cannot go on from those of {t.source}",
                reasons=tuple(one.unknown or one.cause for one in wrong),
                hint=f"{wrong[0].remedy}; then {t.again}",
            )

    with t.steps.step("sequences"):
        moved = sequences.advance(
            t.conns[t.source],
            t.conns[t.to],
            ready.pairs,
            migration=t.migration,
            side=t.to,
            turn=t.turn,
            accept=accept,
        )
        _tell(t, [one for one in moved if one.link.own.label not in ready.told])
    failpoint("turn.after_sequences")


def catch_up(t: Turning) -> None:
    """What `look` and `advance` do, for a side that a failover opens: after the drain, when there is no way back.

    A source that does not answer cannot say what it has given: what of it has come to this side speaks for it. Two
    margins are kept: the one that it began with, and one for what it gave and did not send (which may be accepted yet).
    """
    source, target = t.conns.get(t.source), t.conns[t.to]
    with t.answered(CATCH_UP_S), t.steps.step("sequences"):
        found = _pairs(t)
        moved = sequences.advance(
            target if source is None else source,
            target,
            found,
            migration=t.migration,
            side=t.to,
            turn=t.turn,
            margins=2 if source is None else 1,
        )
        _tell(t, moved)
    failpoint("turn.after_sequences")
    for one in found.links.undecided:
        t.note(f"not set: {one.cause}")
    for link in found.untold if source is None else ():
        if link.feeds:
            t.note(f"sequence {link.own.label}: no row of {', '.join(link.feeds)} tells what {t.source} has given")
        else:
            t.note(f"sequence {link.own.label} feeds no column: no row tells what {t.source} has given")


def _pairs(t: Turning) -> Pairs:
    assert t.prepared is not None
    plan = plan_for(t.spec, t.prepared, t.direction)
    forward = plan if t.direction is Direction.FORWARD else plan_for(t.spec, t.prepared, Direction.FORWARD)
    return sequences.pairs(t.conns.get(t.source), t.conns[t.to], t.spec, plan, forward.mappings)


def _tell(t: Turning, moved: Iterable[Judged]) -> None:
    for one in moved:
        if line := _line(one):
            t.note(line)


def _line(one: Judged) -> str:
    if one.unknown:
        return f"not set: {one.unknown}"
    if not one.wrong:
        return f"sequence {one.cause}" if one.cause else ""
    return f"{one.cause}: {one.afterwards}" if one.afterwards else one.cause
