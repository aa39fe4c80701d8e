"""The table of phases is closed, and its ways out are where they belong."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Refused
from stream.migration.phases import TRANSITIONS, Phase, allowed, may_cancel, may_finalize, reachable, require

ENDS = {Phase.FINALIZED, Phase.CANCELLED}


def test_every_phase_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert {p for p, after in TRANSITIONS.items() if not after} == ENDS


def test_the_way_of_the_design() -> None:
    way = ["planned", "prepared", "backfilling", "streaming", "armed", "switching", "switched", "switching", "armed"]
    for current, to in itertools.pairwise(way):
        require(Phase(current), Phase(to))
    require(Phase.SWITCHED, Phase.FINALIZED)


def test_no_switch_without_the_way_back_armed() -> None:
    assert {p for p in Phase if allowed(p, Phase.SWITCHING)} == {Phase.ARMED, Phase.SWITCHED}


def test_nothing_is_cancelled_once_the_new_side_was_open() -> None:
    assert not [p for p in Phase if may_cancel(p, 1)]
    assert not any(may_cancel(p, 0) for p in (Phase.SWITCHING, Phase.SWITCHED, *ENDS))
    assert all(may_cancel(p, 0) for p in (Phase.PREPARED, Phase.BACKFILLING, Phase.STREAMING, Phase.ARMED))


def test_only_a_migration_that_has_switched_is_finalized() -> None:
    assert not [p for p in Phase if may_finalize(p, 0)]
    assert [p for p in Phase if may_finalize(p, 2)] == [Phase.ARMED, Phase.SWITCHED]


def test_a_refusal_names_what_may_follow() -> None:
    with pytest.raises(Refused, match="streaming cannot become switched: after streaming comes armed, backfilling"):
        require(Phase.STREAMING, Phase.SWITCHED)


@given(st.sampled_from(list(Phase)), st.lists(st.sampled_from(list(Phase)), max_size=20))
def test_any_walk_stays_within_what_is_reachable(start: Phase, wishes: list[Phase]) -> None:
    ahead = reachable(start)
    current = start
    for to in wishes:
        if allowed(current, to):
            current = to
        assert current in ahead
        assert reachable(current) <= ahead


def test_an_end_is_reachable_from_everywhere() -> None:
    assert all(reachable(p) & ENDS for p in Phase)
