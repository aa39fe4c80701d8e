"""Figures as people read them."""

from __future__ import annotations

import pytest

from stream.cli import formatting


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unknown"),
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (45.2, "45 s"),
        (119, "119 s"),
        (720, "12 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_seconds(value: float | None, shown: str) -> None:
    assert formatting.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unknown"),
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (4096, "4.0 KB"),
        (1 << 40, "1.0 TB"),
        (3 << 29, "1.5 GB"),
    ],
)
def test_size(value: int | None, shown: str) -> None:
    assert formatting.size(value) == shown


def test_columns_line_up_and_the_last_runs_free() -> None:
    shown = formatting.columns([("a", "bb", "c c c"), ("aaa", "b", "")], header=("X", "Y", "Z"), indent=1)
    assert shown == " X    Y   Z\n a    bb  c c c\n aaa  b"
