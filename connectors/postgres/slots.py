"""Publications and replication slots: what makes the source keep and send our changes.

Invariant (hazards A1, A2): the publication exists before the slot; a table joins it only under a lock that waits for
the table's open writers; a slot that has a checkpoint behind it is never made anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from connectors.postgres import session
from connectors.postgres.session import Connection, translated
from schemas.errors import Aborted, Contended, Halt, PrivilegeMissing, Refused
from schemas.position import Lsn, parse_lsn

Relation = tuple[str, str]
"""(schema, name)."""


_FEEDS = "slackwater: feeds "


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A publication as the catalog has it."""

    name: str
    tables: frozenset[Relation]
    all_tables: bool
    via_root: bool
    operations: str  # of "iudt", those it publishes
    filtered: bool  # has a row filter or a column list


def publication(conn: Connection, name: str) -> Publication | None:
    """The publication of that name in this database, or None."""
    with translated(f"cannot read publication {name}"):
        row: Any = conn.execute(
            "select p.oid::bigint, puballtables, pubviaroot,"
            " concat(case when pubinsert then 'i' end, case when pubupdate then 'u' end,"
            "        case when pubdelete then 'd' end, case when pubtruncate then 't' end)"
            " from pg_catalog.pg_publication p where pubname = %s",
            (name,),
        ).fetchone()
        if row is None:
            return None
        tables: list[Any] = conn.execute(
            "select n.nspname, c.relname from pg_catalog.pg_publication_rel r"
            " join pg_catalog.pg_class c on c.oid = r.prrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where r.prpubid = %s::oid",
            (row[0],),
        ).fetchall()
        # 14 has neither row filters nor column lists: read the row whatever its columns are called
        filtered: Any = conn.execute(
            "select exists (select from pg_catalog.pg_publication_rel r, pg_catalog.to_jsonb(r) j"
            " where r.prpubid = %s::oid and (j -> 'prqual' <> 'null' or j -> 'prattrs' <> 'null'))",
            (row[0],),
        ).fetchone()
    return Publication(
        name=name,
        tables=frozenset((schema, table) for schema, table in tables),
        all_tables=row[1],
        via_root=row[2],
        operations=row[3],
        filtered=filtered[0],
    )


def feeds(conn: Connection, name: str) -> str | None:
    """Whom the publication's maker wrote it for (`ensure_publication`); None where there is none, or nothing said."""
    with translated(f"cannot read publication {name}"):
        row: Any = conn.execute(
            "select pg_catalog.obj_description(p.oid, 'pg_publication')"
            " from pg_catalog.pg_publication p where p.pubname = %s",
            (name,),
        ).fetchone()
    return None if row is None or row[0] is None else row[0].removeprefix(_FEEDS)


def ensure_publication(
    conn: Connection,
    name: str,
    tables: Iterable[Relation],
    *,
    feeding: str | None = None,
    patience_s: float = 120.0,
) -> bool:
    """Make the publication, or add the tables that it lacks; True when anything changed. It never loses a table here.

    `feeding` names the database that it is for, in the publication's comment, from its first moment on.

    Every added table is locked SHARE ROW EXCLUSIVE in the same transaction, one table at a time: without the lock the
    rows of a transaction that was open then are lost. Errors: Contended; Halt when somebody altered the publication.
    """
    wanted = sorted(set(tables))
    present = publication(conn, name)
    if present is None:
        with translated(f"cannot create publication {name}"), conn.transaction():
            conn.execute(
                sql.SQL("create publication {} for table {} with (publish_via_partition_root = true)").format(
                    sql.Identifier(name), sql.SQL(", ").join(map(_only, wanted))
                )
            )
            if feeding is not None:
                conn.execute(
                    sql.SQL("comment on publication {} is {}").format(
                        sql.Identifier(name), sql.Literal(_FEEDS + feeding)
                    )
                )
        return True
    if present.all_tables or present.filtered or not present.via_root or present.operations != "iudt":
        raise Halt(
            f"publication {name} was altered: rows may be missing from the stream",
            hint="`slackwater cancel`, then prepare anew",
        )
    missing = [relation for relation in wanted if relation not in present.tables]
    for relation in missing:
        _add_table(conn, name, relation, patience_s)
    return bool(missing)


def _only(relation: Relation) -> sql.Composed:
    return sql.SQL("only {}").format(sql.Identifier(*relation))


def _add_table(conn: Connection, name: str, relation: Relation, patience_s: float) -> None:
    give_up = time.monotonic() + patience_s
    doing = f"cannot add {relation[0]}.{relation[1]} to publication {name}"
    while True:
        try:
            with translated(doing), conn.transaction():
                conn.execute("set local lock_timeout = '2s'")
                conn.execute(
                    sql.SQL("lock table {} in share row exclusive mode").format(sql.Identifier(*relation))
                )  # without ONLY: partitions' writers lock the partition
                conn.execute(sql.SQL("alter publication {} add table {}").format(sql.Identifier(name), _only(relation)))
            return
        except Contended as error:
            if time.monotonic() > give_up:
                raise Contended(
                    f"{doing}: other transactions held the table for {patience_s:.0f} s",
                    hint="see pg_stat_activity for long transactions on it; then run this again: it goes on from here",
                ) from error
            time.sleep(0.5)


def remove_tables(conn: Connection, name: str, tables: Iterable[Relation]) -> None:
    """Take tables that nothing reads any more out of the publication."""
    for relation in sorted(set(tables)):
        with translated(f"cannot remove {relation[0]}.{relation[1]} from publication {name}"):
            conn.execute(sql.SQL("alter publication {} drop table {}").format(sql.Identifier(name), _only(relation)))


def leave_out(conn: Connection, name: str, oids: Iterable[int], wanted: Iterable[Relation]) -> list[str]:
    """Take tables, by their oids, out of the publication where they are not `wanted` by name; those that went."""
    with translated(f"cannot read publication {name}"):
        rows: list[Any] = conn.execute(
            "select n.nspname, c.relname from pg_catalog.pg_publication_rel r"
            " join pg_catalog.pg_publication p on p.oid = r.prpubid"
            " join pg_catalog.pg_class c on c.oid = r.prrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where p.pubname = %s and c.oid = any(%s::oid[]) order by 1, 2",
            (name, list(oids)),
        ).fetchall()
    keep = set(wanted)
    gone = [(str(schema), str(table)) for schema, table in rows if (schema, table) not in keep]
    remove_tables(conn, name, gone)
    return [f"{schema}.{table}" for schema, table in gone]


def drop_publication(conn: Connection, name: str) -> bool:
    """True when there was one."""
    with translated(f"cannot drop publication {name}"):
        if publication(conn, name) is None:
            return False
        conn.execute(sql.SQL("drop publication if exists {}").format(sql.Identifier(name)))
    return True


# -- slots ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A replication slot as pg_replication_slots has it. `wal_status`: reserved, extended, unreserved, lost."""

    name: str
    plugin: str | None
    database: str | None
    active_pid: int | None
    confirmed_flush: Lsn | None
    wal_status: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """An open transaction that a slot's creation waits for."""

    pid: int | None  # None: a prepared transaction
    who: str
    since_s: float

    def __str__(self) -> str:
        what = f"pid {self.pid}" if self.pid is not None else "prepared transaction"
        return f"{what} ({self.who}), open for {self.since_s:.0f} s"


def slot(conn: Connection, name: str) -> Slot | None:
    """The slot of that name on this server (slots are server-wide), or None."""
    with translated(f"cannot read replication slot {name}"):
        row: Any = conn.execute(
            "select plugin, database, active_pid, confirmed_flush_lsn::text, wal_status"
            " from pg_catalog.pg_replication_slots where slot_name = %s",
            (name,),
        ).fetchone()
    if row is None:
        return None
    return Slot(
        name=name,
        plugin=row[0],
        database=row[1],
        active_pid=row[2],
        confirmed_flush=None if row[3] is None else parse_lsn(row[3]),
        wal_status=row[4],
    )


def create_slot(
    dsn: str,
    name: str,
    *,
    waiting: Callable[[Sequence[Blocker]], None],
    timeout_s: float | None = None,
    stop: threading.Event | None = None,
) -> Lsn:
    """Create the logical slot for pgoutput and return its consistent point.

    The server waits for every transaction that is open now, in any database; `waiting` hears each two seconds of whom.
    Errors: Aborted, with whom it waited for, after `timeout_s` or when `stop` is set (nothing is left behind);
    Refused when no slot is free.
    """
    with session.connect(dsn, application="slackwater prepare") as conn, session.connect(dsn) as observer:
        result: list[Lsn | BaseException] = []
        creating = threading.Thread(target=_create, args=(conn, name, result), name="create slot", daemon=True)
        creating.start()
        begun = time.monotonic()
        waited_for: list[Blocker] = []
        try:
            while creating.is_alive():
                creating.join(2.0 if stop is None else 0.5)
                waited_s = time.monotonic() - begun
                if creating.is_alive() and waited_s >= 1.0:
                    waited_for = blockers(observer, conn.info.backend_pid)
                    waiting(waited_for)
                if (timeout_s is not None and waited_s > timeout_s) or (stop is not None and stop.is_set()):
                    break
        finally:
            if creating.is_alive():
                conn.cancel()  # an unfinished slot goes with the statement
                creating.join()
    outcome = result[0]
    if isinstance(outcome, errors.QueryCanceled):
        asked = stop is not None and stop.is_set()
        raise Aborted(
            f"creating replication slot {name} was {'stopped' if asked else 'given up'} after"
            f" {time.monotonic() - begun:.0f} s: transactions that were open before it have not ended",
            reasons=tuple(f"open: {blocker}" for blocker in waited_for),
            hint="run this again: it goes on from here, once the transactions that were open have ended",
        ) from outcome
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _create(conn: Connection, name: str, result: list[Lsn | BaseException]) -> None:
    """The body of the creating thread: exactly one outcome is left in `result`."""
    try:
        row: Any = conn.execute(
            "select lsn::text from pg_catalog.pg_create_logical_replication_slot(%s, 'pgoutput')", (name,)
        ).fetchone()
        result.append(parse_lsn(row[0]))
    except errors.QueryCanceled as error:
        result.append(error)
    except psycopg.Error as error:
        result.append(_refusal(error, name))
    except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
        result.append(error)


def _refusal(error: psycopg.Error, name: str) -> BaseException:
    if isinstance(error, errors.ConfigurationLimitExceeded):
        return Refused(
            f"cannot create replication slot {name}: all replication slots are in use",
            hint="drop one that nobody needs (pg_replication_slots), or raise max_replication_slots and restart",
        )
    if isinstance(error, errors.ObjectNotInPrerequisiteState):
        return Refused(
            f"cannot create replication slot {name}: {error.diag.message_primary}", hint="set wal_level = logical"
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return PrivilegeMissing(
            f"cannot create replication slot {name}: {error.diag.message_primary}",
            hint="alter role ... replication (RDS: grant rds_replication to ...); `slackwater grants` prints it",
        )
    return session.translate(error, f"cannot create replication slot {name}")


def blockers(conn: Connection, pid: int) -> list[Blocker]:
    """Whom the backend `pid` waits for: sessions, and prepared transactions (which have none)."""
    with translated("cannot list open transactions"):
        rows: list[Any] = conn.execute(
            "select b.pid,"
            " concat_ws(' ', coalesce(a.usename, 'unknown user'), nullif(a.application_name, ''), a.state),"
            " extract(epoch from clock_timestamp() - coalesce(a.xact_start, a.query_start))::float"
            " from (select distinct unnest(pg_catalog.pg_blocking_pids(%s)) as pid) b"
            " left join pg_catalog.pg_stat_activity a on a.pid = b.pid where b.pid <> 0",
            (pid,),
        ).fetchall()
        prepared: list[Any] = conn.execute(
            "select x.owner, extract(epoch from clock_timestamp() - x.prepared)::float"
            " from pg_catalog.pg_prepared_xacts x"
            " join pg_catalog.pg_locks l on l.transactionid = x.transaction and l.pid = %s and not l.granted",
            (pid,),
        ).fetchall()
    return [
        *(Blocker(pid=pid_, who=who, since_s=since or 0.0) for pid_, who, since in rows),
        *(Blocker(pid=None, who=f"of {owner}", since_s=since) for owner, since in prepared),
    ]


def drop_slot(conn: Connection, name: str, *, patience_s: float = 10.0) -> bool:
    """Drop the slot; True when there was one. Contended while a capture still streams from it after `patience_s`."""
    give_up = time.monotonic() + patience_s
    while True:
        present = slot(conn, name)
        if present is None:
            return False
        try:
            with translated(f"cannot drop replication slot {name}"):
                conn.execute("select pg_catalog.pg_drop_replication_slot(%s)", (name,))
            return True
        except Halt as error:
            if not isinstance(error.__cause__, errors.ObjectInUse):
                raise
            if time.monotonic() > give_up:
                raise Contended(
                    f"replication slot {name} is in use by pid {present.active_pid}",
                    hint="stop the capture that streams from it, then run this again",
                ) from error
        time.sleep(0.25)
