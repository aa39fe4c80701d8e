"""Every gate has a lie that it finds: one that came without is not believed yet."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from schemas.direction import Direction
from schemas.gates import NAMES
from schemas.spec import parse_spec
from stream.gates import Facts, judge
from stream.monitoring.clock import now
from tests.fixtures.lies import BACK, FORWARD, Lie

README = Path(__file__).parents[2] / "stream" / "verify" / "README.md"


def gates(direction: Direction) -> set[str]:
    spec = parse_spec("migration: a\nold: {dsn: x}\nnew: {dsn: x}\nkafka: {bootstrap: x}\n", env={})
    nothing = Facts(at=now(), phase=None, turn=None, same_file=None)
    # Some of a cutover's are there only once something is armed, or in the file.
    return set(NAMES) if direction is Direction.FORWARD else {g.gate for g in judge(nothing, spec, direction)}


@pytest.mark.parametrize(("direction", "planted"), [(Direction.FORWARD, FORWARD), (Direction.REVERSE, BACK)])
def test_each_gate_has_a_lie_in_each_direction(direction: Direction, planted: Iterable[Lie]) -> None:
    assert {lie.gate for lie in planted} == gates(direction)


def test_the_readme_says_which_lie_each_gate_finds() -> None:
    table = README.read_text().split("| gate | before a turn | after it |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    assert rows == [(gate, told(FORWARD, gate), told(BACK, gate)) for gate in NAMES]


def told(lies: Iterable[Lie], gate: str) -> str:
    return "; ".join(lie.planted for lie in lies if lie.gate == gate) or "-"
