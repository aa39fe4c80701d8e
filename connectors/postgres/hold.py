"""Holding a side's writers back: locks taken so that nobody who writes is ever the victim of a deadlock with us.

Invariants: a lock is waited for no longer than a share of the smallest `deadlock_timeout` in force, and never begun
while another wait is about to be checked for a deadlock; over that budget, everything is released. Whoever is in the
way is named. Readers are never held back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import errors, sql

from connectors.postgres.session import Connection, translated
from schemas.errors import Contended
from schemas.table import Table

SHARE = 0.45  # of the smallest deadlock_timeout: our budget for all locks of an attempt
MARGIN_MS = 50.0
CALM_S = 10.0  # how long we wait for a moment without a wait that is about to be checked

INTENT = "share update exclusive"  # writers go on; vacuum and schema changes do not
HOLD = "share row exclusive"  # writers wait; readers go on

# What a writer, a vacuum or a schema change holds, and what `share row exclusive` waits for.
CONFLICTING = (
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)

_TREE = """
select distinct c.oid::bigint, n.nspname, c.relname
  from pg_catalog.unnest(%s::oid[]) root,
       lateral (select root as relid union select t.relid from pg_catalog.pg_partition_tree(root) t) t
  join pg_catalog.pg_class c on c.oid = t.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p')
 order by 1
"""

# What a role or a database sets for its sessions counts as well; a bare number is milliseconds.
_DEADLOCK_TIMEOUT = """
select least(
  (select setting::float8 from pg_catalog.pg_settings where name = 'deadlock_timeout'),
  (select reset_val::float8 from pg_catalog.pg_settings where name = 'deadlock_timeout'),
  (select min(extract(epoch from (case when v ~ '^[0-9.]+$' then v || 'ms' else v end)::interval) * 1000)::float8
     from pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) s,
          lateral (select pg_catalog.substr(s, 18) v) x
    where s like 'deadlock\\_timeout=%%'))
"""

_AGED = """
select count(*) from pg_catalog.pg_locks
 where not granted and waitstart is not null
   and extract(epoch from clock_timestamp() - waitstart) * 1000 between %s and %s
"""

_BLOCKERS = """
select l.pid, coalesce(a.usename, x.owner, 'unknown user'), coalesce(a.application_name, ''), coalesce(a.state, ''),
       a.backend_type, extract(epoch from clock_timestamp() - coalesce(a.xact_start, x.prepared))::float8,
       extract(epoch from clock_timestamp() - a.query_start)::float8, x.gid,
       coalesce(a.query like '%%(to prevent wraparound)', false),
       array_agg(distinct l.relation::regclass::text order by l.relation::regclass::text)
  from pg_catalog.pg_locks l
  left join pg_catalog.pg_stat_activity a on a.pid = l.pid
  left join pg_catalog.pg_locks own on l.pid is null and own.pid is null and own.locktype = 'transactionid'
        and own.virtualtransaction = l.virtualtransaction
  left join pg_catalog.pg_prepared_xacts x on x.transaction = own.transactionid
 where l.locktype = 'relation' and l.granted and l.relation = any(%s::oid[]) and l.mode = any(%s)
   and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
   and l.pid is distinct from %s and l.pid is distinct from pg_catalog.pg_backend_pid()
 group by 1, 2, 3, 4, 5, 6, 7, 8, 9 order by 6 desc nulls last
"""

_SUBSCRIPTIONS = """
select s.subname, sr.srrelid::regclass::text
  from pg_catalog.pg_subscription_rel sr join pg_catalog.pg_subscription s on s.oid = sr.srsubid
 where sr.srrelid = any(%s::oid[]) order by 1, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A table or a partition of one, as it is held."""

    oid: int
    schema: str
    name: str

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """Who holds a lock that ours has to wait for. `pid` is None for a prepared transaction, which `gid` names."""

    pid: int | None
    user: str
    application: str
    state: str
    kind: str | None  # pg_stat_activity.backend_type
    age_s: float | None  # of its transaction
    query_age_s: float | None
    gid: str | None
    wraparound: bool  # a vacuum that no lock request makes go away
    tables: tuple[str, ...]

    def __str__(self) -> str:
        on = _listed(self.tables)
        if self.pid is None:
            return f"prepared transaction {self.gid!r} of {self.user} holds {on}, for {_age(self.age_s)}"
        who = f"pid {self.pid} (user {self.user}, application {self.application or 'unnamed'}"
        what = f"an anti-wraparound vacuum by {who}" if self.wraparound else who
        told = [self.state] if self.state else []
        told += [f"transaction open for {_age(self.age_s)}"] if self.age_s is not None else []
        told += [f"last query begun {_age(self.query_age_s)} ago"] if self.query_age_s is not None else []
        return f"{what}, {', '.join(told)}) holds {on}" if told else f"{what}) holds {on}"


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _age(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{seconds:.1f} s"


class LockNotHad(Contended):
    """The budget was over before every lock was there; `relation` is the one that was not had."""

    def __init__(self, relation: str) -> None:
        super().__init__(f"{relation} could not be locked within the budget", hint="it is tried again")
        self.relation = relation


def relations(conn: Connection, tables: Iterable[Table]) -> list[Relation]:
    """Every table and every partition of it at any depth, in the one order in which they are locked."""
    with translated("cannot list the partitions"):
        rows: list[Any] = conn.execute(_TREE, ([t.oid for t in tables],)).fetchall()
    return [Relation(oid=oid, schema=schema, name=name) for oid, schema, name in rows]


def deadlock_timeout_ms(conn: Connection) -> float:
    """The smallest that the server, a database or a role sets."""
    with translated("cannot read deadlock_timeout"):
        row: Any = conn.execute(_DEADLOCK_TIMEOUT).fetchone()
    return float(row[0])


def budget_ms(deadlock_ms: float) -> float:
    """How long all locks of one attempt may take together."""
    return SHARE * deadlock_ms


def wait_for_calm(watcher: Connection, deadlock_ms: float, *, patience_s: float = CALM_S) -> bool:
    """Until no lock wait anywhere would be checked for a deadlock while we take our locks; False when none came.

    A wait is checked once, `deadlock_timeout` after it began: one that is older was checked, one that is younger is
    checked only after we are done. (A wait that began at this very moment shows no start yet: it is the youngest.)
    """
    give_up = time.monotonic() + patience_s
    low, high = deadlock_ms - budget_ms(deadlock_ms) - MARGIN_MS, deadlock_ms + MARGIN_MS
    while True:
        with translated("cannot look at the lock waits"):
            row: Any = watcher.execute(_AGED, (low, high)).fetchone()
        if row[0] == 0:
            return True
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)


def take(conn: Connection, wanted: Sequence[Relation], mode: str) -> list[Relation]:
    """Lock, within the caller's transaction, each relation that can be had without waiting; returns the others."""
    if not wanted:
        return []
    names = sql.SQL(", ").join(sql.Literal(r.identifier.as_string(conn)) for r in wanted)
    body = sql.SQL(
        "declare r text; n int := 0; missing text := '';"
        " begin foreach r in array array[{names}] loop begin"
        " execute 'lock table only ' || r || ' in {mode} mode nowait';"
        " exception when lock_not_available then missing := missing || n || ' '; end; n := n + 1; end loop;"
        " perform pg_catalog.set_config('slackwater.missing', missing, true); end"
    ).format(names=names, mode=sql.SQL(mode))
    conn.execute(sql.SQL("do {}").format(sql.Literal(body.as_string(conn))))
    row: Any = conn.execute("select pg_catalog.current_setting('slackwater.missing')").fetchone()
    return [wanted[int(n)] for n in row[0].split()]


def lock(conn: Connection, wanted: Sequence[Relation], mode: str, within_ms: float) -> None:
    """Lock each relation within the caller's transaction, all of them within `within_ms`. Errors: LockNotHad.

    `lock_timeout` is per lock: it is set anew before each, to what is left.
    """
    if not wanted:
        return
    names = sql.SQL(", ").join(sql.Literal(r.identifier.as_string(conn)) for r in wanted)
    body = sql.SQL(
        "declare r text; left_ms float8; began timestamptz := clock_timestamp();"
        " begin foreach r in array array[{names}] loop"
        " left_ms := {within} - extract(epoch from clock_timestamp() - began) * 1000;"
        " if left_ms < 1 then raise lock_not_available using message = 'over budget at ' || r, table = r; end if;"
        " perform pg_catalog.set_config('lock_timeout', ceil(left_ms)::text, true);"
        " begin execute 'lock table only ' || r || ' in {mode} mode';"
        " exception when lock_not_available then raise lock_not_available using message = 'over budget at ' || r,"
        " table = r; end; end loop; perform pg_catalog.set_config('lock_timeout', '0', true); end"
    ).format(names=names, within=sql.Literal(within_ms), mode=sql.SQL(mode))
    try:
        conn.execute(sql.SQL("do {}").format(sql.Literal(body.as_string(conn))))
    except errors.LockNotAvailable as error:
        raise LockNotHad(error.diag.table_name or "a table") from error


def wait_alone(conn: Connection, relation: Relation, deadlock_ms: float) -> None:
    """Wait for one table, holding nothing else, past `deadlock_timeout`: that makes autovacuum leave it.

    In a transaction of its own, which the caller ends. Errors: LockNotHad.
    """
    lock(conn, [relation], INTENT, deadlock_ms + 1000)


def blockers(conn: Connection, held: Iterable[Relation], *, besides: int | None = None) -> list[Blocker]:
    """Who holds what our locks conflict with, the longest open transaction first; `besides` is our own backend."""
    with translated("cannot list who holds the tables"):
        rows: list[Any] = conn.execute(_BLOCKERS, ([r.oid for r in held], list(CONFLICTING), besides)).fetchall()
    return [
        Blocker(
            pid=r[0],
            user=r[1],
            application=r[2],
            state=r[3],
            kind=r[4],
            age_s=r[5],
            query_age_s=r[6],
            gid=r[7],
            wraparound=r[8],
            tables=tuple(r[9]),
        )
        for r in rows
    ]


def subscriptions(conn: Connection, held: Iterable[Relation]) -> list[str]:
    """Native subscriptions that write these tables: a statement-level fence does not stop them."""
    with translated("cannot list the subscriptions"):
        rows: list[Any] = conn.execute(_SUBSCRIPTIONS, ([r.oid for r in held],)).fetchall()
    return [f"subscription {name} writes {table}" for name, table in rows]


def terminate(conn: Connection, pid: int) -> bool:
    """End a client's session, which rolls its transaction back; False when it was gone already."""
    with translated(f"cannot end pid {pid}"):
        row: Any = conn.execute("select pg_catalog.pg_terminate_backend(%s)", (pid,)).fetchone()
    return bool(row[0])
