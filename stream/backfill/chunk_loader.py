"""One chunk into the target: read while the applier stands still, written and recorded in one transaction.

Invariant: the target's transaction (with the direction's lock, and the checkpoint read under it) begins before the
source's snapshot and ends after it; so nothing older than what is applied can ever be loaded, by whatever worker that
was stopped and wakes late.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from connectors.failpoint import failpoint
from connectors.postgres.chunks import Reader, Snapshot, TooLarge
from connectors.postgres.control import Checkpoint
from connectors.postgres.ranges import Chunk, Kind
from connectors.postgres.session import cancel, connect, translated
from connectors.postgres.target import Key
from schemas.errors import RowRejected, SlackwaterError, StatementRefused, Unavailable
from schemas.plan import Plan
from schemas.position import ZERO, Lsn, Position
from stream.backfill.bulk_insert import apply_chunk
from stream.backfill.chunk_queue import Claim
from stream.backfill.load_table import MIRROR, Loads
from stream.engine import Engine, Lock

log = logging.getLogger("slackwater.backfill")

HOLDER = "backfill"
APPLICATION = "slackwater backfill"
# A worker that is stopped between two statements loses its session, and with it the lock that the applier waits for.
TARGET_SESSION: Mapping[str, str] = {
    "idle_in_transaction_session_timeout": "15s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "synchronous_commit": "on",
}
CHUNK_TIMEOUT_S = 60  # a statement of a chunk, of a process that was stopped in it too; a whole table has no limit
CHUNK_MAX_S = 20.0  # reading one chunk; past it, it is cut smaller
OVERSIZE = 8  # times chunk_bytes, likewise
QUERY_CANCELED = "57014"
MAX_COLLISIONS = 5  # collisions with other rows that the stream may yet resolve, before the row is blamed


class Session:
    """A worker's sessions: its readers on the source, its engine on the target."""

    def __init__(self, source_dsn: str, target_dsn: str, replica_dsn: str | None, plan: Plan) -> None:
        with contextlib.ExitStack() as stack:
            self.target = stack.enter_context(
                contextlib.closing(connect(target_dsn, application=APPLICATION, settings=TARGET_SESSION))
            )
            self.engine = Engine(self.target, plan)
            self.loads = Loads(self.target, plan.migration, plan.direction)
            checkpoint = self.engine.target.checkpoint()

            def reader(replica_dsn: str | None) -> Reader:
                opened = Reader(
                    source_dsn,
                    replica_dsn=replica_dsn,
                    system_id=checkpoint.system_id,
                    timeline=checkpoint.timeline,
                    application=APPLICATION,
                )
                return stack.enter_context(contextlib.closing(opened))

            self.reader = reader(replica_dsn)
            self._whole = self.reader if replica_dsn is None else reader(None)
            self._sessions = stack.pop_all()

    def close(self) -> None:
        self._sessions.close()

    def cancel(self) -> None:
        """From another thread: end what runs on either side; nothing of it stays."""
        cancel(self.target)
        for reader in {self.reader, self._whole}:
            cancel(reader.rows)

    def reading(self, chunk: Chunk) -> Reader:
        """Who reads it. A whole table (it has no key) comes from the primary: by its snapshot the stream tells what was
        loaded, and a replica's does not name the transactions that run."""
        return self._whole if chunk.kind is Kind.WHOLE else self.reader

    @contextmanager
    def transaction(
        self, load: str, lock: Lock, *, timeout_s: int, as_application: bool = False
    ) -> Iterator[Checkpoint]:
        """A target transaction in which the applier stands still; yields where. Commits, or rolls back on an error.

        A mirror is loaded while the target is open as well; what is computed from it is left alone then.
        """
        try:
            mirrors_only = None if load.startswith(MIRROR) and not as_application else False
            self.engine.begin(holder=HOLDER, lock=lock, mirrors_only=mirrors_only, as_application=as_application)
            with translated("opening a chunk's transaction"):
                self.target.execute(f"set local statement_timeout = '{timeout_s}s'")
            yield self.engine.target.checkpoint()
            failpoint("backfill.before_commit")
            self.engine.commit()
        except BaseException:
            self.engine.abandon()
            raise
        failpoint("backfill.after_commit")


class Read(NamedTuple):
    """What was read of a chunk, and the snapshot that showed it."""

    rows: int
    size: int
    shown: Snapshot


class QuarantineFull(RowRejected):
    """The target refuses a row, and the quarantine takes no more."""


class Loader:
    """Loads claims over one session. `limit` is the quarantine's."""

    def __init__(self, session: Session, *, chunk_bytes: Callable[[], int], limit: Callable[[], int]) -> None:
        self._s = session
        self._chunk_bytes = chunk_bytes
        self._limit = limit
        self._newest = ZERO  # of the snapshot last used

    def load(self, claim: Claim) -> Read:
        """Load a chunk whole.

        Errors: TooEarly, TooLarge, Contended, RowRejected: nothing was written, `retry` says what becomes of the claim.
        """
        try:
            return self._load(claim)
        except Unavailable as error:
            if getattr(error.__cause__, "sqlstate", None) == QUERY_CANCELED:
                raise TooLarge(f"a chunk took too long: {error.cause}", hint="it is split and tried again") from error
            raise
        except StatementRefused as error:
            engine, name = self._s.engine, claim.work.name
            engine.begin(holder=HOLDER, lock="shared", mirrors_only=None if name.startswith(MIRROR) else False)
            try:
                found = of_row(engine, name, error)
            finally:
                engine.abandon()
            raise found from error

    def _load(self, claim: Claim) -> Read:
        work, began = claim.work, time.monotonic()
        whole = claim.chunk.kind is Kind.WHOLE
        self._newest = ZERO
        with self._s.transaction(work.name, "shared", timeout_s=0 if whole else CHUNK_TIMEOUT_S) as at:
            read = self._lone(claim, at) if claim.lone else self._written(claim, at)
            self._s.loads.done(
                work.name,
                work.barrier,
                claim.chunk,
                rows=read.rows,
                size=read.size,
                lsn=read.shown.lsn,
                epoch=at.epoch,
                snapshot=read.shown.text if whole else None,
            )
        work.sizer.seen(rows=read.rows, size=read.size, seconds=time.monotonic() - began)
        return read

    def _written(self, claim: Claim, at: Checkpoint) -> Read:
        read = self._copy(claim, at)
        apply_chunk(self._s.engine, claim.work.name)
        return read

    def _copy(self, claim: Claim, at: Checkpoint) -> Read:
        """The chunk's rows, from a snapshot that obeys the rule, into its staging table."""
        work, whole = claim.work, claim.chunk.kind is Kind.WHOLE
        reader, space = self._s.reading(claim.chunk), work.space
        with reader.snapshot(space.table, work.barrier, at.end_lsn, timeout_s=0 if whole else CHUNK_TIMEOUT_S) as shown:
            self._newest = shown.lsn
            failpoint("backfill.after_snapshot")
            query = space.select(reader.rows, claim.chunk, work.columns)
            with self._s.engine.chunk.stage(work.name) as staging:
                rows, size = reader.copy(
                    query,
                    staging.write,
                    max_bytes=0 if whole else OVERSIZE * self._chunk_bytes(),
                    max_s=0.0 if whole else CHUNK_MAX_S,
                )
                failpoint("backfill.in_copy")
            failpoint("backfill.mid_chunk")
        return Read(rows, size, shown)

    def _lone(self, claim: Claim, at: Checkpoint) -> Read:
        """One row that the target refused: tried once more, and set aside in the same transaction if it still is."""
        engine, work = self._s.engine, claim.work
        engine.savepoint("lone")
        try:
            return self._written(claim, at)
        except (RowRejected, StatementRefused) as refused:
            engine.back_to("lone")
            error = of_row(engine, work.name, refused)
            if self._may_pass(claim, error):
                raise
            with self._s.reader.snapshot(work.space.table, work.barrier, at.end_lsn) as shown:
                keys = work.space.keys(self._s.reader.rows, claim.chunk, 2)
            if len(keys) > 1:
                claim.lone = False  # others have joined it: the chunk is judged anew
                raise
            if keys:
                set_aside(engine, self._limit(), work.name, work.space.table.name, keys[0], shown.lsn, error)
            return Read(len(keys), 0, shown)

    def _may_pass(self, claim: Claim, error: RowRejected) -> bool:
        """Whether the stream may yet resolve it: rows of a chunk are newer than what is applied around them."""
        return error.collides and claim.collisions < MAX_COLLISIONS

    def after(self, claim: Claim, error: SlackwaterError) -> list[Claim]:
        """What becomes of a claim that was not loaded: itself, to be tried again, or its halves.

        Errors: RowRejected when nobody can tell the refused row from the others.
        """
        work, chunk = claim.work, claim.chunk
        if isinstance(error, TooLarge):
            work.sizer.too_large()
            return self._split(claim, work.sizer.rows) or [claim]
        if isinstance(error, QuarantineFull):
            raise error
        if not isinstance(error, RowRejected):
            return [claim]
        if self._may_pass(claim, error):
            claim.collisions += 1
            claim.not_before = self._newest
            return [claim]
        rows = work.space.count(self._s.reader.rows, chunk)
        if rows <= 1 and chunk.kind is not Kind.WHOLE:
            claim.lone = True
            return [claim]
        halves = self._split(claim, rows // 2)
        if halves is None:
            raise RowRejected(
                f"{error.cause}: a row of {work.space.table.name}, which has no key to set it aside by",
                hint="mend the row on the source, the mapping or the target's constraint, and start backfill again",
                sqlstate=error.sqlstate,
            ) from error
        return halves

    def _split(self, claim: Claim, rows: int) -> list[Claim] | None:
        work = claim.work
        halves = work.space.halves(self._s.reader.rows, claim.chunk, rows)
        if halves is None:
            return None
        parts = self._s.loads.split(work.name, claim.chunk, *halves)
        return [Claim(work, part, collisions=claim.collisions) for part in parts]


def of_row(engine: Engine, load: str, error: RowRejected | StatementRefused) -> RowRejected:
    """What the target has against a row, inside the caller's transaction.

    Errors: `error` itself, where the load's statements are refused without any row as well: no row is at fault then.
    """
    if isinstance(error, RowRejected):
        return error
    engine.savepoint("empty")
    try:
        with engine.chunk.stage(load):
            pass
        apply_chunk(engine, load)
    except (RowRejected, StatementRefused):
        raise error from error.__cause__
    engine.back_to("empty")
    return error.rejected()


def set_aside(
    engine: Engine,
    limit: int,
    load: str,
    source: str,
    key: Key,
    lsn: Lsn,
    error: RowRejected,
    carried: Sequence[Key] = (),
) -> None:
    """Quarantine a source row for a load, with what it carries, in the caller's transaction.

    Errors: QuarantineFull.
    """
    held = engine.target.quarantine_size()
    if held >= limit:
        raise QuarantineFull(
            f"{error.cause}: {held + 1} rows would stand in quarantine, and the limit is {limit}",
            hint="`slackwater quarantine list` shows them; mend the mapping or the data, or raise quarantine.limit",
            sqlstate=error.sqlstate,
        ) from error
    with translated("setting a row aside"):
        engine.target.quarantine(load, source, key, Position(lsn, 0), error.sqlstate, error.cause)
        if carried:
            engine.target.carry(load, source, [(key, [dict(document) for document in carried])])
    log.error("a row of %s is in quarantine: %s", load, error.cause)
