"""`slackwater plan`: what will happen."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from schemas.direction import Side
from stream.cli import context
from stream.planning import ddl as proposing
from stream.planning import plan as planning


def plan(
    ddl: Annotated[bool, typer.Option("--ddl", help="Print CREATE TABLEs for the tables that new lacks.")] = False,
) -> None:
    """Show what will happen: tables, sizes, each mapping's SELECT, what leans on old tables, what is not moved."""
    spec = context.spec()
    with (
        closing(context.open_side(spec, Side.OLD, "plan")) as old,
        closing(context.open_side(spec, Side.NEW, "plan")) as new,
    ):
        report = planning.plan(spec, old, new)
    if ddl:
        missing = [{"table": p.table, "ddl": p.sql, "reason": p.reason or None} for p in report.proposals]
        context.show(
            {"migration": spec.migration, "missing": missing},
            lambda: proposing.script(report.proposals).rstrip() or "-- new has every table that the file names",
        )
        return
    context.show(planning.document(report), lambda: planning.text(report))
