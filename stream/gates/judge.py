"""What must hold before writes may move. Pure: facts in, gates out.

Invariant: unknown counts as failed, and a gate whose facts are missing is unknown, never passed. For the way back only
what would lose rows stops the turn; everything else is said, and does not block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from schemas.direction import Direction
from schemas.spec import Spec
from stream.gates import flow, proof, surroundings, turns
from stream.gates.facts import Facts, Stream
from stream.gates.gate import Gate

HARD_FOR_ROLLBACK = frozenset({"roles", "lag", "quarantine", "reread"})


def judge(facts: Facts, spec: Spec, direction: Direction = Direction.FORWARD) -> list[Gate]:
    """Every gate of a turn in the way of `direction`: forward for a cutover, reverse for a rollback.

    In the order in which a person would see to them. One that the file switches off says so, and what it would say.
    """
    c = spec.command
    if direction is Direction.FORWARD:
        return [_as_set(gate, spec) for gate in _cutover(facts, spec, c)]
    return [
        replace(g, blocks=g.gate in HARD_FOR_ROLLBACK) for g in (_as_set(g, spec) for g in _rollback(facts, spec, c))
    ]


def _cutover(facts: Facts, spec: Spec, c: str) -> Iterable[Gate]:
    forward, reverse = (facts.streams.get(d, Stream()) for d in Direction)
    yield flow.prepared(facts, c)
    yield flow.roles(facts, Direction.FORWARD, c)
    yield flow.backfill(facts, c)
    yield flow.lag(forward, spec, c)
    # Once the way back is prepared, what it has set aside counts as well.
    both = [forward, reverse] if Direction.REVERSE in facts.streams else [forward]
    yield flow.quarantine(_sum([s.quarantined for s in both]), c)
    yield flow.reread(_sum([s.rereads for s in both]))
    yield proof.verification(forward, spec, Direction.FORWARD, c)
    yield proof.roundtrip(facts, spec, c)
    yield surroundings.unmapped_columns(facts, c)
    yield surroundings.fence(forward, Direction.FORWARD.target, c)
    yield surroundings.foreign_keys(facts, spec, c)
    yield surroundings.statistics(facts, c)
    yield flow.slot_headroom(facts, spec)
    yield surroundings.grants(facts, c)
    yield surroundings.replica_identity(facts, c)
    yield turns.armed(facts, c)
    if Direction.REVERSE in facts.streams:  # before that there is no canary, and the gate before says why
        yield turns.canary_age(reverse, spec, c)
    yield turns.foreign_writes(facts, c)
    if spec.cutover.window is not None:
        yield turns.window(facts, spec.cutover.window)


def _rollback(facts: Facts, spec: Spec, c: str) -> Iterable[Gate]:
    reverse = facts.streams.get(Direction.REVERSE, Stream())
    yield flow.prepared(facts, c)
    yield flow.roles(facts, Direction.REVERSE, c)
    yield flow.lag(reverse, spec, c)
    yield flow.quarantine(reverse.quarantined, c)
    yield flow.reread(reverse.rereads)
    yield proof.verification(reverse, spec, Direction.REVERSE, c)
    yield surroundings.fence(reverse, Direction.REVERSE.target, c)
    yield flow.slot_headroom(facts, spec)
    yield turns.canary_age(reverse, spec, c)
    yield turns.foreign_writes(facts, c)


def _as_set(gate: Gate, spec: Spec) -> Gate:
    """Switched off, where the file says so."""
    if spec.cutover.gates.settings(gate.gate).on:
        return gate
    place = spec.place("cutover", "gates", gate.gate)
    said = f"switched off in {place}; it would be {gate.state}: {gate.detail}"
    return replace(gate, detail=said, remedy=None, off=True)


def _sum(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(n for n in counts if n is not None)
