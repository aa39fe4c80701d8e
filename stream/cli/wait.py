"""`slackwater wait`: until a phase is reached, a cutover is safe, or a side has the writes."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from schemas import exits
from schemas.errors import ConfigError, SlackwaterError
from stream.cli import context, formatting
from stream.migration.phases import Phase, reachable
from stream.status.document import Watch

POLL_S = 0.5
SIDES = ("old", "new", "none")
# On the way to the first cutover: a migration that is past one of them has reached it.
WAY = (Phase.PLANNED, Phase.PREPARED, Phase.BACKFILLING, Phase.STREAMING, Phase.ARMED)


def wait(
    for_: Annotated[
        str, typer.Option("--for", help="phase=P (reached or passed), safe_to_cutover, or writes=old|new|none.")
    ],
    timeout: Annotated[float | None, typer.Option(help="Seconds; without it, as long as it takes.", min=0)] = None,
) -> None:
    """Wait until something holds: exit 0 when it does, 3 when the time is up, 1 at once when it cannot happen."""
    condition = parse(for_)
    spec = context.spec()
    sides = context.sides(spec, "wait")
    looking = Watch(spec, sides)
    started = time.monotonic()
    said: str | None = None
    begun = False
    try:
        while True:
            document = looking.document()
            if met(condition, document):
                break
            here = document["phase"] not in (None, Phase.PLANNED)
            if impossible(condition, document) or (begun and document["phase"] == Phase.PLANNED):
                state = f"the migration is {document['phase']}" if here else formatting.NOTHING_HERE
                raise SlackwaterError(f"{for_} cannot happen: {state}", hint=context.command(spec, "status"))
            begun = begun or here
            said = _tell(document, said)
            left = None if timeout is None else timeout - (time.monotonic() - started)
            if left is not None and left <= 0:
                context.show(_answer(for_, document, met=False), f"timed out after {timeout:g} s: {_where(document)}")
                raise typer.Exit(exits.NO)
            time.sleep(POLL_S if left is None else min(POLL_S, left))
    finally:
        sides.close()
    context.show(_answer(for_, document, met=True), f"{for_}: yes; {_where(document)}")


def parse(text: str) -> tuple[str, str]:
    """(what, value) of a condition. ConfigError on one that does not exist."""
    what, _, value = text.partition("=")
    if what == "phase" and value in set(Phase):
        return what, value
    if what == "writes" and value in SIDES:
        return what, value
    if text == "safe_to_cutover":
        return text, ""
    raise ConfigError(
        f"--for {text}: there is no such condition",
        hint=f"phase=P with P one of {', '.join(Phase)}; safe_to_cutover; writes=old, new or none",
    )


def met(condition: tuple[str, str], document: dict[str, Any]) -> bool:
    what, value = condition
    if what == "writes":
        return bool(document["writes"] == value)
    if what == "safe_to_cutover":
        return document["safe_to_cutover"] is True
    if document["phase"] is None:
        return False
    phase, wanted = Phase(document["phase"]), Phase(value)
    if phase is wanted:
        return True
    past = phase not in WAY or wanted not in WAY or WAY.index(phase) > WAY.index(wanted)
    return past and wanted in WAY[:-1] and phase is not Phase.CANCELLED


def impossible(condition: tuple[str, str], document: dict[str, Any]) -> bool:
    """Whether it can never come true any more, whoever does what."""
    if document["phase"] is None:
        return False
    ahead = reachable(Phase(document["phase"]))
    what, value = condition
    if document["phase"] == Phase.PLANNED and (what == "writes" or value in (Phase.FINALIZED, Phase.CANCELLED)):
        return True  # an end leaves nothing behind that would tell of it: one that is over looks like this
    if what == "phase":
        return Phase(value) not in ahead
    if what == "safe_to_cutover":
        return Phase.ARMED not in ahead
    return Phase.SWITCHING not in ahead


def _tell(document: dict[str, Any], said: str | None) -> str | None:
    """On stderr, what it waits for, whenever that changes."""
    held = next((d["stuck"]["cause"] for d in document["directions"].values() if d["stuck"]), None)
    down = next((error["cause"] for error in document["errors"].values()), None)
    line = f"{_where(document)}{': ' + (down or held or '') if down or held else ''}"
    if line != said:
        context.note(line)
    return line


def _where(document: dict[str, Any]) -> str:
    return f"phase {document['phase'] or 'unknown'}, writes {document['writes'] or 'unknown'}"


def _answer(asked: str, document: dict[str, Any], *, met: bool) -> dict[str, Any]:
    return {"for": asked, "met": met, "phase": document["phase"], "writes": document["writes"], "at": document["at"]}
