"""The statements that read and write `slackwater.verification`, on a direction's target.

Invariant: whatever decides whether a verdict counts is looked at in the statement that gives it, under its row's lock.
Parameters: m and d (migration, direction), side (the target's), load (the target table), and what each one names.
"""

from __future__ import annotations

# What a pass stands on, and its verdict with it: the turn, as the target's own row has it; the target itself; and the
# versions of the triggers that fence the table and its partitions, which whoever takes one off changes for good.
_FENCES = """
select c.relname::text as load, pg_catalog.hashtextextended(
         string_agg(k.tgrelid::text || ':' || k.xmin::text, ',' order by k.tgrelid), 0)::text as fence
  from pg_catalog.pg_trigger k
  join pg_catalog.pg_class c on c.oid = coalesce(pg_catalog.pg_partition_root(k.tgrelid), k.tgrelid)
 where k.tgname = 'slackwater_fence' group by c.relname
"""
_STANDS_ON = """jsonb_build_object('fence', ({fence}),
  'turn', coalesce((select greatest(t.open_turn, coalesce(t.fence_turn, 0) - 1) from slackwater.turn t
                     where t.migration = %(m)s and t.side = %(side)s), 0),
  'server', (select system_identifier::text from pg_catalog.pg_control_system()) || '/'
    || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))"""
GROUND = _STANDS_ON.format(fence=f"select f.fence from ({_FENCES}) f where f.load = %(load)s::text")

READ = f"""
with fences as materialized ({_FENCES}),
     grounds as (select v.load,
                        {_STANDS_ON.format(fence="select f.fence from fences f where f.load = v.load")} as ground
                   from slackwater.verification v where v.migration = %(m)s and v.direction = %(d)s)
select v.load, v.state, v.fingerprint, v.at, extract(epoch from clock_timestamp() - v.at)::float8, v.rows, v.mismatched,
       v.missing, v.extra, v.differing, v.listed, v.unrepresented, v.pass_began_at is not null, v.pass_mismatched,
       v.problem, v.void_at, v.void_cause, v.ground, g.ground, t.changed_at,
       (select count(*) from slackwater.uncompared u where u.migration = v.migration and u.direction = v.direction
           and u.load = v.load and u.turn = (g.ground->>'turn')::bigint)
  from slackwater.verification v join grounds g using (load)
  left join slackwater.turn t on t.migration = %(m)s and t.side = %(side)s
 where v.migration = %(m)s and v.direction = %(d)s
 order by v.load
"""

# Resumed is only what stands on the same file, turn and server. What decides is looked at under the row's lock.
_AGAIN = """(%(resume)s and v.pass_began_at is not null and v.pass_fingerprint = excluded.pass_fingerprint
             and v.pass_ground = excluded.pass_ground)"""
BEGIN = f"""
insert into slackwater.verification as v
       (migration, direction, load, pass_began_at, pass_fingerprint, pass_ground)
values (%(m)s, %(d)s, %(load)s, clock_timestamp(), %(file)s, {GROUND})
    on conflict (migration, direction, load) do update
   set pass_listed = case when {_AGAIN} then v.pass_listed else '[]' end,
       pass_mismatched = case when {_AGAIN} then v.pass_mismatched else 0 end,
       pass_began_at = case when {_AGAIN} then v.pass_began_at else clock_timestamp() end,
       pass_fingerprint = excluded.pass_fingerprint, pass_ground = excluded.pass_ground
returning pass_began_at, pass_listed, pass_mismatched
"""
CONCLUDE = f"""
update slackwater.verification
   set state = %(state)s, fingerprint = %(file)s, at = pass_began_at, ground = pass_ground, rows = %(rows)s,
       mismatched = %(total)s, missing = %(missing)s, extra = %(extra)s, differing = %(different)s,
       listed = %(listed)s::jsonb, unrepresented = %(alone)s::jsonb, void_at = null, void_cause = null, problem = null,
       pass_began_at = null, pass_fingerprint = null, pass_ground = null, pass_listed = '[]', pass_mismatched = 0
 where migration = %(m)s and direction = %(d)s and load = %(load)s and pass_began_at = %(began)s
   and pass_ground = {GROUND}
"""
# A complete pass that has found more than this look keeps its figures.
_KEPT = ",\n       ".join(
    f"{name} = case when v.state = 'mismatched' and v.mismatched >= excluded.mismatched"
    f" then v.{name} else excluded.{name} end"
    for name in ("state", "fingerprint", "at", "ground", "mismatched", "missing", "extra", "differing", "listed")
)
PROVEN = f"""
insert into slackwater.verification as v (migration, direction, load, state, fingerprint, at, ground, mismatched,
       missing, extra, differing, listed)
values (%(m)s, %(d)s, %(load)s, 'mismatched', %(file)s, clock_timestamp(), {GROUND}, %(total)s, %(missing)s, %(extra)s,
       %(different)s, %(listed)s::jsonb)
    on conflict (migration, direction, load) do update
   set {_KEPT},
       pass_began_at = null, pass_fingerprint = null, pass_ground = null, pass_listed = '[]', pass_mismatched = 0,
       void_at = clock_timestamp(), void_cause = 'rows were found to differ under the hold of a turn'
"""
VOIDED = f"""
select coalesce(void_cause, 'its fence was taken off, or put on anew') from slackwater.verification
 where migration = %(m)s and direction = %(d)s and load = %(load)s
   and (pass_began_at is null and void_at is not null or pass_ground->'fence' is distinct from {GROUND}->'fence')
"""
