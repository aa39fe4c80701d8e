"""Gates without servers: what is not known never passes, and each gate that can be set exists."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from connectors.postgres.orphans import Orphans
from schemas.direction import Direction
from schemas.gates import NAMES
from schemas.spec import Spec, parse_spec
from stream.gates import Facts, Gate, State, all_passed, judge
from stream.gates.facts import Look
from stream.gates.judge import HARD_FOR_ROLLBACK
from stream.monitoring.clock import now

NOTHING = Facts(at=now(), phase=None, turn=None, same_file=None)


def spec(more: str = "") -> Spec:
    return parse_spec(f"migration: a\nold: {{dsn: x}}\nnew: {{dsn: x}}\nkafka: {{bootstrap: x}}\n{more}", env={})


@pytest.mark.parametrize("direction", list(Direction))
def test_what_is_not_known_never_passes(direction: Direction) -> None:
    judged = judge(NOTHING, spec(), direction)
    assert {g.state for g in judged} <= {State.UNKNOWN, State.FAILED}
    assert not all_passed(judged)
    assert len({g.gate for g in judged}) == len(judged)


def test_nothing_judged_is_not_safe() -> None:
    assert not all_passed([])


def test_every_gate_can_be_set_by_its_name() -> None:
    for direction in Direction:
        assert {g.gate for g in judge(NOTHING, spec(), direction)} <= set(NAMES)


def test_on_the_way_back_only_what_would_lose_rows_blocks() -> None:
    judged = judge(NOTHING, spec(), Direction.REVERSE)
    assert {g.gate for g in judged if g.blocks} == HARD_FOR_ROLLBACK
    fine = [
        Gate(gate="lag", state=State.PASSED, detail=""),
        Gate(gate="x", state=State.FAILED, detail="", blocks=False),
    ]
    assert all_passed(fine)


@pytest.mark.parametrize(
    ("rows", "age_s", "state", "blocks"),
    [(3, 1, State.FAILED, True), (0, 1, State.PASSED, False), (0, 1e6, State.UNKNOWN, False)],
)
def test_orphans_on_old_stop_a_rollback_and_an_old_look_does_not(
    rows: int, age_s: float, state: State, blocks: bool
) -> None:
    """Who has to go back does not wait for a look at whole tables; one that was taken and found some is no "safe"."""
    found = Orphans(key="orders.fk", child="shop.orders", parent="shop.customers", rows=rows)
    look = Look(orphans=(found,), at=datetime.now(UTC), age_s=age_s, current=True)
    facts = replace(NOTHING, old_foreign_keys=1, old_orphans=look)
    [gate] = [g for g in judge(facts, spec(), Direction.REVERSE) if g.gate == "foreign_keys"]
    assert (gate.state, gate.blocks, gate.stops) == (state, blocks, blocks)
    if blocks:
        assert "--waive foreign_keys" in str(gate.remedy)
    assert all(g.state is State.UNKNOWN for g in judge(facts, spec()) if g.gate == "foreign_keys")  # that is new's


def test_a_gate_that_is_off_does_not_stop_and_says_what_it_would_say() -> None:
    gate = next(
        g for g in judge(NOTHING, spec("cutover: {gates: {grants: off}}"), Direction.FORWARD) if g.gate == "grants"
    )
    assert (gate.state, gate.off, gate.stops, gate.remedy) == (State.UNKNOWN, True, False, None)
    assert "it would be unknown" in gate.detail


def test_a_cutover_keeps_to_its_hours_and_a_rollback_does_not() -> None:
    hours = spec('cutover: {window: "22:00-05:00 UTC"}')

    def found(at: str, direction: Direction = Direction.FORWARD) -> list[State]:
        facts = Facts(at=datetime.fromisoformat(at), phase=None, turn=None, same_file=None)
        return [g.state for g in judge(facts, hours, direction) if g.gate == "window"]

    assert found("2026-11-22T23:00:00+00:00") == [State.PASSED]
    assert found("2026-11-22T12:00:00+00:00") == [State.FAILED]
    assert found("2026-11-22T12:00:00+00:00", Direction.REVERSE) == []
    assert not [g for g in judge(NOTHING, spec()) if g.gate == "window"]  # not configured, so not there
