"""What Prometheus reads: every name of the outer contract that this version can measure.

Invariant: an unknown figure is absent, never zero. Each name stands in the README's table, and a test says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from schemas import errors
from schemas.errors import SlackwaterError

BOTH = ("migration", "direction")
EPOCH_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
GATE_STATES = ("passed", "failed", "unknown")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNEXPECTED = "unexpected"
ERRORS = (*(n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, SlackwaterError)), UNEXPECTED)
"""The classes that errors are counted by."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` beside every counter and histogram: names that nobody promised


@cache
def version() -> str:
    """The installed version, or "unknown" in a bare source tree."""
    try:
        return metadata.version("slackwater")
    except metadata.PackageNotFoundError:
        return "unknown"


class Metrics:
    """The metrics of one process, in a registry of their own. None stands for unknown and removes the sample."""

    def __init__(self, migration: str, direction: str, role: str = "") -> None:
        self.registry = CollectorRegistry()
        self._own = (migration, direction)
        self._shown: set[tuple[int, tuple[str, ...]]] = set()  # which gauges have which samples
        self._rows = self._counter("rows_total", "Row changes handled", "stage", "op", "table")
        self._epochs = self._counter("epochs_total", "Epochs handled", "stage")
        self._epoch_s = Histogram(
            "slackwater_epoch_seconds",
            "Time one epoch took",
            (*BOTH, "stage"),
            buckets=EPOCH_BUCKETS_S,
            registry=self.registry,
        )
        self._backfill_rows = self._counter("backfill_rows_total", "Rows loaded by backfill")
        self._verify_rows = self._counter("verify_rows_total", "Rows compared by verification")
        self._errors = self._counter("errors_total", "Errors that stopped a role, by class", "class")

        self._lag_s = self._gauge(
            "lag_seconds", "Age of the oldest change not applied; 0 only when proven; absent: unknown"
        )
        self._lag_bytes = self._gauge("lag_bytes", "WAL between the source's insert position and what is applied")
        self._freshness_s = self._gauge("freshness_seconds", "Age of what is known about the lag")
        self._slot = self._gauge("slot_retained_bytes", "WAL that the replication slot holds back on the source")
        self._backfill_chunks = self._gauge("backfill_chunks", "Chunks of the backfill, by state", "state")
        self._verification_age_s = self._gauge(
            "verification_age_seconds", "Age of the oldest table's last complete verification; absent: a table has none"
        )
        self._mismatched = self._gauge("mismatched_rows", "Rows that the last complete verification found to differ")
        self._quarantined = self._gauge("quarantined_rows", "Rows that could not be applied and are not waived")
        self._reread = self._gauge("reread_rows", "Rows waiting to be read again from the source")
        self._foreign = self._gauge("foreign_writes", "Rows written to a closed side and not decided upon")
        self._canary_s = self._gauge("canary_age_seconds", "Age of the newest canary that came through")
        self._up = self._gauge("up", "1 while the role works or waits its turn, else 0", "role")
        self._gauge("info", "Always 1", "version").labels(*self._own, version()).set(1)

        # Migration-wide: set by the forward applier alone, absent elsewhere.
        self._safe = self._gauge("safe_to_cutover", "1 when every gate passes")
        self._safe_back = self._gauge("safe_to_rollback", "After a cutover: 1 when nothing stands in the way back")
        self._gate = self._gauge("gate", "1 for the gate's current state", "gate", "state")
        self._phase = self._gauge("phase", "1 for the current phase", "phase")
        self._writes = self._gauge("writes", "1 for the side that accepts writes: old, new or none", "side")
        self._pause = self._gauge("pause_seconds", "How long writers were paused by the last turn", "turn")
        if role:
            self.up(role, False)
            for class_ in ERRORS:  # from 0 on, or an alert would not see the first one as an increase
                self._errors.labels(*self._own, class_)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"slackwater_{name}", what, (*BOTH, *labels), registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"slackwater_{name}", what, (*BOTH, *labels), registry=self.registry)

    # What roles count.

    def rows(self, stage: str, op: str, table: str, n: int) -> None:
        """`n` more changes; stage is capture, apply or backfill; op is Debezium's letter."""
        self._rows.labels(*self._own, stage, op, table).inc(n)

    def epoch(self, stage: str, seconds: float) -> None:
        """One more epoch, and what it took."""
        self._epochs.labels(*self._own, stage).inc()
        self._epoch_s.labels(*self._own, stage).observe(seconds)

    def backfill_rows(self, n: int) -> None:
        self._backfill_rows.labels(*self._own).inc(n)

    def verify_rows(self, n: int) -> None:
        self._verify_rows.labels(*self._own).inc(n)

    def error(self, error: BaseException) -> None:
        """One more error, by the class of `schemas.errors` that it belongs to; not one of ours is `unexpected`."""
        class_ = next((c.__name__ for c in type(error).__mro__ if c.__name__ in ERRORS), UNEXPECTED)
        self._errors.labels(*self._own, class_).inc()

    # What roles know.

    def lag(self, seconds: float | None, bytes_: int | None, freshness_s: float | None) -> None:
        self._set(self._lag_s, seconds)
        self._set(self._lag_bytes, bytes_)
        self._set(self._freshness_s, freshness_s)

    def slot_retained(self, bytes_: int | None) -> None:
        self._set(self._slot, bytes_)

    def backfill_chunks(self, chunks: Mapping[str, int]) -> None:
        """Chunks by state, all of them: a state that is not named is removed."""
        self._replace(self._backfill_chunks, {(state,): n for state, n in chunks.items()})

    def quarantined(self, rows: int | None) -> None:
        self._set(self._quarantined, rows)

    def verification(self, age_s: float | None, mismatched: int | None) -> None:
        self._set(self._verification_age_s, age_s)
        self._set(self._mismatched, mismatched)

    def reread(self, rows: int | None) -> None:
        self._set(self._reread, rows)

    def foreign_writes(self, rows: int | None) -> None:
        self._set(self._foreign, rows)

    def canary_age(self, seconds: float | None) -> None:
        """None where no canary is due: absent."""
        self._set(self._canary_s, seconds)

    def up(self, role: str, ready: bool) -> None:
        self._up.labels(*self._own, role).set(1 if ready else 0)

    # Migration-wide.

    def safe_to_cutover(self, safe: bool | None) -> None:
        self._set(self._safe, None if safe is None else int(safe))

    def safe_to_rollback(self, safe: bool | None) -> None:
        """None before a cutover: absent."""
        self._set(self._safe_back, None if safe is None else int(safe))

    def gates(self, gates: Iterable[tuple[str, str]]) -> None:
        """(gate, state) of every gate there is."""
        self._replace(self._gate, {(g, s): int(s == state) for g, state in gates for s in GATE_STATES})

    def phase(self, phase: str | None) -> None:
        self._replace(self._phase, {} if phase is None else {(phase,): 1})

    def writes(self, side: str | None) -> None:
        self._replace(self._writes, {} if side is None else {(s,): int(s == side) for s in ("old", "new", "none")})

    def pause(self, turn: int | None, seconds: float | None) -> None:
        """Of the last turn that came to its end; nothing before one, or where it is not known."""
        self._replace(self._pause, {} if turn is None or seconds is None else {(str(turn),): seconds})

    def render(self) -> bytes:
        """The exposition text of all of it."""
        return generate_latest(self.registry)

    def _set(self, gauge: Gauge, value: float | None, *labels: str) -> None:
        sample = (id(gauge), labels)
        if value is not None:
            gauge.labels(*self._own, *labels).set(value)
            self._shown.add(sample)
        elif sample in self._shown:
            gauge.remove(*self._own, *labels)
            self._shown.discard(sample)

    def _replace(self, gauge: Gauge, samples: Mapping[tuple[str, ...], float]) -> None:
        for shown, labels in [x for x in self._shown if x[0] == id(gauge) and x[1] not in samples]:
            gauge.remove(*self._own, *labels)
            self._shown.discard((shown, labels))
        for labels, value in samples.items():
            self._set(gauge, value, *labels)
