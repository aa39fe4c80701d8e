"""`slackwater upgrade`: a running migration, brought to this version of slackwater."""

from __future__ import annotations

from typing import Annotated

import typer

from schemas.direction import Side
from stream.cli import context
from stream.lifecycle import upgrade as upgrading

TOLD = {
    "already": "is of this version already",
    "ready": "can be upgraded; nothing was changed",
    "done": "is upgraded; tables are to be verified anew",
}


def upgrade(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    only: Annotated[
        Side | None, typer.Option(help="One side, for a failover to it while the other one is dead; the rest later.")
    ] = None,
) -> None:
    """Bring the control schemas of both sides, and what was prepared, to this version of slackwater.

    Stop the roles first; it is refused, exit 3, while one lives. One transaction a side: after a kill, run it again.
    There is no way back to the older version. Rows, slots, topics and turns stay as they are; verdicts of `verify` and
    `roundtrip` do not, for this version may see what the older one did not.
    """
    spec = context.spec()
    outcome = upgrading.upgrade(spec, actor=context.actor, say=context.note, only=only, dry_run=dry_run)
    for step in outcome.steps:
        context.note(f"{'would bring' if dry_run else 'brought'}: {step}")
    for other in outcome.others:
        context.note(f"migration {other} shares a control schema with this one: upgrade it too before its roles start")
    follows = context.command(spec, {"already": "status", "ready": "upgrade", "done": "run"}[outcome.result])
    context.show(
        {
            "migration": spec.migration,
            "result": outcome.result,
            "versions": {what: {"from": then, "to": now} for what, (then, now) in outcome.versions.items()},
            "steps": list(outcome.steps),
            "others": list(outcome.others),
            "next": follows,
        },
        f"{spec.migration} {TOLD[outcome.result]}. Next: {follows}",
    )
