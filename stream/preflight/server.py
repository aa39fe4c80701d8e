"""What a server must be before it can be a source or a target: version, encoding, settings, and a direct way there."""

from __future__ import annotations

from connectors.postgres import catalog, session, survey
from connectors.postgres.session import Connection
from schemas.direction import Side
from schemas.errors import Halt, SlackwaterError
from stream.preflight.finding import Findings, listed

OLDEST, NEWEST = 14, 18
LONG_S = 60.0

_LOGICAL = {
    "": "alter system set wal_level = logical, then restart PostgreSQL",
    "rds": "set rds.logical_replication = 1 in the parameter group (Aurora: the cluster's), then reboot the instance",
    "cloudsql": "set the flag cloudsql.logical_decoding = on; Cloud SQL restarts the instance",
    "azure": "set wal_level = LOGICAL under Server parameters (older servers: azure.replication_support = LOGICAL),"
    " then restart the server",
    "neon": "enable logical replication in the project's settings",
    "supabase": "it is on by default; ask their support why it is not",
}

_REPLICATION = {
    "": "alter role {role} replication",
    "rds": "grant rds_replication to {role}",
    "cloudsql": "alter user {role} with replication",
    "azure": "alter role {role} with replication, as the server's administrator",
}


def reach(dsn: str, side: Side, found: Findings) -> Connection | None:
    """A session on the side, or None with the reason among the findings."""
    try:
        return session.connect(dsn, application="slackwater check")
    except Halt as error:
        found.problem("pooler", error.cause, error.hint, side)
    except SlackwaterError as error:
        found.problem("unreachable", error.cause, error.hint, side)
    return None


def examine(conn: Connection, side: Side, found: Findings) -> None:
    """What holds for a source and a target alike."""
    reason = survey.pooled(conn)
    if reason is not None:
        found.problem(
            "pooler",
            f"the DSN leads to a connection pooler or proxy: {reason}",
            f"give {side}.dsn the address of PostgreSQL itself: sessions hold locks, snapshots and a replication stream"
            " (applications may keep the pooler)",
            side,
        )
    server = catalog.server(conn)
    if not OLDEST <= server.major <= NEWEST:
        found.problem(
            "version",
            f"the server is PostgreSQL {server.major}",
            f"versions {OLDEST} to {NEWEST} are supported",
            side,
        )
    if server.in_recovery:
        found.problem(
            "standby", "the server is a standby (in recovery)", f"give {side}.dsn the address of the primary", side
        )
    if server.encoding == "SQL_ASCII":
        found.problem(
            "encoding",
            f"database {server.database} has the encoding SQL_ASCII: its text has no known meaning",
            "dump it and load it into a database with a real encoding (UTF8) first",
            side,
        )


def source(conn: Connection, dsn: str, side: Side, slots_needed: int, found: Findings) -> None:
    """What a source needs beyond that. `slots_needed`: 0 where ours exists already."""
    settings = survey.settings(conn)
    role = survey.role(conn)
    if settings.values["wal_level"] != "logical":
        found.problem(
            "wal_level",
            f"wal_level is {settings.values['wal_level']}; streaming needs logical",
            _LOGICAL.get(settings.provider, _LOGICAL[""]),
            side,
        )
    if settings.slots_free < slots_needed:
        found.problem(
            "replication_slots",
            f"all {settings.raw['max_replication_slots']} replication slots are in use",
            "drop one that nobody needs (see pg_replication_slots), or raise max_replication_slots and restart",
            side,
        )
    if settings.senders_free < slots_needed:
        found.problem(
            "wal_senders",
            f"all {settings.raw['max_wal_senders']} WAL senders are in use",
            "raise max_wal_senders and restart",
            side,
        )
    if not role.replication:
        remedy = _REPLICATION.get(settings.provider, _REPLICATION[""])
        found.problem(
            "replication_privilege",
            f"role {role.name} lacks REPLICATION",
            remedy.format(role=role.name) + "; `slackwater grants` prints every role's privileges",
            side,
        )
    elif settings.values["wal_level"] == "logical" and settings.senders_free > 0:
        refused = survey.replication_refused(dsn)
        if refused is not None:
            found.problem(
                "replication_connection",
                refused,
                "allow the role a logical replication connection: its line in pg_hba.conf, or the proxy in between",
                side,
            )
    _retention(settings, side, found)
    _waiting(conn, side, found)


def _retention(settings: survey.Settings, side: Side, found: Findings) -> None:
    """What the server may take away from a slot that falls behind."""
    if settings.raw["max_slot_wal_keep_size"] != "-1":
        found.warning(
            "max_slot_wal_keep_size",
            f"max_slot_wal_keep_size is {settings.values['max_slot_wal_keep_size']}: a slot further behind is lost,"
            " and with it the migration so far",
            "set it to -1, or to more than the server writes during the longest outage to be survived",
            side,
        )
    if settings.raw.get("idle_replication_slot_timeout", "0") != "0":
        found.warning(
            "idle_replication_slot_timeout",
            f"idle_replication_slot_timeout is {settings.values['idle_replication_slot_timeout']}: a slot whose capture"
            " is stopped for longer is lost, and with it the migration so far",
            "set it to 0 for as long as the migration runs",
            side,
        )
    found.note(
        "logical_decoding_work_mem",
        f"logical_decoding_work_mem is {settings.values['logical_decoding_work_mem']}: transactions with more changes"
        " are spilled to the source's disk",
        where=side,
    )


def _waiting(conn: Connection, side: Side, found: Findings) -> None:
    """What a slot's creation would wait for."""
    waits = survey.open_transactions(conn, LONG_S)
    if waits:
        found.warning(
            "open_transactions",
            f"open for more than a minute, and waited for by the slot's creation: {listed(waits)}",
            "end them before `slackwater prepare`; a prepared transaction with commit prepared or rollback prepared",
            side,
        )
