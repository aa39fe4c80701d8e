"""What follows a load: indexes that were left for later, built without stopping anyone, and statistics.

Invariant: each index is built once; one whose building was interrupted (PostgreSQL leaves it invalid) is built anew.
Other statements run once, each in the transaction that journals it, and pass the fence as the loads do.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from connectors.failpoint import failpoint
from connectors.postgres import control, fence, statistics, user_path
from connectors.postgres.session import Connection, cancel, connect, translated
from connectors.postgres.void import void
from schemas.control import ECHO_PREFIX
from schemas.direction import Direction, Side
from schemas.errors import Halt, SlackwaterError
from schemas.names import fold, qualified, quote
from stream.migration.journal import append, role_actor

log = logging.getLogger("slackwater.backfill")

STEP = "backfill.after"
HOLDER = "backfill.after"
_PASS = secrets.token_hex(32)
_NAME = r'(?:"(?:[^"]|"")+"|[\w$]+)'
_INDEX = re.compile(
    rf"\s*create\s+(?P<unique>unique\s+)?index\s+(?:concurrently\s+)?(?:if\s+not\s+exists\s+)?(?P<name>{_NAME})\s+"
    rf"on\s+(?:only\s+)?(?:(?P<schema>{_NAME})\s*\.\s*)?(?P<table>{_NAME})\s*(?P<rest>\b.*|\(.*)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A named CREATE INDEX on a table of ours: it can be looked up, and is built concurrently."""

    name: str
    table: str
    unique: bool
    rest: str  # from USING or the parenthesis on


def index_of(statement: str, schema: str) -> Index | None:
    """The statement as an index of a table in `schema`; None for anything else."""
    found = _INDEX.fullmatch(statement.strip().rstrip(";"))
    if found is None or (found["schema"] is not None and _bare(found["schema"]) != schema):
        return None
    return Index(
        name=_bare(found["name"]), table=_bare(found["table"]), unique=found["unique"] is not None, rest=found["rest"]
    )


def _bare(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else fold(name)


class After:
    """The statements of `backfill.after`, over sessions of its own: an index may take hours.

    `statements` are empty where the direction does not write to new.
    """

    def __init__(
        self, target_dsn: str, migration: str, schema: str, statements: Sequence[str], path: user_path.Path = ()
    ) -> None:
        self._dsn = target_dsn
        self._migration = migration
        self._schema = schema
        self._path = path if schema in path else (schema, *path)  # the statements name the schema's tables bare
        pairs = [(s, index_of(s, schema)) for s in statements]
        self._indexes = [(s, index) for s, index in pairs if index is not None]
        self._sessions: set[Connection] = set()
        self._others = [s for s, index in pairs if index is None]

    def indexes(self, table: str) -> list[Index]:
        """Those of a target table."""
        return [index for _, index in self._indexes if index.table == table]

    def load(self, schema: str, table: str) -> None:
        """Build the table's indexes and gather its statistics."""
        with self._session() as conn:
            for index in self.indexes(table) if schema == self._schema else []:
                self._build(conn, index)
            with self._firing(conn):
                statistics.gather(conn, schema, table)

    def all(self) -> None:
        """Once every load is done: every other statement that was not run yet."""
        if not self._others:
            return
        with self._session() as conn:
            for statement in self._others:
                self._run(conn, statement)

    def cancel(self) -> None:
        """From another thread: end what runs. An index that is not finished is built anew another time."""
        for conn in list(self._sessions):
            cancel(conn)

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        with contextlib.closing(connect(self._dsn, application="slackwater backfill after")) as conn:
            self._sessions.add(conn)
            try:
                yield conn
            finally:
                self._sessions.discard(conn)

    @contextmanager
    def _firing(self, conn: Connection) -> Iterator[None]:
        """For a statement that cannot run in a transaction: an error ends the session, and its path with it."""
        set_path = "select pg_catalog.set_config('search_path', %s, false)"
        with translated("setting the search_path"):
            conn.execute(set_path, (user_path.spelled(self._path),))
        yield
        with translated("setting the search_path"):
            conn.execute(set_path, ("",))

    def _build(self, conn: Connection, index: Index) -> None:
        failpoint("backfill.before_index")
        with translated(f"building index {index.name}"):
            found = conn.execute(
                "select i.indisvalid, t.relname, t.relkind = 'p' from pg_class c"
                " join pg_namespace n on n.oid = c.relnamespace join pg_index i on i.indexrelid = c.oid"
                " join pg_class t on t.oid = i.indrelid where n.nspname = %s and c.relname = %s",
                (self._schema, index.name),
            ).fetchone()
            if found is not None and found[1] != index.table:
                raise Halt(
                    f"an index {index.name} exists, on {found[1]} and not on {index.table}",
                    hint="give the index under backfill.after another name",
                )
            if found is not None and (found[0] or found[2]):
                return
            if found is not None:
                log.info("index %s was not finished: it is built anew", index.name)
                conn.execute(f"drop index concurrently {qualified(self._schema, index.name)}")
            partitioned = conn.execute(
                "select relkind = 'p' from pg_class where oid = to_regclass(%s)",
                (qualified(self._schema, index.table),),
            ).fetchone()
            # PostgreSQL cannot build an index of a partitioned table concurrently.
            how = "" if partitioned == (True,) else "concurrently "
            with self._firing(conn):
                conn.execute(
                    f"create {'unique ' if index.unique else ''}index {how}{quote(index.name)}"
                    f" on {qualified(self._schema, index.table)} {index.rest}"
                )
            append(conn, self._migration, actor=role_actor(conn, "backfill"), step=STEP, detail={"index": index.name})
        log.info("index %s is built", index.name)

    def _run(self, conn: Connection, statement: str) -> None:
        digest = hashlib.sha256(statement.encode()).hexdigest()
        fence.give_pass(conn, self._migration, Side.NEW, HOLDER, _PASS)
        with translated("running a statement of backfill.after"), conn.transaction():
            # It may fill what no mapping writes: it shows a pass, and is our own work to the other direction.
            conn.execute(
                "select pg_catalog.pg_logical_emit_message(true, %s, %s)",
                (ECHO_PREFIX, f"{self._migration}.{Direction.FORWARD}"),
            )
            fence.show_pass(conn, _PASS)
            self._closed(conn)
            # Against a second process that does the same.
            conn.execute(
                "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%s, 0))",
                (f"slackwater.after.{digest}",),
            )
            ran = conn.execute(
                "select from slackwater.journal where migration = %s and step = %s and outcome = 'done'"
                " and detail->>'sha256' = %s",
                (self._migration, STEP, digest),
            ).fetchone()
            if ran is None:
                with user_path.within(conn, self._path):
                    conn.execute(statement)
                void(conn, self._migration, Direction.FORWARD, tables=None, cause="a statement of backfill.after ran")
                actor = role_actor(conn, "backfill")
                append(conn, self._migration, actor=actor, step=STEP, detail={"sha256": digest, "sql": statement})

    def _closed(self, conn: Connection) -> None:
        """Once new takes the application's writes, ours would be dropped on the way back to old."""
        turn = control.turn(conn, self._migration, Side.NEW)
        if turn is None or turn.fence_turn is None or turn.open_turn >= turn.fence_turn:
            raise Halt(
                "new is open to the application, and a statement of backfill.after has not run: slackwater's own work"
                " is not brought back to old",
                hint="take it out of backfill.after, and run it yourself",
            )


def explained(error: SlackwaterError) -> SlackwaterError:
    """An error of an index or statement, with what to do about it."""
    if error.retry != "operator":
        return error
    return Halt(
        f"after the backfill: {error.cause}",
        hint="mend the data or the statement under backfill.after, then start backfill again; the stream goes on",
    )
