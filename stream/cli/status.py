"""`slackwater status`: where the migration stands."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from schemas import exits
from schemas.errors import ConfigError
from stream.cli import context
from stream.cli.screen import screen
from stream.status.document import Seen, Watch

SETTLE_S = 1.5  # how long a probe of our own may take to come through before the lag is given as it is
REFRESH_S = 1.0


def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Keep looking, once a second; with --json, a line each.")
    ] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 0 when it is safe to cut over, else 3.")] = False,
) -> None:
    """Show where the migration stands: who has the writes, the lag, the roles, what is missing for a cutover."""
    if watch and exit_code:
        raise ConfigError(
            "--exit-code is of one look, and --watch goes on looking", hint="slackwater wait --for safe_to_cutover"
        )
    spec = context.spec()
    sides = context.sides(spec, "status")
    looking = Watch(spec, sides)
    try:
        if watch:
            _keep_looking(looking)
            return
        document = settled(looking).document
    finally:
        sides.close()
    context.show(document, lambda: screen(document))
    if exit_code and document["safe_to_cutover"] is not True:
        raise typer.Exit(exits.NO)


def settled(looking: Watch) -> Seen:
    """A look; where everything runs and the lag is not proven yet, a few more, to let a probe come through."""
    seen = looking.look()
    until = time.monotonic() + SETTLE_S
    while _undecided(seen.document) and time.monotonic() < until:
        time.sleep(0.25)
        seen = looking.look()
    return seen


def _undecided(document: dict[str, Any]) -> bool:
    forward = document["directions"].get("forward")
    return forward is not None and forward["state"] == "running" and forward["lag_seconds"] != 0


def _keep_looking(looking: Watch) -> None:
    """Redraws on a terminal; elsewhere prints the first line whenever it changes; under --json a document a line."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    try:
        while context.invocation().json:
            typer.echo(context.document(looking.document(), indent=None))
            time.sleep(REFRESH_S)
        if console.is_terminal:
            with Live(Text(screen(looking.document())), console=console, auto_refresh=False, screen=False) as live:
                while True:
                    time.sleep(REFRESH_S)
                    live.update(Text(screen(looking.document())), refresh=True)
        shown = ""
        while True:
            line = screen(looking.document()).splitlines()[0]
            if line != shown:
                typer.echo(line)
            shown = line
            time.sleep(REFRESH_S)
    except KeyboardInterrupt:
        return
