"""`slackwater pause` and `slackwater resume`: the emergency brake."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from connectors.postgres.session import translated
from schemas.direction import Side
from stream.cli import context
from stream.migration import journal
from stream.migration import pauses as brake


class Pausable(StrEnum):
    BACKFILL = "backfill"
    VERIFY = "verify"
    APPLY = "apply"


class Resumable(StrEnum):
    BACKFILL = "backfill"
    VERIFY = "verify"
    APPLY = "apply"
    CAPTURE = "capture"  # it has no pause; it may have halted


What = Annotated[Pausable, typer.Argument(help="Which work: of both directions.")]
Halted = Annotated[Resumable, typer.Argument(help="Which work: of both directions.")]


def pause(
    what: What,
    reason: Annotated[str | None, typer.Option(help="Shown wherever the pause shows.", metavar="TEXT")] = None,
) -> None:
    """Hold backfill, verify or apply at its next safe point, until `resume`. Nothing is lost: Kafka keeps the rest."""
    spec = context.spec()
    with context.prepared_side(spec, Side.NEW, "pause") as conn, translated("pausing"), conn.transaction():
        actor = context.actor(conn)
        changed = brake.pause(conn, spec.migration, what.value, reason=reason, by=actor.identity)
        if changed:
            detail = {"what": what.value, "reason": reason}
            journal.append(conn, spec.migration, actor=actor, step="pause", detail=detail)
    answer = {"paused": what.value, "reason": reason, "by": actor.identity, "changed": changed}
    context.show(answer, f"{what} is paused" + ("" if changed else " already") + (f": {reason}" if reason else ""))


def resume(
    what: Halted,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the journal.", metavar="TEXT")] = None,
) -> None:
    """Let go on what was paused, or what has halted and whose cause was put right."""
    spec = context.spec()
    with context.prepared_side(spec, Side.NEW, "resume") as conn, translated("resuming"), conn.transaction():
        changed = brake.resume(conn, spec.migration, what.value)
        # A role that has halted watches the journal for this entry: so it is written whether there was a pause or not.
        detail = {"what": what.value, "reason": reason}
        journal.append(conn, spec.migration, actor=context.actor(conn), step="resume", detail=detail)
    done = f"{what} goes on" if changed else f"{what} was not paused; if it has halted, it tries again now"
    context.show({"resumed": what.value, "reason": reason, "changed": changed}, done)
