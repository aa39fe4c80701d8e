"""`slackwater arm`: the way back, built, started and proven."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli import context
from stream.cli.turn_answer import Answer, answered
from stream.lifecycle import arm as arming


def arm(
    set_replica_identity: Annotated[
        bool,
        typer.Option(
            "--set-replica-identity",
            help="Set REPLICA IDENTITY FULL on new tables that need it; finalize and cancel undo it.",
        ),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds to wait for open transactions, and as many for the roles and the canary.", min=1),
    ] = None,
) -> None:
    """Build the reverse direction and prove it: a row goes from new through Kafka to old. `slackwater run` must run.

    The slot waits for the transactions that are open on new, and says whose they are. Exit 4 when they do not end or
    the proof does not come within --timeout: what was built stays, old is open as before, and `arm` goes on from there.
    """
    spec = context.spec()
    stop = context.stoppable()

    def work() -> Answer:
        outcome = arming.arm(
            spec,
            actor=context.actor,
            say=context.note,
            set_identity=set_replica_identity,
            slot_timeout_s=timeout,
            timeout_s=timeout,
            stop=stop,
        )
        for warning in outcome.warnings:
            context.note(f"warning: {warning}")
        follows = context.command(spec, "gates")
        how = "is armed already" if outcome.result == "already" else "is armed: the way back is proven"
        return Answer(
            result=outcome.result, steps=outcome.steps, next=follows, text=f"{spec.migration} {how}. Next: {follows}"
        )

    answered(spec, "arm", work)
