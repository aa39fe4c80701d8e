"""`slackwater prepare`: everything that a migration stands on."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli import context
from stream.lifecycle import prepare as preparing

NEXT = {"prepared": "run", "changed": "run", "already": "status"}


def prepare(
    set_replica_identity: Annotated[
        bool,
        typer.Option(
            "--set-replica-identity", help="Set REPLICA IDENTITY FULL on old tables that need it; cancel undoes it."
        ),
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait for open transactions; the slot needs them ended.", min=1)
    ] = None,
) -> None:
    """Prepare the migration: fence, topics, publication, slot; again after a change of the file or of tables."""
    spec = context.spec()
    stop = context.stoppable()
    outcome = preparing.prepare(
        spec,
        actor=context.actor,
        say=context.note,
        confirm=context.confirm,
        set_identity=set_replica_identity,
        slot_timeout_s=timeout,
        stop=stop,
    )
    for warning in outcome.warnings:
        context.note(f"warning: {warning}")
    follows = context.command(spec, NEXT[outcome.result])
    context.show(
        {
            "migration": spec.migration,
            "result": outcome.result,
            "steps": list(outcome.steps),
            "difference": outcome.lines,
            "warnings": list(outcome.warnings),
            "next": follows,
        },
        f"{spec.migration} {'is prepared already' if outcome.result == 'already' else outcome.result}. Next: {follows}",
    )
