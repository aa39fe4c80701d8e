"""The one answer of `arm`, `cutover`, `rollback` and `failover`: under `--json` the same document on every exit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import typer

from connectors.postgres import control
from schemas.direction import Side
from schemas.errors import Aborted, Refused, SlackwaterError
from schemas.spec import Spec
from stream.cli import context
from stream.cutover.outcome import follows, result_of, runnable
from stream.monitoring.logs import Redaction
from stream.status.document import current_turn, who_writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`result`: done or already. `steps` are (what, seconds). `text` is what a person reads."""

    result: str
    text: str
    steps: Sequence[tuple[str, float]] = ()
    pause_seconds: float | None = None
    next: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def answered(spec: Spec, verb: str, work: Callable[[], Answer]) -> None:
    """Run the verb and print its answer; an error is printed as one too, and leaves by its own exit status."""
    try:
        answer = work()
    except SlackwaterError as error:
        if context.invocation().json:
            again = context.command(spec, verb)
            told = failed(error) | {"next": follows(result_of(error), error.hint, command=spec.command, again=again)}
            context.show(_document(spec, verb, told), "")
            context.note(f"slackwater: {told['error']['cause']}\n  remedy: {told['error']['remedy']}")
            raise typer.Exit(error.exit_code) from error
        raise
    document = {
        "result": answer.result,
        "pause_seconds": answer.pause_seconds,
        "steps": [{"step": step, "seconds": round(seconds, 3)} for step, seconds in answer.steps],
        "reasons": [],
        "error": None,
        "next": answer.next,
        **answer.more,
    }
    context.show(_document(spec, verb, document) if context.invocation().json else document, answer.text)


def failed(error: SlackwaterError) -> dict[str, Any]:
    """The document of an error that came before anybody could look who takes writes."""
    redact = Redaction()
    reasons = (error.reasons if isinstance(error, Refused | Aborted) else ()) or (error.cause,)
    return {
        "result": result_of(error),
        "writes": None,
        "turn": None,
        "pause_seconds": None,
        "steps": [],
        "reasons": [redact(reason) for reason in reasons],
        "error": {"cause": redact(error.cause), "remedy": redact(context.on_file(error.hint))},
        "next": runnable(context.on_file(error.hint)),
    }


def _document(spec: Spec, verb: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with who takes writes now, by the two turn rows; null where they cannot be read."""
    sides = context.sides(spec, verb)
    try:
        turns = {s: sides.attempt(s, partial(control.turn, name=spec.migration, side=s)) for s in Side}
    finally:
        sides.close()
    known = {side: None if isinstance(turn, SlackwaterError) else turn for side, turn in turns.items()}
    head = {"result": answer["result"], "writes": who_writes(known, turns), "turn": current_turn(known, turns)}
    return {**head, **answer, **head}
