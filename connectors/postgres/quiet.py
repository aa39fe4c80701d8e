"""Whether anybody uses a side's tables: the statistics of the tables, the locks on them, the sessions that are there.

Invariant: our own sessions (`slackwater ...`) are left out by their application name, and nobody else's are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from connectors.postgres.session import Connection, translated

# Of a partitioned table, its partitions' figures. Analyze and vacuum do not count as scans.
_COUNTERS = """
select s.schemaname || '.' || s.relname, coalesce(s.seq_scan, 0) + coalesce(s.idx_scan, 0),
       s.n_tup_ins + s.n_tup_upd + s.n_tup_del
  from pg_catalog.pg_stat_all_tables s
 where s.relid in (select t.relid from pg_catalog.unnest(%s::oid[]) o, pg_catalog.pg_partition_tree(o) t
                   union select o from pg_catalog.unnest(%s::oid[]) o)
"""

_USERS = """
select distinct a.pid, a.usename, a.application_name
  from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'relation'
   and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
   and l.relation in (select t.relid from pg_catalog.unnest(%s::oid[]) o, pg_catalog.pg_partition_tree(o) t
                      union select o from pg_catalog.unnest(%s::oid[]) o)
   and a.backend_type = 'client backend' and a.application_name !~ '^slackwater ' and l.pid <> pg_backend_pid()
 order by 1
"""

_SESSIONS = """
select distinct a.usename || coalesce(' ' || nullif(a.application_name, ''), '')
  from pg_catalog.pg_stat_activity a
 where a.datname = current_database() and a.backend_type = 'client backend'
   and a.application_name !~ '^slackwater ' and a.pid <> pg_backend_pid()
 order by 1
"""


class Counts(NamedTuple):
    """How often a table was scanned, and how many of its rows were written."""

    scans: int
    writes: int


def counters(conn: Connection, tables: Sequence[int]) -> dict[str, Counts]:
    """By schema-qualified name, as the statistics have them now."""
    with translated("reading the tables' statistics"):
        conn.execute("select pg_catalog.pg_stat_clear_snapshot()")
        rows: list[Any] = conn.execute(_COUNTERS, (list(tables), list(tables))).fetchall()
    return {name: Counts(scans, writes) for name, scans, writes in rows}


def moved(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> list[tuple[str, str]]:
    """(table, "read" or "written") of what changed in between; statistics that were reset in between say nothing."""
    found = []
    for name, now in sorted(after.items()):
        then = before.get(name, Counts(0, 0))
        if now.writes > then.writes:
            found.append((name, "written"))
        elif now.scans > then.scans:
            found.append((name, "read"))
    return found


def users(conn: Connection, tables: Sequence[int]) -> list[str]:
    """Sessions of others that hold or await a lock on one of them."""
    with translated("listing who uses the tables"):
        rows: list[Any] = conn.execute(_USERS, (list(tables), list(tables))).fetchall()
    return [f"pid {pid} ({' '.join(filter(None, (user, application)))})" for pid, user, application in rows]


def sessions(conn: Connection) -> list[str]:
    """Who is connected to this database besides us: user and application."""
    with translated("listing the sessions"):
        rows: list[Any] = conn.execute(_SESSIONS).fetchall()
    return [str(row[0]) for row in rows]
