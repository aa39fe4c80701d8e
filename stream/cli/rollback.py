"""`slackwater rollback`: the application's writes move back to old."""

from __future__ import annotations

from typing import Annotated

import typer

from schemas.direction import Side
from schemas.gates import NAMES
from stream.cli import context, turn_output


def rollback(
    dry_run: turn_output.DryRun = False,
    max_pause: turn_output.MaxPause = None,
    terminate_blockers: turn_output.TerminateBlockers = False,
    waive: Annotated[str, typer.Option(help="Gates that need not pass; needs --reason.", metavar="GATE,...")] = "",
    reason: Annotated[str | None, typer.Option(help="Why; kept in the journal.", metavar="TEXT")] = None,
) -> None:
    """Move the application's writes back to the old side, which the reverse stream has kept exact.

    The same function as `cutover`, with the roles swapped and the same exits. Afterwards the migration streams forward
    again, and can be cut over again.
    """
    turn_output.turn_to(
        Side.OLD,
        dry_run=dry_run,
        max_pause=max_pause,
        terminate_blockers=terminate_blockers,
        waive=context.waived(waive, reason, NAMES),
        reason=reason,
    )
