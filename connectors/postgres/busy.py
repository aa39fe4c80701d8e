"""Who is at work on the migrations of a database, whichever program they run: what an upgrade asks before it begins.

Invariant: only what every version has is asked for: heartbeats, sessions' names, the lock of verbs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from connectors.postgres import lease
from connectors.postgres.session import Connection, translated

# Heartbeats, as in `control.alive`, of every migration.
_ROLES = """
select migration, direction, role, pid, host from slackwater.role
 where state <> 'stopped' and seen_at > clock_timestamp() - make_interval(secs => %s) order by 1, 2, 3
"""

# A role whose process is stopped, or cut off from its heartbeat, still has its sessions. What only looks is left out,
# and so is a role of this version that waits for the upgrade.
_SESSIONS = """
select pid, application_name from pg_catalog.pg_stat_activity
 where datname = pg_catalog.current_database() and pid <> pg_catalog.pg_backend_pid()
   and application_name ~ '^slackwater (capture|apply|backfill|verify|heartbeat)( |$)'
   and application_name !~ ' (watch|halted)$'
 order by pid
"""

_NAMES = "select migration from slackwater.turn union select migration from slackwater.migration order by 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """`who` as an operator reads it; `migration` is None where only a session tells of it."""

    migration: str | None
    who: str


def migrations(conn: Connection) -> list[str]:
    """Every migration that has a side in this database; the control schema is there."""
    with translated("cannot list the migrations of this database"):
        return [str(row[0]) for row in conn.execute(_NAMES).fetchall()]


def roles(conn: Connection, within_s: float = 5.0) -> list[Busy]:
    """Roles of any migration with a heartbeat younger than `within_s`, by the server's clock."""
    with translated("cannot read the roles' heartbeats"):
        rows: list[Any] = conn.execute(_ROLES, (within_s,)).fetchall()
    return [
        Busy(migration=m, who=f"{direction} {role} (pid {pid} on {host})") for m, direction, role, pid, host in rows
    ]


def sessions(conn: Connection) -> list[Busy]:
    """Sessions of roles in this database."""
    with translated("cannot list the sessions"):
        rows: list[Any] = conn.execute(_SESSIONS).fetchall()
    return [Busy(migration=None, who=f"session {name} (pid {pid} of the server)") for pid, name in rows]


def verbs(conn: Connection, names: list[str]) -> list[Busy]:
    """Those of `names` whose lock is held: somebody prepares, arms, turns or ends them."""
    return [Busy(migration=name, who=who) for name in names if (who := lease.holder(conn, name)) is not None]
