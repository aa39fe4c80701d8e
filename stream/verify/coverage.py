"""Which chunks of a table are still to be compared in a pass.

Invariant: what is done and what is pending cover the whole key space, open at both ends, at every moment: a range is
cut in two, never shrunk, and what a killed pass left out is a gap between what it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from connectors.postgres.ranges import Chunk, Kind
from connectors.postgres.session import Connection
from schemas.errors import Halt
from stream.verify.queries import View

EVERYTHING = Chunk(number=0, kind=Kind.WHOLE)


class Course:
    """One table's chunks. Not thread-safe: the caller holds a lock."""

    def __init__(self, view: View, done: Iterable[Chunk], before: Sequence[Chunk] = ()) -> None:
        """`done` are the pass's chunks so far; `before` those of the pass before it, in the order they are wanted."""
        self.view = view
        self.done = list(done)
        self._last = max((c.number for c in self.done), default=-1)
        self.running = 0
        self.ended = False  # nothing more is to be taken, whatever is pending
        if view.space is None:
            self.pending = [] if _whole(self.done) else [EVERYTHING]
        elif not self.done and covers(before):
            self.pending = list(before)
        else:
            self.pending = gaps(self.done)

    @property
    def over(self) -> bool:
        return (self.ended or not self.pending) and not self.running

    def take(self, planner: Connection) -> Chunk | None:
        """The next chunk, cut to size."""
        if self.ended or not self.pending:
            return None
        chunk = self.pending.pop(0)
        space = self.view.space
        if space is not None:
            at = space.plan_cut(planner, chunk, self.view.rows_estimate, self.view.chunk_rows)
            if at is not None:
                chunk, rest = space.cut_at(chunk, at)
                self.pending.insert(0, rest)
        self._last += 1
        self.running += 1
        return replace(chunk, number=self._last)

    def give_back(self, *chunks: Chunk) -> None:
        """To be compared again, whole or in parts."""
        self.running -= 1
        self.pending[:0] = chunks

    def finish(self, chunk: Chunk) -> None:
        self.running -= 1
        self.done.append(chunk)

    def assert_covered(self) -> None:
        """Errors: Halt when a part of the key space was left out: a defect, which must never read as clean."""
        whole = _whole(self.done) if self.view.space is None else covers(self.done)
        if not whole:
            raise Halt(
                f"not every part of {self.view.name} was compared", hint="a defect of slackwater: report it; try again"
            )


def _whole(chunks: Iterable[Chunk]) -> bool:
    return any(c.lower is None and c.upper is None for c in chunks)


def covers(chunks: Iterable[Chunk]) -> bool:
    """Whether ranges cover every key there can be."""
    return not gaps(chunks)


def gaps(chunks: Iterable[Chunk]) -> list[Chunk]:
    """What ranges of an integer key leave out."""
    at: int | None = None  # covered up to here; None: nothing yet
    found: list[Chunk] = []
    ranges = sorted(chunks, key=lambda c: (c.lower is not None, int(c.lower or 0)))
    for n, chunk in enumerate(ranges):
        lower = None if chunk.lower is None else int(chunk.lower)
        if lower is not None and (n == 0 or (at is not None and lower > at)):
            found.append(Chunk(number=0, lower=None if n == 0 else str(at), upper=chunk.lower))
        if chunk.upper is None:
            return found
        at = int(chunk.upper) if at is None else max(at, int(chunk.upper))
    found.append(Chunk(number=0, lower=None if at is None else str(at)))
    return found
