"""What `wait` takes for met, and what it refuses to wait for."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import ConfigError
from stream.cli.wait import impossible, met, parse


def document(phase: str | None, writes: str | None = "old", *, safe: bool | None = False) -> dict[str, Any]:
    return {"phase": phase, "writes": writes, "safe_to_cutover": safe}


@pytest.mark.parametrize("text", ["phase=nonsense", "phase", "writes=both", "safe_to_cutover=1", "", "streaming"])
def test_conditions_that_do_not_exist(text: str) -> None:
    with pytest.raises(ConfigError, match="there is no such condition"):
        parse(text)


@pytest.mark.parametrize(
    ("wanted", "phase", "expected"),
    [
        ("streaming", "streaming", True),
        ("streaming", "backfilling", False),
        ("streaming", "armed", True),  # passed
        ("backfilling", "streaming", True),
        ("prepared", "switched", True),
        ("armed", "switched", False),  # it will be again, after a rollback
        ("switched", "armed", False),
        ("streaming", "cancelled", False),
        ("streaming", None, False),
    ],
)
def test_a_phase_is_reached_or_passed(wanted: str, phase: str | None, expected: bool) -> None:
    assert met(parse(f"phase={wanted}"), document(phase)) is expected


def test_writes_and_safety() -> None:
    assert met(parse("writes=old"), document("streaming"))
    assert not met(parse("writes=new"), document("streaming"))
    assert not met(parse("writes=old"), document("streaming", None))
    assert met(parse("safe_to_cutover"), document("armed", safe=True))
    assert not met(parse("safe_to_cutover"), document("armed", safe=None))


@pytest.mark.parametrize(
    ("condition", "phase", "expected"),
    [
        ("phase=planned", "streaming", True),
        ("phase=prepared", "finalized", True),
        ("phase=streaming", "cancelled", True),
        ("phase=cancelled", "switched", False),  # by way of a rollback
        ("phase=switched", "prepared", False),
        ("writes=new", "cancelled", True),
        ("writes=new", "streaming", False),
        ("safe_to_cutover", "finalized", True),
        ("safe_to_cutover", None, False),
        ("phase=finalized", "planned", True),  # which is what it looks like once it is over
        ("phase=cancelled", "planned", True),
        ("writes=new", "planned", True),
        ("phase=switched", "planned", False),
        ("safe_to_cutover", "planned", False),
    ],
)
def test_what_cannot_happen_is_not_waited_for(condition: str, phase: str | None, expected: bool) -> None:
    assert impossible(parse(condition), document(phase)) is expected
