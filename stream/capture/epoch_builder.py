"""Drafts of epochs: what has been gathered for the next one, and how it is cut where a bound is met.

Invariants: a transaction is whole in one draft, or in a run of drafts of which only the last is complete; the rows of
the open transaction are told from those of whole ones until it commits, so that a draft can end before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from connectors.postgres.pgoutput import DELETE, INSERT, TRUNCATE, UPDATE
from schemas.change import Op
from schemas.epoch import Epoch, Message
from schemas.partition import partition_for
from schemas.position import Lsn, Position
from stream.capture.relations import Relations, Route, Rows

BYTES: Final = 16 << 20
"""Encoded bytes of one draft at most (and one row): three drafts are in memory at a time."""

OPS: Final = {INSERT: Op.INSERT, UPDATE: Op.UPDATE, DELETE: Op.DELETE, TRUNCATE: Op.TRUNCATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An epoch that only lacks its extents. `xids` must be visible before it is published."""

    epoch: Epoch
    batches: dict[tuple[str, int], Rows]
    xids: frozenset[int]
    changes: dict[tuple[str, str], int]  # (op, "schema.table") -> n
    begun: float  # time.monotonic() of its first change


class Drafts:
    """The draft in hand. `trail`, `letters` and `bytes` are also written by the loop that encodes rows, for its speed:
    where each row of the open transaction went, in order, what each was, and how large all of the draft is.
    """

    def __init__(
        self,
        relations: Relations,
        *,
        resume: Epoch,
        partitions: Callable[[str], int],
        emit: Callable[[Draft], None],
    ) -> None:
        self._relations = relations
        self._partitions = partitions
        self._emit = emit
        self.newest = resume  # the epoch before the one that is being put together
        self.echo = False  # what is gathered is the opposite direction's work
        self.turn = resume.turn  # with which the source had opened last when it was written
        self.trail: list[Rows] = []
        self.letters = bytearray()
        self._open_messages = 0
        self._clear()

    def _clear(self) -> None:
        for route in self._relations:
            self.empty(route)
        self.rows = 0  # of whole transactions
        self.bytes = 0
        self._messages: list[Message] = []
        self._xids: set[int] = set()
        self._first_us = 0
        self._last_us = 0
        self._last: Position = self.newest.last
        self._begun = 0.0

    def empty(self, route: Route) -> None:
        """Make room for a table's rows."""
        route.rows = [[] for _ in range(self._partitions(route.topic))]
        route.counts = dict.fromkeys(OPS, 0)

    @property
    def waiting(self) -> bool:
        """There are rows of whole transactions, or messages."""
        return bool(self.rows or self._messages)

    @property
    def whole(self) -> bool:
        """There are rows or messages of whole transactions."""
        return bool(self.rows) or len(self._messages) > self._open_messages

    @property
    def open(self) -> bool:
        """There are rows or messages of the open transaction."""
        return bool(self.trail or self._open_messages)

    @property
    def age_s(self) -> float:
        """How long the oldest whole transaction has waited."""
        return time.monotonic() - self._begun if self._begun else 0.0

    def add(self, route: Route, letter: int, row: tuple[bytes | None, bytes]) -> None:
        """One more row of the open transaction."""
        rows = route.rows[0 if row[0] is None else partition_for(row[0], len(route.rows))]
        rows.append(row)
        self.trail.append(rows)
        self.letters.append(letter)
        route.counts[letter] += 1
        self.bytes += len(row[1])

    def say(self, message: Message) -> None:
        """One more message of the open transaction."""
        self._messages.append(message)
        self._open_messages += 1

    def settle(self, xid: int, commit_us: int, last: Position) -> None:
        """The open transaction's rows and messages so far become part of the draft for good."""
        self._xids.add(xid)
        self._first_us = min(self._first_us or commit_us, commit_us)
        self._last_us = max(self._last_us, commit_us)
        self._last = last
        self.rows += len(self.trail)
        self.trail.clear()
        self.letters.clear()
        self._open_messages = 0
        self._begun = self._begun or time.monotonic()

    def split(self, end_lsn: Lsn, reached_at: float, *, closed: bool) -> None:
        """Close the whole transactions, and carry the open one over into the next draft."""
        owner = {id(rows): route for route in self._relations for rows in route.rows}
        carried = [
            (owner[id(rows)], letter, rows.pop())
            for rows, letter in zip(reversed(self.trail), reversed(self.letters), strict=True)
        ]
        for route, letter, _ in carried:
            route.counts[letter] -= 1
        whole = len(self._messages) - self._open_messages
        messages = self._messages[whole:]
        del self._messages[whole:]
        self.trail.clear()
        self.letters.clear()
        self.close(end_lsn, reached_at, complete=True, closed=closed)
        self._messages = messages
        for route, letter, row in reversed(carried):
            self.add(route, letter, row)

    def close(self, end_lsn: Lsn, reached_at: float, *, complete: bool, closed: bool) -> None:
        """Emit what is gathered, or an empty epoch. It ends at `end_lsn`, which was `reached_at` (seconds, UTC)."""
        routes = [route for route in self._relations if any(route.counts.values())]
        epoch = replace(
            self.newest,
            epoch=self.newest.epoch + 1,
            previous=self.newest.epoch,
            end_lsn=end_lsn,
            last=self._last,
            committed_at=self._last_us / 1e6 if self._last_us else reached_at,
            first_committed_at=self._first_us / 1e6 if self._first_us else reached_at,
            published_at=0.0,
            rows={route.name: sum(route.counts.values()) for route in routes},
            extents={},
            messages=tuple(self._messages),
            complete=complete,
            echo=self.echo and bool(routes),
            closed=closed,
            turn=self.turn,
        )
        draft = Draft(
            epoch=epoch,
            batches={(route.topic, p): rows for route in routes for p, rows in enumerate(route.rows) if rows},
            xids=frozenset(self._xids),
            changes={(OPS[x], route.name): n for route in routes for x, n in route.counts.items() if n},
            begun=self._begun or time.monotonic(),
        )
        self.newest = epoch
        self._clear()
        self._emit(draft)
