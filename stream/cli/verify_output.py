"""What `verify` answers: its document, its screen, and what to run next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.direction import Direction
from schemas.errors import Refused, SlackwaterError
from schemas.made import Kind as Made
from schemas.plan import Plan
from schemas.roundtrip import of_new
from schemas.spec import Spec
from stream.cli import context, formatting
from stream.verify.task import Tally
from stream.verify.verdicts import Kind, Unrepresented, Verdict, Verification

SHOWN = 20  # mismatches of a table on the screen; --json has all that are kept
Tallies = Mapping[str, Tally]


def command(spec: Spec, direction: Direction, options: str = "") -> str:
    """How to call `verify` on this direction."""
    way = "" if direction is Direction.FORWARD else f" --direction {direction}"
    return context.command(spec, f"verify{way}{options}")


def kinds(tally: Tally) -> dict[Kind, int]:
    """Rows of each kind among those that were found to differ."""
    return {kind: sum(f.mismatch.rows for f in tally.found if f.mismatch.kind is kind) for kind in Kind}


def follows(spec: Spec, direction: Direction, found: Verification, tallies: Tallies, *, repaired: bool) -> str | None:
    """What to run next. Rows that only the target has are looked at first: nothing here advises to delete them."""
    if found.state is Verdict.CLEAN and not any(t.problem for t in tallies.values()):
        return None
    if repaired:
        return command(spec, direction)
    counts = [kinds(t) for t in tallies.values()]
    if any(n[Kind.MISSING] or n[Kind.DIFFERENT] for n in counts):
        return command(spec, direction, " --repair")
    if any(n[Kind.EXTRA] for n in counts):
        return command(spec, direction, " --show-values")
    if any(t.lost for t in tallies.values()):
        return context.command(spec, "plan")
    return command(spec, direction)


def document(
    spec: Spec,
    direction: Direction,
    found: Verification,
    tallies: Tallies,
    asked: dict[str, Any] | None,
    next_: str | None,
    *,
    values: bool,
) -> dict[str, Any]:
    tables = {}
    for name, tally in tallies.items():
        verdict = found.tables[name]
        tables[name] = {
            "state": verdict.state.value,
            "at": verdict.at,
            "rows": tally.rows,
            "source_rows": tally.source_rows,
            "target_rows": tally.target_rows,
            "mismatched": tally.total or (None if tally.problem else 0),
            **{kind.value: n for kind, n in kinds(tally).items()},
            "more": tally.more,
            "mismatches": [_mismatch(tally, n, values=values) for n in range(len(tally.found))],
            "problem": None if tally.problem is None else _error(tally.problem),
        }
    return {
        "migration": spec.migration,
        "direction": direction.value,
        "state": found.state.value,
        "at": found.at,
        "tables": tables,
        "unrepresented": {n: None if u is None else u.document() for n, u in _unrepresented(tallies).items()},
        "repaired": asked,
        "next": next_,
    }


def _unrepresented(tallies: Tallies) -> dict[str, Unrepresented | None]:
    """By source table: rows without a counterpart; None where they could not be counted."""
    return {name: u for tally in tallies.values() for name, u in (tally.unrepresented or {}).items()}


def _mismatch(tally: Tally, n: int, *, values: bool) -> dict[str, Any]:
    one = tally.found[n]
    found = one.mismatch.document()
    if values and tally.view.mapping.key:
        names = tally.view.mapping.columns
        found["source"] = [dict(zip(names, row, strict=False)) for row in one.source]
        found["target"] = [dict(zip(names, row, strict=False)) for row in one.target]
    return found


def _error(error: SlackwaterError) -> dict[str, Any]:
    reasons = error.reasons if isinstance(error, Refused) else ()
    return {"cause": error.cause, "remedy": context.on_file(error.hint), "reasons": list(reasons)}


def screen(
    spec: Spec, plan: Plan, found: Verification, tallies: Tallies, next_: str | None, *, values: bool, deleted: bool
) -> str:
    """`deleted`: rows that only the target has were to be deleted."""
    rows = []
    for name, tally in tallies.items():
        state = found.tables[name].state.value if tally.problem is None else "not compared"
        wrong = f"{tally.total:,}{' or more' if tally.more else ''} differ" if tally.total else ""
        lost = f"{tally.lost:,} lost" if tally.lost else ""
        rows.append((name, state, f"{tally.rows:,} rows", ", ".join(filter(None, (wrong, lost)))))
    lines = [formatting.columns(rows)]
    for name, tally in tallies.items():
        if tally.problem is not None:
            lines += [
                f"{name} could not be compared: {tally.problem.cause}",
                f"  remedy: {context.on_file(tally.problem.hint)}",
            ]
        for n in range(min(SHOWN, len(tally.found))):
            lines += _lines(name, _mismatch(tally, n, values=values))
        if len(tally.found) > SHOWN:
            lines.append(f"  ... and {len(tally.found) - SHOWN:,} more of {name}; --json lists them")
    for name, alone in _unrepresented(tallies).items():
        lines += _alone(plan.direction, name, alone)
    extra = sum(kinds(t)[Kind.EXTRA] for t in tallies.values())
    if extra and not deleted:
        lines += _extra(spec, plan.direction, extra)
    if next_ is not None:
        lines.append(f"Next: {next_}")
    return "\n".join(lines)


def _alone(direction: Direction, name: str, found: Unrepresented | None) -> list[str]:
    """Rows of the source that nothing on the target stands for."""
    here, there = direction.source, direction.target
    if found is None:
        return [f"rows of {here}.{name} without a counterpart on {there} could not be counted; the log says why"]
    some = ", ".join(" ".join(f"{k}={v}" for k, v in key.items()) for key in found.keys[:5])
    which = f" ({'such as ' if found.rows > 5 else ''}{some})" if some else ""
    rows = f"{found.rows:,} row{'' if found.rows == 1 else 's'} of {here}.{name}"
    has = "has" if found.rows == 1 else "have"
    if direction is Direction.FORWARD:
        return [f"{rows} {has} no counterpart on {there}: no mapping makes anything of {_it(found.rows)}{which}"]
    if not found.fault:
        return [f"{rows} {has} no counterpart on {there}, which the file accepts{which}"]
    said = f"{rows} {has} no counterpart on {there}: a rollback would leave {_it(found.rows)} behind{which}"
    accept = f'`roundtrip: {{accept: ["{of_new(name)}:{Made.ALONE}"]}}` accepts such rows'
    return [said, f"  remedy: let the way back (`reverse`) take every row of {name}; {accept}"]


def _it(rows: int) -> str:
    return "it" if rows == 1 else "them"


def _extra(spec: Spec, direction: Direction, rows: int) -> list[str]:
    one = rows == 1
    said = (
        f"{rows:,} row{'' if one else 's'} on {direction.target} alone: nothing on {direction.source} makes {_it(rows)}"
    )
    delete = command(spec, direction, " --repair --delete")
    return [
        f"{said}, and {'it' if one else 'each'} may be the only copy. `--repair` leaves {_it(rows)}.",
        f"  Look at {_it(rows)} first (`--show-values`); `{delete}` deletes, and keeps until `finalize`.",
    ]


def _lines(name: str, found: Mapping[str, Any]) -> list[str]:
    key = ", ".join(f"{k}={v}" for k, v in found["key"].items()) or f"{found.get('rows', 1)} rows"
    columns = f": {', '.join(found['columns'])}" if found["columns"] else ""
    lines = [f"  {found['kind']:<9} {name} {key}{columns}"]
    for side in ("source", "target"):
        for row in found.get(side, ()):
            shown = {c: row.get(c) for c in found["columns"] or row}
            cells = ", ".join(f"{c}={'NULL' if v is None else v}" for c, v in shown.items())
            lines.append(f"            {side}: {cells}")
    return lines
