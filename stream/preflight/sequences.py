"""What a turn will do with the sequences: no stream carries them, and each one that matters has to be set from another.

Names in the file that stand for nothing are problems; a sequence that cannot go on, or of which nothing says from
where, stops no preparation: the gate `sequences` holds the cutover up until it is put right.
"""

from __future__ import annotations

from connectors.postgres import sequence_survey
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side
from schemas.resolve import Resolution
from schemas.sequence_check import Examined, examined
from schemas.sequence_links import Link, named
from schemas.spec import Spec
from stream.preflight.finding import Findings, listed

Examinations = dict[Direction, Examined]


def look(spec: Spec, old: Connection, new: Connection, forward: Resolution, reverse: Resolution | None) -> Examinations:
    """Both directions, as far as their mappings are in order; nothing where the forward ones are not."""
    if forward.problems:
        return {}
    sides = {
        Side.OLD: sequence_survey.survey(old, spec.old.schema_, named(spec, Side.OLD)),
        Side.NEW: sequence_survey.survey(new, spec.new.schema_, named(spec, Side.NEW)),
    }
    ways = {Direction.FORWARD: forward, Direction.REVERSE: reverse}
    return {
        direction: examined(spec, direction, way.mappings, forward.mappings, sides)
        for direction, way in ways.items()
        if way is not None and not way.problems
    }


def examine(found: Findings, examinations: Examinations) -> None:
    """Each thing that is wrong once, though it may be so in both directions."""
    told: set[str] = set()
    for direction, one in examinations.items():
        for problem in one.links.problems:
            if problem.cause not in told:
                found.problem("sequences", problem.cause, problem.remedy, problem.where)
        for undecided in one.links.undecided:
            if undecided.cause not in told:
                found.warning("sequences", undecided.cause, undecided.remedy)
        for judged in one.judged:
            if judged.wrong:
                found.warning("sequences", judged.cause, judged.remedy, direction.target)
            elif judged.unknown:
                found.warning("sequences", judged.unknown, "`slackwater grants` prints what is missing")
        told |= {p.cause for p in one.links.problems} | {u.cause for u in one.links.undecided}
    forward = examinations.get(Direction.FORWARD)
    if forward is None:
        return
    if set_ := [line(link) for link in forward.links.links]:
        found.note("sequences", f"sequences are not streamed; cutover sets new's past old's: {listed(set_)}")
    if forward.excluded:
        found.note("sequences", f"sequences that no turn sets: {listed(forward.excluded)}")


def line(link: Link) -> str:
    """`app.order_no from public.order_seq`; where nothing of the other side is a sequence, the column."""
    from_ = ", ".join(s.label for s in link.others) or "the rows of " + ", ".join(
        f"{table}.{column}" for _, table, column in link.there or link.here
    )
    return f"{link.own.label} from {from_}"


def lines(examinations: Examinations) -> list[str]:
    """As `plan` prints them."""
    forward = examinations.get(Direction.FORWARD)
    if forward is None:
        return ["  not known while the mappings have problems"]
    made = [f"  {line(link)}  ({_how(link)})" for link in forward.links.links]
    made += [f"  excluded: {name}" for name in forward.excluded]
    causes = dict(pair for one in examinations.values() for pair in one.wrong)
    for cause, remedy in causes.items():
        made += [f"  not in order: {cause}", f"    remedy: {remedy}"]
    return made or ["  none"]


def _how(link: Link) -> str:
    by = {"name": "of the same name", "file": "by the file"}.get(link.how)
    return ", ".join([*([by] if by else []), *([f"for {', '.join(link.feeds)}"] if link.feeds else [])])


def document(examinations: Examinations) -> dict[str, object]:
    """As `plan --json` prints them."""
    forward = examinations.get(Direction.FORWARD)
    links = () if forward is None else forward.links.links
    causes = dict(pair for one in examinations.values() for pair in one.wrong)
    return {
        "set": [
            {
                "to": link.own.label,
                "from": [s.label for s in link.others],
                "feeds": list(link.feeds),
                "by": link.how,
            }
            for link in links
        ],
        "excluded": [] if forward is None else list(forward.excluded),
        "problems": [{"cause": cause, "remedy": remedy} for cause, remedy in causes.items()],
    }
