"""`slackwater trace`: where a row came from, and what wrote it last."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any

import typer

from schemas.direction import Direction, Side
from stream.cli import context, formatting
from stream.migration import prepared
from stream.runtime import process
from stream.trace import trace as traced


def trace(
    table: Annotated[str, typer.Argument(help="A new or an old table.", metavar="TABLE")],
    key: Annotated[str, typer.Argument(help="The row's key; several columns as 1,2 or a JSON array.", metavar="KEY")],
    side: Annotated[Side | None, typer.Option(help="Of which side, where both have a table of that name.")] = None,
    direction: Annotated[Direction, typer.Option(help="Of which stream.")] = Direction.FORWARD,
    show_values: Annotated[bool, typer.Option("--show-values", help="Values too, not only keys.")] = False,
) -> None:
    """Trace a new row to its old rows and columns, or an old row to what it became; and who wrote it last."""
    spec = context.spec()
    with (
        closing(context.prepared_side(spec, Side.NEW, "trace")) as new,
        closing(context.open_side(spec, Side.OLD, "trace")) as old,
    ):
        document = prepared.load(new, spec.migration)
        assert document is not None  # the side was prepared
        source, target = (old, new) if direction is Direction.FORWARD else (new, old)
        at = process.tracing(spec, document, direction, source=source, target=target, values=show_values)
        found = traced(at, table, key, side=side)
    context.show(found, lambda: screen(found))


def screen(found: dict[str, Any]) -> str:
    """The row first, then each row on the other side, indented; what wrote it below."""
    lines = [f"{found['side']} row {_row(found)}: {_there(found)}", *_values(found, 2)]
    if "came_from" in found:
        for row in found["came_from"]:
            lines += [f"  came from {_row(row)}: {_there(row)}", *_values(row, 4), *_history(row, 4)]
        lines.append("  columns")
        columns = [(c["column"], ", ".join(c["from"]) or "nothing", c["expression"]) for c in found["columns"]]
        lines.append(formatting.columns(columns, indent=4))
    else:
        lines += _history(found, 2)
        lines += [f"  became {_row(row)}: {_there(row)}" for row in found["became"]]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    if row["key"] is None:
        return str(row["table"])
    return f"{row['table']} ({', '.join(f'{c} = {v}' for c, v in row['key'].items())})"


def _there(row: dict[str, Any]) -> str:
    if row.get("note"):
        return str(row["note"])
    return {True: "there", False: "not there", None: "unknown"}[row["there"]]


def _values(row: dict[str, Any], indent: int) -> list[str]:
    if "values" not in row:
        return []
    shown = [(c, "NULL" if v is None else v.replace("\n", "⏎")) for c, v in row["values"].items()]
    return [formatting.columns(shown, indent=indent)]


def _history(row: dict[str, Any], indent: int) -> list[str]:
    """Who wrote it last, and where it waits."""
    if "written_by" not in row:
        return []
    pad, by = " " * indent, row["written_by"]
    lines = [f"{pad}waits in {queue}: `slackwater {queue} list`" for queue in row["waits_in"] if queue == "quarantine"]
    lines += [f"{pad}waits to be read again" for queue in row["waits_in"] if queue == "reread"]
    if by is None:
        return [*lines, f"{pad}written by nothing that the stream or a finished chunk knows of"]
    if by["what"] == "chunk":
        bounds = f" [{by['lower'] or '...'}, {by['upper'] or '...'})" if by["lower"] or by["upper"] else ""
        lines.append(f"{pad}written by chunk {by['chunk']}{bounds} of the load {by['load']}, at {by['at']}")
        return [*lines, f"{pad}  read at LSN {by['lsn']}, after epoch {by['epoch']}"]
    applied = f", applied {by['applied_at']}" if by["applied_at"] else ""
    epoch = "an epoch that is not kept" if by["epoch"] is None else f"epoch {by['epoch']}"
    lines.append(f"{pad}written by {epoch}: {by['op']}, committed {by['committed_at']}{applied}")
    return [
        *lines,
        f"{pad}  LSN {by['lsn']}, transaction {by['xid']}",
        f"{pad}  {by['topic']}, partition {by['partition']}, offset {by['offset']:,}",
    ]
