"""Chunks of a pass: whatever was cut, killed or done in whatever order, nothing is left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from connectors.postgres.ranges import Chunk
from stream.verify.coverage import covers, gaps


def chunk(lower: int | None, upper: int | None) -> Chunk:
    return Chunk(number=0, lower=None if lower is None else str(lower), upper=None if upper is None else str(upper))


def test_everything_and_nothing() -> None:
    assert gaps([]) == [chunk(None, None)]
    assert covers([chunk(None, None)])
    assert gaps([chunk(5, 9)]) == [chunk(None, 5), chunk(9, None)]
    assert not covers([chunk(None, 5), chunk(6, None)])


@given(st.lists(st.integers(-(10**6), 10**6), unique=True, max_size=12), st.data())
def test_what_is_done_and_what_is_missing_are_everything(cuts: list[int], data: st.DataObject) -> None:
    edges: list[int | None] = [None, *sorted(cuts), None]
    ranges = [chunk(edges[i], edges[i + 1]) for i in range(len(edges) - 1)]
    assert covers(data.draw(st.permutations(ranges)))
    done = data.draw(st.lists(st.sampled_from(ranges), unique_by=lambda c: (c.lower, c.upper)))
    missing = gaps(done)
    assert covers([*done, *missing])
    for probe in [-(10**7), 10**7, *cuts, *(c + 1 for c in cuts)]:
        assert sum(holds(c, probe) for c in [*done, *missing]) == 1


def holds(part: Chunk, key: int) -> bool:
    return (part.lower is None or int(part.lower) <= key) and (part.upper is None or key < int(part.upper))
