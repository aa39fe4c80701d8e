"""`slackwater quarantine`: rows that could not be applied."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from schemas.errors import ConfigError, Refused
from schemas.spec import Spec
from stream.cli import context, formatting
from stream.migration import journal
from stream.monitoring.clock import rfc3339
from stream.remediation import quarantine as rows_apart

app = typer.Typer(
    help="Rows that could not be applied: list them, try them again, or give them up.", no_args_is_help=True
)

Which = Annotated[Direction, typer.Option(help="Of which direction.")]
Ids = Annotated[list[int] | None, typer.Argument(help="The rows' numbers, as `list` shows them.")]


@app.command(
    "list",
    short_help="List them: key, error, and what waits behind",
    epilog="Example: slackwater -c shop.yaml quarantine list",
)
def list_(direction: Which = Direction.FORWARD) -> None:
    """List them: key, error, and how many later changes of the same row wait behind it."""
    spec = context.spec()
    with context.prepared_side(spec, direction.target, "quarantine") as conn:
        found = rows_apart.rows(conn, spec.migration, direction)

    def screen() -> str:
        if not found:
            return "nothing is in quarantine"
        lines = [
            (str(r.id), r.state, r.load, f"{r.source} {json.dumps(r.key)}", str(r.changes), rfc3339(r.at), _error(r))
            for r in found
        ]
        return formatting.columns(lines, header=("#", "STATE", "LOAD", "ROW", "CHANGES", "SINCE", "ERROR"))

    context.show(
        {"migration": spec.migration, "direction": direction.value, "rows": [asdict(r) for r in found]}, screen
    )


def _error(row: rows_apart.Row) -> str:
    return f"{row.error} [waived by {row.waived_by}: {row.waived_reason}]" if row.state == "waived" else row.error


@app.command(
    short_help="Read the rows again, and apply them anew",
    epilog="Example: slackwater -c shop.yaml quarantine retry 17",
)
def retry(
    ids: Ids = None,
    all_: Annotated[bool, typer.Option("--all", help="Every row that is not waived.")] = False,
    direction: Which = Direction.FORWARD,
) -> None:
    """Read the rows again from the source and apply them anew, after their cause was put right."""
    if bool(ids) == all_:
        raise ConfigError("say which rows: their numbers, or --all", hint="slackwater quarantine list")
    spec = context.spec()
    with (
        context.prepared_side(spec, direction.target, "quarantine") as conn,
        translated("retrying"),
        conn.transaction(),
    ):
        _known(conn, spec, direction, ids)
        retried = rows_apart.retry(conn, spec.migration, direction, None if all_ else ids)
        _note(conn, spec, direction, "quarantine retry", {"rows": retried})
    context.show({"retrying": retried}, f"{len(retried)} to be read again; `status` counts what is left")


@app.command(
    short_help="Give rows up, by name and for a reason",
    epilog='Example: slackwater -c shop.yaml quarantine waive 17 --reason "test row, ticket 4711"',
)
def waive(
    ids: Ids = None,
    reason: Annotated[str | None, typer.Option(help="Why they may be missing; needed.", metavar="TEXT")] = None,
    direction: Which = Direction.FORWARD,
) -> None:
    """Give rows up: they stay listed with your name and reason, and no longer stand in the way of a cutover."""
    if not ids:
        raise ConfigError("say which rows to waive, by their numbers", hint="slackwater quarantine list")
    if not reason or not reason.strip():
        raise ConfigError("a waiver needs a reason", hint='--reason "why these rows may be missing from the target"')
    spec = context.spec()
    with context.prepared_side(spec, direction.target, "quarantine") as conn, translated("waiving"), conn.transaction():
        _known(conn, spec, direction, ids)
        actor = context.actor(conn)
        waived = rows_apart.waive(conn, spec.migration, direction, ids, actor=actor, reason=reason)
        if waived:
            _note(conn, spec, direction, "quarantine waive", {"rows": waived, "reason": reason})
    context.show(
        {"waived": waived, "reason": reason, "by": actor.identity}, f"{len(waived)} waived by {actor.identity}"
    )


def _known(conn: Connection, spec: Spec, direction: Direction, ids: list[int] | None) -> None:
    present = {row.id for row in rows_apart.rows(conn, spec.migration, direction)}
    unknown = sorted(set(ids or ()) - present)
    if unknown:
        raise Refused(
            f"not in quarantine: {', '.join(map(str, unknown))}; nothing was changed",
            hint=context.command(spec, "quarantine list"),
        )


def _note(conn: Connection, spec: Spec, direction: Direction, step: str, detail: dict[str, object]) -> None:
    """The journal is on new: in the same transaction where the rows are there too, in one of its own where not."""
    detail = {"direction": direction.value, **detail}
    if direction.target is Side.NEW:
        journal.append(conn, spec.migration, actor=context.actor(conn), step=step, detail=detail)
        return
    with context.prepared_side(spec, Side.NEW, "quarantine") as new:
        journal.append(new, spec.migration, actor=context.actor(new), step=step, detail=detail)
