"""Foreign writes: rows that reach a side while it is closed, and that neither direction of ours has made.

Invariants: from the first of them on, nothing more is published until somebody has decided, so the stream never passes
one by; they are kept by table and key before capture halts, never by value; rows of one that was decided about are
published like an echo, for the mirrors alone (accepting or discarding it is what brought the two sides together).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from connectors.postgres import pgoutput
from connectors.postgres.foreign import ForeignRow
from connectors.postgres.pgoutput import TRUNCATE
from schemas.change import Op
from schemas.errors import Halt
from schemas.position import ZERO, Lsn, Position, format_lsn
from stream.capture.relations import Route

LIMIT: Final = 10_000
PATIENCE_S: Final = 5.0
"""So long, and up to so many rows, more of them are gathered before the stream halts: one decision for all."""


class Strays:
    """What was gathered. `decided(commit_lsn)` is the last ordinal of that transaction up to which somebody has decided
    about its rows; -1 where nobody has.
    """

    def __init__(self, side: str, decided: Callable[[Lsn], int]) -> None:
        self._side = side
        self._decided = decided
        self._answer: tuple[Lsn, int] = (ZERO, -1)
        self._since = 0.0
        self.rows: list[ForeignRow] = []

    def __bool__(self) -> bool:
        return bool(self.rows)

    def known(self, at: Position) -> bool:
        """Whether the row was decided about. (Asked once per transaction: the stream halts before that can change.)"""
        if self._answer[0] != at.commit_lsn:
            self._answer = (at.commit_lsn, self._decided(at.commit_lsn))
        return at.seq <= self._answer[1]

    def add(self, route: Route, frame: bytes, op: Op, at: Position, committed_at: float) -> None:
        """One more. An update that changes the key is two: the row that went, and the one that came."""
        if not self.rows:
            self._since = time.monotonic()
        if len(self.rows) >= LIMIT:
            return  # decided about are the rows before it: it is met again then, and gathered
        for key in _keys(route, frame, op):
            self.rows.append(ForeignRow(source=route.table, key=key, op=op, position=at, committed_at=committed_at))

    def ripe(self, *, whole: bool, at_rest: bool) -> bool:
        """Whether to stop gathering. `whole`: no transaction is open; one is listed whole where it is not too large."""
        long = time.monotonic() - self._since > PATIENCE_S
        return len(self.rows) >= LIMIT or (bool(self.rows) and whole and (at_rest or long))

    def halt(self) -> Halt:
        tables = sorted({r.source for r in self.rows})
        first = min(r.position.commit_lsn for r in self.rows)
        more = ", and perhaps more of them: the next are listed once these are decided about"
        return Halt(
            f"{len(self.rows)} rows of {', '.join(tables)} were written to {self._side} while it was closed, the first"
            f" in the transaction that committed at {format_lsn(first)}{more if len(self.rows) >= LIMIT else ''}",
            hint="`slackwater foreign-writes list` names them; find out who passed the fence, then `slackwater"
            " foreign-writes accept` or `discard`",
        )


def _keys(route: Route, frame: bytes, op: Op) -> list[dict[str, str | None]]:
    if frame[pgoutput.BODY] == TRUNCATE or not route.wire.key:
        return [{}]
    old, new = pgoutput.images(frame)
    places = {c.name: n for n, c in enumerate(route.wire.columns)}
    found = [{k: image[places[k]] for k in route.wire.key} for image in (new, old) if image]
    return [found[0], *(k for k in found[1:] if op is Op.UPDATE and k != found[0])]
