"""The control rows of backfill: loads, their chunks, and how far each has come.

Invariant: the chunks of a load cover its source's whole key space at every commit: a chunk is cut in two in one
transaction, never shrunk. A chunk is done in the transaction that wrote its rows, and only if nobody else did it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from connectors.postgres.chunks import Barrier
from connectors.postgres.ranges import Chunk, Kind
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction
from schemas.errors import Contended, Halt
from schemas.position import Lsn, format_lsn, parse_lsn

MIRROR = "mirror:"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRow:
    """One row of `slackwater.load`. `source` is empty for a mapping over mirrors, which has no chunks of its own."""

    name: str
    source: str
    fingerprint: str
    state: str
    barrier: Barrier | None
    newest_lsn: Lsn
    rows: int
    bytes: int
    rows_estimate: int
    bytes_estimate: int

    @property
    def open(self) -> bool:
        """Whether chunks of it may still have to be read."""
        return self.source != "" and self.state in ("pending", "running")


class Loads:
    """The loads of one direction, over a session on its target. Transactions are the caller's, or one per call."""

    def __init__(self, conn: Connection, migration: str, direction: Direction) -> None:
        self.conn = conn
        self._id = (migration, str(direction))

    def all(self) -> list[LoadRow]:
        """Every load; mirrors first, so that what sleeps on them wakes early."""
        with translated("reading the loads"):
            rows = self.conn.execute(
                "select name, source, fingerprint, state, barrier_xid, barrier_lsn::text, newest_lsn::text,"
                " rows, bytes, rows_estimate, bytes_estimate from slackwater.load"
                " where migration = %s and direction = %s order by not starts_with(name, 'mirror:'), name",
                self._id,
            ).fetchall()
        return [_load(row) for row in rows]

    def applied(self) -> Lsn:
        """The checkpoint's end LSN."""
        with translated("reading the checkpoint"):
            row = self.conn.execute(
                "select end_lsn::text from slackwater.checkpoint where migration = %s and direction = %s", self._id
            ).fetchone()
        if row is None:
            raise Halt("the target holds no checkpoint", hint="`slackwater prepare` writes it")
        return parse_lsn(str(row[0]))

    def chunks(self, load: str) -> list[tuple[Chunk, str]]:
        """The load's chunks with their states, by number."""
        with translated("reading the chunks"):
            rows = self.conn.execute(
                "select chunk, kind, lower, upper, state from slackwater.backfill_chunk"
                " where migration = %s and direction = %s and load = %s order by chunk",
                (*self._id, load),
            ).fetchall()
        return [
            (Chunk(number=int(str(n)), kind=Kind(str(k)), lower=_text(low), upper=_text(up)), str(state))
            for n, k, low, up, state in rows
        ]

    def counts(self) -> dict[str, dict[str, int]]:
        """Chunks by load and state."""
        with translated("counting the chunks"):
            rows = self.conn.execute(
                "select load, state, count(*) from slackwater.backfill_chunk"
                " where migration = %s and direction = %s group by 1, 2",
                self._id,
            ).fetchall()
        found: dict[str, dict[str, int]] = {}
        for load, state, n in rows:
            found.setdefault(str(load), {})[str(state)] = int(str(n))
        return found

    def begin(self, load: str, chunks: Sequence[Chunk]) -> None:
        """Record the first chunks of a load."""
        with translated("recording chunks"), self.conn.transaction():
            self.conn.execute(
                "update slackwater.load set state = 'running', started_at = coalesce(started_at, clock_timestamp())"
                " where migration = %s and direction = %s and name = %s and state = 'pending'",
                (*self._id, load),
            )
            for chunk in chunks:
                self._insert(load, chunk)

    def split(self, load: str, chunk: Chunk, below: Chunk, above: Chunk) -> tuple[Chunk, Chunk]:
        """Cut a pending chunk into two that hold the same rows together; returns them with their numbers.

        Errors: Contended when somebody else has changed it.
        """
        with translated("recording chunks"), self.conn.transaction():
            # Numbers are given out one by one.
            self.conn.execute(
                "select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"slackwater.chunks.{'.'.join(self._id)}",)
            )
            row = self.conn.execute(
                "update slackwater.backfill_chunk set lower = %s, upper = %s"
                " where migration = %s and direction = %s and load = %s and chunk = %s and state = 'pending'"
                " and lower is not distinct from %s and upper is not distinct from %s"
                " returning (select max(chunk) + 1 from slackwater.backfill_chunk"
                " where migration = %s and direction = %s and load = %s)",
                (
                    *(below.lower, below.upper),
                    *(*self._id, load, chunk.number, chunk.lower, chunk.upper),
                    *(*self._id, load),
                ),
            ).fetchone()
            if row is None:
                raise Contended(f"chunk {chunk.number} of {load} was changed by another process")
            below, above = replace(below, number=chunk.number), replace(above, number=int(str(row[0])))
            self._insert(load, above)
        return below, above

    def _insert(self, load: str, chunk: Chunk) -> None:
        self.conn.execute(
            "insert into slackwater.backfill_chunk (migration, direction, load, chunk, lower, upper, kind)"
            " values (%s, %s, %s, %s, %s, %s, %s)",
            (*self._id, load, chunk.number, chunk.lower, chunk.upper, str(chunk.kind)),
        )

    def done(
        self,
        load: str,
        barrier: Barrier,
        chunk: Chunk,
        *,
        rows: int,
        size: int,
        lsn: Lsn,
        epoch: int,
        snapshot: str | None,
    ) -> None:
        """Record a chunk in the caller's transaction, which wrote its rows. `snapshot` is a whole table's.

        Errors: Contended when another process has done it, or cut or reset it: the caller rolls back.
        """
        with translated("recording a chunk"):
            done = self.conn.execute(
                "update slackwater.backfill_chunk set state = 'done', rows = %s, bytes = %s, source_lsn = %s,"
                " epoch = %s, done_at = clock_timestamp() where migration = %s and direction = %s and load = %s"
                " and chunk = %s and state = 'pending'"
                " and lower is not distinct from %s and upper is not distinct from %s",
                (rows, size, format_lsn(lsn), epoch, *self._id, load, chunk.number, chunk.lower, chunk.upper),
            )
            if done.rowcount != 1:
                raise Contended(f"chunk {chunk.number} of {load} was done or changed by another process")
        self.newest(load, barrier, lsn, rows=rows, size=size, snapshot=snapshot)

    def newest(
        self, load: str, barrier: Barrier, lsn: Lsn, *, rows: int = 0, size: int = 0, snapshot: str | None = None
    ) -> None:
        """Record how new the rows read are, in the caller's transaction; last of all, for it serialises workers.

        Errors: Contended when the load was begun anew meanwhile, with another barrier: the caller rolls back.
        """
        with translated("recording a load's progress"):
            done = self.conn.execute(
                "update slackwater.load set newest_lsn = greatest(newest_lsn, %s::pg_lsn), rows = rows + %s,"
                " bytes = bytes + %s, snapshot = coalesce(%s, snapshot)"
                " where migration = %s and direction = %s and name = %s and barrier_xid = %s",
                (format_lsn(lsn), rows, size, snapshot, *self._id, load, barrier.xid),
            )
        if done.rowcount != 1:
            raise Contended(f"the load of {load} was begun anew by another process")

    def move(self, load: str, was: str, now: str) -> None:
        """Change a load's state, if it is still what it was; `done` is timed."""
        with translated("recording a load's state"):
            self.conn.execute(
                "update slackwater.load set state = %s, done_at = case when %s = 'done' then clock_timestamp() end"
                " where migration = %s and direction = %s and name = %s and state = %s",
                (now, now, *self._id, load, was),
            )


def _load(row: tuple[Any, ...]) -> LoadRow:
    name, source, fingerprint, state, xid, lsn, newest, rows, size, rows_estimate, bytes_estimate = row
    return LoadRow(
        name=name,
        source=source,
        fingerprint=fingerprint,
        state=state,
        barrier=None if xid is None or lsn is None else Barrier(xid, parse_lsn(lsn)),
        newest_lsn=Lsn(0) if newest is None else parse_lsn(newest),
        rows=rows,
        bytes=size,
        rows_estimate=rows_estimate,
        bytes_estimate=bytes_estimate,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
