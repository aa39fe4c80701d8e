"""Facts about a server, asked before anything is changed: settings, privileges, and what stands around the tables.

Invariant: nothing here changes anything, and nothing here judges: `stream.preflight` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from connectors.postgres import session
from connectors.postgres.session import Connection, translated
from schemas.table import Table

Relation = tuple[str, str]
"""(schema, name)."""

_SETTINGS = (
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "max_slot_wal_keep_size",
    "idle_replication_slot_timeout",
    "logical_decoding_work_mem",
    "synchronous_standby_names",
)

_PROVIDERS = (
    ("rds.", "rds"),
    ("cloudsql.", "cloudsql"),
    ("azure.", "azure"),
    ("neon.", "neon"),
    ("supautils.", "supabase"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the server is set to. `values` are as SHOW prints them; `raw` are in the setting's own unit."""

    values: dict[str, str]
    raw: dict[str, str]
    provider: str  # rds, cloudsql, azure, neon, supabase, or '' for a server of one's own
    slots_used: int
    slots_free: int
    senders_free: int


def settings(conn: Connection) -> Settings:
    """The settings that streaming depends on, and what of the slots and senders is left."""
    with translated("cannot read the server's settings"):
        rows: list[Any] = conn.execute(
            "select name, current_setting(name), setting from pg_catalog.pg_settings where name = any(%s)",
            (list(_SETTINGS),),
        ).fetchall()
        prefixes: list[Any] = conn.execute(
            "select distinct split_part(name, '.', 1) || '.' from pg_catalog.pg_settings where name like '%.%'"
        ).fetchall()
        used: Any = conn.execute(
            "select (select count(*) from pg_catalog.pg_replication_slots),"
            " (select count(*) from pg_catalog.pg_stat_replication)"
        ).fetchone()
    values = {name: shown for name, shown, _ in rows}
    raw = {name: setting for name, _, setting in rows}
    found = {row[0] for row in prefixes}
    return Settings(
        values=values,
        raw=raw,
        provider=next((name for prefix, name in _PROVIDERS if prefix in found), ""),
        slots_used=used[0],
        slots_free=int(raw["max_replication_slots"]) - used[0],
        senders_free=int(raw["max_wal_senders"]) - used[1],
    )


# -- the way there ----------------------------------------------------------------------------------------------------


def pooled(conn: Connection) -> str | None:
    """Why this session does not look like a direct one, or None.

    A pooler hands out a process id of its own, and drops or refuses startup options (refusing is an error at connect).
    """
    with translated("cannot ask the server which process serves this session"):
        pid: Any = conn.execute("select pg_catalog.pg_backend_pid()").fetchone()
        if pid[0] != conn.info.backend_pid:
            return "the process that answers is not the one that was connected to"
        pins = [name for name in session.PINS if name not in ("default_transaction_isolation", "search_path")]
        rows: list[Any] = conn.execute(
            "select name, reset_val from pg_catalog.pg_settings where lower(name) = any(%s)",
            ([p.lower() for p in pins],),
        ).fetchall()
        set_to = {name.lower(): value for name, value in rows}
    for name in ("DateStyle", "IntervalStyle", "TimeZone", "bytea_output", "extra_float_digits", "row_security"):
        if set_to[name.lower()].replace(" ", "").lower() != session.PINS[name].replace(" ", "").lower():
            return f"the startup option {name} did not arrive"
    return None


def replication_refused(dsn: str) -> str | None:
    """Why a replication connection is refused, or None: the role, pg_hba.conf, a proxy, or no sender left."""
    try:
        with psycopg.connect(
            session.pinned(dsn, application="slackwater check"), autocommit=True, replication="database"
        ) as conn:
            conn.pgconn.exec_(b"IDENTIFY_SYSTEM")
    except psycopg.OperationalError as error:
        return session.translate(error, "a replication connection is refused").cause
    return None


# -- privileges -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What the session's role may do in this database."""

    name: str
    superuser: bool
    replication: bool  # REPLICATION, or a managed service's role that stands for it
    create: bool  # schemas in this database: the control schema, a publication
    replica: bool  # may set session_replication_role


def role(conn: Connection) -> Role:
    """The role's attributes; `replica` is found out by trying, in a transaction that is rolled back."""
    with translated("cannot read the role's privileges"):
        row: Any = conn.execute(
            "select current_user::text, r.rolsuper, r.rolreplication or r.rolsuper or exists (select from pg_roles m"
            "   where m.rolname = 'rds_replication' and pg_catalog.pg_has_role(m.oid, 'usage')),"
            " pg_catalog.has_database_privilege(current_database(), 'CREATE')"
            " from pg_catalog.pg_roles r where r.rolname = current_user"
        ).fetchone()
        try:
            with conn.transaction(force_rollback=True):
                conn.execute("set local session_replication_role = replica")
            replica = True
        except errors.InsufficientPrivilege:
            replica = False
    return Role(name=row[0], superuser=row[1], replication=row[2], create=row[3], replica=replica)


def unprivileged(conn: Connection, tables: Iterable[Table], privileges: Iterable[str]) -> dict[str, list[str]]:
    """Table -> those of `privileges` (SELECT, INSERT...; OWNER for being or inheriting its owner) that are missing."""
    wanted = list(privileges)
    lacking: dict[str, list[str]] = {}
    with translated("cannot read the privileges on tables"):
        for table in tables:
            row: Any = conn.execute(
                "select pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'),"
                " pg_catalog.pg_has_role(c.relowner, 'USAGE') from pg_catalog.pg_class c where c.oid = %s::oid",
                (table.oid,),
            ).fetchone()
            if row is None:
                continue
            missing = [] if row[0] else ["USAGE on its schema"]
            for privilege in wanted:
                if privilege == "OWNER":
                    held: Any = row[1:]
                else:
                    held = conn.execute(
                        "select pg_catalog.has_table_privilege(%s::oid, %s)", (table.oid, privilege)
                    ).fetchone()
                if held != (True,):
                    missing.append(privilege)
            if missing:
                lacking[table.name] = missing
    return lacking


# -- around the tables ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """One thing found about a table that decides whether, or how, it can be migrated."""

    table: str
    kind: str
    detail: str


_TRAITS = """
with t as (select c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.relreplident
             from pg_catalog.pg_class c where c.oid = any(%(oids)s::oid[])),
     part as (select t.oid as root, t.relname, t.relreplident as root_identity, p.relid as oid
                from t, pg_catalog.pg_partition_tree(t.oid) p where t.relkind = 'p' and p.relid <> t.oid)
select relname, 'unlogged', '' from t where relpersistence = 'u'
union all
select part.relname, 'unlogged', c.relname from part join pg_catalog.pg_class c using (oid) where c.relpersistence = 'u'
union all
select part.relname, 'foreign partition', c.relname from part join pg_catalog.pg_class c using (oid)
 where c.relkind = 'f'
union all
select part.relname, 'partition owner', c.oid::regclass::text from part join pg_catalog.pg_class c using (oid)
 where not pg_catalog.pg_has_role(c.relowner, 'USAGE')
union all
select part.relname, 'partition identity', c.oid::regclass::text
  from part join pg_catalog.pg_class c using (oid)
 where c.relkind = 'r' and c.relreplident <> part.root_identity
union all
select relname, 'row security', case when relforcerowsecurity then 'forced' else '' end from t where relrowsecurity
union all
select t.relname, 'inherits', i.inhparent::regclass::text from t join pg_catalog.pg_inherits i on i.inhrelid = t.oid
union all
select t.relname, 'inherited by', i.inhrelid::regclass::text
  from t join pg_catalog.pg_inherits i on i.inhparent = t.oid where t.relkind = 'r'
union all
select t.relname, 'subscribed', s.subname
  from t join pg_catalog.pg_subscription_rel r on r.srrelid = t.oid
  join pg_catalog.pg_subscription s on s.oid = r.srsubid
union all
select part.relname, 'subscribed', s.subname from part
  join pg_catalog.pg_subscription_rel r on r.srrelid = part.oid join pg_catalog.pg_subscription s on s.oid = r.srsubid
union all
select t.relname, 'generated column', a.attname from t join pg_catalog.pg_attribute a on a.attrelid = t.oid
 where a.attnum > 0 and not a.attisdropped and a.attgenerated <> ''
union all
select t.relname, 'large object', a.attname from t join pg_catalog.pg_attribute a on a.attrelid = t.oid
 where a.attnum > 0 and not a.attisdropped
   and (a.atttypid = 26 or (select typname from pg_catalog.pg_type y where y.oid = a.atttypid) = 'lo')
union all
select t.relname, case g.tgenabled when 'A' then 'trigger always' when 'R' then 'trigger replica' else 'trigger' end,
       g.tgname
  from t join pg_catalog.pg_trigger g on g.tgrelid = t.oid
 where not g.tgisinternal and g.tgenabled <> 'D' and g.tgname not like 'slackwater\\_%%'
union all
select part.relname, case g.tgenabled when 'A' then 'trigger always' when 'R' then 'trigger replica' else 'trigger' end,
       g.tgname || ' (on ' || part.oid::regclass::text || ')'
  from part join pg_catalog.pg_trigger g on g.tgrelid = part.oid
 where not g.tgisinternal and g.tgenabled <> 'D' and g.tgparentid = 0 and g.tgname not like 'slackwater\\_%%'
union all
select t.relname, case w.ev_enabled when 'A' then 'rule always' when 'R' then 'rule replica' else 'rule' end, w.rulename
  from t join pg_catalog.pg_rewrite w on w.ev_class = t.oid where w.ev_type <> '1' and w.ev_enabled <> 'D'
union all
select t.relname, 'deferrable constraint', k.conname from t join pg_catalog.pg_constraint k on k.conrelid = t.oid
 where k.contype in ('p', 'u', 'x') and k.condeferrable
union all
select t.relname, 'foreign key', k.conname from t join pg_catalog.pg_constraint k on k.conrelid = t.oid
 where k.contype = 'f' and k.conparentid = 0
order by 1, 2, 3
"""


def traits(conn: Connection, tables: Iterable[Table]) -> list[Trait]:
    """Everything about the tables that a migration must know of, as (table, kind, detail)."""
    with translated("cannot read what surrounds the tables"):
        rows: list[Any] = conn.execute(_TRAITS, {"oids": [table.oid for table in tables]}).fetchall()
    return [Trait(table=table, kind=kind, detail=detail) for table, kind, detail in rows]


_DEPENDENTS = """
with t as (select c.oid, c.relname from pg_catalog.pg_class c where c.oid = any(%(oids)s::oid[]))
select distinct t.relname, case v.relkind when 'm' then 'materialized view' else 'view' end, v.oid::regclass::text
  from t join pg_catalog.pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid
  join pg_catalog.pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
  join pg_catalog.pg_class v on v.oid = w.ev_class where v.relkind in ('v', 'm')
union all
select t.relname, 'foreign key', k.conrelid::regclass::text || '.' || k.conname
  from t join pg_catalog.pg_constraint k on k.confrelid = t.oid and k.contype = 'f' and k.conparentid = 0
 where k.conrelid <> t.oid
union all
select t.relname, 'trigger', g.tgname || ' -> ' || g.tgfoid::regproc::text
  from t join pg_catalog.pg_trigger g on g.tgrelid = t.oid
 where not g.tgisinternal and g.tgname not like 'slackwater\\_%%'
union all
select t.relname, 'policy', p.polname from t join pg_catalog.pg_policy p on p.polrelid = t.oid
union all
select t.relname, 'publication', p.pubname from t join pg_catalog.pg_publication_rel r on r.prrelid = t.oid
  join pg_catalog.pg_publication p on p.oid = r.prpubid where p.pubname not like 'slackwater\\_%%'
union all
select t.relname, 'function', f.oid::regprocedure::text
  from t join pg_catalog.pg_proc f
    on f.prosrc ~ ('\\m' || regexp_replace(t.relname, '([^a-zA-Z0-9_])', '.', 'g') || '\\M')
  join pg_catalog.pg_namespace n on n.oid = f.pronamespace
 where n.nspname not in ('pg_catalog', 'information_schema', 'slackwater') and f.prolang not in (12, 13)
order by 1, 2, 3
"""


def dependents(conn: Connection, tables: Iterable[Table]) -> list[Trait]:
    """What leans on the tables: views, foreign keys, triggers, policies, publications, functions that name them."""
    with translated("cannot read what depends on the tables"):
        rows: list[Any] = conn.execute(_DEPENDENTS, {"oids": [table.oid for table in tables]}).fetchall()
    return [Trait(table=table, kind=kind, detail=detail) for table, kind, detail in rows]


def unmoved(conn: Connection, schema: str) -> list[Trait]:
    """What a schema holds beside tables, and what no logical stream carries: sequences, views, functions, types."""
    with translated(f"cannot list what schema {schema} holds"):
        rows: list[Any] = conn.execute(
            "select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'"
            " else 'foreign table' end, c.relname from pg_catalog.pg_class c"
            " where c.relnamespace = to_regnamespace(%(s)s) and c.relkind in ('v', 'm', 'S', 'f')"
            " union all select 'function', p.oid::regprocedure::text from pg_catalog.pg_proc p"
            " where p.pronamespace = to_regnamespace(%(s)s)"
            " and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid"
            "                 and d.deptype = 'e')"
            " union all select 'large objects', count(*)::text from pg_catalog.pg_largeobject_metadata"
            " having count(*) > 0"
            " order by 1, 2",
            {"s": _quoted(conn, schema)},
        ).fetchall()
    return [Trait(table="", kind=kind, detail=detail) for kind, detail in rows]


def _quoted(conn: Connection, name: str) -> str:
    return sql.Identifier(name).as_string(conn)


def other_slots(conn: Connection) -> list[str]:
    """Logical slots of this database that are not ours, as 'name (plugin)'."""
    with translated("cannot list the replication slots"):
        rows: list[Any] = conn.execute(
            "select slot_name || ' (' || plugin || ')' from pg_catalog.pg_replication_slots"
            " where database = current_database() and slot_name not like 'slackwater\\_%' order by 1"
        ).fetchall()
    return [row[0] for row in rows]


def open_transactions(conn: Connection, older_than_s: float) -> list[str]:
    """Transactions open for longer than that, prepared ones too: a slot's creation waits for each that has written."""
    with translated("cannot list open transactions"):
        rows: list[Any] = conn.execute(
            "select concat_ws(' ', 'pid ' || pid, usename, nullif(application_name, ''), state,"
            " 'open since ' || xact_start)"
            " from pg_catalog.pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()"
            " and xact_start < clock_timestamp() - make_interval(secs => %(s)s)"
            " union all select concat('prepared transaction ', quote_literal(gid), ' of ', owner, ' since ', prepared)"
            " from pg_catalog.pg_prepared_xacts where prepared < clock_timestamp() - make_interval(secs => %(s)s)",
            {"s": older_than_s},
        ).fetchall()
    return [row[0] for row in rows]


def holds_rows(conn: Connection, tables: Iterable[Table]) -> list[str]:
    """Those of the tables that hold at least one row."""
    found: list[str] = []
    for table in tables:
        with translated(f"cannot look whether {table.schema}.{table.name} is empty"):
            row = conn.execute(
                sql.SQL("select exists (select from {})").format(sql.Identifier(table.schema, table.name))
            ).fetchone()
        if row == (True,):
            found.append(table.name)
    return found


def row_security_applies(conn: Connection, table: Table) -> bool:
    """Whether policies would hide rows of the table from this role."""
    with translated(f"cannot read the row security of {table.schema}.{table.name}"):
        row = conn.execute("select pg_catalog.row_security_active(%s::oid)", (table.oid,)).fetchone()
    return row == (True,)


def owners(conn: Connection, tables: Iterable[Table]) -> list[str]:
    """The roles that own the tables."""
    with translated("cannot read who owns the tables"):
        rows: list[Any] = conn.execute(
            "select distinct pg_catalog.pg_get_userbyid(c.relowner)::text from pg_catalog.pg_class c"
            " where c.oid = any(%s::oid[]) order by 1",
            ([table.oid for table in tables],),
        ).fetchall()
    return [row[0] for row in rows]
