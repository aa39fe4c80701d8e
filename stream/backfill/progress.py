"""How far backfill is, and how long it will take: for the heartbeat and the metrics.

Invariant: an estimate that nothing supports is null, never zero.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stream.backfill.load_table import LoadRow
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics

WINDOW_S = 30.0  # the rate is that of the last half minute


class Progress:
    """Turns the control rows into figures. Times come from `clock`, in seconds."""

    def __init__(self, heartbeat: Heartbeat, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._clock = clock
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def show(self, loads: Sequence[LoadRow], chunks: Mapping[str, Mapping[str, int]], paused: str | None) -> None:
        """Rows, bytes, chunks and time left of every load; chunks by state over all of them."""
        now = self._clock()
        total: dict[str, int] = {"pending": 0, "done": 0}
        shown: dict[str, Any] = {}
        for load in loads:
            counts = chunks.get(load.name, {})
            for state, n in counts.items():
                total[state] = total.get(state, 0) + n
            shown[load.name] = self._figures(load, counts, self._rate(load, now), paused)
        self._metrics.backfill_chunks(total)
        self._heartbeat.figures["loads"] = shown
        self._heartbeat.figures["seconds_left"] = _together(
            [x for x in shown.values() if x["state"] in ("pending", "running")]
        )

    def _figures(
        self, load: LoadRow, counts: Mapping[str, int], rate: float | None, paused: str | None
    ) -> dict[str, Any]:
        left: float | None = None
        if load.state in ("indexing", "done"):
            left = 0.0
        elif rate and load.rows_estimate > 0:
            left = round(_rows_left(load.rows_estimate, load.rows) / rate, 1)
        return {
            "state": load.state,
            "rows": load.rows,
            "rows_estimate": load.rows_estimate,
            "bytes": load.bytes,
            "bytes_estimate": load.bytes_estimate,
            "chunks": sum(counts.values()),
            "chunks_done": counts.get("done", 0),
            "rows_per_second": None if rate is None else round(rate, 1),
            "seconds_left": left,
            "paused": paused if load.open else None,
        }

    def _rate(self, load: LoadRow, now: float) -> float | None:
        if not load.open:
            self._seen.pop(load.name, None)
            return None
        seen = self._seen.setdefault(load.name, deque())
        seen.append((now, load.rows))
        while now - seen[0][0] > WINDOW_S:
            seen.popleft()
        (since, before), (until, after) = seen[0], seen[-1]
        return (after - before) / (until - since) if until > since and after > before else None


def _rows_left(estimate: int, rows: int) -> int:
    return max(0, estimate - rows)


def _together(loads: Sequence[Mapping[str, Any]]) -> float | None:
    """The time left for all of them at today's pace; None when a size or the pace is not known."""
    if any(x["rows_estimate"] == 0 and x["bytes_estimate"] > 0 for x in loads):
        return None
    rows = sum(_rows_left(x["rows_estimate"], x["rows"]) for x in loads)
    pace = sum(x["rows_per_second"] or 0.0 for x in loads)
    if not rows:
        return 0.0
    return round(rows / pace, 1) if pace else None
