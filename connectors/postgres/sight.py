"""Short looks at one side's rows, each from a snapshot of its own that says how new it is.

Invariants: a look is taken while the tables are locked against rewrites (a snapshot older than a rewriting ALTER sees
an empty table and no error: hazard B3); its age is bounded by `statement_timeout` and by the caller's leaving it; the
position it gives is at or past every commit that it shows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from connectors.postgres import user_path
from connectors.postgres.catalog import server
from connectors.postgres.chunks import before_header
from connectors.postgres.ranges import relation
from connectors.postgres.session import Connection, cancel, connect, translated
from connectors.postgres.user_path import Path
from schemas.direction import Direction
from schemas.errors import Halt, SlotLost
from schemas.position import Lsn, parse_lsn
from schemas.table import Table

LOCK_TIMEOUT_MS = 2_000
SESSION: Mapping[str, str] = {
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",  # one core per side: the application has the others
    "work_mem": "64MB",
}


class Sight:
    """One side's sessions: `rows` reads (from the replica, where one is given), `primary` knows where its WAL is."""

    def __init__(self, dsn: str, *, application: str, replica_dsn: str | None = None) -> None:
        self.primary = connect(dsn, application=application, settings=SESSION)
        self.rows = self.primary
        self.snapshot: str | None = None  # one that was exported: every look is taken in it
        self.deadline_s: float | None = None  # by time.monotonic(): no statement of a look outlasts it
        try:
            found = server(self.primary)
            self.system_id, self.timeline, self.version = found.system_id, found.timeline, found.version
            if found.in_recovery:
                raise Halt("a DSN of the file reaches a replica", hint="old.dsn and new.dsn have to name primaries")
            if replica_dsn is not None:
                self.rows = connect(replica_dsn, application=application, settings=SESSION)
                other = server(self.rows)
                if other.system_id != found.system_id or other.timeline != found.timeline or not other.in_recovery:
                    raise Halt(
                        "verify.read_from is no replica of the source",
                        hint="set it to a physical replica of the source, or to null",
                    )
        except BaseException:
            self.close()
            raise

    @property
    def from_replica(self) -> bool:
        return self.rows is not self.primary

    def close(self) -> None:
        self.primary.close()
        self.rows.close()

    def cancel(self) -> None:
        """From another thread: end what runs."""
        cancel(self.rows)

    def assert_same(self, system_id: str, timeline: int) -> None:
        """That this is the cluster the stream comes from. Errors: SlotLost."""
        if (self.system_id, self.timeline) != (system_id, timeline):
            raise SlotLost(
                "the source is another cluster, or on another timeline, than the one that was prepared",
                hint="correct its DSN; after a failover what the stream has and the primary has not cannot be told",
            )

    @contextmanager
    def look(
        self, tables: Sequence[Table], *, timeout_s: float, temporary: bool = False, path: Path = ()
    ) -> Iterator[None]:
        """A transaction with one snapshot of `tables`, which are locked against rewrites first.

        `temporary`: it may write temporary tables. `path`: the user's, for what runs a mapping's text.
        Errors: Contended (the lock), Halt (a table is gone), Unavailable (the statement took longer than `timeout_s`).
        """
        mode = "repeatable read" if temporary else "repeatable read, read only"
        names = [relation(t) for t in tables]
        if self.deadline_s is not None:
            timeout_s = min(timeout_s, max(0.001, self.deadline_s - time.monotonic()))
        inside = "" if self.snapshot is None else f"; set transaction snapshot '{self.snapshot}'"
        doing = f"reading {', '.join(f'{t.schema}.{t.name}' for t in tables)}"
        try:
            with translated(doing):
                # Nothing before the locks may take a snapshot.
                self.rows.execute(
                    f"begin isolation level {mode}{inside};"
                    f" set local lock_timeout = {LOCK_TIMEOUT_MS};"
                    f" set local statement_timeout = {max(1, int(timeout_s * 1000))}"
                    + "".join(f"; lock table {name} in access share mode" for name in names)
                    + (f"; {user_path.local(path)}" if path else "")
                )
                yield
        finally:
            self._end()

    def position(self) -> Lsn:
        """At or past every commit that the look which is open shows: it has taken its snapshot, or takes it now."""
        with translated("cannot read the position of a look"):
            self.rows.execute("select pg_catalog.pg_current_snapshot()")
            if self.from_replica:
                row = self.rows.execute(
                    "select pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn()::text"
                ).fetchone()
                assert row is not None
                if row[0] is not True or row[1] is None:
                    raise Halt("verify.read_from is no longer a replica", hint="set it to a replica, or to null")
                return parse_lsn(str(row[1]))
            row = self.primary.execute(
                "select pg_catalog.pg_current_wal_insert_lsn()::text, pg_catalog.current_setting('wal_block_size')::int"
            ).fetchone()
        assert row is not None
        return before_header(parse_lsn(str(row[0])), int(str(row[1])))

    def replayed(self) -> Lsn | None:
        """How far the replica is; None where the primary itself is read, which shows whatever was applied."""
        if not self.from_replica:
            return None
        with translated("cannot read the replica's position"):
            row = self.rows.execute("select pg_catalog.pg_last_wal_replay_lsn()::text").fetchone()
        return Lsn(0) if row is None or row[0] is None else parse_lsn(str(row[0]))

    def nudge(self, migration: str, direction: Direction) -> None:
        """A message in the WAL, so that an epoch ends past here soon though nobody writes."""
        with translated("cannot write a message to the WAL"):
            self.primary.execute(
                "select pg_catalog.pg_logical_emit_message(true, 'slackwater.verify',"
                " pg_catalog.json_build_object('migration', %s::text, 'direction', %s::text)::text)",
                (migration, direction.value),
            )

    def all(self, query: str, doing: str) -> list[tuple[Any, ...]]:
        """The rows of a query whose text holds no parameters."""
        with translated(doing, rows=True):
            return self.rows.execute(query.encode()).fetchall()

    def _end(self) -> None:
        if self.rows.closed:
            return
        # A session that cannot be ended is broken, which its next use says; what led here is the error to report.
        with contextlib.suppress(psycopg.Error):
            self.rows.execute("rollback")


_BASES = """
with recursive base as (
  select t.oid as domain, t.typbasetype as oid, t.typtypmod as mod
    from pg_catalog.pg_type t where t.typtype = 'd' and t.oid = any(%s::oid[])
  union all
  select b.domain, t.typbasetype, case when t.typtypmod < 0 then b.mod else t.typtypmod end
    from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typtype = 'd'
)
select pg_catalog.format_type(b.domain, -1), pg_catalog.format_type(b.oid, b.mod)
  from base b join pg_catalog.pg_type t on t.oid = b.oid
 where t.typtype <> 'd' and t.typnamespace = 'pg_catalog'::regnamespace
"""


def bases(conn: Connection, tables: Sequence[Table]) -> dict[str, str]:
    """Domains among the tables' columns -> the built-in types they are over, with their lengths."""
    oids = sorted({c.type_oid for t in tables for c in t.columns if c.type_kind == "d"})
    with translated("cannot read the domains of the target"):
        return {str(d): str(b) for d, b in conn.execute(_BASES, (oids,)).fetchall()}
