"""From frames to drafts of epochs: what belongs together, what is ours, what was published before.

Invariants: a transaction is whole in one draft, or in a run of drafts of which only the last is complete; a change's
position depends on the WAL alone, so a redelivered one is recognised; a row is dropped only when it ends at or below
what Kafka holds, or when its transaction's first word is our opposite direction's echo mark: then mirrored tables' rows
alone are kept, in epochs of their own (an epoch is wholly echo, or wholly not). A row without the mark, of a source
that is closed to the application, stops all that comes after it (`stream.strays`). A transaction that emptied a
partition unseen is never completed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from connectors.postgres import pgoutput
from connectors.postgres.pgoutput import (
    BEGIN,
    BODY,
    COMMIT,
    DELETE,
    INSERT,
    MESSAGE,
    ORIGIN,
    RELATION,
    ROW_RELATION,
    TRUNCATE,
    TYPE,
    UPDATE,
)
from connectors.postgres.replication import REBUILD
from schemas.change import Op
from schemas.control import CANARY, ECHO_PREFIX, TRUNCATE_PREFIX, TURN_PREFIX
from schemas.epoch import Epoch, Message
from schemas.errors import Halt, SchemaChanged, SlotLost
from schemas.partition import partition_for
from schemas.plan import Plan
from schemas.position import ZERO, Lsn, Position, format_lsn
from schemas.turns import TurnMessage
from stream.relations import Relations, Route, Rows
from stream.strays import Strays

BYTES: Final = 16 << 20
"""Encoded bytes of one draft at most (and one row): three drafts are in memory at a time."""
OURS: Final = "slackwater."
EVERYTHING: Final = 1 << 62
REPORT: Final = "report this with the server's version; nothing of it was published"

OPS: Final = {INSERT: Op.INSERT, UPDATE: Op.UPDATE, DELETE: Op.DELETE, TRUNCATE: Op.TRUNCATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An epoch that only lacks its extents. `xids` must be visible before it is published."""

    epoch: Epoch
    batches: dict[tuple[str, int], Rows]
    xids: frozenset[int]
    changes: dict[tuple[str, str], int]  # (op, "schema.table") -> n
    begun: float  # time.monotonic() of its first change


class Assembly:
    """Takes frames in order and hands drafts to `emit`, which may block. Belongs to one thread.

    `free()` says whether a draft would be taken at once: while it would not, an epoch older than `max_ms` grows on, up
    to `max_rows` and BYTES. `partitions(topic)` is asked once per table and epoch.
    """

    def __init__(
        self,
        plan: Plan,
        relations: Relations,
        *,
        resume: Epoch,
        max_rows: int,
        max_ms: int,
        partitions: Callable[[str], int],
        free: Callable[[], bool],
        emit: Callable[[Draft], None],
        strays: Strays,
    ) -> None:
        self._relations = relations
        self._routes = relations.by_id
        self._migration = plan.migration
        self._direction = str(plan.direction)
        self._side = plan.direction.source
        self._echo = f"{plan.migration}.{plan.direction.opposite}".encode()
        self._streamed = frozenset(table.oid for table in plan.sources.values())
        self._mirrors = frozenset(plan.mirrors)
        self._max_rows = max_rows
        self._max_s = max_ms / 1000
        self._partitions = partitions
        self._free = free
        self._emit = emit
        self.strays = strays
        # The epoch before the one that is being put together, and what was published before this process began.
        self._newest = resume
        self._published: Lsn = resume.end_lsn
        self._run: Position | None = None if resume.complete else resume.last  # inside a run of incomplete epochs
        self.reached: Lsn = resume.end_lsn  # everything that ends at or below it has been taken
        self._reached_at = resume.committed_at
        # The open transaction.
        self._open = False
        self._commit_lsn: Lsn = ZERO
        self._commit_us = 0
        self._commit_ms = 0
        self._xid = 0
        self._seq = 0
        self._skip = -1  # ordinals at or below it are not ours to publish
        self._fresh = False  # nothing of the transaction has been seen yet
        self._echoing = False  # it is the opposite direction's work
        self._sifting = False  # not all of its rows are published
        self._draft_echo = False  # so are the whole transactions that wait
        self._closed = resume.closed  # the source is closed to the application
        self._trail: list[Rows] = []  # where each of its rows in the draft went, in order
        self._letters = bytearray()  # and what each was
        self._open_messages = 0
        self._emptied: dict[int, str] = {}  # root -> a partition of it whose TRUNCATE only its trigger told of
        self._clear()

    def _clear(self) -> None:
        for route in self._relations:
            self._empty(route)
        self._rows = 0  # of whole transactions
        self._bytes = 0
        self._messages: list[Message] = []
        self._xids: set[int] = set()
        self._first_us = 0
        self._last_us = 0
        self._last: Position = self._newest.last
        self._begun = 0.0

    def _empty(self, route: Route) -> None:
        route.rows = [[] for _ in range(self._partitions(route.topic))]
        route.counts = dict.fromkeys(OPS, 0)

    @property
    def closable(self) -> bool:
        """Whole transactions of ours are waiting, and none is open."""
        return not (self._open or self.strays) and bool(self._rows or self._messages)

    @property
    def bare(self) -> bool:
        """Nothing of ours is waiting: all that ends at or below `reached` was emitted, or is not ours."""
        return not (self._open or self._rows or self._messages or self.strays) and self._run is None

    @property
    def age_s(self) -> float:
        """How long the oldest whole transaction that waits has waited."""
        return time.monotonic() - self._begun if self._begun else 0.0

    @property
    def newest(self) -> Epoch:
        """The last epoch that was emitted; before the first, the one resumed from."""
        return self._newest

    def take(self, frames: list[bytes]) -> None:
        """Errors: Halt (a relation that was not announced, a message that is not understood), what `emit` raises."""
        routes, trail, letters = self._routes, self._trail, self._letters
        max_rows = self._max_rows
        for frame in frames:
            letter = frame[BODY]
            if letter in (INSERT, UPDATE, DELETE):
                seq = self._seq
                self._seq = seq + 1
                if self._fresh:
                    self._begin_rows()
                if seq <= self._skip:
                    continue
                route = routes.get(frame[ROW_RELATION])
                if route is None:
                    raise self._relations.stranger(frame[ROW_RELATION])
                if self._sifting and not self._keeps(route, frame, OPS[letter], seq):
                    continue
                key, value = route.encode(
                    frame[BODY:], commit_lsn=self._commit_lsn, seq=seq, xid=self._xid, commit_ms=self._commit_ms
                )
                rows = route.rows[0 if key is None else partition_for(key, len(route.rows))]
                rows.append((key, value))
                trail.append(rows)
                letters.append(letter)
                route.counts[letter] += 1
                self._bytes += len(value)
                if self._rows + len(trail) >= max_rows or self._bytes >= BYTES:
                    self._overflow()
            elif letter == BEGIN:
                self._begin(frame)
            elif letter == COMMIT:
                self._commit(frame)
            elif letter == RELATION:
                self._relations.describe(pgoutput.relation(frame))
                for described in self._relations:
                    if not described.rows:
                        self._empty(described)
            elif letter == TRUNCATE:
                self._truncate(frame)
            elif letter == MESSAGE:
                self._message(pgoutput.message(frame))
            elif letter not in (ORIGIN, TYPE):
                raise Halt(f"pgoutput sent a message {chr(letter)!r} that protocol 1 does not have", hint=REPORT)

    def idle(self, lsn: Lsn, at: float) -> None:
        """The server has nothing of ours that ends at or below `lsn`, by its clock `at` (seconds since 1970, UTC)."""
        if self.bare and lsn > self.reached:
            self.reached, self._reached_at = lsn, at

    def close(self) -> None:
        """Emits what is waiting, or an empty epoch. Only where `closable` or `bare`."""
        self._close(complete=True)

    def _begin(self, frame: bytes) -> None:
        begin = pgoutput.begin(frame)
        redelivered = begin.commit_lsn < self._published
        if self._open or begin.commit_lsn <= self._commit_lsn or (begin.commit_lsn < self.reached and not redelivered):
            raise Halt(
                f"the stream is out of order: the transaction that committed at {format_lsn(begin.commit_lsn)}"
                f" came after {format_lsn(max(self._commit_lsn, self.reached))}",
                hint=REPORT,
            )
        self._open = True
        self._fresh = True
        self._commit_lsn, self._commit_us, self._xid = begin
        self._commit_ms = begin.committed_us // 1000
        self._seq = 0
        self._skip = -1
        self._emptied.clear()
        self._echoing = self._sifting = False
        if redelivered:
            self._skip = EVERYTHING
        elif self._run is not None:
            if begin.commit_lsn != self._run.commit_lsn:
                raise SlotLost(
                    "the newest epoch stops inside the transaction that committed at"
                    f" {format_lsn(self._run.commit_lsn)}, but the slot went on with {format_lsn(begin.commit_lsn)}",
                    hint=REBUILD,
                )
            self._skip = self._run.seq

    def _commit(self, frame: bytes) -> None:
        commit = pgoutput.commit(frame)
        if not self._open or commit.commit_lsn != self._commit_lsn:
            raise Halt("the stream is out of order: a commit without its begin", hint=REPORT)
        self._open = False
        for partition in self._emptied.values():
            raise SchemaChanged(
                f"partition {partition} was truncated by itself, in the transaction that committed at"
                f" {format_lsn(self._commit_lsn)}: its rows went without a change in the stream",
                hint="`slackwater cancel`, then prepare anew; until the migration ends, DELETE from a partition, or"
                " truncate the whole table",
            )
        if commit.end_lsn > self.reached:
            self.reached, self._reached_at = commit.end_lsn, self._commit_us / 1e6
        if self.strays:
            return
        if self._trail or self._open_messages:
            self._settle()
        if self._run is not None and self._run.commit_lsn == self._commit_lsn:
            self._run = None
            self._close(complete=True)
        elif (self._rows or self._messages) and (
            self._rows >= self._max_rows or (time.monotonic() - self._begun >= self._max_s and self._free())
        ):
            self._close(complete=True)

    def _truncate(self, frame: bytes) -> None:
        for oid in pgoutput.truncate(frame).relations:
            self._emptied.pop(oid, None)  # the whole of it: its partitions' triggers fired just before
            seq = self._seq
            self._seq = seq + 1
            if self._fresh:
                self._begin_rows()
            if seq <= self._skip:
                continue
            relation = oid.to_bytes(4, "big")
            route = self._routes.get(relation)
            if route is None:
                raise self._relations.stranger(relation)
            if self._sifting and not self._keeps(route, frame, Op.TRUNCATE, seq):
                continue
            row = route.encode(
                frame[BODY:], commit_lsn=self._commit_lsn, seq=seq, xid=self._xid, commit_ms=self._commit_ms
            )
            self._add(route, TRUNCATE, row)

    def _message(self, message: pgoutput.LogicalMessage) -> None:
        """Tokens and turns of ours are carried along; an echo mark counts where it comes first."""
        if not message.transactional:
            return
        if self._fresh and message.prefix == ECHO_PREFIX and message.content == self._echo:
            self._fresh = False
            self._echoing = self._sifting = True
            if not self._mirrors:
                self._skip = EVERYTHING
            self._apart()
        elif self._fresh:
            self._begin_rows()
        if not message.prefix.startswith(OURS) or not self._addressed(message.content):
            return
        if message.prefix == TRUNCATE_PREFIX:
            said = json.loads(message.content)
            if self._skip != EVERYTHING and said["root"] in self._streamed:
                self._emptied[said["root"]] = said["partition"]
            return
        seq = self._seq
        self._seq = seq + 1
        if seq > self._skip:
            position = Position(self._commit_lsn, seq)
            if message.prefix == TURN_PREFIX:
                self._turned(message.content.decode())
            self._messages.append(Message(prefix=message.prefix, content=message.content.decode(), position=position))
            self._open_messages += 1

    def _begin_rows(self) -> None:
        """The first that is seen of a transaction is no echo mark: it is nobody's echo."""
        self._fresh = False
        self._sifting = self._closed or bool(self.strays)
        self._apart()

    def _apart(self) -> None:
        """An epoch is wholly echo or wholly not: what waits and is of the other kind goes first."""
        if self._skip == EVERYTHING or self.strays:
            return
        if self._draft_echo is not self._echoing and (self._rows or self._messages):
            self._close(complete=True)
        self._draft_echo = self._echoing

    def _keeps(self, route: Route, frame: bytes, op: Op, seq: int) -> bool:
        """Whether a row of the open transaction is published although others of it are not."""
        if self.strays:  # from the first of them on, nothing is
            if not self._echoing and self._closed and route.table != CANARY:
                self.strays.add(route, frame, op, Position(self._commit_lsn, seq), self._commit_us / 1e6)
            return False
        if self._echoing:
            return route.table in self._mirrors
        if route.table == CANARY:
            return True
        if self.strays.known(self._commit_lsn):
            self._echoing = True
            self._apart()
            return route.table in self._mirrors
        if self._rows or self._messages:
            self._split()  # what was committed before it is whole, and goes
        self.strays.add(route, frame, op, Position(self._commit_lsn, seq), self._commit_us / 1e6)
        return False

    def _turned(self, content: str) -> None:
        """Our side was closed to the application, or opened to it."""
        said = TurnMessage.from_json(content)
        if said is not None and said.side is self._side:
            self._closed = said.closed

    def _addressed(self, content: bytes) -> bool:
        """To this migration, and to this direction where it names one."""
        try:
            document = json.loads(content)
        except ValueError:
            return False
        return (
            isinstance(document, dict)
            and document.get("migration") == self._migration
            and document.get("direction", self._direction) == self._direction
        )

    def _add(self, route: Route, letter: int, row: tuple[bytes | None, bytes]) -> None:
        rows = route.rows[0 if row[0] is None else partition_for(row[0], len(route.rows))]
        rows.append(row)
        self._trail.append(rows)
        self._letters.append(letter)
        route.counts[letter] += 1
        self._bytes += len(row[1])

    def _settle(self) -> None:
        """The open transaction's rows and messages so far become part of the draft for good."""
        self._xids.add(self._xid)
        self._first_us = min(self._first_us or self._commit_us, self._commit_us)
        self._last_us = max(self._last_us, self._commit_us)
        self._last = Position(self._commit_lsn, self._seq - 1)
        self._rows += len(self._trail)
        self._trail.clear()
        self._letters.clear()
        self._open_messages = 0
        self._begun = self._begun or time.monotonic()

    def _overflow(self) -> None:
        """A bound is met inside a transaction: what is whole goes first; one larger than a draft goes in parts."""
        if self._rows or len(self._messages) > self._open_messages:
            self._split()
        else:
            self._settle()
            self._run = self._last
            self._close(complete=False)

    def _split(self) -> None:
        """Closes the whole transactions and carries the open one over into the next draft."""
        owner = {id(rows): route for route in self._relations for rows in route.rows}
        carried = [
            (owner[id(rows)], letter, rows.pop())
            for rows, letter in zip(reversed(self._trail), reversed(self._letters), strict=True)
        ]
        for route, letter, _ in carried:
            route.counts[letter] -= 1
        whole = len(self._messages) - self._open_messages
        messages = self._messages[whole:]
        del self._messages[whole:]
        self._trail.clear()
        self._letters.clear()
        self._close(complete=True)
        self._messages = messages
        for route, letter, row in reversed(carried):
            self._add(route, letter, row)

    def _close(self, *, complete: bool) -> None:
        routes = [route for route in self._relations if any(route.counts.values())]
        epoch = replace(
            self._newest,
            epoch=self._newest.epoch + 1,
            previous=self._newest.epoch,
            end_lsn=self.reached,
            last=self._last,
            committed_at=self._last_us / 1e6 if self._last_us else self._reached_at,
            first_committed_at=self._first_us / 1e6 if self._first_us else self._reached_at,
            published_at=0.0,
            rows={route.name: sum(route.counts.values()) for route in routes},
            extents={},
            messages=tuple(self._messages),
            complete=complete,
            echo=self._draft_echo and bool(routes),
            closed=self._closed,
        )
        draft = Draft(
            epoch=epoch,
            batches={(route.topic, p): rows for route in routes for p, rows in enumerate(route.rows) if rows},
            xids=frozenset(self._xids),
            changes={(OPS[x], route.name): n for route in routes for x, n in route.counts.items() if n},
            begun=self._begun or time.monotonic(),
        )
        self._newest = epoch
        self._clear()
        self._emit(draft)
