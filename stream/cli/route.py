"""`slackwater route`: where the application writes now."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import typer

from connectors.postgres.session import connect
from schemas.direction import Side
from schemas.errors import ConfigError, Unavailable
from stream import route as routes
from stream.cli import context, exits
from stream.clock import rfc3339
from stream.route import Route

POLL_S = 0.1


def route(
    wait: Annotated[Side | None, typer.Option(help="Until this side takes the writes.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most; then exit 3.", min=0)] = None,
    dsn: Annotated[str | None, typer.Option(help="A database that has the route; no file is needed then.")] = None,
    migration: Annotated[str | None, typer.Option(help="Whose route, with --dsn.", metavar="NAME")] = None,
) -> None:
    """Print who takes the application's writes: old, new, or none while they are being moved.

    It reads slackwater.route as applications do: on both sides with the migration file, on one with --dsn.
    """
    if migration is not None and dsn is None:
        raise ConfigError("--migration goes with --dsn", hint="leave it out: the file names the migration")
    if timeout is not None and wait is None:
        raise ConfigError("--timeout goes with --wait", hint="slackwater route --wait new --timeout 30")
    with ExitStack() as stack:
        found = _until(_reader(stack, dsn, migration), wait, timeout)
    changed = None if found.changed_at is None else rfc3339(found.changed_at)
    document = {
        "migration": found.migration,
        "writes": found.writes,
        "turn": found.turn,
        "changed_at": changed,
        "met": wait is None or found.writes == wait.value,
    }
    context.show(document, found.writes)
    if not document["met"]:
        raise typer.Exit(exits.NO)


def _reader(stack: ExitStack, dsn: str | None, migration: str | None) -> Callable[[], Route]:
    if dsn is not None:
        conn = stack.enter_context(connect(dsn, application="slackwater route"))
        return lambda: routes.of(conn, migration)
    spec = context.spec()
    sides = context.sides(spec, "route")
    stack.callback(sides.close)
    return lambda: routes.current(sides, spec.migration)


def _until(read: Callable[[], Route], wait: Side | None, timeout: float | None) -> Route:
    """The route, once it is what is waited for, or the time is up. While it waits, a side may be away."""
    give_up = None if timeout is None else time.monotonic() + timeout
    while True:
        late = give_up is not None and time.monotonic() >= give_up
        try:
            found = read()
        except Unavailable:
            if wait is None or late:
                raise
        else:
            if wait is None or found.writes == wait.value or late:
                return found
        time.sleep(POLL_S)
