"""`slackwater roundtrip`: old -> new -> old over the real rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import typer

from schemas import exits
from schemas.direction import Side
from schemas.reversal import Loss
from schemas.roundtrip import ColumnVerdict, TableVerdict, Verdict
from stream.cli import context
from stream.verify import roundtrip as judging


def roundtrip() -> None:
    """Take every old row to new and back, in the database, and say which columns do not come back as they were.

    Then try rows that only new can hold, made and rolled back: which old never hears of, and which it would refuse.
    """
    spec = context.spec()
    with (
        context.asking(),
        closing(context.open_side(spec, Side.OLD, "roundtrip")) as old,
        closing(context.open_side(spec, Side.NEW, "roundtrip")) as new,
    ):
        verdict = judging.roundtrip(spec, old, new, context.note)
        held = judging.keep(new, spec, verdict)
    context.show(document(spec.migration, verdict), lambda: screen(verdict, held=held))
    if verdict.unjudged:
        raise typer.Exit(exits.FAILED)
    if not verdict.passed:
        raise typer.Exit(exits.NO)


def document(migration: str, verdict: Verdict) -> dict[str, Any]:
    """The verdict as `roundtrip --json` prints it."""
    result = "unjudged" if verdict.unjudged else "lossy" if verdict.losses else "lossless"
    if result == "lossless" and _gave_something_up(verdict):
        result = "accepted"
    return {"migration": migration, "result": result, "losses": list(verdict.losses), **verdict.document()}


def screen(verdict: Verdict, *, held: bool) -> str:
    """Tables first, then every column that loses something, with keys of some of its rows."""
    lines = ["Old tables, there and back"]
    lines += [f"  {_table(t, [c for c in verdict.columns if c.table == t.table])}" for t in verdict.tables]
    lossy = [c for c in verdict.columns if c.loss is not Loss.LOSSLESS and c.loss is not Loss.UNKNOWN]
    if lossy:
        lines += ["", "What does not come back as it was", *(f"  {_column(c)}" for c in lossy)]
    lines += _made(verdict)
    lines += ["", _conclusion(verdict)]
    if not held:
        lines.append("Not kept: the migration is not prepared yet.")
    return "\n".join(lines)


def _made(verdict: Verdict) -> list[str]:
    """Rows that only new can hold: what would be lost, what old would refuse, what was not tried."""
    lost = [m for m in verdict.made or () if m.lost]
    refused = [m for m in verdict.made or () if not m.lost]
    apart = [o for o in verdict.one_way if o.of_new]
    lines: list[str] = []
    if lost or apart:
        lines += ["", "What new can hold, and old would never hear of"]
        lines += [f"  {o.name}{'  (accepted)' if o.accepted else ''}  {o.why}" for o in apart]
        lines += [f"  {m.name}  lost{' (accepted)' if m.accepted else ''}: {m.why}\n    {m.remedy}" for m in lost]
    if refused:
        lines += [
            "",
            "What new can hold, and old would refuse: such a row waits in the quarantine, and stops a rollback",
        ]
        lines += [f"  {m.name}{'  (accepted)' if m.accepted else ''}  {m.why}" for m in refused]
    if verdict.untried:
        lines += ["", "Not tried", *(f"  {said}" for said in verdict.untried)]
    return lines


def _table(table: TableVerdict, columns: Sequence[ColumnVerdict]) -> str:
    if table.problem:
        return f"{table.table}: could not be judged: {table.problem}"
    if all(c.loss is Loss.LOST for c in columns):
        return f"{table.table}: no way back" + (" (accepted)" if table.accepted else "")
    said = [f"{table.rows:,} rows"]
    for count, what, keys in (
        (table.left_out, "stay in old, untouched", ()),
        (table.missing, "do not come back", table.missing_keys),
        (table.extra, "come back that were not there", table.extra_keys),
    ):
        if count:
            said.append(f"{count:,} {what}{_keys(keys)}")
    lossy = sum(c.loss is not Loss.LOSSLESS for c in columns)
    if not lossy and not table.missing and not table.extra:
        said.append("lossless")
    return f"{table.table}: {', '.join(said)}" + (" (accepted)" if table.accepted else "")


def _column(column: ColumnVerdict) -> str:
    accepted = " (accepted)" if column.accepted else ""
    why = f": {column.why}" if column.why else ""
    if column.loss is Loss.LOST:
        rows = f"{column.rows:,} rows have a value; " if column.rows else ""
        return f"{column.table}.{column.column}  lost{accepted}: {rows}{column.why or 'nothing brings it back'}"
    return f"{column.table}.{column.column}  lossy{accepted} in {column.rows:,} rows{_keys(column.keys)}{why}"


def _keys(keys: Sequence[dict[str, str]]) -> str:
    if not keys:
        return ""
    shown = ", ".join(" ".join(f"{k}={v}" for k, v in key.items()) for key in keys)
    return f" (such as {shown})"


def _conclusion(verdict: Verdict) -> str:
    if verdict.unjudged:
        return f"{len(verdict.unjudged)} tables could not be judged, so nothing is proven."
    if verdict.losses:
        return (
            f"Not lossless: {', '.join(verdict.losses)}.\nWrite them under `reverse`, or accept what you have"
            f" read: `roundtrip: {{accept: [{', '.join(verdict.losses)}]}}`"
        )
    if _gave_something_up(verdict):
        return "Nothing is lost but what the file accepts."
    return "Lossless: every old row comes back as it was."


def _gave_something_up(verdict: Verdict) -> bool:
    """Where nothing is lost that was not accepted: whether anything was."""
    columns = any(c.loss is not Loss.LOSSLESS for c in verdict.columns)
    return columns or bool(verdict.one_way) or any(m.lost for m in verdict.made or ())
