"""`slackwater failover`: the open side is dead."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from schemas.direction import Side
from schemas.errors import ConfigError, Refused
from stream.cli import context, turn_output
from stream.cutover import Order, Outcome
from stream.cutover.failover import failover as run


def failover(
    to: Annotated[Side, typer.Option("--to", help="The side that is to take the writes.")],
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="What the dead side had not sent yet may be lost.")
    ] = False,
    source_isolated: Annotated[
        bool, typer.Option("--source-isolated", help="You have made sure that nobody can write to the dead side.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the journal.", metavar="TEXT")] = None,
) -> None:
    """Open a side because the other one is dead: what Kafka holds is applied, and the last commit that it has is named.

    Never without both words. A side that answers after all is closed first. While both sides live, use `cutover` and
    `rollback`: they lose nothing.
    """
    if not (accept_loss and source_isolated):
        raise ConfigError(
            "failover needs both of its words: --accept-loss and --source-isolated",
            hint="while both sides answer, `slackwater cutover` and `slackwater rollback` lose nothing",
        )
    spec = context.spec()
    order = Order(
        to=to, max_pause_s=60.0, attempts=spec.cutover.attempts, terminate_blockers=True, reason=reason, forced=True
    )
    try:
        context.confirm(f"Open {to} of migration {spec.migration}, and give up what {to.other} has not sent yet?")
    except Refused as error:
        declined = {"cause": error.cause, "remedy": error.hint}
        turn_output.leave(Outcome(verb="failover", result="refused", reasons=[error.cause], error=declined))
    stop = threading.Event()
    with turn_output.stopped_by_signals(stop):
        outcome = run(spec, order, actor=context.actor, say=turn_output.say, stop=stop)
    turn_output.leave(outcome)
