"""Any name of PostgreSQL's becomes one that Avro and Kafka allow, and no two become the same."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from schemas.direction import Direction, topic_name
from schemas.escape import escape, unescape
from tests.unit.rows import NAMES


@given(NAMES)
def test_escaping_can_be_undone_and_is_legal(name: str) -> None:
    assert unescape(escape(name)) == name
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", escape(name))


@given(st.text("abx_20f", min_size=1, max_size=8), st.text("abx_20f -", min_size=1, max_size=8))
def test_no_two_names_meet(a: str, b: str) -> None:
    assert (escape(a) == escape(b)) == (a == b)


def test_ordinary_names_stay() -> None:
    for name in ("customers", "pos_x", "_private", "Mixed_Case", "tax_x2y"):
        assert escape(name) == name
    assert escape("pos_x20") != "pos_x20"


@given(NAMES, NAMES)
def test_topics_are_legal(schema: str, table: str) -> None:
    name = topic_name("slackwater", "m", Direction.FORWARD, schema, table * 20)
    assert len(name) <= 249
    assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)


def test_long_names_do_not_meet() -> None:
    names = {topic_name("slackwater", "m", Direction.FORWARD, "ü" * 60, "ä" * 60 + tail) for tail in ("a", "b", "")}
    assert len(names) == 3
    assert all(len(n) <= 249 for n in names)


def test_a_dot_in_a_name_does_not_move_the_boundary() -> None:
    a = topic_name("p", "m", Direction.FORWARD, "a.b", "c")
    b = topic_name("p", "m", Direction.FORWARD, "a", "b.c")
    assert a != b
