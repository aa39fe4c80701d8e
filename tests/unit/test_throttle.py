"""When backfill holds back, and what it says then."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.spec import Backfill as Options
from schemas.spec import Verify
from stream.backfill.throttle import Bucket, Health, Throttle
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics
from stream.verify.role import Continuous

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Clock:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def throttle(
    *, lag: float | None = 0.0, paused: str | None = None, health: Health | None = None, **options: Any
) -> Throttle:
    return Throttle(
        Options.model_validate(options),
        lag_s=lambda: lag,
        paused=lambda: paused,
        health=lambda: health or Health(),
        clock=lambda: NOON,
    )


def test_it_goes_on_when_nothing_speaks_against_it() -> None:
    assert throttle(lag=30.0, max_lag_s=30).judge() is None


def test_it_has_not_judged_before_it_is_asked() -> None:
    assert throttle().reason is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lag": 30.5, "max_lag_s": 30}, "the stream is 30.5 s behind (max_lag_s is 30)"),
        ({"lag": None}, "the stream's lag is not known"),
        ({"window": "22:00-05:00 Europe/Berlin"}, "outside its window 22:00-05:00 Europe/Berlin"),
        ({"paused": "paused by ann: too busy"}, "paused by ann: too busy"),
        ({"health": Health(replica_lag_s=90.0)}, "a replica of the source is 90 s behind (limit 30 s)"),
        ({"health": Health(active_share=0.9)}, "90% of the source's connections are active (limit 80%)"),
        ({"health": Health(oldest_s=7200.0)}, "a transaction on the source is 7200 s old (limit 3600 s)"),
    ],
)
def test_each_pause_says_why(given: dict[str, Any], says: str) -> None:
    assert throttle(**given).judge() == says


def test_only_the_operator_stops_rereads_too() -> None:
    slow = throttle(lag=100.0)
    slow.judge()
    assert slow.reason is not None
    assert slow.brake is None
    stopped = throttle(paused="paused by ann")
    stopped.judge()
    assert stopped.brake == "paused by ann"


def test_a_window_that_is_open_lets_pass() -> None:
    assert throttle(window="11:00-14:00 Europe/Berlin").judge() is None  # 13:00 there


def test_the_rate_is_spent_afterwards_and_comes_back() -> None:
    clock = Clock()
    bucket = Bucket(1000, clock)
    assert bucket.wait_s() == 0
    bucket.spend(3500)  # one second's worth was saved up
    assert bucket.wait_s() == pytest.approx(2.5)
    clock.at += 2.0
    assert bucket.wait_s() == pytest.approx(0.5)
    clock.at += 100.0
    assert bucket.wait_s() == 0
    bucket.spend(1001)  # idle time saves no more than a second's worth
    assert bucket.wait_s() == pytest.approx(0.001)


def test_no_rate_never_waits() -> None:
    bucket = Bucket(None, Clock())
    bucket.spend(10**9)
    assert bucket.wait_s() == 0


def test_limits_change_while_it_runs() -> None:
    limits = throttle(lag=40.0)
    assert limits.judge() is not None
    limits.reconfigure(Options.model_validate({"max_lag_s": 60, "max_rows_per_s": 5}))
    assert limits.judge() is None
    assert limits.rate == 5


def test_the_lag_that_verification_yields_to_changes_as_well() -> None:
    limits = throttle(lag=40.0)
    role = Continuous(
        task=pytest.fail,
        options=Verify(),
        max_lag_s=30.0,
        heartbeat=Heartbeat(dsn="", migration="shop", direction="forward", role="verify"),
        metrics=Metrics("shop", "forward"),
        lag_s=lambda: 40.0,
        paused=lambda _: None,
    )
    role._throttle = limits
    role.reconfigure(Verify(max_rows_per_s=5), 60.0)
    assert limits.judge() is None
    assert limits.rate == 5
