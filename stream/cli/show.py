"""`slackwater show`: old rows beside the new rows they become."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from connectors.postgres.peek import Rows
from schemas.direction import Side
from stream import preflight
from stream.cli import context
from stream.planning import show as showing

WIDEST = 48  # characters of a value that a screen shows; --json shows all of it

TITLES = {"old": "old", "becomes": "new, by its mapping", "holds": "new, as it is now"}


def show(
    table: Annotated[str, typer.Argument(help="An old or a new table.", metavar="TABLE")],
    key: Annotated[str | None, typer.Option(help="The row's key; several columns as 1,2 or a JSON array.")] = None,
    limit: Annotated[int, typer.Option(help="How many rows.", min=1, max=1000)] = 5,
) -> None:
    """Show old rows, the new rows that the mappings make of them, and what new holds of them now."""
    spec = context.spec()
    with (
        closing(context.open_side(spec, Side.OLD, "show")) as old,
        closing(context.open_side(spec, Side.NEW, "show")) as new,
    ):
        plan = preflight.planned(spec, old, new)
        parts = showing.show(plan, old, new, table, key=key, limit=limit)
    context.show([_document(part) for part in parts], lambda: "\n\n".join(_screen(part) for part in parts))


def _document(part: showing.Part) -> dict[str, object]:
    rows = [dict(zip(part.rows.columns, row, strict=True)) for row in part.rows.rows]
    return {"what": part.what, "table": part.table, "rows": rows, "note": part.note or None}


def _screen(part: showing.Part) -> str:
    title = f"{TITLES[part.what]}: {part.table}"
    if not part.rows.rows:
        return f"{title}\n  ({part.note or 'no rows'})"
    return f"{title}\n{_grid(part.rows)}"


def _grid(rows: Rows) -> str:
    """Rows in aligned columns; NULL is told from an empty text."""
    cells = [list(rows.columns), *([_cell(v) for v in row] for row in rows.rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(rows.columns))]
    lines = ["  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    rule = "  " + "  ".join("-" * w for w in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: str | None) -> str:
    if value is None:
        return "∅"
    shown = value.replace("\n", "⏎").replace("\t", " ")
    return shown if len(shown) <= WIDEST else shown[: WIDEST - 1] + "…"
