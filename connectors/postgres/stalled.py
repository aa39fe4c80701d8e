"""The lock of a direction, held by a process that was stopped: found, and ended.

Invariant: nobody waits for ever for a session whose client is not there. Between statements the server ends it by
itself (`idle_in_transaction_session_timeout`); inside a COPY, or a pipeline that was not synchronised, no timeout of
PostgreSQL's reaches it, not `statement_timeout` either: it waits for its client, and only ending the session wakes it.
A session counts as stopped when it waits for its client and neither its statement nor its COPY moves for `stalled_s`.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any, Self

from connectors.postgres.session import Connection, connect, translated
from schemas.direction import Direction
from schemas.errors import SlackwaterError

log = logging.getLogger("slackwater.lock")

STALLED_S = 60.0
LOOK_S = 5.0

# Holders of the lock that wait for their client, while somebody waits for them.
_HOLDERS = """
with lock as (
  select l.pid, l.granted from pg_catalog.pg_locks l
   where l.locktype = 'advisory' and l.objsubid = 1
     and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
     and (l.classid::bigint << 32 | l.objid::bigint) = pg_catalog.hashtextextended(%s, 0))
select a.pid, pg_catalog.concat_ws(' ', a.backend_start, a.query_start, a.wait_event, p.bytes_processed)
  from lock join pg_catalog.pg_stat_activity a on a.pid = lock.pid and lock.granted
  left join pg_catalog.pg_stat_progress_copy p on p.pid = a.pid
 where a.state = 'active' and a.wait_event in ('ClientRead', 'ClientWrite') and a.application_name ~ '^slackwater '
   and exists (select from lock where not granted)
"""


class StalledHolders:
    """Watches over one direction's lock on its target, in a thread of its own, while the block runs."""

    def __init__(self, dsn: str, migration: str, direction: Direction, *, stalled_s: float = STALLED_S) -> None:
        self._dsn = dsn
        self._id = (migration, direction.value)
        self._stalled_s = stalled_s
        self._seen: dict[int, tuple[str, float]] = {}  # pid -> (what it was doing, since when)
        self._ended = threading.Event()
        self._said: str | None = None
        self._thread = threading.Thread(target=self._run, name="lock watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(15)

    def _run(self) -> None:
        conn: Connection | None = None
        while not self._ended.wait(min(LOOK_S, self._stalled_s / 4)):
            try:
                conn = conn or connect(
                    self._dsn, application="slackwater lock watch", settings={"statement_timeout": "10s"}
                )
                self._look(conn)
                self._said = None
            except SlackwaterError as error:  # the role itself meets a target that is away; a missing grant is said
                if error.cause != self._said:
                    log.warning("%s", error.cause)
                self._said = error.cause
                if conn is not None:
                    conn.close()
                conn = None
        if conn is not None:
            conn.close()

    def _look(self, conn: Connection) -> None:
        migration, direction = self._id
        with translated("looking who holds the applier's lock"):
            rows: list[Any] = conn.execute(_HOLDERS, (f"slackwater.{migration}.{direction}",)).fetchall()
        now = time.monotonic()
        before, self._seen = self._seen, {}
        for pid, doing in rows:
            was, since = before.get(pid, ("", now))
            since = since if was == doing else now
            if now - since < self._stalled_s:
                self._seen[pid] = (doing, since)
                continue
            with translated(f"ending the session of a process that was stopped (pid {pid} on the target)"):
                row = conn.execute("select slackwater.end_stalled(%s, %s, %s)", (*self._id, pid)).fetchone()
            if row == (True,):
                log.warning(
                    "the session with pid %d held the lock and had not heard of its client for %.0f s: it was ended,"
                    " and what it had not committed is undone",
                    pid,
                    now - since,
                )
