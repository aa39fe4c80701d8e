"""Visibility by arithmetic, held against the plain definition over 64-bit ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.snapshot import Snapshot

WRAP = 1 << 32


@pytest.mark.parametrize(
    ("text", "xid", "visible"),
    [
        ("745:745:", 744, True),
        ("745:745:", 745, False),
        ("740:745:740,743", 739, True),
        ("740:745:740,743", 740, False),
        ("740:745:740,743", 742, True),
        ("740:745:740,743", 743, False),
        ("740:745:740,743", 746, False),
        # across the wrap: xmin in the first epoch, xmax in the second
        (f"{WRAP - 3}:{WRAP + 5}:{WRAP - 3},{WRAP + 4}", WRAP - 4, True),
        (f"{WRAP - 3}:{WRAP + 5}:{WRAP - 3},{WRAP + 4}", WRAP - 3, False),
        (f"{WRAP - 3}:{WRAP + 5}:{WRAP - 3},{WRAP + 4}", WRAP - 1, True),
        (f"{WRAP - 3}:{WRAP + 5}:{WRAP - 3},{WRAP + 4}", 3, True),
        (f"{WRAP - 3}:{WRAP + 5}:{WRAP - 3},{WRAP + 4}", 4, False),
        (f"{WRAP - 3}:{WRAP + 5}:{WRAP - 3},{WRAP + 4}", 5, False),
    ],
)
def test_by_hand(text: str, xid: int, visible: bool) -> None:
    assert Snapshot.parse(text).shows(xid) is visible


@given(st.data())
def test_agrees_with_64_bits(data: st.DataObject) -> None:
    xmax = data.draw(st.integers(WRAP, 1 << 62))
    xmin = data.draw(st.integers(xmax - 1000, xmax))
    running = data.draw(st.sets(st.integers(xmin, xmax - 1))) if xmin < xmax else set()
    snapshot = Snapshot.parse(f"{xmin}:{xmax}:{','.join(map(str, running))}")
    full = data.draw(st.integers(xmax - (1 << 31) + 1, xmax + (1 << 30)) | st.integers(xmin - 5, xmax + 5))
    assert snapshot.shows(full % WRAP) is (full < xmin or (full < xmax and full not in running))


@pytest.mark.parametrize("text", ["", "1:2", "5:3:", "3:5:9", "a:b:", "0:0:"])
def test_what_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a snapshot|invalid literal|not enough values"):
        Snapshot.parse(text)
