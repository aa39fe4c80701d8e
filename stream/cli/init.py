"""`slackwater init`: a first migration.yaml."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Annotated

import typer

from connectors.postgres import catalog, sequence_survey, session
from schemas.errors import ConfigError
from stream.cli import context
from stream.planning import init as first
from stream.preflight import users_code


def init(
    old: Annotated[str, typer.Option(help="The old database.", metavar="DSN")],
    new: Annotated[str, typer.Option(help="The new database; the same one, for another schema of it.", metavar="DSN")],
    old_schema: Annotated[str, typer.Option(help="The old tables' schema.")] = "public",
    new_schema: Annotated[
        str | None, typer.Option(help="The new tables' schema; by default public, or the only one that holds tables.")
    ] = None,
    migration: Annotated[str, typer.Option(help="The migration's name.")] = "migration",
) -> None:
    """Print a first migration.yaml: tables and columns matched by name, the rest as commented stubs."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", migration):
        raise ConfigError(
            f"{migration!r} cannot name a migration", hint="a lower-case letter, then letters, digits and _, 31 at most"
        )
    with (
        closing(session.connect(old, application="slackwater init")) as source,
        closing(session.connect(new, application="slackwater init")) as target,
    ):
        sources = catalog.tables(source, old_schema)
        taken = {old_schema} if catalog.same_database(source, target) else set()
        schema = new_schema or _guess([s for s in catalog.schemas(target) if s not in taken])
        targets = catalog.tables(target, schema)
        paths = (
            users_code.needed(source, old, sources.values(), old_schema),
            users_code.needed(target, new, targets.values(), schema),
        )
        sequences = (sequence_survey.known(source, old_schema), sequence_survey.known(target, schema))
    if not sources:
        raise ConfigError(f"schema {old_schema} of the old database holds no tables", hint="give --old-schema")
    text = first.first_file(migration, old_schema, schema, sources, targets, sequences, paths)
    context.show({"migration": migration, "yaml": text}, text.rstrip())


def _guess(schemas: list[str]) -> str:
    """The schema of the new tables: public where it holds any, or the only one that does."""
    if "public" in schemas or len(schemas) != 1:
        return "public"
    return schemas[0]
