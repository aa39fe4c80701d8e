"""Lag is honest: 0 only when a probe has proven it, growing while anything stands still, null when unknown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Unavailable
from schemas.position import Lsn, format_lsn
from stream.monitoring.heartbeat import Beat
from stream.monitoring.lag import PROMPT_S, STUCK_S, Tracker, applied_lsn, state_of
from stream.monitoring.views import SlotView, SourceView, TargetView


def beat(role: str = "capture", *, state: str = "running", age_s: float = 0.2, **fields: Any) -> Beat:
    return Beat(
        direction="forward",
        role=role,
        pid=7,
        host="a",
        state=state,
        reason=fields.get("reason"),
        last_error=None,
        figures=fields.get("figures", {}),
        seen_at=datetime(2026, 1, 1, tzinfo=UTC),
        age_s=age_s,
    )


def captured(lsn: int, epoch: int) -> Beat:
    return beat(figures={"captured_lsn": format_lsn(lsn), "captured_epoch": epoch})


def source(at: float, lsn: int, capture: Beat | None = None, timeline: int = 1) -> SourceView:
    slot = SlotView(name="s", active=True, retained_bytes=0, wal_status="reserved", safe_bytes=None, xmin_age=0)
    return SourceView(at=at, insert_lsn=Lsn(lsn), system_id="1", timeline=timeline, slot=slot, capture=capture)


def target(epoch: int, end: int, committed_at: float | None = None, applied_age_s: float = 0.1) -> TargetView:
    return TargetView(
        epoch=epoch,
        end_lsn=Lsn(end),
        committed_at=committed_at,
        applied_age_s=applied_age_s,
        system_id="1",
        timeline=1,
        apply=beat("apply"),
        backfill=None,
        rows_per_second=0.0,
    )


def test_unknown_before_anything_was_seen() -> None:
    lag = Tracker().lag(1000.0)
    assert (lag.seconds, lag.bytes, lag.freshness_s) == (None, None, None)


def test_one_look_proves_nothing_unless_its_own_position_is_applied() -> None:
    tracker = Tracker()
    tracker.seen(source(1000.0, 500, captured(400, 3)), target(3, 300))
    assert tracker.lag(1000.0).seconds is None
    assert tracker.lag(1000.0).bytes == 100  # up to 400 there was nothing of ours after epoch 3


def test_zero_once_a_probe_has_passed_with_its_age_as_freshness() -> None:
    tracker = Tracker()
    tracker.seen(source(1000.0, 500, captured(400, 3)), target(3, 300))
    tracker.seen(source(1001.0, 600, captured(550, 3)), target(3, 300))
    lag = tracker.lag(1001.5)
    assert lag.seconds == 0
    assert lag.freshness_s == pytest.approx(1.5)  # proven as of the first look


def test_what_capture_has_published_counts_only_when_its_epoch_is_applied() -> None:
    behind = target(3, 300)
    assert applied_lsn(source(1.0, 600, captured(550, 4)), behind) == 300
    assert applied_lsn(source(1.0, 600, captured(550, 3)), behind) == 550


def test_it_grows_while_apply_is_stopped() -> None:
    tracker = Tracker()
    tracker.seen(source(1000.0, 500, captured(500, 3)), target(3, 300, committed_at=990.0))
    assert tracker.lag(1000.0).seconds == 0
    for second in range(1, 60):
        at = 1000.0 + second
        tracker.seen(source(at, 500 + second, captured(500 + second, 3 + second)), target(3, 300, committed_at=990.0))
        assert tracker.lag(at).seconds == pytest.approx(second)


def test_it_grows_while_capture_is_stopped_and_says_nothing() -> None:
    tracker = Tracker()
    for second in range(60):
        at = 1000.0 + second
        tracker.seen(source(at, 500 + second, captured(500, 3)), target(3, 300))
        lag = tracker.lag(at)
        assert lag.seconds == (0 if second <= PROMPT_S else pytest.approx(second))


def test_it_grows_although_nobody_answers_any_more() -> None:
    tracker = Tracker()
    tracker.seen(source(1000.0, 500, captured(500, 3)), target(3, 500))
    tracker.seen(None, target(3, 500))
    lag = tracker.lag(1100.0)
    assert lag.seconds == pytest.approx(100)
    assert lag.freshness_s == pytest.approx(100)
    assert lag.bytes is None


def test_a_busy_stream_shows_the_age_of_the_newest_applied_transaction() -> None:
    tracker = Tracker()
    tracker.seen(source(1000.0, 500, captured(500, 3)), target(3, 500))
    tracker.seen(source(1001.0, 900, captured(880, 9)), target(7, 800, committed_at=1000.8))
    assert tracker.lag(1001.0).seconds == pytest.approx(0.2)


@pytest.mark.parametrize("timeline", [2, 1])
def test_another_server_proves_nothing(timeline: int) -> None:
    tracker = Tracker()
    # A source that was restored from a backup is behind the checkpoint; a promoted one is on another timeline.
    tracker.seen(source(1000.0, 200 if timeline == 1 else 900, captured(900, 3), timeline), target(3, 500))
    assert tracker.passed_at is None
    assert tracker.lag(1000.0).seconds is None


def test_what_was_known_is_taken_over_by_the_next_process() -> None:
    first = Tracker()
    first.seen(source(1000.0, 500, captured(500, 3)), target(3, 500))
    second = Tracker()
    second.remember(first.memory())
    second.seen(source(1030.0, 900, captured(500, 3)), target(3, 500))
    assert second.lag(1030.0).seconds == pytest.approx(30)
    for junk in (None, {}, {"passed_at": "x"}, 3):
        second.remember(junk)
    assert second.passed_at == 1000.0


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.floats(0.1, 5.0)),
        min_size=1,
        max_size=40,
    )
)
def test_never_below_the_age_of_the_oldest_change_not_applied(steps: list[tuple[int, int, int, float]]) -> None:
    """A model: every byte of WAL is a change of its own, committed when it was written."""
    tracker = Tracker()
    at, insert, captured_to, applied = 1000.0, 0, 0, 0
    written: list[tuple[int, float]] = []
    for written_bytes, captured_bytes, applied_bytes, seconds in steps:
        at += seconds
        written += [(insert + i + 1, at) for i in range(written_bytes)]
        insert += written_bytes
        captured_to = min(insert, captured_to + captured_bytes)
        applied = min(captured_to, applied + applied_bytes)
        # Each byte captured is an epoch; capture's figure and the checkpoint are as of now.
        tracker.seen(source(at, insert, captured(captured_to, captured_to)), target(applied, applied))
        lag = tracker.lag(at)
        oldest = next((when for lsn, when in written if lsn > applied), None)
        if lag.seconds == 0:
            assert lag.freshness_s is not None
            assert oldest is None or at - oldest <= lag.freshness_s
        elif lag.seconds is not None and oldest is not None:
            assert lag.seconds >= at - oldest - 1e-6
        assert lag.bytes == insert - applied


def test_the_stage_that_stands_still_is_named_though_its_process_says_that_it_runs() -> None:
    for stage in ("capture", "apply"):
        tracker = Tracker()
        tracker.seen(source(1000.0, 500, captured(500, 3)), target(3, 500))
        for second in range(1, 30):
            at = 1000.0 + second
            capture = captured(500, 3) if stage == "capture" else captured(500 + second, 4)
            tracker.seen(source(at, 500 + second, capture), target(3, 500, applied_age_s=second))
            stuck = tracker.stuck(at)
            assert (stuck.stage if stuck else None) == (stage if second > STUCK_S else None)


def test_who_holds_a_direction_up() -> None:
    running = target(3, 500)
    assert state_of(source(1.0, 5, captured(5, 3)), running) == ("running", None)

    def held(view: SourceView) -> tuple[str, str]:
        state, stuck = state_of(view, running)
        assert stuck is not None
        return state, f"{stuck.stage}: {stuck.cause}"

    assert held(source(1.0, 5)) == ("stopped", "capture: capture has never run")
    dead = source(1.0, 5, beat(age_s=42.0))
    assert held(dead) == ("stopped", "capture: capture has not been heard of for 42 s (pid 7 on a)")
    waits = source(1.0, 5, beat(figures={"waits_for": "the synchronous standby"}))
    assert held(waits) == ("waiting", "capture: capture waits: the synchronous standby")
    halted = source(1.0, 5, beat(state="halted", reason="the slot is gone"))
    assert held(halted) == ("halted", "capture: capture has halted: the slot is gone")
    state, stuck = state_of(Unavailable("no route"), running)
    assert (state, stuck and stuck.stage) == ("unknown", "source")
