"""The control schema: every table slackwater keeps on the databases, as DDL.

Both sides get the same schema. Rows are keyed by migration, so one migration's end never touches another's. New is the
home of what is migration-wide (`migration`, `journal`, `pause`, `load`, `backfill_chunk`); what belongs to a
direction's target lives on that target, in the transaction that writes the rows; a role's heartbeat lives where the
role writes (capture: its source; apply and backfill: their target). With one database for both sides there is one of
each.

Whoever changes a table or a function here adds a step to `control_steps`, which brings it to migrations that run.
"""

from __future__ import annotations

import hashlib

SCHEMA = "slackwater"
MIRROR_SCHEMA = "slackwater_mirror"
FENCE_TRIGGER = "slackwater_fence"
ECHO_PREFIX = "slackwater.echo"
TOKEN_PREFIX = "slackwater.token"
TURN_PREFIX = "slackwater.turn"
ROUTE_CHANNEL = "slackwater_route"
TRUNCATE_PREFIX = "slackwater.truncate"
CANARY_TABLE = "canary"
CANARY = f"{SCHEMA}.{CANARY_TABLE}"
"""How the canary is named beside source tables, which have no schema in their names: none of them is called that."""


def truncate_trigger(migration: str) -> str:
    """The trigger on each partition of a streamed table; per migration, for a table may be the source of several."""
    return f"slackwater_truncate_{migration}"


def mirror_name(migration: str, direction: str, table: str) -> str:
    """A mirror's name in `slackwater_mirror`, which migrations and directions share: `<migration>.<f|r>.<table>`.

    PostgreSQL cuts names at 63 bytes without an error, so a longer one ends in a hash.
    """
    name = f"{migration}.{direction[0]}.{table}"
    if len(name.encode()) <= 63:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return name.encode()[:50].decode(errors="ignore") + "~" + digest


TABLES = """
create schema if not exists slackwater;
create schema if not exists slackwater_mirror;

create table if not exists slackwater.version (   -- one row: which of `control_steps` this schema has behind it
  single boolean primary key default true check (single),
  version integer not null,
  at timestamptz not null default clock_timestamp()
);

create table if not exists slackwater.migration (
  migration text primary key,
  phase text not null,
  fingerprint text not null,          -- sha256 of the canonical mapping file
  prepared jsonb not null,            -- tables of both sides and mappings as they were prepared
  created_at timestamptz not null default clock_timestamp(),
  changed_at timestamptz not null default clock_timestamp()
);

create table if not exists slackwater.turn (   -- the authority for its own side
  migration text not null, side text not null check (side in ('old', 'new')),
  open_turn bigint not null,           -- forward opens new with 1; old carries 0 from the start, new -1
  fence_turn bigint,                   -- the turn this side's fence asks for; null: no fence
  changed_at timestamptz not null default clock_timestamp(),
  primary key (migration, side)
);

create table if not exists slackwater.pass (   -- who may write through the fence: sha256 of a secret kept in memory
  migration text not null, side text not null, holder text not null, hash bytea not null,
  given_at timestamptz not null default clock_timestamp(),
  primary key (migration, side, holder)
);

create table if not exists slackwater.spare (  -- on old: what new knows, for when new is gone
  migration text primary key, prepared jsonb not null, kept_at timestamptz not null default clock_timestamp()
);

create table if not exists slackwater.stride (  -- of the other side's sequences, for when it is gone
  migration text not null, side text not null,   -- the other one
  strides jsonb not null,              -- {"table.column": how far apart its values may lie}
  kept_at timestamptz not null default clock_timestamp(),
  primary key (migration, side)
);

create table if not exists slackwater.route (
  migration text primary key, writes text not null, turn bigint not null, changed_at timestamptz not null
);

create table if not exists slackwater.checkpoint (
  migration text not null, direction text not null,
  epoch bigint not null, end_lsn pg_lsn not null, last_commit_lsn pg_lsn not null, last_seq bigint not null,
  committed_at timestamptz,            -- source commit time of the newest applied transaction
  applied_at timestamptz not null default clock_timestamp(),
  offsets jsonb not null default '{}', -- {topic: {partition: next offset}}, the epochs topic included
  system_id text not null, timeline integer not null, slot text not null,
  primary key (migration, direction)
);

create table if not exists slackwater.epoch (  -- what was applied lately; pruned
  migration text not null, direction text not null, epoch bigint not null,
  end_lsn pg_lsn not null, committed_at timestamptz, applied_at timestamptz not null default clock_timestamp(),
  rows bigint not null, extents jsonb not null default '{}',
  primary key (migration, direction, epoch)
);

create table if not exists slackwater.token (
  migration text not null, direction text not null, token text not null, epoch bigint not null,
  applied_at timestamptz not null default clock_timestamp(),
  primary key (migration, direction, token)
);

create table if not exists slackwater.load (   -- one backfill: a mapping's target, or a mirror
  migration text not null, direction text not null,
  name text not null,                  -- target table, or 'mirror:<source table>'
  source text not null,                -- the source table read; for a mapping over mirrors: ''
  fingerprint text not null,           -- of the mapping's text and feeds
  state text not null,                 -- pending, running, indexing, done; asleep: waits for its mirrors
  barrier_xid text,                    -- xid8: no chunk starts until a snapshot's xmin is at or past it
  barrier_lsn pg_lsn,                  -- chunks from a replica need replay at or past it
  newest_lsn pg_lsn,                   -- source LSN of the newest chunk or reread; older epochs may contradict it
  snapshot text,                       -- tables without a key: pg_current_snapshot() of their one chunk
  rows bigint not null default 0, bytes bigint not null default 0,
  rows_estimate bigint not null default 0, bytes_estimate bigint not null default 0,
  started_at timestamptz, done_at timestamptz,
  primary key (migration, direction, name)
);

create table if not exists slackwater.backfill_chunk (
  migration text not null, direction text not null, load text not null, chunk integer not null,
  lower text, upper text,              -- key range [lower, upper) as text; null: open. hash buckets: 'bucket/of'
  kind text not null default 'range',  -- range, bucket, whole
  state text not null default 'pending',
  rows bigint not null default 0, bytes bigint not null default 0, source_lsn pg_lsn, epoch bigint,
  done_at timestamptz,
  primary key (migration, direction, load, chunk)
);

create table if not exists slackwater.quarantine (
  id bigint generated always as identity primary key,
  migration text not null, direction text not null, load text not null, source text not null,
  key jsonb not null,                  -- the source row's key columns
  commit_lsn pg_lsn, seq bigint, sqlstate text, error text not null,
  state text not null default 'open',  -- open, retrying, waived
  changes bigint not null default 1,   -- this one and the later ones of its key that joined it
  at timestamptz not null default clock_timestamp(),
  waived_by text, waived_reason text, waived_at timestamptz,
  carried jsonb,                       -- like a reread's
  unique (migration, direction, load, source, key)
);

create table if not exists slackwater.reread (
  migration text not null, direction text not null, load text not null, source text not null,
  key jsonb not null, reason text not null, asked_at timestamptz not null default clock_timestamp(),
  attempts integer not null default 0,
  carried jsonb,                       -- a row that took another key: its new key, and the columns no mapping writes
  repair jsonb,                        -- asked for by a repair: what may be deleted for it, and by whom
  primary key (migration, direction, load, source, key)
);
create index if not exists reread_carried on slackwater.reread (migration, direction) where carried is not null;

create table if not exists slackwater.canary (   -- written on new as an application would; in the reverse stream
  migration text primary key, token text not null, at timestamptz not null default clock_timestamp()
);

create table if not exists slackwater.canary_seen (   -- the newest one that came through, on the direction's target
  migration text not null, direction text not null, token text not null,
  written_at timestamptz not null,     -- by the source's clock
  epoch bigint not null, seen_at timestamptz not null default clock_timestamp(),
  primary key (migration, direction)
);

create table if not exists slackwater.foreign_write (   -- rows written to a side while it was closed, on that side
  id bigint generated always as identity primary key,
  migration text not null, side text not null, source text not null,
  key jsonb not null,                  -- the row's key columns; {} where it has none, or all rows of it (TRUNCATE)
  op text not null, commit_lsn pg_lsn not null, seq bigint not null, committed_at timestamptz not null,
  state text not null default 'open',  -- open, accepted, discarded
  at timestamptz not null default clock_timestamp(),
  decided_by text, reason text, decided_at timestamptz,
  unique (migration, side, commit_lsn, seq, key)
);

create table if not exists slackwater.roundtrip (   -- the newest verdict on old -> new -> old; on new
  migration text primary key,
  fingerprint text not null,           -- of the file that it speaks of
  at timestamptz not null, result jsonb not null
);

create table if not exists slackwater.verification (   -- the verdict on each target table, on the direction's target
  migration text not null, direction text not null,
  load text not null,                  -- the target table
  state text not null default 'pending',  -- pending, running, clean, mismatched, repaired
  fingerprint text not null default '',   -- of the file that `state` speaks of; of another one it says nothing
  at timestamptz,                      -- when the last complete pass began: what it says is no younger
  rows bigint,                         -- compared in it, and there, on the fuller side
  mismatched bigint not null default 0, missing bigint not null default 0, extra bigint not null default 0,
  differing bigint not null default 0,
  listed jsonb not null default '[]',  -- [{"kind", "key", "columns"}]: no values but those of keys
  unrepresented jsonb not null default '{}',  -- {"source table": {"rows", "fault", "keys"}}: without a counterpart here
  pass_began_at timestamptz,           -- of the pass under way; null: none is
  pass_fingerprint text, pass_listed jsonb not null default '[]',
  pass_mismatched bigint not null default 0,
  problem jsonb,                       -- why the last try could not compare: cause, remedy, at
  ground jsonb,                        -- what the last complete pass stood on: turn, and the target's server
  pass_ground jsonb,                   -- the same of the pass under way
  void_at timestamptz, void_cause text,  -- since when, and why, the last complete pass says nothing any more
  primary key (migration, direction, load)
);

create table if not exists slackwater.verify_chunk (   -- the pass under way, or the last one: to go on after a kill
  migration text not null, direction text not null, load text not null, chunk integer not null,
  lower text, upper text,              -- of an integer key, [lower, upper); null: open
  source_rows bigint not null, target_rows bigint not null,
  youngest bigint,                     -- transactions ago that a row of it was written on the target
  began_at timestamptz not null,       -- of its pass
  done_at timestamptz not null default clock_timestamp(),
  primary key (migration, direction, load, chunk)
);

create table if not exists slackwater.uncompared (   -- what a turn had no time to compare, on its direction's target
  migration text not null, direction text not null, turn bigint not null,
  load text not null, chunk integer not null, lower text, upper text,   -- like a verify_chunk's
  at timestamptz not null default clock_timestamp(),
  primary key (migration, direction, load, chunk)
);

create table if not exists slackwater.repaired (   -- what repairs took away or wrote over, on the side it is from
  id bigint generated always as identity primary key,
  migration text not null, direction text not null,
  load text not null,                  -- the target table
  action text not null,                -- deleted, overwritten
  key jsonb not null,                  -- the row's key in the target, as texts; {} where it has none
  image jsonb not null,                -- every column but the generated ones, as PostgreSQL's own text
  by text not null, reason text not null, at timestamptz not null default clock_timestamp(),
  restored_at timestamptz, restored_by text
);
create index if not exists repaired_load on slackwater.repaired (migration, direction, load);

create table if not exists slackwater.role (   -- heartbeats
  migration text not null, direction text not null, role text not null,
  pid integer not null, host text not null,
  state text not null,                 -- starting, running, waiting, paused, halted, stopped
  reason text, last_error jsonb, figures jsonb not null default '{}',
  seen_at timestamptz not null default clock_timestamp(),
  primary key (migration, direction, role)
);

create table if not exists slackwater.gate (   -- since when a gate is as it is; the forward applier keeps it, on new
  migration text not null, direction text not null, gate text not null,
  state text not null, since timestamptz not null default clock_timestamp(),
  primary key (migration, direction, gate)
);

create table if not exists slackwater.finding (   -- what a look found that is too dear for every turn; on the target
  migration text not null, direction text not null, what text not null,   -- foreign_keys
  fingerprint text not null,           -- of what was looked at: another one makes the finding worthless
  at timestamptz not null default clock_timestamp(), seconds double precision not null, result jsonb not null,
  primary key (migration, direction, what)
);

create table if not exists slackwater.fingerprint (   -- what was last accepted of a side's tables, on that side
  migration text not null, side text not null, relation text not null,
  parts jsonb not null,                -- schemas/fingerprint.py: all that can change rows without an event
  accepted_at timestamptz not null default clock_timestamp(),
  primary key (migration, side, relation)
);

create table if not exists slackwater.silent_change (  -- what changed a table without an event, on the side it is on
  id bigint generated always as identity primary key,
  migration text not null, side text not null, relation text not null,
  kind text not null,                  -- file, values, code, shape, lost
  cause text not null,
  state text not null default 'found', -- found, voided (verdicts say nothing since), done
  found_at timestamptz not null default clock_timestamp(),
  voided_at timestamptz,               -- by the clock of the other side: a pass that began later has seen it
  done_at timestamptz
);
create index if not exists silent_change_waiting on slackwater.silent_change (migration, side) where state <> 'done';

create table if not exists slackwater.pause (
  migration text not null, what text not null, reason text, by text not null,
  at timestamptz not null default clock_timestamp(),
  primary key (migration, what)
);

create table if not exists slackwater.journal (
  migration text not null, seq bigint not null, at timestamptz not null,
  actor text not null, remark text, host text not null, step text not null, outcome text not null,
  detail jsonb not null default '{}', previous text not null, hash text not null,
  primary key (migration, seq)
);
"""

REFUSE = r"""
create or replace function slackwater.refuse() returns trigger language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp as $body$
declare
  shown text := current_setting('slackwater.pass', true);  -- not `pass`: that is also the table's row
  opened bigint;
begin
  -- arguments: migration, side, turn
  select open_turn into opened from slackwater.turn where migration = TG_ARGV[0] and side = TG_ARGV[1];
  if opened >= TG_ARGV[2]::bigint then return null; end if;
  if shown <> '' and exists (
    select from slackwater.pass
    where migration = TG_ARGV[0] and side = TG_ARGV[1] and hash = sha256(convert_to(shown, 'UTF8'))
  ) then return null; end if;
  raise exception using errcode = '25006',
    message = 'slackwater: writes moved to ' || case TG_ARGV[1] when 'old' then 'new' else 'old' end,
    hint = 'roll back, read slackwater.route, and retry the whole transaction there';
end $body$;
"""

# What is done with the rights of whoever prepared.
#
# What makes a TRUNCATE of a single partition visible in the stream, and what gives a partition that trigger. `watch`
# is for capture's role, which owns nothing: it does this one thing, with the rights of whoever prepared, and only to
# partitions of what its own migration publishes. (An owner may do it beforehand: the publication comes after it.)
WATCH = r"""
create or replace function slackwater.truncated() returns trigger language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp as $body$
begin
  -- arguments: migration, direction
  perform pg_logical_emit_message(true, 'slackwater.truncate', json_build_object(
    'migration', TG_ARGV[0], 'direction', TG_ARGV[1], 'root', pg_partition_root(TG_RELID)::oid::bigint,
    'partition', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME)::text);
  return null;
end $body$;

create or replace function slackwater.watch(migration text, direction text, leaf oid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $body$
begin
  if not exists (
    select from pg_class c
     where c.oid = leaf and c.relispartition and (pg_has_role(session_user, c.relowner, 'USAGE') or exists (
       select from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
        where p.pubname = 'slackwater_' || migration || '_' || direction and r.prrelid = pg_partition_root(leaf)))
  ) then
    raise exception using errcode = '42501', message = 'not a partition of a table that this migration streams';
  end if;
  execute format('create or replace trigger %I before truncate on %s for each statement'
    || ' execute function slackwater.truncated(%L, %L)',
    'slackwater_truncate_' || migration, leaf::regclass, migration, direction);
  execute format('alter table only %s enable always trigger %I', leaf::regclass, 'slackwater_truncate_' || migration);
end $body$;

revoke all on function slackwater.watch(text, text, oid) from public;

-- For the roles that write rows, which may not end each other's sessions: one that holds their direction's lock, waits
-- for its client and is ours.
create or replace function slackwater.end_stalled(migration text, direction text, holder integer) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $body$
begin
  return coalesce((
    select pg_terminate_backend(a.pid) from pg_stat_activity a join pg_locks l on l.pid = a.pid and l.granted
     where a.pid = holder and a.state = 'active' and a.wait_event in ('ClientRead', 'ClientWrite')
       and a.application_name ~ '^slackwater ' and l.locktype = 'advisory' and l.objsubid = 1
       and l.database = (select oid from pg_database where datname = current_database())
       and (l.classid::bigint << 32 | l.objid::bigint)
         = hashtextextended('slackwater.' || migration || '.' || direction, 0)
     limit 1), false);
end $body$;

revoke all on function slackwater.end_stalled(text, text, integer) from public;
"""

FUNCTIONS = REFUSE + WATCH
"""Made anew, in this text, by whatever makes or upgrades the control schema."""
