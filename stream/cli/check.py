"""`slackwater check`: everything that would stop this migration, all at once."""

from __future__ import annotations

import typer

from schemas import exits
from schemas.spec import Spec
from stream.cli import context
from stream.preflight import Findings, Severity
from stream.preflight import check as examine


def check() -> None:
    """Examine both databases, the mappings and Kafka, and list everything that would stop this migration."""
    spec = context.spec()
    found = examine(spec)
    problems = found.problems
    context.show(
        {
            "migration": spec.migration,
            "ok": not problems,
            "problems": len(problems),
            "findings": [finding.document() for finding in found],
        },
        lambda: screen(spec, found),
    )
    if problems:
        raise typer.Exit(exits.NO)


def screen(spec: Spec, found: Findings) -> str:
    """Problems first, then what may hurt later, then what is good to know."""
    lines: list[str] = []
    titles = ((Severity.PROBLEM, "Problems"), (Severity.WARNING, "Warnings"), (Severity.NOTE, "Good to know"))
    for severity, title in titles:
        of = found.of(severity)
        if of:
            lines += [f"{title} ({len(of)})", *(f"  - {finding}" for finding in of), ""]
    problems = len(found.problems)
    if problems:
        lines.append(f"{problems} thing{'s' if problems > 1 else ''} would stop migration {spec.migration}.")
    else:
        lines.append(f"Nothing would stop migration {spec.migration}.")
        lines.append(f"Next: {spec.command} plan, then {spec.command} prepare")
    return "\n".join(lines)
