"""What `cutover` and `rollback` share: the question, the signals, the screen, and the document on every exit."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from schemas.direction import Direction, Side
from schemas.errors import Refused, SlackwaterError
from schemas.spec import Spec
from stream.cli import context
from stream.cutover import Order, Outcome, turn
from stream.status.document import Watch

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only the gates, and a token through the whole pipe; changes nothing.")
]
MaxPause = Annotated[
    float | None,
    typer.Option("--max-pause", help="Give up rather than hold writers longer.", metavar="SECONDS", min=0.1),
]
TerminateBlockers = Annotated[
    bool, typer.Option("--terminate-blockers", help="End the sessions whose transactions stand in the way.")
]

SETTLE_S = 3.0  # how long a probe of our own may take to come through, or a role to start, before the gates are judged


def turn_to(
    to: Side,
    *,
    dry_run: bool,
    max_pause: float | None,
    terminate_blockers: bool,
    waive: tuple[str, ...] = (),
    reason: str | None = None,
) -> NoReturn:
    """Run the turn and leave with its exit status, whatever happens to the terminal meanwhile."""
    spec = context.spec()
    order = Order(
        to=to,
        dry_run=dry_run,
        max_pause_s=max_pause or spec.cutover.max_pause_s,
        attempts=spec.cutover.attempts,
        terminate_blockers=terminate_blockers,
        waive=waive,
        reason=reason,
    )
    try:
        if not dry_run:
            context.confirm(f"Move the writes of migration {spec.migration} from {to.other} to {to}?")
    except Refused as error:
        leave(_declined(order, error))
    stop = threading.Event()
    with stopped_by_signals(stop):
        outcome = turn(
            spec,
            order,
            actor=context.actor,
            gates=lambda direction: gates(spec, direction),
            say=say,
            stop=stop,
        )
    leave(outcome)


def gates(spec: Spec, direction: Direction) -> list[dict[str, Any]]:
    """The gates of a turn in the way of `direction`, as `gates` shows them, once the lag is known and the roles run."""
    sides = context.sides(spec, "gates")
    looking = Watch(spec, sides)
    try:
        seen = looking.look()
        until = time.monotonic() + SETTLE_S
        while _undecided(seen.document, direction) and time.monotonic() < until:
            time.sleep(0.2)
            seen = looking.look()
    finally:
        sides.close()
    judged: list[dict[str, Any]] = looking.gate_documents(seen.gates.get(direction, []), direction)["gates"]
    return judged


def _undecided(document: dict[str, Any], direction: Direction) -> bool:
    way = document["directions"].get(direction.value)
    if way is None:
        return False
    return way["state"] in ("starting", "waiting") or (way["state"] == "running" and way["lag_seconds"] is None)


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop at the next safe point, and a terminal that goes away stops nothing past it."""

    def ask(number: int, frame: object) -> None:  # noqa: ARG001
        stop.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(line: str) -> None:
    """Progress. A terminal that is gone must not end what is half done."""
    try:
        context.note(line)
    except OSError:
        silence()


def silence() -> None:
    """Nobody listens any more: what is still said goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def leave(outcome: Outcome) -> NoReturn:
    """Print what it came to, and exit with its status."""
    try:
        context.show(outcome.document(), lambda: screen(outcome))
        sys.stdout.flush()
    except OSError:
        silence()
    raise typer.Exit(outcome.exit_code)


def screen(outcome: Outcome) -> str:
    """The answer first, then the steps, then what to do."""
    told = {
        "done": f"{outcome.verb}: done, {outcome.writes} takes the writes, turn {outcome.turn}",
        "already": f"{outcome.verb}: {outcome.writes} takes the writes already, turn {outcome.turn}",
        "refused": f"{outcome.verb} refused; {outcome.writes or 'who is unknown'} takes the writes",
        "aborted": f"{outcome.verb} aborted; {outcome.writes or 'who is unknown'} takes the writes, nothing is lost",
        "ambiguous": f"{outcome.verb}: it could not be proven what happened",
        "failed": f"{outcome.verb} failed",
    }
    if outcome.dry_run and outcome.result == "done":
        expected = f"{outcome.expected_pause_seconds:.2f} s"
        lines = [f"{outcome.verb} --dry-run: every gate passes; expect a pause of {expected}"]
    else:
        lines = [told[outcome.result]]
    if outcome.pause_seconds is not None:
        lines.append(f"  writers paused for {outcome.pause_seconds:.3f} s")
    lines += [f"  {s['step']:<20} {s['seconds']:8.3f} s" for s in outcome.steps]
    if outcome.error is not None:
        lines.append(f"  {outcome.error['cause']}")
        lines += [f"  - {reason}" for reason in outcome.reasons if reason != outcome.error["cause"]]
        if outcome.error["remedy"]:
            lines.append(f"  remedy: {outcome.error['remedy']}")
    lines += [f"  note: {note}" for note in outcome.notes]
    if outcome.next:
        lines.append(f"next: {outcome.next}")
    return "\n".join(lines)


def _declined(order: Order, error: SlackwaterError) -> Outcome:
    return Outcome(
        verb=order.verb,
        result="refused",
        reasons=[error.cause],
        error={"cause": error.cause, "remedy": error.hint},
    )
