"""Least privilege, as SQL: what each role of a migration may do on each side, and nothing more.

Four roles: capture (streams from its source), apply and backfill (write their target), operator (prepares, upgrades,
cuts over, cancels: owns the tables, directly or as a member of their owners). The data plane's roles own nothing, are
not superusers, and cannot open or close a side. The control tables exist only after `prepare`, so what concerns them is
guarded, and the same SQL is run once before it and once after; the way back's is printed once everything is loaded, and
run before `arm`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.control import MIRROR_SCHEMA, SCHEMA
from schemas.direction import Side
from schemas.names import qualified, quote
from schemas.plan import Plan

CAPTURE, APPLY, BACKFILL, OPERATOR = (f"slackwater_{role}" for role in ("capture", "apply", "backfill", "operator"))

ROLES = f"""\
-- The roles of slackwater, one login each. Give each a password (\\password) or a certificate.
-- Once per server, by an administrator. REPLICATION is not inherited, so these are logins, not groups.
-- RDS, Aurora:  create role ... login; grant rds_replication to {CAPTURE}, {OPERATOR};
-- Cloud SQL:    alter user ... with replication, as a member of cloudsqlsuperuser
-- Azure:        alter role ... with replication, as the server's administrator
do $$
begin
  if to_regrole('{CAPTURE}') is null then create role {CAPTURE} login replication; end if;
  if to_regrole('{APPLY}') is null then create role {APPLY} login; end if;
  if to_regrole('{BACKFILL}') is null then create role {BACKFILL} login; end if;
  if to_regrole('{OPERATOR}') is null then create role {OPERATOR} login replication; end if;
end $$;
-- To name who is in the way (pg_stat_activity), and, for the operator, to end it when asked to (--terminate-blockers).
grant pg_read_all_stats to {CAPTURE}, {APPLY}, {BACKFILL}, {OPERATOR};
grant pg_signal_backend to {OPERATOR};
"""

# Control table -> role -> privileges. `select ... for share` asks for UPDATE on a column: the turn row's least.
_CONTROL: Mapping[str, Mapping[str, str]] = {
    "migration": {CAPTURE: "select", APPLY: "select, update (phase, changed_at)", BACKFILL: "select"},
    "turn": {
        CAPTURE: "select",
        APPLY: "select, update (changed_at)",
        BACKFILL: "select, update (changed_at)",
    },
    "pass": {APPLY: "select, insert, update, delete", BACKFILL: "select, insert, update, delete"},
    "spare": {APPLY: "select"},
    "stride": {},
    "route": {CAPTURE: "select", APPLY: "select", BACKFILL: "select"},
    "checkpoint": {CAPTURE: "select", APPLY: "select, update", BACKFILL: "select"},
    "epoch": {CAPTURE: "select", APPLY: "select, insert, delete", BACKFILL: "select"},
    "token": {APPLY: "select, insert, delete"},
    "load": {CAPTURE: "select", APPLY: "select, update", BACKFILL: "select, update"},
    "backfill_chunk": {APPLY: "select", BACKFILL: "select, insert, update, delete"},
    "quarantine": {APPLY: "select, insert, update, delete", BACKFILL: "select, insert, update, delete"},
    "reread": {APPLY: "select, insert, update, delete", BACKFILL: "select, insert, update, delete"},
    "repaired": {APPLY: "select, insert", BACKFILL: "select, insert, update"},
    "canary": {CAPTURE: "select, insert, update", APPLY: "select", BACKFILL: "select"},
    "canary_seen": {CAPTURE: "select", APPLY: "select, insert, update", BACKFILL: "select"},
    "foreign_write": {CAPTURE: "select, insert", APPLY: "select, insert", BACKFILL: "select"},
    "role": {
        CAPTURE: "select, insert, update",
        APPLY: "select, insert, update",
        BACKFILL: "select, insert, update",
    },
    "verification": {  # verify goes by backfill's login: it reads what backfill reads
        APPLY: "select, insert, update",  # what may have moved rows unseen voids it
        BACKFILL: "select, insert, update, delete",
    },
    "roundtrip": {CAPTURE: "select", APPLY: "select", BACKFILL: "select"},
    "verify_chunk": {BACKFILL: "select, insert, update, delete"},
    "uncompared": {APPLY: "select", BACKFILL: "select, delete"},
    "gate": {CAPTURE: "select", APPLY: "select, insert, update, delete", BACKFILL: "select"},
    "finding": {CAPTURE: "select", APPLY: "select, insert, update, delete", BACKFILL: "select"},
    "fingerprint": dict.fromkeys((CAPTURE, APPLY, BACKFILL), "select, insert, update"),
    "silent_change": dict.fromkeys((CAPTURE, APPLY, BACKFILL), "select, insert, update"),
    "pause": {CAPTURE: "select", APPLY: "select", BACKFILL: "select"},
    "journal": {CAPTURE: "select", APPLY: "select, insert", BACKFILL: "select, insert"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One database, and what is known of it. `owners`: the roles that own the migration's tables there.

    `schemas`: those that are named there beside the tables' own: of columns' types, and of the `search_path`.
    """

    database: str
    version: int  # major
    owners: tuple[str, ...]
    schemas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The SQL for one database; `title` says which."""

    side: Side
    title: str
    sql: str


def sections(plan: Plan, old: Place, new: Place, *, back: bool) -> list[Section]:
    """First old, then new; run each as an administrator of that database.

    `back`: whether the way back is due: until every row is there, nobody but old's application may write to old.
    """
    return [
        Section(side=Side.OLD, title=f"old: database {old.database}", sql=_old(plan, old, back=back)),
        Section(side=Side.NEW, title=f"new: database {new.database}", sql=_new(plan, new, back=back)),
    ]


def control_tables() -> frozenset[str]:
    """The control tables that the grants speak of; a test holds them against the control schema."""
    return frozenset(_CONTROL)


def _old(plan: Plan, place: Place, *, back: bool) -> str:
    tables = [qualified(plan.source_schema, name) for name in plan.sources]
    lines = [
        *_everyone(place, plan.source_schema),
        "-- capture reads what it streams; backfill reads every row once",
        f"grant select on {', '.join(tables)} to {CAPTURE}, {BACKFILL};",
        *_sequences(plan.source_schema),
        *_operator(place),
        *_control(plan),
    ]
    return "\n".join(lines + _back(_writes(place, tables), back=back)) + "\n"


def _new(plan: Plan, place: Place, *, back: bool) -> str:
    tables = [qualified(plan.target_schema, name) for name in plan.targets]
    lines = [
        *_everyone(place, plan.target_schema),
        "-- apply and backfill write the new tables, through staging of their own",
        "-- triggers have fired on old already, and foreign keys are checked there: rows arrive as they are",
        *_writes(place, tables),
        *_sequences(plan.target_schema),
    ]
    if place.version >= 17:
        lines.append(f"grant maintain on {', '.join(tables)} to {BACKFILL}; -- ANALYZE after the backfill")
    else:
        lines.append("-- (before PostgreSQL 17 only a table's owner may ANALYZE it: autovacuum does it a little later)")
    lines += [*_operator(place), *_control(plan)]
    return (
        "\n".join(lines + _back([f"grant select on {', '.join(tables)} to {CAPTURE}, {BACKFILL};"], back=back)) + "\n"
    )


def _sequences(schema: str) -> list[str]:
    return [
        "-- the gate `sequences` asks where they stand; nobody but the operator sets one",
        f"grant select on all sequences in schema {quote(schema)} to {CAPTURE}, {APPLY}, {BACKFILL}, {OPERATOR};",
    ]


def _writes(place: Place, tables: Iterable[str]) -> list[str]:
    """What the roles that write a direction's target need there."""
    lines = [
        f"grant temporary on database {quote(place.database)} to {APPLY}, {BACKFILL};",
        f"grant select, insert, update, delete on {', '.join(tables)} to {APPLY}, {BACKFILL};",
    ]
    if place.version >= 15:
        roles = f"{APPLY}, {BACKFILL}, {OPERATOR}"  # the operator tries rows that are rolled back
        return [*lines, f"grant set on parameter session_replication_role to {roles};"]
    return [
        *lines,
        "-- (PostgreSQL 14 lets superusers alone set session_replication_role; without it, foreign keys hold)",
    ]


def _back(grants: Iterable[str], *, back: bool) -> list[str]:
    """The way back: new is read, old is written."""
    if not back:
        return ["-- the way back: run what `slackwater grants` prints then, once it streams and before `arm`"]
    return ["-- the way back, which `arm` makes: new is read, old is written", *grants]


def _everyone(place: Place, schema: str) -> list[str]:
    roles = f"{CAPTURE}, {APPLY}, {BACKFILL}, {OPERATOR}"
    return [
        f"grant connect on database {quote(place.database)} to {roles};",
        *(f"grant usage on schema {quote(s)} to {roles};" for s in dict.fromkeys((schema, *place.schemas))),
    ]


def _operator(place: Place) -> list[str]:
    return [
        "-- the operator makes the control schema and the publication, fences tables as (a member of) their owner, and",
        "-- compares rows under a turn's hold, through staging of its own",
        f"grant create, temporary on database {quote(place.database)} to {OPERATOR};",
        *(f"grant {quote(owner)} to {OPERATOR};" for owner in place.owners if owner != OPERATOR),
    ]


def _control(plan: Plan) -> list[str]:
    own = f"{plan.migration}.".replace("'", "''")
    rows = f"select, insert, update, delete on %s to {APPLY}, {BACKFILL}"
    body = [f"    grant usage on schema {SCHEMA}, {MIRROR_SCHEMA} to {CAPTURE}, {APPLY}, {BACKFILL};"]
    for table, by_role in _CONTROL.items():
        body += [f"    grant {privileges} on {SCHEMA}.{table} to {role};" for role, privileges in by_role.items()]
    body += [
        f"    grant execute on function {SCHEMA}.watch(text, text, oid) to {CAPTURE};",
        f"    grant execute on function {SCHEMA}.end_stalled(text, text, integer) to {APPLY}, {BACKFILL};",
        "    -- mirrors: those that are there, and those that the operator makes later",
        "    for mirror in select c.oid::regclass from pg_class c where c.relkind = 'r'",
        f"      and c.relnamespace = '{MIRROR_SCHEMA}'::regnamespace and starts_with(c.relname, '{own}') loop",
        f"      execute format('grant {rows}', mirror);",
        "    end loop;",
        f"    if pg_has_role('{OPERATOR}', 'MEMBER') then",
        f"      alter default privileges for role {OPERATOR} in schema {MIRROR_SCHEMA}",
        f"        grant {rows.replace('%s', 'tables')};",
        "    end if;",
    ]
    return [
        "-- the control tables, which `prepare` makes: run this file again after it",
        "do $$",
        "declare mirror regclass;",
        "begin",
        f"  if to_regclass('{SCHEMA}.migration') is not null then",
        *body,
        "  end if;",
        "end $$;",
    ]
