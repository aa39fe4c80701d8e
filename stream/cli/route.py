"""`slackwater route`: where the application writes now."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import typer

from connectors.postgres.session import connect
from schemas import exits
from schemas.direction import Side
from schemas.errors import ConfigError, Unavailable
from stream.cli import context, formatting
from stream.monitoring import route as routes
from stream.monitoring.route import Route

POLL_S = 0.1


def route(
    wait: Annotated[Side | None, typer.Option(help="Until this side takes the writes.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most; then exit 3.", min=0)] = None,
    dsn: Annotated[str | None, typer.Option(help="A database that has the route; no file is needed then.")] = None,
    migration: Annotated[str | None, typer.Option(help="Whose route, with --dsn.", metavar="NAME")] = None,
) -> None:
    """Print who takes the application's writes: old, new, or none while they are being moved.

    It reads slackwater.route as applications do: on both sides with the migration file, on one with --dsn. Before
    `prepare`, and after an end, nothing is there to say it: it prints no side, and ends with exit 3.
    """
    if migration is not None and dsn is None:
        raise ConfigError("--migration goes with --dsn", hint="leave it out: the file names the migration")
    if timeout is not None and wait is None:
        raise ConfigError("--timeout goes with --wait", hint="slackwater route --wait new --timeout 30")
    with ExitStack() as stack:
        migration, read = _reader(stack, dsn, migration)
        found = _until(read, wait, timeout)
    met = found is not None and wait in (None, found.writes)
    document = routes.document(migration, found) | {"met": met}
    if found is None:
        context.note(f"slackwater: {formatting.NOTHING_HERE}")
    if found is not None or context.invocation().json:
        context.show(document, str(document["writes"]))
    if not met:
        raise typer.Exit(exits.NO)


def _reader(stack: ExitStack, dsn: str | None, migration: str | None) -> tuple[str | None, Callable[[], Route | None]]:
    """Whose route, where that is known, and how it is read."""
    if dsn is not None:
        conn = stack.enter_context(connect(dsn, application="slackwater route"))
        return migration, lambda: routes.of(conn, migration)
    spec = context.spec()
    sides = context.sides(spec, "route")
    stack.callback(sides.close)
    return spec.migration, lambda: routes.current(sides, spec.migration)


def _until(read: Callable[[], Route | None], wait: Side | None, timeout: float | None) -> Route | None:
    """The route, once it is what is waited for, none is there, or the time is up. Meanwhile a side may be away."""
    give_up = None if timeout is None else time.monotonic() + timeout
    while True:
        late = give_up is not None and time.monotonic() >= give_up
        try:
            found = read()
        except Unavailable:
            if wait is None or late:
                raise
        else:
            if found is None or wait in (None, found.writes) or late:
                return found
        time.sleep(POLL_S)
