"""From frames to drafts of epochs: what belongs together, what is ours, what was published before.

Invariants: a change's position depends on the WAL alone, so a redelivered one is recognised; a row is dropped only when
it ends at or below what Kafka holds, or when its transaction's first word is our opposite direction's echo mark: then
mirrored tables' rows alone are kept, in epochs of their own (an epoch is wholly echo, or wholly not). A row without the
mark, of a source that is closed to the application, stops all that comes after it (`foreign_writes`). A transaction
that emptied a partition unseen is never completed. What was published and must be delivered again, is (`awaited`): a
source that does not, has another history than Kafka.

Where an epoch ends, and what is in it, is decided in `epoch_builder`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
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
from schemas import wire_version
from schemas.change import Op
from schemas.control import CANARY, ECHO_PREFIX, TRUNCATE_PREFIX, TURN_PREFIX
from schemas.epoch import Epoch, Message
from schemas.errors import Halt, SchemaChanged, SlotLost
from schemas.partition import partition_for
from schemas.plan import Plan
from schemas.position import ZERO, Lsn, Position, format_lsn
from schemas.spec import EpochPart
from schemas.turns import TurnMessage
from stream.capture.epoch_builder import BYTES, OPS, Draft, Drafts
from stream.capture.foreign_writes import Strays
from stream.capture.relations import Relations, Route

OURS: Final = "slackwater."
EVERYTHING: Final = 1 << 62
REPORT: Final = "report this with the server's version; nothing of it was published"


class Assembly:
    """Takes frames in order and hands drafts to `emit`, which may block. Belongs to one thread.

    `confirmed` is where the slot begins to send. `free()` says whether a draft would be taken at once: while it would
    not, an epoch older than `max_ms` grows on, up to `max_rows` and BYTES; `limits` are asked for each time.
    `partitions(topic)` is asked once per table and epoch.
    """

    def __init__(
        self,
        plan: Plan,
        relations: Relations,
        *,
        resume: Epoch,
        confirmed: Lsn,
        limits: Callable[[], EpochPart],
        partitions: Callable[[str], int],
        free: Callable[[], bool],
        emit: Callable[[Draft], None],
        strays: Strays,
        truncated: Callable[[str, Lsn], None] = lambda _, __: None,
    ) -> None:
        self._relations = relations
        self._routes = relations.by_id
        self._migration = plan.migration
        self._direction = str(plan.direction)
        self._side = plan.direction.source
        self._echo = f"{plan.migration}.{plan.direction.opposite}".encode()
        self._streamed = frozenset(table.oid for table in plan.sources.values())
        self._mirrors = frozenset(plan.mirrors)
        self._limits = limits
        self._free = free
        self._drafts = Drafts(relations, resume=resume, partitions=partitions, emit=emit)
        self.strays = strays
        self._truncated = truncated
        # What was published before this process began.
        self._published: Lsn = resume.end_lsn
        self._run: Position | None = None if resume.complete else resume.last  # inside a run of incomplete epochs
        last = resume.last.commit_lsn
        self._awaited: Lsn | None = last if confirmed < last else None
        # Another history may have a commit at that very place; but not at that time.
        self._awaited_by = resume.committed_at if resume.rows else math.inf
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
        self._closed = resume.closed  # the source is closed to the application
        self._emptied: dict[int, str] = {}  # root -> a partition of it whose TRUNCATE only its trigger told of

    @property
    def closable(self) -> bool:
        """Whole transactions of ours are waiting, and none is open."""
        return not (self._open or self.strays) and self._drafts.waiting

    @property
    def whole(self) -> bool:
        """No transaction is open."""
        return not self._open

    @property
    def bare(self) -> bool:
        """Nothing of ours is waiting: all that ends at or below `reached` was emitted, or is not ours."""
        return not (self._open or self._drafts.waiting or self.strays) and self._run is None

    @property
    def age_s(self) -> float:
        """How long the oldest whole transaction that waits has waited."""
        return self._drafts.age_s

    @property
    def newest(self) -> Epoch:
        """The last epoch that was emitted; before the first, the one resumed from."""
        return self._drafts.newest

    def take(self, frames: list[bytes]) -> None:
        """Errors: Halt (a relation that was not announced, a message that is not understood), what `emit` raises."""
        routes, drafts = self._routes, self._drafts
        trail, letters = drafts.trail, drafts.letters
        max_rows = self._limits().max_rows
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
                    if self._relations.leaves_out(frame[ROW_RELATION]):
                        continue
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
                drafts.bytes += len(value)
                if drafts.rows + len(trail) >= max_rows or drafts.bytes >= BYTES:
                    self._overflow()
            elif letter == BEGIN:
                self._begin(frame)
            elif letter == COMMIT:
                self._commit(frame)
            elif letter == RELATION:
                self._relations.describe(pgoutput.relation(frame))
                for described in self._relations:
                    if not described.rows:
                        drafts.empty(described)
            elif letter == TRUNCATE:
                self._truncate(frame)
            elif letter == MESSAGE:
                self._message(pgoutput.message(frame))
            elif letter not in (ORIGIN, TYPE):
                raise Halt(f"pgoutput sent a message {chr(letter)!r} that protocol 1 does not have", hint=REPORT)

    def idle(self, lsn: Lsn, at: float) -> None:
        """The server has nothing of ours that ends at or below `lsn`, by its clock `at` (seconds since 1970, UTC)."""
        if self.bare and lsn > self.reached:
            if self._awaited is not None:
                raise self._other_history()
            self.reached, self._reached_at = lsn, at

    def close(self) -> None:
        """Emits what is waiting, or an empty epoch. Only where `closable` or `bare`."""
        self._close()

    def _close(self, *, complete: bool = True) -> None:
        self._drafts.close(self.reached, self._reached_at, complete=complete, closed=self._closed)

    def _begin(self, frame: bytes) -> None:
        begin = pgoutput.begin(frame)
        redelivered = begin.commit_lsn < self._published
        if self._open or begin.commit_lsn <= self._commit_lsn or (begin.commit_lsn < self.reached and not redelivered):
            raise Halt(
                f"the stream is out of order: the transaction that committed at {format_lsn(begin.commit_lsn)}"
                f" came after {format_lsn(max(self._commit_lsn, self.reached))}",
                hint=REPORT,
            )
        if begin.commit_lsn == self._awaited and begin.committed_us / 1e6 <= self._awaited_by:
            self._awaited = None
        elif self._awaited is not None and begin.commit_lsn >= self._awaited:
            raise self._other_history()
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
        drafts = self._drafts
        if drafts.open:
            self._settle()
        if self._run is not None and self._run.commit_lsn == self._commit_lsn:
            self._run = None
            self._close()
        elif drafts.waiting:
            limits = self._limits()
            if drafts.rows >= limits.max_rows or (drafts.age_s * 1000 >= limits.max_ms and self._free()):
                self._close()

    def _other_history(self) -> SlotLost:
        assert self._awaited is not None
        return SlotLost(
            f"the slot went on without sending the transaction that committed at {format_lsn(self._awaited)} again,"
            " which Kafka holds: the source was restored from a copy of itself, and has another history since",
            hint=REBUILD,
        )

    def _truncate(self, frame: bytes) -> None:
        drafts = self._drafts
        for oid in pgoutput.truncate(frame).relations:
            self._emptied.pop(oid, None)  # the whole of it: its partitions' triggers fired just before
            if (described := self._routes.get(oid.to_bytes(4, "big"))) is not None:
                self._truncated(described.table, self._commit_lsn)
            seq = self._seq
            self._seq = seq + 1
            if self._fresh:
                self._begin_rows()
            if seq <= self._skip:
                continue
            relation = oid.to_bytes(4, "big")
            route = self._routes.get(relation)
            if route is None:
                if self._relations.leaves_out(relation):
                    continue
                raise self._relations.stranger(relation)
            if self._sifting and not self._keeps(route, frame, Op.TRUNCATE, seq):
                continue
            row = route.encode(
                frame[BODY:], commit_lsn=self._commit_lsn, seq=seq, xid=self._xid, commit_ms=self._commit_ms
            )
            drafts.add(route, TRUNCATE, row)

    def _message(self, message: pgoutput.LogicalMessage) -> None:
        """Tokens and turns of ours are carried along; an echo mark counts where it comes first."""
        if not message.transactional:
            return
        if self._fresh and message.prefix == ECHO_PREFIX and message.content == self._echo:
            self._fresh = False
            self._echoing = self._sifting = True
            if not self._mirrors:
                self._skip = EVERYTHING
            self._apart(echo=True)
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
            self._drafts.say(Message(prefix=message.prefix, content=message.content.decode(), position=position))

    def _begin_rows(self) -> None:
        """The first that is seen of a transaction is no echo mark: it is nobody's echo."""
        self._fresh = False
        self._sifting = self._closed or bool(self.strays)
        self._apart(echo=False)

    def _apart(self, *, echo: bool) -> None:
        """An epoch is wholly echo or wholly not: what waits and is of the other kind goes first."""
        if self._skip == EVERYTHING or self.strays:
            return
        if self._drafts.echo is not echo and self._drafts.waiting:
            self._close()
        self._drafts.echo = echo

    def _keeps(self, route: Route, frame: bytes, op: Op, seq: int) -> bool:
        """Whether a row of the open transaction is published although others of it are not."""
        foreign = self._closed and not self._echoing and route.table != CANARY
        if foreign and not self.strays.known(at := Position(self._commit_lsn, seq)):
            if self._drafts.whole:
                self._split()  # what was committed before it is whole, and goes
            self.strays.add(route, frame, op, at, self._commit_us / 1e6)
        if self.strays:  # from the first of them on, nothing is
            return False
        if foreign:  # decided about: for the mirrors alone, like an echo
            self._apart(echo=True)
        return route.table in self._mirrors or not (foreign or self._echoing)

    def _turned(self, content: str) -> None:
        """Our side was closed to the application, or opened to it."""
        said = TurnMessage.from_json(content)
        if said is None or said.side is not self._side:
            return
        if not said.closed:
            if self._drafts.whole:
                self._split()  # what was written in an earlier turn is an epoch of its own
            self._drafts.turn = said.turn
        self._closed = said.closed

    def _addressed(self, content: bytes) -> bool:
        """To this migration, and to this direction where it names one."""
        try:
            document = json.loads(content)
        except ValueError:
            return False
        addressed = (
            isinstance(document, dict)
            and document.get("migration") == self._migration
            and document.get("direction", self._direction) == self._direction
        )
        if addressed:
            wire_version.assert_readable(document.get("version", wire_version.UNSAID), "a message in the WAL")
        return addressed

    def _settle(self) -> None:
        self._drafts.settle(self._xid, self._commit_us, Position(self._commit_lsn, self._seq - 1))

    def _split(self) -> None:
        self._drafts.split(self.reached, self._reached_at, closed=self._closed)

    def _overflow(self) -> None:
        """A bound is met inside a transaction: what is whole goes first; one larger than a draft goes in parts."""
        if self._drafts.whole:
            self._split()
        else:
            self._settle()
            self._run = Position(self._commit_lsn, self._seq - 1)
            self._close(complete=False)
