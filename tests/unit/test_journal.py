"""The chain breaks where an entry was changed, taken out or put in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.migration.journal import GENESIS, Entry, first_break

STEPS = st.lists(
    st.tuples(
        st.text(max_size=8),
        st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(max_size=4), max_size=3),
    ),
    max_size=8,
)


def chain(steps: list[tuple[str, dict[str, Any]]]) -> list[Entry]:
    entries: list[Entry] = []
    for i, (step, detail) in enumerate(steps, 1):
        entry = Entry(
            migration="shop",
            seq=i,
            at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=i),
            actor="dba",
            remark=None,
            host="anna@a",
            step=step,
            outcome="done",
            detail=detail,
            previous=entries[-1].hash if entries else GENESIS,
            hash="",
        )
        entries.append(replace(entry, hash=entry.sealed()))
    return entries


@given(STEPS)
def test_what_was_written_holds(steps: list[tuple[str, dict[str, Any]]]) -> None:
    assert first_break(chain(steps)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "eve"},
        {"remark": "it was not me"},
        {"host": "b"},
        {"step": "nothing"},
        {"outcome": "failed"},
        {"detail": {"a": 2}},
        {"at": datetime(2025, 1, 1, tzinfo=UTC)},
        {"migration": "other"},
    ],
)
def test_any_field_that_was_changed_is_found(change: dict[str, Any]) -> None:
    entries = chain([("one", {"a": 1}), ("two", {"a": 1}), ("three", {"a": 1})])
    entries[1] = replace(entries[1], **change)
    assert first_break(entries) == "entry 2 is not what was written: its hash does not match"
    # Sealing it anew only moves the break to its successor, which names the old hash.
    entries[1] = replace(entries[1], hash=entries[1].sealed())
    assert first_break(entries) == "entry 3 does not follow entry 2: one of the two was replaced"


def test_an_entry_taken_out_or_put_in_is_found() -> None:
    entries = chain([("one", {}), ("two", {}), ("three", {})])
    assert first_break([entries[0], entries[2]]) == "entry 2 is missing: after 1 comes 3"
    assert first_break(entries[1:]) == "entry 1 is missing: after 0 comes 2"
    assert first_break([entries[0], entries[0]]) == "entry 2 is missing: after 1 comes 1"


def test_a_time_zone_is_only_a_way_of_writing() -> None:
    from datetime import timezone

    (entry,) = chain([("one", {})])
    elsewhere = replace(entry, at=entry.at.astimezone(timezone(timedelta(hours=5, minutes=45))))
    assert first_break([elsewhere]) is None
