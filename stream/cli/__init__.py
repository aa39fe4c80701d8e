"""The console script: one file per verb."""

from __future__ import annotations

import sys

import typer

from schemas.errors import SlackwaterError
from stream.cli import local

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.add_typer(local.app, name="local")


@app.callback()
def slackwater() -> None:
    """Move a live PostgreSQL application from an old schema to a new one, with a way back."""


def main() -> None:
    try:
        app()
    except SlackwaterError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
