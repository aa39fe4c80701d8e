"""What capture must know of its source besides the stream: read over a second, ordinary session.

Invariant (hazards A1, A2, A6): a publication or a slot that is not exactly what was prepared is reported as such; what
cannot be read is an error, never assumed to be well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from connectors.postgres import canary, catalog, foreign, session, truncation
from connectors.postgres.replication import REBUILD
from connectors.postgres.session import translated
from schemas import control
from schemas.control import CANARY, CANARY_TABLE
from schemas.direction import Direction, Side
from schemas.errors import Halt, SchemaChanged, SlotLost, Unavailable
from schemas.position import Lsn, format_lsn, parse_lsn
from schemas.snapshot import Snapshot
from schemas.table import Table

_SLOT = """
select pg_catalog.current_database(), pg_catalog.pg_is_in_recovery(), s.plugin, s.database, s.active_pid,
       s.confirmed_flush_lsn::text, s.wal_status, j ->> 'invalidation_reason',
       coalesce((j ->> 'two_phase')::bool, false)
  from pg_catalog.pg_replication_slots s, pg_catalog.to_jsonb(s) j
 where s.slot_name = %s
"""

# Columns that only newer servers have are read from the row as JSON, whatever it holds.
_PUBLICATION = """
select puballtables, pubviaroot, pubinsert and pubupdate and pubdelete and pubtruncate,
       (select count(*) from pg_catalog.pg_class c
         where c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace and c.relname = 'pg_publication_namespace') > 0
  from pg_catalog.pg_publication where pubname = %s
"""

_MEMBERS = """
select n.nspname, c.relname, c.oid::bigint,
       coalesce(j -> 'prqual' <> 'null', false) or coalesce(j -> 'prattrs' <> 'null', false)
  from pg_catalog.pg_publication p
  join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
  join pg_catalog.pg_class c on c.oid = r.prrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace,
       pg_catalog.to_jsonb(r) j
 where p.pubname = %s
"""

_SCHEMAS = """
select exists (select from pg_catalog.pg_publication_namespace s join pg_catalog.pg_publication p on p.oid = s.pnpubid
                where p.pubname = %s)
"""

# The backend of a transaction that waits for its standby still shows its xid.
_WAITERS = """
select bool_or(wait_event = 'SyncRep' and backend_xid::text = any(%(xids)s)), bool_or(wait_event = 'SyncRep'),
       min(pid) filter (where backend_xid::text = any(%(xids)s))
  from pg_catalog.pg_stat_activity
"""

_RETAINED = """
select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)::bigint
  from pg_catalog.pg_replication_slots where slot_name = %s
"""

_REPREPARE = "rows may be missing from the stream: `slackwater cancel`, then prepare anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """A usable slot of this database."""

    active_pid: int | None
    confirmed: Lsn


class Observer:
    """One session beside the stream. Every method may be called from any thread; each is one short query."""

    def __init__(self, dsn: str, *, application: str = "slackwater capture observer") -> None:
        self._conn = session.connect(dsn, application=application, settings={"statement_timeout": "30s"})

    def close(self) -> None:
        self._conn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def slot(self, name: str) -> SlotFacts:
        """The slot, if it can be streamed from. Errors: SlotLost, Halt."""
        row = self._one(_SLOT, (name,), f"cannot read replication slot {name}")
        if row is None:
            raise SlotLost(f"replication slot {name} does not exist", hint=REBUILD)
        database, recovering, plugin, slot_database, active_pid, confirmed, wal_status, invalid, two_phase = row
        if recovering:
            raise Halt("the source is a standby", hint="give the primary's DSN: slackwater streams from a primary only")
        if plugin != "pgoutput" or slot_database != database:
            raise SlotLost(
                f"replication slot {name} is not ours: plugin {plugin}, database {slot_database};"
                f" pgoutput and {database} were expected",
                hint=REBUILD,
            )
        if wal_status == "lost" or invalid is not None or confirmed is None:
            reason = f" ({invalid})" if invalid else ""
            raise SlotLost(f"replication slot {name} was invalidated by the server{reason}", hint=REBUILD)
        if two_phase:
            raise SlotLost(f"replication slot {name} decodes two-phase commits, which ours does not", hint=REBUILD)
        return SlotFacts(active_pid=active_pid, confirmed=parse_lsn(confirmed))

    def check_publication(self, name: str, tables: Mapping[str, Table]) -> None:
        """Errors: SchemaChanged when it is not exactly the publication that streams `tables` whole."""
        doing = f"cannot read publication {name}"
        row = self._one(_PUBLICATION, (name,), doing)
        if row is None:
            raise SchemaChanged(f"publication {name} does not exist", hint=_REPREPARE)
        all_tables, via_root, all_operations, has_schemas = row
        if all_tables or not via_root or not all_operations or (has_schemas and self._one(_SCHEMAS, (name,), doing)[0]):
            raise SchemaChanged(
                f"publication {name} was altered: its options are not what was prepared", hint=_REPREPARE
            )
        with translated(doing):
            members: list[Any] = self._conn.execute(_MEMBERS, (name,)).fetchall()
        found: set[str] = set()
        for schema, table, oid, filtered in members:
            name_ = CANARY if (schema, table) == (control.SCHEMA, CANARY_TABLE) and CANARY in tables else table
            wanted = tables.get(name_)
            if wanted is None or wanted.schema != schema:
                raise SchemaChanged(
                    f"publication {name} also has {schema}.{table}, which was not prepared",
                    hint="take it out of the publication again, or add it to the mapping and run `slackwater prepare`",
                )
            if filtered:
                raise SchemaChanged(f"publication {name} filters rows or columns of {schema}.{table}", hint=_REPREPARE)
            if wanted.oid and wanted.oid != oid:
                raise SchemaChanged(f"table {schema}.{table} was dropped and created anew", hint=_REPREPARE)
            found.add(name_)
        if missing := sorted(tables.keys() - found):
            listed = ", ".join(f"{tables[t].schema}.{t}" for t in missing)
            raise SchemaChanged(f"publication {name} lacks {listed}", hint=_REPREPARE)

    def uniques(self, table: Table) -> list[frozenset[str]]:
        """The sets of columns each of which tells any two rows of the table apart."""
        return catalog.uniques(self._conn, table)

    def unwatched(self, migration: str, tables: Iterable[Table]) -> list[truncation.Leaf]:
        """Partitions whose TRUNCATE nobody would hear of."""
        return truncation.unwatched(self._conn, migration, tables)

    def watch(self, migration: str, direction: Direction, leaf: truncation.Leaf) -> None:
        """Watch one from now on. One try, for others wait meanwhile. Errors: Contended, PrivilegeMissing."""
        truncation.watch(self._conn, migration, direction, leaf, patience_s=0.0)

    def sing(self, migration: str) -> None:
        """Write the canary, as an application would: a change of it goes the whole way of every other row."""
        with translated("writing the canary"):
            canary.sing(self._conn, migration)

    def decided(self, migration: str, side: Side, commit_lsn: Lsn) -> int:
        """The ordinal up to which the foreign writes of the transaction that committed there were decided about."""
        return foreign.decided(self._conn, migration, side, commit_lsn)

    def record_strays(self, migration: str, side: Side, rows: Iterable[foreign.ForeignRow]) -> None:
        """Keep foreign writes by table and key."""
        foreign.record(self._conn, migration, side, rows)

    def snapshot(self) -> Snapshot:
        """What is visible now."""
        row = self._one("select pg_catalog.pg_current_snapshot()::text", (), "cannot take a snapshot")
        return Snapshot.parse(row[0])

    def why_invisible(self, xids: Iterable[int]) -> str:
        """A clause that names what committed transactions wait for before anybody can see them."""
        listed = [str(xid) for xid in xids]
        row = self._one(_WAITERS, {"xids": listed}, "cannot read pg_stat_activity")
        theirs, any_, pid = row
        if theirs or any_:
            return "waits for the synchronous standby" + (f" (pid {pid})" if theirs and pid else "")
        return f"waits for transaction {listed[0]} to become visible on the source" + (f" (pid {pid})" if pid else "")

    def type_names(self, oids: Iterable[int]) -> dict[int, str]:
        """format_type() of each type, without a length; a type that is gone is absent."""
        with translated("cannot read type names"):
            rows: list[Any] = self._conn.execute(
                "select o::bigint, pg_catalog.format_type(o, -1) from pg_catalog.unnest(%s::oid[]) o"
                " where exists (select from pg_catalog.pg_type t where t.oid = o)",
                (list(oids),),
            ).fetchall()
        return dict(rows)

    def retained_bytes(self, slot: str) -> int | None:
        """WAL that the slot holds back; None when the server does not say. Errors: SlotLost."""
        row = self._one(_RETAINED, (slot,), f"cannot read replication slot {slot}")
        if row is None:
            raise SlotLost(f"replication slot {slot} does not exist", hint=REBUILD)
        return None if row[0] is None else int(row[0])

    def _one(self, query: str, parameters: Any, doing: str) -> Any:
        with translated(doing):
            return self._conn.execute(query, parameters).fetchone()


def check_slot(facts: SlotFacts, *, slot: str, owner_pid: int, durable: Lsn) -> None:
    """The slot is ours alone and has given away nothing that Kafka does not hold. Never `max()` (hazard A6).

    A slot that was dropped and created again, or advanced, stands past `durable`; one that stands before it merely
    sends again what is skipped by position. Errors: SlotLost, Unavailable.
    """
    if facts.active_pid != owner_pid:
        raise Unavailable(
            f"replication slot {slot} is in use by pid {facts.active_pid}, not by this process (pid {owner_pid})",
            hint="it is tried again by itself",
        )
    if facts.confirmed > durable:
        raise SlotLost(
            f"replication slot {slot} stands at {format_lsn(facts.confirmed)}, past the end of the newest epoch at"
            f" {format_lsn(durable)}: it was advanced, or dropped and created again",
            hint=REBUILD,
        )
