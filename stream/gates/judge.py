"""What must hold before writes may move. Pure: facts in, gates out.

Invariant: unknown counts as failed, and a gate whose facts are missing is unknown, never passed. For the way back only
what would lose rows stops the turn; everything else is said, and does not block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from schemas.direction import Direction
from schemas.spec import Spec
from stream.gates import environment, evidence, pipeline, readiness
from stream.gates.facts import Facts, Stream
from stream.gates.gate import Gate, State, all_passed

HARD_FOR_ROLLBACK = frozenset({"roles", "lag", "quarantine", "reread", "silent_changes"})
"""What stops a rollback that does not pass, known or not: rows would be missing on old."""
HARD_WHERE_FAILED = frozenset({"foreign_keys"})
"""What stops it where it was looked at and found wrong: rows of old have lost what they refer to. One that was not
looked at for a while warns: nobody waits for a look at whole tables to go back. Both may be waived, with a reason."""
# No reason to refuse a way back that is needed, and none to call it safe: the application would be refused on old, or
# would not find there what it wrote; or old takes, or has taken, writes beside new's.
UNSAFE_FOR_ROLLBACK = frozenset({"sequences", "unmapped_columns", "fence", "foreign_writes"})


def judge(facts: Facts, spec: Spec, direction: Direction = Direction.FORWARD) -> list[Gate]:
    """Every gate of a turn in the way of `direction`: forward for a cutover, reverse for a rollback.

    In the order in which a person would see to them. One that the file switches off says so, and what it would say.
    """
    c = spec.command
    if direction is Direction.FORWARD:
        return [_as_set(gate, spec) for gate in _cutover(facts, spec, c)]
    return [replace(g, blocks=_hard(g)) for g in (_as_set(g, spec) for g in _rollback(facts, spec, c))]


def safe(gates: Iterable[Gate]) -> bool:
    """Whether a turn is safe: nothing stands in its way, and the side that opens will take the application's writes."""
    gates = list(gates)
    return all_passed(gates) and not any(map(unsafe, gates))


def unsafe(gate: Gate) -> bool:
    """Whether a turn is not called safe over this one, though it may go over it."""
    return not gate.off and gate.state is not State.PASSED and (gate.wrong or gate.gate in UNSAFE_FOR_ROLLBACK)


def _cutover(facts: Facts, spec: Spec, c: str) -> Iterable[Gate]:
    forward, reverse = (facts.streams.get(d, Stream()) for d in Direction)
    yield pipeline.prepared(facts, c)
    yield pipeline.roles(facts, Direction.FORWARD, c)
    yield pipeline.backfill(facts, c)
    yield pipeline.lag(forward, spec, c)
    # Once the way back is prepared, what it has set aside counts as well.
    both = [forward, reverse] if Direction.REVERSE in facts.streams else [forward]
    yield pipeline.quarantine(_sum([s.quarantined for s in both]), c, back=forward.quarantined == 0)
    yield pipeline.reread(_sum([s.rereads for s in both]))
    yield environment.silent_changes(facts, c)
    yield evidence.verification(forward, spec, Direction.FORWARD, c)
    yield evidence.roundtrip(facts, spec, c)
    yield environment.unmapped_columns(facts, c)
    yield environment.fence(forward, Direction.FORWARD.target, c)
    yield environment.foreign_keys(facts, spec, c)
    yield environment.statistics(facts, c)
    yield pipeline.slot_headroom(facts, spec)
    yield environment.grants(facts, c)
    yield environment.sequences(facts, Direction.FORWARD, c)
    yield environment.replica_identity(facts, c)
    yield readiness.armed(facts, c)
    if Direction.REVERSE in facts.streams:  # before that there is no canary, and the gate before says why
        yield readiness.canary_age(reverse, spec, c)
    yield readiness.foreign_writes(facts, c)
    if spec.cutover.window is not None:
        yield readiness.window(facts, spec.cutover.window)


def _rollback(facts: Facts, spec: Spec, c: str) -> Iterable[Gate]:
    reverse = facts.streams.get(Direction.REVERSE, Stream())
    yield pipeline.prepared(facts, c)
    yield pipeline.roles(facts, Direction.REVERSE, c)
    yield pipeline.lag(reverse, spec, c)
    yield pipeline.quarantine(reverse.quarantined, c, back=True)
    yield pipeline.reread(reverse.rereads)
    yield environment.silent_changes(facts, c)
    yield evidence.verification(reverse, spec, Direction.REVERSE, c)
    yield environment.unmapped_columns(facts, c, Direction.REVERSE)
    yield environment.fence(reverse, Direction.REVERSE.target, c)
    yield environment.foreign_keys(facts, spec, c, Direction.REVERSE)
    yield environment.sequences(facts, Direction.REVERSE, c)
    yield pipeline.slot_headroom(facts, spec)
    yield readiness.canary_age(reverse, spec, c)
    yield readiness.foreign_writes(facts, c)


def _hard(gate: Gate) -> bool:
    return gate.gate in HARD_FOR_ROLLBACK or (gate.gate in HARD_WHERE_FAILED and gate.state is State.FAILED)


def _as_set(gate: Gate, spec: Spec) -> Gate:
    """Switched off, where the file says so."""
    if spec.cutover.gates.settings(gate.gate).on:
        return gate
    place = spec.place("cutover", "gates", gate.gate)
    said = f"switched off in {place}; it would be {gate.state}: {gate.detail}"
    return replace(gate, detail=said, remedy=None, off=True)


def _sum(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(n for n in counts if n is not None)
