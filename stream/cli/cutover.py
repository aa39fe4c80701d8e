"""`slackwater cutover`: the application's writes move to new."""

from __future__ import annotations

from schemas.direction import Side
from stream.cli import turn_output


def cutover(
    dry_run: turn_output.DryRun = False,
    max_pause: turn_output.MaxPause = None,
    terminate_blockers: turn_output.TerminateBlockers = False,
) -> None:
    """Move the application's writes to the new side, in a short pause that proves that nothing is missing there.

    Exit 0: done, or already so. 3: refused, with every reason. 4: given up in time, the application saw a slow write.
    5: what happened could not be proven; run it again, it finds out.
    """
    turn_output.turn_to(Side.NEW, dry_run=dry_run, max_pause=max_pause, terminate_blockers=terminate_blockers)
