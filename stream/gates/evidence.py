"""Gates on what was proven: that every row is there and right, and that the way back loses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from schemas.direction import Direction
from schemas.spec import Spec
from stream.gates.facts import Facts, Stream
from stream.gates.gate import Gate, failed, listed, passed, unknown
from stream.monitoring.clock import rfc3339
from stream.verify.verdicts import TableVerdict, Verdict


def verification(stream: Stream, spec: Spec, direction: Direction, c: str) -> Gate:
    """By the oldest verdict on any table, given under the file as it is prepared, if nothing has voided it since."""
    verify = f"{c} verify" + ("" if direction is Direction.FORWARD else f" --direction {direction}")
    found = stream.verification
    if found is None:
        return unknown("verification", f"{direction.target} does not answer", f"{c} status")
    wrong = {name: t for name, t in found.tables.items() if t.state is Verdict.MISMATCHED}
    if wrong:
        return _wrong(wrong, direction, verify, c)
    mended = [name for name, t in found.tables.items() if t.state is Verdict.REPAIRED]
    if mended:
        return failed("verification", f"repaired, and not compared since: {listed(mended)}", verify)
    problems = {n: p for n, p in found.problems.items() if found.tables[n].state is not Verdict.CLEAN}
    if problems:
        name, problem = next(iter(problems.items()))
        return failed("verification", f"{name} could not be compared: {problem['cause']}", str(problem["remedy"]))
    open_ = {n: t for n, t in found.tables.items() if t.state in (Verdict.PENDING, Verdict.RUNNING)}
    running = ", a pass is under way" if found.state is Verdict.RUNNING else ""
    if voids := _by_void(open_):
        said = "; ".join(f"not verified since {void}: {listed(names)}" for void, names in voids.items())
        return failed("verification", f"{said}{running}", verify)
    never = list(open_)
    if never:
        return unknown("verification", f"not compared under this file: {listed(never)}{running}", verify)
    if found.age_s is None or found.at is None:
        return unknown("verification", "no table is mapped", verify)
    limit, when = spec.verify.max_age_s, f"the oldest pass began at {rfc3339(found.at)}"
    if found.age_s > limit:
        return failed("verification", f"{when}, longer ago than {limit:g} s", verify)
    rows_ = sum(t.rows or 0 for t in found.tables.values())
    return passed("verification", f"{len(found.tables)} tables clean, {rows_:,} rows, {when}")


def _wrong(wrong: Mapping[str, TableVerdict], direction: Direction, verify: str, c: str) -> Gate:
    """Rows that differ; rows that only the target has are looked at before anybody deletes them."""
    said = [f"{t.mismatched:,} rows of {name}{_only(t, direction)}" for name, t in wrong.items() if t.mismatched]
    said += [
        f"{u.rows:,} rows of {direction.source}.{name} have no counterpart on {direction.target}"
        for t in wrong.values()
        for name, u in t.unrepresented.items()
        if u.fault
    ]
    if any(t.missing or t.differing for t in wrong.values()):
        remedy = f"{verify} --repair"
    else:
        remedy = verify if any(t.mismatched for t in wrong.values()) else f"{c} plan"
    return replace(failed("verification", f"not as they should be: {listed(said)}", remedy), wrong=True)


def _only(table: TableVerdict, direction: Direction) -> str:
    return f" ({table.extra:,} of them on {direction.target} alone)" if table.extra else ""


def _by_void(tables: Mapping[str, TableVerdict]) -> dict[str, list[str]]:
    """Tables by what has voided their verdicts, in words."""
    found: dict[str, list[str]] = {}
    for name, table in tables.items():
        if table.void is not None:
            found.setdefault(str(table.void), []).append(name)
    return found


def roundtrip(facts: Facts, spec: Spec, c: str) -> Gate:
    """By the newest verdict on old -> new -> old; what is accepted is what the file accepts now."""
    look = f"{c} roundtrip"
    if facts.foreign_keys is None:  # read in the same look at new
        return unknown("roundtrip", facts.blind or "new does not answer", f"{c} status")
    kept = facts.roundtrip
    if kept is None:
        return unknown("roundtrip", "never tried", look)
    when = f"tried at {rfc3339(kept.at)}"
    if not facts.roundtrip_counts:
        return unknown("roundtrip", f"{when}, with another file, or under another search_path", look)
    verdict = kept.verdict.judged(spec)
    if verdict.unjudged:
        said = listed(f"{t.table}: {t.problem}" for t in verdict.unjudged)
        return unknown("roundtrip", f"could not be judged: {said}", look)
    if verdict.losses:
        return failed("roundtrip", f"lost on the way back: {listed(verdict.losses)}, {when}", look)
    if verdict.made is None:
        return unknown("roundtrip", f"{when}, by a version that did not try rows that only new can hold", look)
    taken = spec.roundtrip.accept
    accepted = f", but for what is accepted: {listed(taken)}" if taken else ""
    refused = f"; old would refuse {listed(verdict.refused)}" if verdict.refused else ""
    untried = f"; not tried: {listed(verdict.untried)}" if verdict.untried else ""
    return passed("roundtrip", f"nothing is lost on the way back{accepted}{refused}{untried}, {when}")
