"""One turn of a migration at a time: an advisory lock that a process which is stopped loses, and whose holder is named.

Invariant: the lock only keeps operators out of each other's way. What is correct rests on the turn rows, which move by
compare-and-set; a process that lost its lease and goes on changes nothing that a successor has changed.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from connectors.postgres.session import Connection, connect, translated
from schemas.errors import Refused, SlackwaterError

IDLE_S = 20.0  # the server ends a session that has not been heard of for so long
TOUCH_S = 3.0

_TAKE = "select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended(%s, 0))"
_HOLDER = """
select a.pid, a.usename, a.application_name, coalesce(a.client_addr::text, 'the same host'),
       extract(epoch from clock_timestamp() - a.backend_start)::float8
  from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory' and l.granted and l.objsubid = 1
   and ((l.classid::bigint << 32) | l.objid::bigint) = pg_catalog.hashtextextended(%s, 0)
   and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""


def key(migration: str) -> str:
    """The lock of everything that sets up, turns or ends a migration: `prepare` and `cancel` take it as well."""
    return f"slackwater.prepare.{migration}"


class Lease:
    """The lock, held until `close` or until this process is stopped for longer than `idle_s`.

    `who` is shown to others as the session's application name. Errors: Refused, naming the holder, after `patience_s`.
    """

    def __init__(self, dsn: str, migration: str, *, who: str, idle_s: float = IDLE_S, patience_s: float = 1.0) -> None:
        self._ended = threading.Event()
        self._lost: SlackwaterError | None = None
        settings = {"idle_session_timeout": f"{int(idle_s * 1000)}", "statement_timeout": "10s"}
        self._conn = connect(dsn, application=who[:63], settings=settings)
        try:
            self._take(key(migration), migration, patience_s)
        except BaseException:
            self._conn.close()
            raise
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> SlackwaterError | None:
        """Why the lock is not held any more; None while it is."""
        return self._lost

    def close(self) -> None:
        self._ended.set()
        self._thread.join(timeout=15)
        self._conn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _take(self, name: str, migration: str, patience_s: float) -> None:
        with translated("cannot take the migration's lock"):
            waited = 0.0
            while self._conn.execute(_TAKE, (name,)).fetchone() != (True,):
                if waited >= patience_s:  # a process that was killed: its server takes a moment to notice
                    raise Refused(
                        busy(self._conn, migration), hint="wait until it has ended, then see: slackwater status"
                    )
                self._ended.wait(0.1)
                waited += 0.1

    def _keep(self) -> None:
        while not self._ended.wait(TOUCH_S):
            try:
                with translated("the migration's lock was lost"):
                    self._conn.execute("select 1")
            except SlackwaterError as error:
                self._lost = error
                return


def holder(conn: Connection, migration: str) -> str | None:
    """Who holds the migration's lock in this database: `slackwater cutover (user app, from ...)`; None: nobody."""
    with translated("asking who holds the migration's lock"):
        row: Any = conn.execute(_HOLDER, (key(migration),)).fetchone()
    if row is None:
        return None
    pid, user, application, address, since = row
    return f"{application} (user {user}, from {address}, pid {pid} of the server), since {since:.0f} s"


def busy(conn: Connection, migration: str) -> str:
    """Who holds the migration's lock, in words."""
    who = holder(conn, migration)
    if who is None:
        return f"somebody else is at migration {migration} at this moment"
    return f"somebody else is at migration {migration}: {who}"
