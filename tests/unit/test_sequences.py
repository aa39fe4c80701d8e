"""Where a sequence is set: never back, never onto a value that is taken, always in its own steps."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from schemas.sequences import MARGIN_STEPS, Sequence, place

BIG = (1 << 63) - 1
ANY = (-BIG - 1, BIG)


def sequence(last: int | None = None, **changes: object) -> Sequence:
    made = Sequence(increment=1, minimum=1, maximum=BIG, start=1, cache=1, cycle=False, last=last)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def down(last: int | None = None, increment: int = -1) -> Sequence:
    return sequence(last, increment=increment, minimum=-BIG, maximum=-1, start=-1)


def test_past_the_other_sides_sequence_and_rows() -> None:
    assert place(sequence(), [sequence(500)], [400], limit=ANY).value == 500 + MARGIN_STEPS
    assert place(sequence(), [sequence(500)], [900], limit=ANY).value == 900 + MARGIN_STEPS
    assert place(sequence(), [], [900], limit=ANY).value == 900 + MARGIN_STEPS
    assert place(sequence(), [], [], limit=ANY).value is None
    assert place(sequence(50_000), [sequence(500)], [500], limit=ANY).value is None, "it never goes back"
    # The other side cannot be asked: it began a margin ahead of what is known here, and went on from there.
    assert place(sequence(500), [sequence(500)], [900], limit=ANY, margins=2).value == 900 + 2 * MARGIN_STEPS
    assert place(sequence(), [sequence()], [], limit=ANY, margins=2).value == 1 + 2 * MARGIN_STEPS
    far = place(sequence(500), [sequence(500)], [900], limit=ANY, margins=2, stride=50)
    assert far.value == 900 + 2 * 50 * MARGIN_STEPS


def test_a_sequence_that_counts_down() -> None:
    assert place(down(), [down(-500)], [-700], limit=ANY).value == -700 - MARGIN_STEPS
    # The other one counts up: its values never meet ours, its rows may.
    assert place(down(), [sequence(500)], [-3], limit=ANY).value == -3 - MARGIN_STEPS


def test_steps_are_kept() -> None:
    odd = sequence(7, increment=2)
    value = place(odd, [sequence(10, increment=2)], [], limit=ANY).value
    assert value is not None
    assert value % 2 == 1
    assert value >= 10 + 2 * MARGIN_STEPS
    hilo = place(sequence(None, increment=50), [sequence(101, increment=50)], [140], limit=ANY).value
    assert hilo is not None
    assert hilo >= 140 + 50 * MARGIN_STEPS
    assert hilo % 50 == 1


def test_where_there_is_no_room() -> None:
    small = (-(1 << 15), (1 << 15) - 1)
    near = place(sequence(), [sequence(32_000)], [32_000], limit=small)
    assert (near.value, near.note) == (32_000, "it is about to reach its end: no margin is left")
    # A row that nobody drew from the sequence must not end it.
    sentinel = place(sequence(), [sequence(100)], [99_999], limit=small)
    assert sentinel.value == 100 + MARGIN_STEPS
    assert "higher values" in sentinel.note
    over = place(sequence(), [], [99_999], limit=small)
    assert (over.value, over.note) == (32_767, "it is at its end: it can give no value that is free")


def test_a_sequence_that_goes_round() -> None:
    own = sequence(None, maximum=5000, cycle=True)
    other = sequence(4990, maximum=5000, cycle=True)
    assert place(own, [other], [5000], limit=ANY).value == (4990 + MARGIN_STEPS - 1) % 5000 + 1


@given(
    increment=st.sampled_from([1, 2, 7, 50, -1, -3]),
    last=st.none() | st.integers(-3000, 3000),
    drawn=st.none() | st.integers(-3000, 3000),
    values=st.lists(st.integers(-4000, 4000), max_size=3),
)
def test_the_next_value_is_always_free(increment: int, last: int | None, drawn: int | None, values: list[int]) -> None:
    own = sequence(last, increment=increment, minimum=-BIG, maximum=BIG)
    other = sequence(drawn, increment=increment, minimum=-BIG, maximum=BIG)
    found = place(own, [other], values, limit=ANY).value
    now = own.stands if found is None else found
    following = now + increment
    taken = [*values, *([] if drawn is None else [drawn]), *([] if last is None else [last])]
    assert all(following > t for t in taken) if increment > 0 else all(following < t for t in taken)
    assert (now - own.stands) % increment == 0
