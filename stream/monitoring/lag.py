"""How far behind a direction is, and who holds it up. Pure: it is told what was seen, and reads no clock.

Invariant: lag is 0 only when a probe has proven it. A probe is a position of the source's WAL and the time it was read:
it has passed once everything at or below it is applied (the checkpoint is past it; or capture has found nothing more
of ours up to it, and the epoch it had published by then is applied). Until a newer probe passes, every figure grows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from schemas.errors import SlackwaterError
from schemas.position import Lsn, parse_lsn
from stream.monitoring.heartbeat import Beat
from stream.monitoring.views import SourceView, TargetView

PROMPT_S = 5.0  # probes are taken and answered about once a second: younger than this, the newest one still speaks
STUCK_S = 10.0  # no probe has passed for so long: something stands still
PROBES = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """`seconds`: at most this old is the oldest change that is not applied. `freshness_s`: how old this knowledge is.

    None is unknown.
    """

    seconds: float | None
    bytes: int | None
    freshness_s: float | None
    applied_lsn: Lsn | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """The stage that holds a direction up: source, capture, apply or target; and why, in words."""

    stage: str
    cause: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A position of the source's WAL at a time (seconds since 1970 by the source's clock)."""

    lsn: Lsn
    at: float


def applied_lsn(source: SourceView | None, target: TargetView) -> Lsn:
    """Up to here everything of ours is in the target."""
    captured = _captured(source.capture if source else None)
    if captured is not None and same_history(source, target) and target.epoch >= captured[0]:
        return max(target.end_lsn, captured[1])
    return target.end_lsn


def same_history(source: SourceView | None, target: TargetView) -> bool:
    """Whether the source is the server and timeline that the checkpoint speaks of: else its positions mean nothing."""
    return source is not None and (source.system_id, source.timeline) == (target.system_id, target.timeline)


def _captured(capture: Beat | None) -> tuple[int, Lsn] | None:
    """(epoch, LSN): everything at or below the LSN is published in epochs up to that one, or holds nothing of ours."""
    if capture is None:
        return None
    epoch, lsn = capture.figures.get("captured_epoch"), capture.figures.get("captured_lsn")
    return (epoch, parse_lsn(lsn)) if isinstance(epoch, int) and isinstance(lsn, str) else None


class Tracker:
    """Follows one direction's probes. `seen` is told every look at the two sides; `lag` may be asked at any time."""

    def __init__(self) -> None:
        self._waiting: deque[Probe] = deque(maxlen=PROBES)  # not passed yet, oldest first
        self._passed: float | None = None  # when the newest passed probe was taken
        self._looked: float | None = None  # the source's time of the newest look at both sides
        self._source: SourceView | None = None
        self._target: TargetView | None = None

    @property
    def passed_at(self) -> float | None:
        """Everything that was committed before this time (by the source's clock) is applied."""
        return self._passed

    def remember(self, kept: object) -> None:
        """Takes over what a tracker before this one knew: `kept` is its `memory`, from the applier's heartbeat."""
        at = kept.get("passed_at") if isinstance(kept, dict) else None
        if isinstance(at, int | float):
            self._passed = max(self._passed or 0.0, float(at))

    def memory(self) -> dict[str, Any]:
        return {} if self._passed is None else {"passed_at": self._passed}

    def seen(self, source: SourceView | None, target: TargetView | None) -> None:
        """One look. A side that did not answer is None, and nothing is learnt from the other one alone."""
        self._source = source or self._source
        self._target = target or self._target
        if source is None or target is None:
            return
        self._looked = source.at
        if not same_history(source, target) or source.insert_lsn < target.end_lsn:
            return
        self._waiting.append(Probe(source.insert_lsn, source.at))
        passed = applied_lsn(source, target)
        while self._waiting and self._waiting[0].lsn <= passed:
            self._passed = max(self._passed or 0.0, self._waiting.popleft().at)

    def lag(self, now: float) -> Lag:
        """The lag at `now`, by the source's clock."""
        source, target = self._source, self._target
        if target is None:
            return Lag(seconds=None, bytes=None, freshness_s=None, applied_lsn=None)
        applied = applied_lsn(source, target)
        known = self._looked is not None and now - self._looked <= PROMPT_S
        behind = max(0, source.insert_lsn - applied) if known and source and same_history(source, target) else None
        freshness = None if self._looked is None else max(0.0, now - self._looked)
        if self._passed is not None and now - self._passed <= PROMPT_S and not self._backlog():
            proven = max(0.0, now - self._passed)
            return Lag(seconds=0.0, bytes=behind, freshness_s=proven, applied_lsn=applied)
        # Commit order: what is not applied was committed after the newest transaction that is.
        since = max(self._passed or 0.0, target.committed_at or 0.0)
        seconds = max(0.001, now - since) if since else None
        if freshness is None and self._passed is not None:
            freshness = max(0.0, now - self._passed)
        return Lag(seconds=seconds, bytes=behind, freshness_s=freshness, applied_lsn=applied)

    def _backlog(self) -> bool:
        """Whether rows are known to be in Kafka that are not applied."""
        captured = _captured(self._source.capture if self._source else None)
        return captured is not None and self._target is not None and captured[0] > self._target.epoch

    def stuck(self, now: float) -> Stuck | None:
        """The stage that stands still although its process says that it runs; None while probes pass."""
        if self._source is None or self._target is None or self._passed is None or now - self._passed <= STUCK_S:
            return None
        since = f"for {now - self._passed:.0f} s"
        if not same_history(self._source, self._target):
            cause = "the source is not the server, or not the timeline, that the checkpoint speaks of"
            return Stuck(stage="source", cause=cause)
        captured = _captured(self._source.capture)
        oldest = self._waiting[0] if self._waiting else None
        if captured is None or (oldest is not None and captured[1] < oldest.lsn):
            return Stuck(stage="capture", cause=f"capture has not passed the source's position {since}")
        if self._target.applied_age_s > STUCK_S:
            return Stuck(stage="apply", cause=f"apply has committed nothing {since}, though there is more in Kafka")
        return None


def state_of(
    source: SourceView | SlackwaterError | None, target: TargetView | SlackwaterError | None
) -> tuple[str, Stuck | None]:
    """A direction's state, and who holds it up, from one look alone.

    States: unknown (a side does not answer), stopped, halted, paused, starting, waiting, running.
    """
    for stage, side in (("source", source), ("target", target)):
        if isinstance(side, SlackwaterError):
            return "unknown", Stuck(stage=stage, cause=f"the {stage} does not answer: {side.cause}")
    assert not isinstance(source, SlackwaterError)
    assert not isinstance(target, SlackwaterError)
    if source is not None and target is not None and source.slot is None:
        return "halted", Stuck(stage="capture", cause="the replication slot is gone from the source")
    roles = [("capture", source.capture if source else None), ("apply", target.apply if target else None)]
    for state in ("halted", "stopped", "paused", "starting", "waiting"):
        for role, beat in roles:
            if _coarse(beat) == state:
                return state, Stuck(stage=role, cause=describe(role, beat))
    return "running", None


def _coarse(beat: Beat | None) -> str:
    if beat is None or not beat.alive:
        return "stopped"
    if beat.state == "running" and beat.figures.get("waits_for"):
        return "waiting"
    return beat.state


def describe(role: str, beat: Beat | None) -> str:
    """What a role is doing, in one clause."""
    if beat is None:
        return f"{role} has never run"
    where = f"pid {beat.pid} on {beat.host}"
    if beat.state == "stopped":
        return f"{role} was stopped" + (f" after: {beat.reason}" if beat.reason else "")
    if not beat.alive:
        return f"{role} has not been heard of for {beat.age_s:.0f} s ({where})"
    reason = beat.reason or beat.figures.get("waits_for")
    match beat.state:
        case "halted":
            return f"{role} has halted: {reason}"
        case "paused":
            return f"{role} is {reason}" if str(reason).startswith("paused") else f"{role} is paused: {reason}"
        case "starting":
            return f"{role} is starting" + (f" again after: {reason}" if reason else "")
    return f"{role} waits: {reason}" if reason else f"{role} is running"
