"""Reading chunks from a source: snapshots that show everything already applied, and rows as bytes, untouched.

Invariant (hazards B1 to B4): rows are read from a snapshot that was taken while the table was locked against rewrites,
that shows every commit older than the slot (its xmin has passed the barrier), and that shows every commit that was
applied when it was taken. A snapshot for which that is not certain is given up, never used.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from connectors.postgres.catalog import Server, server
from connectors.postgres.ranges import relation
from connectors.postgres.session import Connection, connect, translated
from schemas.errors import Contended, Halt, SlotLost, Unavailable
from schemas.position import Lsn, format_lsn, parse_lsn
from schemas.table import Table

BLOCK_BYTES = 128 * 1024  # handed on at once: one per row costs three times the processor
LOCK_TIMEOUT_MS = 500  # the applier stands still while we wait for the source's lock
SESSION: Mapping[str, str] = {
    "lock_timeout": "2s",  # planning: a table that is being altered is asked again later
    "idle_in_transaction_session_timeout": "60s",
    # A host that vanished must not hold a snapshot, a lock or the applier for two hours.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # A plan for one chunk is run once.
    "jit": "off",
}


class TooEarly(Unavailable):
    """No snapshot of the source shows yet what a chunk must show; `cause` says what it waits for."""


class TooLarge(Contended):
    """A chunk turned out far larger than it was planned; it is split."""


class Barrier(NamedTuple):
    """What every snapshot of a chunk must have passed: an xid8 as text on the primary, a WAL position on a replica."""

    xid: str
    lsn: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`lsn` is a WAL position at or past every commit that the snapshot shows. `text` is pg_current_snapshot()."""

    lsn: Lsn
    text: str


def record_barrier(source: Connection) -> Barrier:
    """A barrier for tables that the publication already holds, on a slot that already exists.

    Every transaction that could be in no stream (it committed before the slot's consistent point, or wrote to the table
    before the publication held it) has an older xid: a snapshot whose xmin is at or past this one shows all of them.
    `local`: under a stalled synchronous standby it must not wait for what it exists to detect.
    """
    with translated("cannot mark where the backfill begins"), source.transaction():
        source.execute("set local synchronous_commit = local")
        row = source.execute("select pg_current_xact_id()::text, pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return Barrier(str(row[0]), parse_lsn(str(row[1])))


def written(source: Connection) -> Lsn:
    """Where the WAL ends: every transaction that has committed by now did so below it."""
    with translated("cannot read where the WAL ends"):
        row = source.execute("select pg_catalog.pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return parse_lsn(str(row[0]))


def barrier_wait(source: Connection, barrier: Barrier) -> str | None:
    """None once a snapshot of the primary passes the barrier; else who stands before it, as a reason to wait."""
    with translated("cannot read the source's open transactions"):
        row = source.execute("select pg_snapshot_xmin(pg_current_snapshot()) >= %s::xid8", (barrier.xid,)).fetchone()
        if row == (True,):
            return None
        # 32 bits suffice to tell: no transaction that runs is two billion older.
        open_ = source.execute(
            "select count(*), (array_agg(pid order by xact_start))[1],"
            " extract(epoch from clock_timestamp() - min(xact_start))::bigint,"
            " (select count(*) from pg_prepared_xacts p where age(p.transaction) > 0"
            "   and age(p.transaction) > age((%s::xid8)::xid))"
            " from pg_stat_activity where backend_xid is not null and age(backend_xid) > age((%s::xid8)::xid)",
            (barrier.xid, barrier.xid),
        ).fetchone()
    assert open_ is not None
    count, pid, age_s, prepared = open_
    waits = "waits for transactions that are older than the slot"
    if count:
        waits += f": {count} open, the oldest in process {pid}" + (f" since {age_s} s" if age_s is not None else "")
    if prepared:
        waits += f", {prepared} prepared"
    return waits


class Reader:
    """One worker's sessions on the source. Rows come from the replica where `replica_dsn` names one.

    `system_id` and `timeline` are the slot's: a session that reaches another cluster or timeline is refused.
    """

    def __init__(self, dsn: str, *, replica_dsn: str | None, system_id: str, timeline: int, application: str) -> None:
        self.primary = connect(dsn, application=application, settings=SESSION)
        try:
            _assert_same(server(self.primary), system_id, timeline, replica=False)
            self.rows = self.primary
            if replica_dsn is not None:
                self.rows = connect(replica_dsn, application=application, settings=SESSION)
                _assert_same(server(self.rows), system_id, timeline, replica=True)
        except BaseException:
            self.close()
            raise
        self.system_id = system_id
        self.timeline = timeline
        self._passed: set[str] = set()  # barriers that a snapshot is known to have passed: they stay so

    @property
    def from_replica(self) -> bool:
        return self.rows is not self.primary

    def close(self) -> None:
        self.primary.close()
        rows = getattr(self, "rows", None)
        if rows is not None:
            rows.close()

    def wait_reason(self, barrier: Barrier, applied: Lsn) -> str | None:
        """Why no chunk can be read yet, without any lock held; None when one can be tried."""
        if self.from_replica:
            needed = max(barrier.lsn, applied)
            at = self._replayed()
            return (
                None
                if at >= needed
                else f"waits for the replica to replay {format_lsn(needed)}; it is at {format_lsn(at)}"
            )
        if barrier.xid in self._passed:
            return None
        reason = barrier_wait(self.primary, barrier)
        if reason is None:
            self._passed.add(barrier.xid)
        return reason

    def _replayed(self) -> Lsn:
        with translated("cannot read the replica's position"):
            row = self.rows.execute(
                "select pg_is_in_recovery(), pg_last_wal_replay_lsn()::text,"
                " (select received_tli from pg_stat_wal_receiver)"
            ).fetchone()
        assert row is not None
        in_recovery, replayed, timeline = row
        if not in_recovery or timeline not in (None, self.timeline):
            raise Halt(
                "the replica that backfill reads from no longer follows the source",
                hint="set backfill.read_from to a replica of the source, or to null",
            )
        return parse_lsn(str(replayed)) if replayed is not None else Lsn(0)

    @contextmanager
    def snapshot(self, table: Table, barrier: Barrier, applied: Lsn, *, timeout_s: int = 0) -> Iterator[Snapshot]:
        """A read-only transaction whose snapshot obeys the rule, with `table` locked against rewrites.

        `applied` was read on the target after its applier was made to stand still, before this call.
        Errors: TooEarly (give up the chunk, wait, begin anew), Contended (the lock; a conflict with replay).
        """
        # A position is read before the snapshot: what was replayed by then is in it.
        replayed = self._replayed() if self.from_replica else None
        if replayed is not None and replayed < max(barrier.lsn, applied):
            raise TooEarly(self.wait_reason(barrier, applied) or "waits for the replica", hint="it goes on by itself")
        doing = f"reading {table.schema}.{table.name}"
        try:
            with translated(doing):
                # Nothing before the lock may take a snapshot: a rewriting ALTER would leave it an empty table.
                self.rows.execute(
                    "begin isolation level repeatable read, read only;"
                    f" set local lock_timeout = {LOCK_TIMEOUT_MS}; set local statement_timeout = '{timeout_s}s';"
                    f" lock table {relation(table)} in access share mode"
                )
                row = self.rows.execute(
                    "select pg_is_in_recovery(), pg_snapshot_xmin(s) >= %s::xid8, s::text from pg_current_snapshot() s",
                    (barrier.xid,),
                ).fetchone()
            assert row is not None
            in_recovery, passed, text = row
            if bool(in_recovery) != self.from_replica:
                raise Halt(f"{doing}: the server was promoted or demoted", hint="check old.dsn and backfill.read_from")
            if replayed is None and not passed:
                raise TooEarly("waits for transactions that are older than the slot", hint="it goes on by itself")
            yield Snapshot(lsn=self._newest(), text=str(text))
        finally:
            self._end()

    def _newest(self) -> Lsn:
        """At or past every commit that the snapshot just taken shows: a commit is in the WAL before it is visible."""
        with translated("cannot read the source's WAL position"):
            row = self.primary.execute(
                "select pg_current_wal_insert_lsn()::text, current_setting('wal_block_size')::int"
            ).fetchone()
        assert row is not None
        return before_header(parse_lsn(str(row[0])), int(str(row[1])))

    def copy(
        self, select: str, sink: Callable[[bytearray], object], *, max_bytes: int = 0, max_s: float = 0.0
    ) -> tuple[int, int]:
        """COPY the SELECT's rows, in COPY's text format, to `sink` in blocks; returns rows and bytes.

        Errors: TooLarge past `max_bytes` or `max_s` (0: no limit); whatever `sink` raises. The snapshot's end cancels
        what is left.
        """
        with translated("reading rows"):
            return self._copy(f"copy ({select}) to stdout", sink, max_bytes, time.monotonic() + max_s if max_s else 0.0)

    def _copy(
        self, query: str, sink: Callable[[bytearray], object], max_bytes: int, deadline: float
    ) -> tuple[int, int]:
        # libpq's own calls: going through psycopg's generators for each row costs three times the processor.
        conn = self.rows.pgconn
        readable, writable = select_poll(conn.socket, select.POLLIN), select_poll(conn.socket, select.POLLOUT)
        conn.send_query(query.encode())
        while conn.flush():
            writable.poll()
        while conn.is_busy():
            readable.poll()
            conn.consume_input()
        result = conn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            self._finish(result)
        rows = size = 0
        block = bytearray()
        get = conn.get_copy_data
        while True:
            n, row = get(1)
            if n > 0:
                rows += 1
                block += row
                if len(block) >= BLOCK_BYTES:
                    size += len(block)
                    sink(block)
                    block = bytearray()
                    if (max_bytes and size > max_bytes) or (deadline and time.monotonic() > deadline):
                        raise TooLarge(
                            "a chunk is far larger than planned", hint="it is split and tried again by itself"
                        )
            elif n == 0:
                readable.poll()
                conn.consume_input()
            else:
                break
        if block:
            size += len(block)
            sink(block)
        self._finish(conn.get_result())
        return rows, size

    def _finish(self, result: pq.abc.PGresult | None) -> None:
        """Read up to the end of the statement; raises its error, if it had one."""
        failed: pq.abc.PGresult | None = None
        while result is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                failed = failed or result
            result = self.rows.pgconn.get_result()
        if failed is not None:
            raise error_from_result(failed, "utf-8")

    def _end(self) -> None:
        """End the transaction in whatever state it is; a COPY that was not read to its end is cancelled."""
        if self.rows.closed:
            return
        # A session that cannot be ended is broken, which its next use says; what led here is the error to report.
        try:
            if self.rows.info.transaction_status == pq.TransactionStatus.ACTIVE:
                self.rows.cancel_safe(timeout=5)
                self._drain()
            self.rows.execute("rollback")
        except psycopg.Error:
            self.rows.close()

    def _drain(self) -> None:
        conn = self.rows.pgconn
        readable = select_poll(conn.socket, select.POLLIN)
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            n = 0
            while n >= 0:
                n, _ = conn.get_copy_data(1)
                if n == 0:
                    readable.poll()
                    conn.consume_input()
            self._finish(conn.get_result())


def select_poll(socket: int, event: int) -> select.poll:
    poll = select.poll()
    poll.register(socket, event)
    return poll


def before_header(lsn: Lsn, block_bytes: int) -> Lsn:
    """The same place in the WAL, as a reader of it names it.

    At a block's start the insert position stands after the block's header (24 bytes, 40 in a segment's first block),
    which no position that a server *sends* reaches before more is written: waiting for it could last for ever.
    """
    offset = lsn % block_bytes
    return Lsn(lsn - offset) if offset in (24, 40) else lsn


def _assert_same(found: Server, system_id: str, timeline: int, *, replica: bool) -> None:
    what, setting = (
        ("the replica that backfill reads from", "backfill.read_from") if replica else ("the source", "its DSN")
    )
    if found.system_id != system_id:
        raise SlotLost(f"{what} is another cluster than the one that was prepared", hint=f"correct {setting}")
    if found.in_recovery != replica:
        raise Halt(f"{what} is {'not ' if replica else ''}a replica", hint=f"correct {setting}")
    if found.timeline != timeline:
        raise SlotLost(
            f"{what} is on timeline {found.timeline}, the stream on {timeline}: a replica was promoted",
            hint="what the stream has and the new primary has not cannot be told: prepare the migration anew",
        )
