"""`slackwater repaired`: rows that `verify --repair` has deleted or written over, kept until `finalize`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Annotated, Any

import typer

from schemas import exits
from schemas.direction import Direction
from schemas.errors import ConfigError, Refused
from schemas.repair import Action
from schemas.spec import Spec
from stream.cli import context, formatting
from stream.monitoring.clock import rfc3339
from stream.remediation import repaired as keeping
from stream.remediation.repaired import Put, Row

app = typer.Typer(
    no_args_is_help=True, help="Rows that a repair has deleted or written over: list them, or put them back."
)

Which = Annotated[Direction | None, typer.Option(help="Of which direction; without it, of both.")]
Table = Annotated[str | None, typer.Option(help="Only this table.")]


@app.command(
    "list",
    short_help="List them: table, key, when and by whom",
    epilog="Example: slackwater -c shop.yaml repaired list --show-values",
)
def list_(
    direction: Which = None,
    table: Table = None,
    show_values: Annotated[bool, typer.Option("--show-values", help="Print the rows as they were.")] = False,
) -> None:
    """List them by table and key; their values only when asked for."""
    spec = context.spec()
    found = [r for r in _found(spec, direction) if table is None or r.load == table]
    context.show(
        {"migration": spec.migration, "rows": [_document(r, values=show_values) for r in found]},
        lambda: _screen(found, values=show_values),
    )


@app.command(
    short_help="Put deleted rows back where they were",
    epilog="Example: slackwater -c shop.yaml repaired restore 17",
)
def restore(
    ids: Annotated[list[int] | None, typer.Argument(help="The rows' numbers, as `list` shows them.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every deleted row that is not back yet.")] = False,
    direction: Which = None,
    table: Table = None,
) -> None:
    """Put deleted rows back onto the table they came from, where no row with their key is: 0 all are there, 3 not.

    On a closed side they differ from the source then, so the table has to be verified again; on the open side they are
    written as the application would, and reach the other side.
    """
    if bool(ids) == all_:
        raise ConfigError("say which rows: their numbers, or --all", hint="slackwater repaired list")
    spec = context.spec()
    wanted = _wanted(spec, _found(spec, direction), ids, table)
    if not wanted:
        context.show({"migration": spec.migration, "rows": [], "next": None}, "nothing to put back")
        return
    tables = ", ".join(
        f"{sum(r.load == t and r.side == s for r in wanted):,} of {s}.{t}"
        for s, t in dict.fromkeys((r.side, r.load) for r in wanted)
    )
    context.confirm(f"Put rows back: {tables}?")
    done: list[Put] = []
    for one in Direction:
        if own := [r for r in wanted if r.direction is one]:
            done += keeping.restore(spec, own, actor=context.actor)
    next_ = _next(spec, done)
    rows = [{**_document(p.row, values=False), "result": p.result, "why": p.why or None} for p in done]
    context.show({"migration": spec.migration, "rows": rows, "next": next_}, lambda: _told(done, next_))
    if any(p.result == "refused" for p in done):
        raise typer.Exit(exits.NO)


def _wanted(spec: Spec, found: Sequence[Row], ids: list[int] | None, table: str | None) -> list[Row]:
    """The rows that are meant. Errors: Refused for a number that is none; ConfigError for one that both sides have."""
    if ids is None or not ids:
        return [
            r
            for r in found
            if r.action is Action.DELETED and r.restored_at is None and (table is None or r.load == table)
        ]
    known = [r for r in found if r.id in ids and (table is None or r.load == table)]
    if unknown := sorted(set(ids) - {r.id for r in known}):
        raise Refused(
            f"no repair has kept a row {', '.join(map(str, unknown))}; nothing was changed",
            hint=context.command(spec, "repaired list"),
        )
    if len({r.id for r in known}) < len(known):
        raise ConfigError("both sides have a row of that number", hint="--direction says which is meant")
    return known


def _found(spec: Spec, direction: Direction | None) -> list[Row]:
    found: list[Row] = []
    for one in Direction if direction is None else (direction,):
        with closing(context.prepared_side(spec, one.target, "repaired")) as conn:
            found += keeping.rows(conn, spec.migration, one)
    return found


def _next(spec: Spec, done: Sequence[Put]) -> str | None:
    directions = {p.row.direction for p in done if p.result == "restored"}
    if not directions:
        return None
    way = " --direction reverse" if Direction.FORWARD not in directions else ""
    return context.command(spec, f"verify{way}")


def _document(row: Row, *, values: bool) -> dict[str, Any]:
    found = {
        "id": row.id,
        "direction": row.direction.value,
        "side": row.side.value,
        "table": row.load,
        "action": row.action.value,
        "key": dict(row.key),
        "at": row.at,
        "by": row.by,
        "reason": row.reason,
        "restored_at": row.restored_at,
        "restored_by": row.restored_by,
    }
    return found | ({"row": dict(row.image)} if values else {})


def _screen(found: Sequence[Row], *, values: bool) -> str:
    if not found:
        return "no repair has deleted or written over a row"
    cells = [
        (
            str(r.id),
            f"{r.side}.{r.load}",
            _pairs(r.key) or "(no key)",
            r.action.value + ("" if r.restored_at is None else f", put back {rfc3339(r.restored_at)}"),
            f"{rfc3339(r.at)} by {r.by} ({r.reason})",
        )
        for r in found
    ]
    head, *lines = formatting.columns(cells, header=("#", "TABLE", "KEY", "WHAT", "WHEN")).splitlines()
    shown = [f"{line}\n    {_pairs(row.image)}" if values else line for line, row in zip(lines, found, strict=True)]
    return "\n".join([head, *shown])


def _told(done: Sequence[Put], next_: str | None) -> str:
    lines = []
    for put in done:
        row = put.row
        name = f"{row.side}.{row.load} {_pairs(row.key)}".rstrip()
        lines.append(f"{put.result:<8}  {name}" + (f": {put.why}" if put.why else ""))
    if next_ is not None:
        lines.append(f"Next: {next_}")
    return "\n".join(lines)


def _pairs(document: Any) -> str:
    return ", ".join(f"{k}={'NULL' if v is None else v}" for k, v in document.items())
