"""`slackwater finalize`: the end, after a switch."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli import context, end_output
from stream.lifecycle import finalize as finalizing


def finalize(
    drop_topics: Annotated[bool, typer.Option("--drop-topics", help="Delete the Kafka topics as well.")] = False,
    waive: Annotated[
        str, typer.Option(help="verification, foreign_writes: need not pass; needs --reason.", metavar="GATE,...")
    ] = "",
    reason: Annotated[str | None, typer.Option(help="Why they need not.", metavar="TEXT")] = None,
) -> None:
    """End the migration after a switch: slots, publications, fences and the control schema go; your tables stay.

    Refused while the last verification is not clean, foreign writes wait, a role runs, or somebody uses the closed
    side within finalize.quiet_s. The journal goes with the rest: save it first with `slackwater journal --json`.
    """
    waived = context.waived(waive, reason, finalizing.WAIVABLE)
    spec = context.spec()
    outcome = finalizing.finalize(
        spec, say=context.note, confirm=context.confirm, drop_topics=drop_topics, waive=waived
    )
    end_output.show(spec, outcome)
