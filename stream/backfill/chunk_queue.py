"""Which chunk is read next, and how large it is: the work of one backfill process, shared by its workers.

Invariant: a chunk is claimed by one worker at a time. How much is left, and what is done, stands in the control rows;
nothing here is needed after a crash.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from connectors.postgres.chunks import Barrier
from connectors.postgres.ranges import Chunk, KeySpace, Kind
from connectors.postgres.session import Connection
from schemas.position import ZERO, Lsn
from stream.backfill.load_table import Loads

AIM_S = 0.7  # the applier stands still while a chunk is loaded
FIRST_ROWS = 10_000  # before anything is known of a table's rows
MIN_ROWS = 100
ROW_BYTES = 200  # of a table that was never analysed


class Sizer:
    """How many rows a chunk is to have: as many as fit in `chunk_bytes`, and can be loaded in `AIM_S`."""

    def __init__(self, *, row_bytes: float, chunk_bytes: int) -> None:
        self._row_bytes = max(1.0, row_bytes)
        self._chunk_bytes = chunk_bytes
        self.rows = max(MIN_ROWS, min(FIRST_ROWS, self._fitting()))

    def _fitting(self) -> int:
        return max(1, int(self._chunk_bytes / self._row_bytes))

    def seen(self, *, rows: int, size: int, seconds: float) -> None:
        """Learn from a chunk that was loaded. The rest of a table, a few rows, tells of its fixed costs only."""
        if rows < min(MIN_ROWS, self.rows):
            return
        self._row_bytes = max(1.0, size / rows)
        in_time = int(rows * AIM_S / max(seconds, 0.001))
        self.rows = max(1, min(in_time, self._fitting(), self.rows * 2), min(MIN_ROWS, self._fitting()))

    def too_large(self) -> None:
        self.rows = max(1, self.rows // 8)


@dataclass(slots=True)
class Work:
    """One load: what is left of it. `columns` are the source's, in the order of its staging table."""

    name: str
    space: KeySpace
    barrier: Barrier
    columns: tuple[str, ...]
    rows_estimate: int
    sizer: Sizer
    pending: list[Claim] = field(default_factory=list)
    running: int = 0

    @property
    def over(self) -> bool:
        return not self.pending and not self.running


@dataclass(slots=True)
class Claim:
    """A chunk in a worker's hands. `collisions` counts its unique violations, `not_before` is an LSN to be applied."""

    work: Work
    chunk: Chunk
    lone: bool = False  # known to be of one row, which the target refuses
    collisions: int = 0
    not_before: Lsn = ZERO


class Claims:
    """The queue. All methods may be called from any thread; none holds the lock while it asks a server."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._works: dict[str, Work] = {}

    def __contains__(self, load: str) -> bool:
        with self._changed:
            return load in self._works

    def add(self, work: Work) -> None:
        with self._changed:
            self._works[work.name] = work
            self._changed.notify_all()

    def take(
        self, reader: Connection, loads: Loads, *, applied: Callable[[], Lsn], most_rows: int | None, wait_s: float
    ) -> Claim | None:
        """The next chunk, cut to size; None when none has come within `wait_s`. `most_rows` caps its size.

        Errors: those of planning (Contended: the table is locked); the chunk is left where it was.
        """
        with self._changed:
            waiting = any(c.not_before for w in self._works.values() for c in w.pending)
        at = applied() if waiting else ZERO
        with self._changed:
            claim = self._next(at)
            if claim is None:
                self._changed.wait(wait_s)
                claim = self._next(at)
            if claim is None:
                return None
        rows = claim.work.sizer.rows
        try:
            rest = self._cut(claim, reader, loads, min(rows, most_rows or rows))
        except BaseException:
            self.give_back(claim)
            raise
        if rest is not None:
            with self._changed:
                claim.work.pending.append(rest)
                self._changed.notify_all()
        return claim

    def _next(self, applied: Lsn) -> Claim | None:
        for work in self._works.values():
            for i, claim in enumerate(work.pending):
                if claim.not_before <= applied or not claim.not_before:
                    del work.pending[i]
                    work.running += 1
                    return claim
        return None

    def _cut(self, claim: Claim, reader: Connection, loads: Loads, rows: int) -> Claim | None:
        """The last range is open above: cut off as much as is to be read now. The control rows know it first."""
        work, chunk = claim.work, claim.chunk
        if chunk.kind is not Kind.RANGE or chunk.upper is not None or claim.lone or claim.collisions:
            return None
        at = work.space.plan_cut(reader, chunk, work.rows_estimate, rows)
        if at is None:
            return None
        claim.chunk, rest = loads.split(work.name, chunk, *work.space.cut_at(chunk, at))
        return Claim(work, rest)

    def done(self, claim: Claim) -> bool:
        """The chunk is loaded. True when it was the load's last one."""
        with self._changed:
            work = claim.work
            work.running -= 1
            if work.over:
                del self._works[work.name]
                return True
            return False

    def give_back(self, *claims: Claim) -> None:
        """To be tried again: the chunk as it was, or what it was split into (one claim was taken, all are returned)."""
        with self._changed:
            work = claims[0].work
            work.running -= 1
            work.pending[:0] = claims
            self._changed.notify_all()

    @property
    def empty(self) -> bool:
        """Whether nothing is left to claim or in anybody's hands."""
        with self._changed:
            return not self._works

    @property
    def colliding(self) -> bool:
        """Whether all that is left are chunks that wait for the stream, because they broke a unique constraint."""
        with self._changed:
            left = [c for w in self._works.values() for c in w.pending]
            return bool(left) and all(c.not_before for c in left) and not any(w.running for w in self._works.values())
