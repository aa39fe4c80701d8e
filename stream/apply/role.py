"""The applier of one direction: epochs from Kafka become rows and a checkpoint on the target.

Invariant 2: rows and checkpoint commit together, so that a kill anywhere loses nothing and applies nothing twice. One
thread fetches and decodes the next epochs while this one writes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

from connectors.failpoint import failpoint
from connectors.postgres.control import Checkpoint
from connectors.postgres.session import Connection, connect, translated
from connectors.postgres.stalled import StalledHolders
from connectors.postgres.target import Target
from schemas.change import Change, Op
from schemas.control import CANARY, CANARY_TABLE
from schemas.decoder import Decoder
from schemas.envelope import is_canary
from schemas.epoch import Epoch
from schemas.errors import StreamGap
from schemas.plan import Plan
from schemas.position import Lsn, Position, format_lsn
from stream.apply import late_writes
from stream.apply.housekeeping import Tending
from stream.apply.schema_check import Shapes
from stream.apply.transaction import Batch
from stream.apply.work import Folding, Offsets, Work
from stream.engine import Engine
from stream.migration.replaced import LeftOut
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics

log = logging.getLogger("slackwater.apply")

TRANSACTION_ROWS = 20_000  # waiting epochs share a transaction up to about this many changes
POLL_S = 0.2
# An applier that is stopped inside a transaction loses its session, and with it the lock its successor waits for.
SESSION = {"idle_in_transaction_session_timeout": "30s", "synchronous_commit": "on"}
HOUSEKEEPING_S = 1.0


class Fetched(Protocol):
    """One epoch as the reader hands it over."""

    @property
    def epoch(self) -> Epoch: ...
    @property
    def rows(self) -> Sequence[bytes]: ...
    @property
    def offsets(self) -> Offsets: ...


class Reader(Protocol):
    """The stream's reader; connectors.kafka.reader.EpochReader."""

    @property
    def problem(self) -> str | None: ...
    def next(self, timeout_s: float) -> Fetched | None: ...
    def close(self) -> None: ...


class Apply:
    """The role. `reader` opens the stream at (offsets, after epoch); `schema_of` finds an envelope schema by its id.

    `housekeeping` is called about once a second between transactions, with the target session.
    `paused` says why an operator has paused the applier, or None.
    """

    def __init__(
        self,
        *,
        source_dsn: str,
        target_dsn: str,
        plan: Plan,
        reader: Callable[[Offsets, int], Reader],
        schema_of: Callable[[int], dict[str, Any]],
        quarantine_limit: Callable[[], int],
        heartbeat: Heartbeat,
        metrics: Metrics,
        paused: Callable[[Connection], str | None],
        housekeeping: Callable[[Connection], None],
    ) -> None:
        self._source_dsn = source_dsn
        self._dsn = target_dsn
        self._plan = plan
        self._open_reader = reader
        self._schema_of = schema_of
        self._limit = quarantine_limit
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._paused = paused
        self._housekeeping = housekeeping

    def run(self, stop: threading.Event) -> None:
        """Apply until told to stop; see `stream.runtime.worker.Role`."""
        direction = str(self._plan.direction)
        conn = connect(self._dsn, application=f"slackwater apply {self._plan.migration}.{direction}", settings=SESSION)
        control = connect(self._dsn, application=f"slackwater apply {self._plan.migration}.{direction} control")
        feed: Feed | None = None
        watch = StalledHolders(self._dsn, self._plan.migration, self._plan.direction)
        try:
            engine = Engine(conn, self._plan)
            target = Target(control, self._plan.migration, self._plan.direction)
            checkpoint = target.checkpoint()
            folding = Folding(engine)
            reader = self._open_reader(checkpoint.offsets, checkpoint.epoch)
            replaced = {table: found.until for table, found in self._plan.replaced.items()}
            feed = Feed(reader, self._decoder(target), folding, checkpoint.last, replaced)
            batch = Batch(
                engine,
                folding,
                holder=f"apply.{direction}",
                quarantine_limit=self._limit,
                more=lambda: feed.wait(stop),
                overtaken=partial(late_writes.record, self._source_dsn, engine, folding.keys),
            )
            with watch:
                self._loop(stop, engine, target, batch, feed, checkpoint)
        finally:
            if feed is not None:
                feed.close()
            conn.close()
            control.close()

    def _decoder(self, target: Target) -> Callable[[bytes], Change | None]:
        """Decodes a row and checks, once per schema and side of the barrier, that its shape is what was prepared.

        None for one from before its table's key was changed: what its load, or a comparison, has read since holds it.
        """
        with translated("reading the loads"):
            states = target.loads()
        barriers: dict[str, Lsn] = {}
        for mapping in self._plan.mappings:
            for source in mapping.sources:
                for name in (mapping.target, f"mirror:{source}"):
                    if name in states:
                        barriers[source] = max(barriers.get(source, Lsn(0)), states[name].barrier_lsn)
        shapes = Shapes(self._plan, barriers)
        decode = Decoder(self._schema_of).decode
        absent: dict[tuple[bytes, bool], tuple[str, ...] | None] = {}
        newest = max(barriers.values(), default=Lsn(0))
        whole: set[bytes] = set()  # schemas whose rows lack nothing, once every barrier is passed
        canaries: dict[bytes, bool] = {}
        replaced = {table: found.until for table, found in self._plan.replaced.items()}

        def decoded(value: bytes) -> Change | None:
            change = decode(value)
            if replaced and is_left_out(change, replaced):
                return change  # whatever its shape is
            if value[:5] in whole and change.position.commit_lsn > newest:
                return change
            if change.table == CANARY_TABLE:
                if value[:5] not in canaries:
                    canaries[value[:5]] = is_canary(self._schema_of(int.from_bytes(value[1:5], "big")))
                if canaries[value[:5]]:
                    return change._replace(table=CANARY)
            head = value[:5], change.position.commit_lsn <= barriers.get(change.table, 0)
            if head not in absent:
                schema = self._schema_of(int.from_bytes(head[0][1:], "big"))
                lacks = absent[head] = shapes.approve(schema, change.table, change.position)
                if lacks is None:
                    log.warning("rows of %s from before its key was changed are left out: all of it was read since",
                                change.table)  # fmt: skip
            lacks = absent[head]
            if lacks is None:
                return change if change.op == Op.TRUNCATE else None
            if not lacks and not head[1]:
                whole.add(head[0])
            if not lacks:
                return change
            before, after = (
                i and {n: v for n, v in i.items() if n not in lacks} for i in (change.before, change.after)
            )
            missing = (
                change.missing if after is None else (*change.missing, *(n for n in lacks if n not in change.missing))
            )
            return change._replace(before=before, after=after, missing=missing)

        return decoded

    def _loop(
        self, stop: threading.Event, engine: Engine, target: Target, batch: Batch, feed: Feed, checkpoint: Checkpoint
    ) -> None:
        tend = Tending(engine, target, self._metrics, self._housekeeping)
        looked_at = 0.0
        paused: str | None = None
        self._say(checkpoint, None)
        while not stop.is_set():
            if time.monotonic() - looked_at >= HOUSEKEEPING_S:
                paused = self._paused(target.conn)
                tend.run(checkpoint)
                looked_at = time.monotonic()
            if paused is not None:
                self._heartbeat.paused(paused)
                stop.wait(POLL_S)
                continue
            work = feed.next(POLL_S)
            if work is None:
                if feed.problem is not None:
                    self._heartbeat.waiting(feed.problem)
                else:
                    self._heartbeat.running()
                self._say(checkpoint, None)
                continue
            self._heartbeat.running()
            first = work.epochs[0]
            if first.previous != checkpoint.epoch:
                raise StreamGap(
                    f"epoch {first.epoch} follows {first.previous}, the checkpoint is {checkpoint.epoch}",
                    hint="the epochs topic lacks records; do not start again without finding out why",
                )
            self._say(checkpoint, first)
            failpoint("apply.before_write")
            started = time.monotonic()
            epochs, checkpoint = batch.write(work, checkpoint)
            for (op, table), n in batch.counted.items():
                self._metrics.rows("apply", op, table, n)
            seconds = time.monotonic() - started
            for _ in epochs:
                self._metrics.epoch("apply", seconds / len(epochs))
            self._say(checkpoint, None)

    def _say(self, checkpoint: Checkpoint, pending: Epoch | None) -> None:
        self._heartbeat.figures.update(
            applied_lsn=format_lsn(checkpoint.end_lsn),
            applied_epoch=checkpoint.epoch,
            pending_since=None if pending is None else pending.first_committed_at,
        )


class Feed:
    """Fetches, decodes, folds and lays out ahead, in a thread of its own. Its errors are raised where work is taken.

    Waiting epochs are folded together up to about TRANSACTION_ROWS changes: they will share a transaction.
    """

    def __init__(
        self,
        reader: Reader,
        decode: Callable[[bytes], Change | None],
        folding: Folding,
        after: Position,
        replaced: Mapping[str, Lsn] | None = None,
    ) -> None:
        """`replaced`: tables whose rows up to a commit LSN are those of the one that had the name before."""
        self._reader = reader
        self._replaced = replaced or {}
        self._left_out = LeftOut(log)
        self._last = after
        self._decode = decode
        self._folding = folding
        self._ready: queue.Queue[Work | Exception] = queue.Queue(maxsize=1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why nothing comes, as far as the reader knows."""
        return self._reader.problem

    def next(self, timeout_s: float) -> Work | None:
        """The next epochs, or None when there are none yet. Raises what ended the thread."""
        try:
            item = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, Work):
            return item
        self._put(item)  # it stays the answer
        raise item

    def wait(self, stop: threading.Event) -> Work | None:
        """The next epochs; None only when told to stop."""
        while not stop.is_set():
            found = self.next(POLL_S)
            if found is not None:
                return found
        return None

    def close(self) -> None:
        self._ended.set()
        self._thread.join(timeout=30)
        self._left_out.say(last=True)
        self._reader.close()

    def _put(self, item: Work | Exception) -> None:
        while not self._ended.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            held: Fetched | None = None
            while not self._ended.is_set():
                fetched = held or self._reader.next(POLL_S)
                held = None
                self._left_out.say()
                if fetched is None:
                    continue
                work = self._folding.work()
                self._add(work, fetched)
                while self._may_grow(work):
                    # The writer is busy: what has come meanwhile goes along.
                    held = self._reader.next(0.002)
                    if held is None:
                        continue
                    if not held.epoch.complete or not work.takes(held.epoch):
                        break
                    self._add(work, held)
                    held = None
                self._folding.lay(work)
                self._put(work)
        except Exception as error:  # noqa: BLE001 - handed to the role's own thread, which raises it
            self._put(error)

    def _may_grow(self, work: Work) -> bool:
        room = work.complete and len(work.changes) < TRANSACTION_ROWS
        return room and self._ready.full() and not self._ended.is_set()

    def _add(self, work: Work, fetched: Fetched) -> None:
        decode = self._decode
        changes = [change for value in fetched.rows if (change := decode(value)) is not None]
        changes.sort(key=attrgetter("position"))
        epoch = fetched.epoch
        if changes and not self._last < changes[0].position <= changes[-1].position <= epoch.last:
            raise StreamGap(
                f"epoch {epoch.epoch} holds changes that do not lie between its predecessor's last and its own",
                hint="a topic was recreated or written to by something else: `slackwater cancel`, then prepare anew",
            )
        self._last = epoch.last
        if self._replaced:
            changes = self._without(changes)
        self._folding.add(work, fetched.epoch, changes, fetched.offsets)

    def _without(self, changes: list[Change]) -> list[Change]:
        """Those that are not a predecessor's."""
        kept = [change for change in changes if not is_left_out(change, self._replaced)]
        if len(kept) < len(changes):
            for table, rows in Counter(c.table for c in changes if is_left_out(c, self._replaced)).items():
                self._left_out.add(table, rows)
        return kept


def is_left_out(change: Change, replaced: Mapping[str, Lsn]) -> bool:
    """Whether it is of the table that had this one's name before."""
    until = replaced.get(change.table)
    return until is not None and change.position.commit_lsn <= until
