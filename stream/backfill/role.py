"""The role that loads what was there before the stream began, and rereads rows that the stream could not carry.

Workers load chunks (`chunk_loader`) that they claim from one queue (`chunk_queue`); the role's own thread judges
whether they may (`throttle`), empties the reread queue (`reread`) and says how far it is (`progress`); finishers build
what comes afterwards (`post_load`).

Invariant: one process per direction loads: the guard lock is held for as long as any of its workers lives.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from connectors.postgres.chunks import TooEarly
from connectors.postgres.ranges import KeySpace
from connectors.postgres.session import Connection, connect, translated
from connectors.postgres.stalled import StalledHolders
from schemas.control import MIRROR_SCHEMA, mirror_name
from schemas.direction import Direction
from schemas.errors import Contended, Halt, RowRejected, SlackwaterError
from schemas.plan import Plan
from schemas.spec import Backfill as Options
from stream.backfill.chunk_loader import APPLICATION, Loader, Read, Session
from stream.backfill.chunk_queue import ROW_BYTES, Claim, Claims, Sizer, Work
from stream.backfill.load_table import MIRROR, LoadRow, Loads
from stream.backfill.post_load import After, explained
from stream.backfill.progress import Progress
from stream.backfill.reread import Rereader
from stream.backfill.throttle import Health, Throttle, read_health
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics

log = logging.getLogger("slackwater.backfill")

TICK_S = 0.2
LOOK_S = 1.0  # how often the control rows are looked at
HEALTH_S = 5.0
IDLE_S = 0.2
GRACE_S = 10.0  # for workers to end with their chunk
MAX_CONTENDED = 20  # in a row, of one worker


class Backfill:
    """The role. `lag_s` answers the stream's lag, None when it is not known; `paused` why an operator has paused us."""

    def __init__(
        self,
        *,
        source_dsn: str,
        target_dsn: str,
        plan: Plan,
        options: Options,
        quarantine_limit: Callable[[], int],
        heartbeat: Heartbeat,
        metrics: Metrics,
        lag_s: Callable[[], float | None],
        paused: Callable[[Connection], str | None] = lambda _: None,
    ) -> None:
        self._source_dsn = source_dsn
        self._target_dsn = target_dsn
        self._plan = plan
        self._options = options
        self._limit = quarantine_limit
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._lag_s = lag_s
        self._paused = paused
        self._claims = Claims()
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self._waits: dict[str, str] = {}  # thread -> what it waits for
        self._threads: list[threading.Thread] = []
        self._sessions: set[Session] = set()  # of workers: to be cancelled when they do not end
        self._look = threading.Event()  # look at the control rows at once
        self._finishing: set[str] = set()
        self._asleep = {m.target for m in plan.mappings if not m.row_local}  # the applier wakes them
        self._most_bytes: int | None = None  # of a chunk, whatever the options say
        self._throttle: Throttle | None = None
        forward = plan.direction is Direction.FORWARD
        self._after = After(
            target_dsn, plan.migration, plan.target_schema, options.after if forward else [], plan.target_path
        )

    def reconfigure(self, options: Options) -> None:
        """Rates, limits, window and chunk size from now on; workers, replica and statements need a restart."""
        self._options = options
        if self._throttle is not None:
            self._throttle.reconfigure(options)

    @property
    def _chunk_bytes(self) -> int:
        wanted = self._options.chunk_bytes
        return wanted if self._most_bytes is None else min(wanted, self._most_bytes)

    def run(self, stop: threading.Event) -> None:
        with contextlib.ExitStack() as stack:
            control = stack.enter_context(
                contextlib.closing(connect(self._target_dsn, application=f"{APPLICATION} control"))
            )
            if not self._guard(control, stop):
                return
            session = self._session()
            stack.callback(session.close)
            stack.enter_context(StalledHolders(self._target_dsn, self._plan.migration, self._plan.direction))
            stack.callback(self._join)  # before any session is closed, and before the guard goes
            self._throttle = Throttle(
                self._options, lag_s=self._lag_s, paused=lambda: self._paused(control), health=self._health(session)
            )
            self._cap_chunks(control, session.reader.system_id)
            self._loop(stop, Loads(control, self._plan.migration, self._plan.direction), session)

    def _guard(self, control: Connection, stop: threading.Event) -> bool:
        """Wait until no other process backfills this direction. False: told to stop."""
        name = f"slackwater.backfill.{self._plan.migration}.{self._plan.direction}"
        while not stop.is_set():
            with translated("taking the backfill's lock"):
                row = control.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", (name,)).fetchone()
            if row == (True,):
                return True
            self._heartbeat.waiting("another process backfills this direction")
            stop.wait(1.0)
        return False

    def _session(self) -> Session:
        return Session(self._source_dsn, self._target_dsn, self._options.read_from, self._plan)

    def _health(self, session: Session) -> Callable[[], Health]:
        kept = Health()
        looked = 0.0

        def look() -> Health:
            nonlocal kept, looked
            if time.monotonic() - looked > HEALTH_S:
                kept, looked = read_health(session.reader.primary), time.monotonic()
            return kept

        return look

    def _cap_chunks(self, control: Connection, source_system_id: str) -> None:
        """Where both sides share a server, its decoder sees our chunks as well: they must not spill to its disk."""
        with translated("reading the target's settings"):
            row = control.execute(
                "select system_identifier::text, pg_size_bytes(current_setting('logical_decoding_work_mem'))"
                " from pg_control_system()"
            ).fetchone()
        if row is not None and row[0] == source_system_id:
            self._most_bytes = int(str(row[1])) // 2

    def _loop(self, stop: threading.Event, loads: Loads, session: Session) -> None:
        assert self._throttle is not None
        rereader = Rereader(session, self._plan, limit=self._limit)
        progress = Progress(self._heartbeat, self._metrics)
        rows: dict[str, LoadRow] = {}
        looked = 0.0
        while not stop.is_set():
            if self._errors:
                raise self._errors[0]
            if self._look.is_set() or time.monotonic() - looked > LOOK_S:
                self._look.clear()
                looked = time.monotonic()
                self._throttle.judge()
                rows = {row.name: row for row in loads.all()}
                self._adopt(rows, session, loads)
                progress.show(list(rows.values()), loads.counts(), self._throttle.reason)
            if self._throttle.brake is None:
                self._reread(rereader, rows)
            self._say(rows)
            stop.wait(TICK_S)

    # The loads.

    def _adopt(self, rows: dict[str, LoadRow], session: Session, loads: Loads) -> None:
        """Take up loads that have chunks to read, or that have just ended."""
        self._check(rows)
        # The largest first: the small ones fill the gaps at the end.
        for row in sorted(rows.values(), key=lambda row: row.bytes_estimate, reverse=True):
            if row.state == "pending" and row.name in self._finishing:  # loaded once, and to be loaded anew
                self._finishing -= {row.name, ""}
            if row.open and row.name not in self._claims and row.name not in self._finishing:
                self._take_up(row, session, loads)
            elif row.state == "indexing" and row.name not in self._finishing:
                self._finish(row.name)
            elif row.state == "done" and row.name in self._asleep:
                self._finish(row.name, woken=True)
        self._asleep -= {row.name for row in rows.values() if row.state == "done"}
        self._threads = [t for t in self._threads if t.is_alive()]
        crew = sum(t.name.startswith("worker") for t in self._threads)
        for n in range(crew, self._options.workers if not self._claims.empty else 0):
            self._start(f"worker {n}", self._work)
        if rows and all(row.state == "done" for row in rows.values()) and "" not in self._finishing:
            self._finish("")

    def _check(self, rows: dict[str, LoadRow]) -> None:
        """The plan's loads and the recorded ones are the same, of the same text."""
        wanted = {m.target: m.fingerprint for m in self._plan.mappings} | {MIRROR + s: None for s in self._plan.mirrors}
        for name, fingerprint in wanted.items():
            row = rows.get(name)
            if row is None or (fingerprint is not None and row.fingerprint != fingerprint):
                what = "is not recorded" if row is None else "was prepared from another mapping"
                raise Halt(f"the load of {name} {what}", hint="`slackwater prepare` after an edit of the file")

    def _take_up(self, row: LoadRow, session: Session, loads: Loads) -> None:
        load = session.engine.loads.get(row.name)
        if load is None:
            raise Halt(
                f"{row.name} is no load of this direction", hint="`slackwater prepare` after an edit of the file"
            )
        if row.barrier is None:
            raise Halt(f"the load of {row.name} has no barrier", hint="`slackwater prepare` records it")
        table = self._plan.sources[load.mapping.sources[0]]
        space = KeySpace.of(session.reader.rows, table, whole=not load.mapping.key)
        chunks = loads.chunks(row.name)
        if not chunks:
            first = space.first(1 + row.bytes_estimate // self._chunk_bytes)
            loads.begin(row.name, first)
            chunks = [(chunk, "pending") for chunk in first]
        row_bytes = row.bytes_estimate / row.rows_estimate if row.rows_estimate else ROW_BYTES
        work = Work(
            name=row.name,
            space=space,
            barrier=row.barrier,
            columns=session.engine.chunk.columns(row.name),
            rows_estimate=row.rows_estimate,
            sizer=Sizer(row_bytes=row_bytes, chunk_bytes=self._chunk_bytes),
        )
        work.pending = [Claim(work, chunk) for chunk, state in chunks if state == "pending"]
        if work.pending:
            self._claims.add(work)
        else:
            self._complete(row.name, loads)

    def _complete(self, name: str, loads: Loads) -> None:
        """A load's last chunk is in; the next look finds it so."""
        loads.move(name, "running", "indexing")
        self._look.set()
        log.info("%s is loaded", name)

    def _finish(self, name: str, *, woken: bool = False) -> None:
        self._finishing.add(name)
        self._start(f"finisher {name}", lambda: self._conclude(name, woken=woken))

    def _conclude(self, name: str, *, woken: bool) -> None:
        """Indexes, statistics, done. `""`: every load is done."""
        try:
            if not name:
                self._after.all()
                return
            with contextlib.closing(connect(self._target_dsn, application=f"{APPLICATION} after")) as conn:
                loads = Loads(conn, self._plan.migration, self._plan.direction)
                if any(i.unique for i in self._after.indexes(name)) and not self._settled(name, loads):
                    return
                self._after.load(*self._place(name))
                if not woken:
                    loads.move(name, "indexing", "done")
        except SlackwaterError as error:
            raise explained(error) from error

    def _settled(self, name: str, loads: Loads) -> bool:
        """Wait until the stream has passed the load's newest chunk: until then rows may contradict each other."""
        newest = next(row.newest_lsn for row in loads.all() if row.name == name)
        while loads.applied() < newest:
            if self._ended.wait(IDLE_S):
                return False
        return True

    def _place(self, name: str) -> tuple[str, str]:
        """(schema, table) that a load writes."""
        if name.startswith(MIRROR):
            source = name.removeprefix(MIRROR)
            return MIRROR_SCHEMA, mirror_name(self._plan.migration, self._plan.direction, source)
        return self._plan.target_schema, name

    # Threads.

    def _start(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again by the role's own thread
                self._errors.append(error)
                self._ended.set()  # the others end with their chunk

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _join(self) -> None:
        """Workers end with their chunk; what takes longer (a whole table, an index) is cancelled, and done anew."""
        self._ended.set()
        deadline = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        while any(t.is_alive() for t in self._threads):
            for session in list(self._sessions):
                session.cancel()
            self._after.cancel()
            for thread in self._threads:
                thread.join(1.0)

    def _work(self) -> None:
        """One worker: chunk after chunk, until none is left."""
        me = threading.current_thread().name
        with contextlib.ExitStack() as stack:
            session: Session | None = None
            troubles = 0
            while not self._ended.is_set() and not self._claims.empty:
                if self._held_s() > 0:
                    self._ended.wait(min(self._held_s(), IDLE_S))
                    continue
                if session is None:
                    session = self._session()
                    stack.callback(session.close)
                    self._sessions.add(session)
                    stack.callback(self._sessions.discard, session)
                    stack.callback(self._waits.pop, me, None)
                    loader = Loader(session, chunk_bytes=lambda: self._chunk_bytes, limit=self._limit)
                troubles = self._once(loader, session, troubles)

    def _held_s(self) -> float:
        """How long to hold back at least, before the next chunk."""
        if self._throttle is None or self._throttle.reason is not None:
            return IDLE_S
        return self._throttle.bucket.wait_s()

    def _once(self, loader: Loader, session: Session, troubles: int) -> int:
        """Claim and load one chunk, or give it back; returns how many times in a row it could not be done."""
        rate = self._throttle.rate if self._throttle else None
        claim: Claim | None = None
        try:
            claim = self._claims.take(
                session.reader.rows, session.loads, applied=session.loads.applied, most_rows=rate, wait_s=IDLE_S
            )
            if claim is None:
                return troubles
            read = loader.load(claim)
        except (TooEarly, Contended, RowRejected) as error:
            if claim is not None:
                parts = loader.after(claim, error)
                self._claims.give_back(*parts)
                if isinstance(error, RowRejected) or len(parts) > 1:
                    log.info("a chunk of %s is tried again, smaller or later: %s", claim.work.name, error.cause)
                    return 0
            if troubles >= MAX_CONTENDED and not isinstance(error, TooEarly):
                raise
            waits = claim and session.reading(claim.chunk).wait_reason(claim.work.barrier, session.loads.applied())
            self._waits[threading.current_thread().name] = waits or error.cause
            self._ended.wait(min(2.0, 0.1 * 2**troubles))
            return min(troubles + 1, MAX_CONTENDED)
        self._loaded(claim, read, session.loads)
        return 0

    def _loaded(self, claim: Claim, read: Read, loads: Loads) -> None:
        self._waits.pop(threading.current_thread().name, None)
        if self._throttle is not None:
            self._throttle.bucket.spend(read.rows)
        self._metrics.backfill_rows(read.rows)
        if self._claims.done(claim):
            self._complete(claim.work.name, loads)

    # The rest of the role's own thread.

    def _reread(self, rereader: Rereader, rows: dict[str, LoadRow]) -> None:
        try:
            if rows and rereader.step(rows):
                self._waits.pop("reread", None)
        except (TooEarly, Contended) as error:
            self._waits["reread"] = f"rereads: {error.cause}"

    def _say(self, rows: dict[str, LoadRow]) -> None:
        """What the role is doing, in one word and a reason."""
        assert self._throttle is not None
        workers = [w for t, w in list(self._waits.items()) if t.startswith("worker")]
        unfinished = [row for row in rows.values() if row.state != "done"]
        if not unfinished:
            self._heartbeat.waiting("everything is loaded" if rows else "nothing is prepared for this direction")
        elif any(row.open for row in unfinished) and self._throttle.reason is not None:
            self._heartbeat.paused(self._throttle.reason)
        elif self._throttle.bucket.wait_s() > LOOK_S:
            self._heartbeat.paused(f"max_rows_per_s is {self._throttle.rate}")
        elif workers and len(workers) >= sum(t.name.startswith("worker") for t in self._threads):
            self._heartbeat.waiting(workers[0])
        elif all(row.state == "asleep" for row in unfinished):
            self._heartbeat.waiting("the stream has yet to pass the mirrors' newest chunks")
        elif self._claims.colliding:
            self._heartbeat.waiting(
                "chunks wait for the stream: their rows want unique values that older rows still have"
            )
        else:
            self._heartbeat.running()
