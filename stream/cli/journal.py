"""`slackwater journal`: who did what, when."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from schemas import exits
from schemas.direction import Side
from stream.cli import context, formatting
from stream.migration import journal as history
from stream.monitoring.clock import rfc3339

LONGEST = 60


def journal(
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the chain of hashes: exit 3 when it is broken.")
    ] = False,
) -> None:
    """Show who did what, when, and with what outcome; each entry is sealed with a hash over the one before it."""
    spec = context.spec()
    with context.prepared_side(spec, Side.NEW, "journal") as conn:
        entries = history.entries(conn, spec.migration)
    broken = history.first_break(entries)
    head = entries[-1].hash if entries else None

    def screen() -> str:
        rows = [(str(e.seq), rfc3339(e.at), _who(e), e.step, e.outcome, _detail(e)) for e in entries]
        table = formatting.columns(rows, header=("#", "AT", "BY", "STEP", "OUTCOME", "DETAIL"))
        if not verify:
            return table
        return f"{table}\n\n{broken or f'the chain of {len(entries)} entries holds; its head is {head}'}"

    document = {
        "migration": spec.migration,
        "entries": [asdict(e) for e in entries],
        "intact": broken is None,
        "broken": broken,
        "head": head,
    }
    context.show(document, screen)
    if verify and broken is not None:
        raise typer.Exit(exits.NO)


def _who(entry: history.Entry) -> str:
    return f"{entry.actor} ({entry.remark})" if entry.remark else entry.actor


def _detail(entry: history.Entry) -> str:
    """The detail on one line; long values are cut here, and whole under --json."""
    shown = {k: str(v) for k, v in entry.detail.items() if v is not None}
    return ", ".join(f"{k}={v if len(v) <= LONGEST else v[:LONGEST] + '...'}" for k, v in shown.items())
