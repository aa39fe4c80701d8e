"""`slackwater gates`: what must hold before writes may move, one by one."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any

import typer

from schemas.direction import Direction, Side
from schemas.errors import Refused, SlackwaterError
from schemas.spec import Spec
from stream.cli import context, formatting
from stream.cli.status import settled
from stream.gates import orphan_scan, safe, unsafe
from stream.migration import phase_store, prepared
from stream.migration.phases import Phase
from stream.status.document import Seen, Watch


def gates(
    direction: Annotated[
        Direction | None, typer.Option(help="Of which turn: forward is a cutover, reverse the way back.")
    ] = None,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Look for orphans of foreign keys now, not later.")
    ] = False,
) -> None:
    """Show each gate: its state, what was found, since when, and what to do. Without --direction, of the next turn."""
    spec = context.spec()
    if recheck:
        _recheck(spec, direction)
    sides = context.sides(spec, "gates")
    try:
        watch = Watch(spec, sides)
        seen = settled(watch)
    finally:
        sides.close()
    document, stopping = _document(watch, seen, direction)
    context.show(document, lambda: screen(document, stopping))


def _recheck(spec: Spec, direction: Direction | None) -> None:
    """Of the turn that is asked about; without a word, of the next one: where the way back writes only after a turn."""
    with closing(context.prepared_side(spec, Side.NEW, "gates")) as conn:
        document = prepared.load(conn, spec.migration)
        assert document is not None  # the side was prepared
        if direction is None:
            switched = phase_store.phase(conn, spec.migration) is Phase.SWITCHED
            direction = Direction.REVERSE if switched else Direction.FORWARD
        context.note(f"looking for orphans of every foreign key of {direction.target}'s tables")
        if direction is Direction.FORWARD:
            orphan_scan.take(conn, document, lambda: False)
            return
    with closing(context.prepared_side(spec, Side.OLD, "gates")) as conn:
        orphan_scan.take(conn, document, lambda: False, direction)


def _document(watch: Watch, seen: Seen, direction: Direction | None) -> tuple[dict[str, Any], list[str]]:
    """What is printed, and the gates for whose sake the turn is not called safe."""
    status = seen.document
    if not seen.gates:
        if status["errors"]:
            cause = next(iter(status["errors"].values()))
            raise SlackwaterError(f"the gates are not known: {cause['cause']}", hint=cause["remedy"])
        raise Refused("nothing is prepared yet: there are no gates", hint=status["next"] or "")
    if direction is None:
        direction = Direction.REVERSE if status["writes"] == Side.NEW else Direction.FORWARD
    judged = seen.gates[direction]
    document = {
        "migration": status["migration"],
        "direction": direction.value,
        "at": status["at"],
        "safe": safe(judged),
        **watch.gate_documents(judged, direction),
        "errors": status["errors"],
    }
    return document, [g.gate for g in judged if g.stops or unsafe(g)]


def screen(document: dict[str, Any], stopping: list[str]) -> str:
    """One line a gate, what to do below it; the answer last."""
    gates = document["gates"]
    signs = [*map(_sign, gates), *("off" for _ in document["gates_off"])]
    listed = [*gates, *document["gates_off"]]
    rows = [(sign, g["gate"], f"since {g['since']}", g["detail"]) for sign, g in zip(signs, listed, strict=True)]
    lines = []
    for gate, line in zip(listed, formatting.columns(rows).splitlines(), strict=True):
        lines.append(line)
        if gate["state"] != "passed" and gate["remedy"]:
            lines.append(f"         remedy: {gate['remedy']}")
    turn = "cut over" if document["direction"] == Direction.FORWARD else "go back"
    lines.append(f"safe to {turn}: " + ("yes" if document["safe"] else f"no ({', '.join(stopping)})"))
    for side, error in document["errors"].items():
        lines.append(f"{side} does not answer: {error['cause']}")
    return "\n".join(lines)


def _sign(gate: dict[str, Any]) -> str:
    return str(gate["state"]) if gate["blocks"] or gate["state"] == "passed" else "warning"
