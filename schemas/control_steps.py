"""What each version of the control schema brought: how one that is in use is made what `control` makes anew.

Invariants: a step never changes once it has been released, and its number is never given again; every step may be run
twice. A step adds. What it would take away, or give another meaning, an older program of another migration in the same
database may still go by.

How to add one: change `control`, append a Step with the next number here, and the same DDL in it (`create table if not
exists`, `add column if not exists`; a constraint or a type is looked for before it is changed). Functions are made anew
after the steps, from `control.FUNCTIONS`: a step for a change of theirs has a sentence and no SQL; one whose arguments
change, or that goes, is dropped in its step. tests/integration/test_upgrade_steps.py holds what the steps make of the
first schema against what `control` makes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From version `number` - 1 to `number`. `sql` is run on each database, `old` and `new` where that side lives.

    `brings` is a sentence for the operator, without a full stop. Version 0 is a schema without a record of its version.
    """

    number: int
    brings: str
    sql: str = ""
    old: str = ""
    new: str = ""


STEPS: tuple[Step, ...] = (
    Step(
        number=1,
        brings="the control schema says which version it is of",
        sql="""
create table if not exists slackwater.version (
  single boolean primary key default true check (single),
  version integer not null,
  at timestamptz not null default clock_timestamp()
);
grant select on slackwater.version to public;
""",
    ),
    Step(
        number=2,
        brings="verify keeps which source rows have no counterpart on the target",
        sql="alter table slackwater.verification add column if not exists unrepresented jsonb not null default '{}'",
    ),
    Step(
        number=3,
        brings="a verification says what it stands on and what has voided it, a turn what it had no time to compare",
        sql="""
alter table slackwater.verification
  add column if not exists ground jsonb, add column if not exists pass_ground jsonb,
  add column if not exists void_at timestamptz, add column if not exists void_cause text;
create table if not exists slackwater.uncompared (
  migration text not null, direction text not null, turn bigint not null,
  load text not null, chunk integer not null, lower text, upper text,
  at timestamptz not null default clock_timestamp(),
  primary key (migration, direction, load, chunk)
);
""",
    ),
    Step(
        number=4,
        brings="what changes a table without an event is found in the catalogs, and kept until it was compared",
        sql="""
create table if not exists slackwater.fingerprint (
  migration text not null, side text not null, relation text not null,
  parts jsonb not null,
  accepted_at timestamptz not null default clock_timestamp(),
  primary key (migration, side, relation)
);

create table if not exists slackwater.silent_change (
  id bigint generated always as identity primary key,
  migration text not null, side text not null, relation text not null,
  kind text not null,
  cause text not null,
  state text not null default 'found',
  found_at timestamptz not null default clock_timestamp(),
  voided_at timestamptz,
  done_at timestamptz
);
create index if not exists silent_change_waiting on slackwater.silent_change (migration, side) where state <> 'done';
""",
    ),
    Step(
        number=5,
        brings="what a repair deletes or writes over is kept until the end",
        sql="""
alter table slackwater.reread add column if not exists repair jsonb;
create table if not exists slackwater.repaired (
  id bigint generated always as identity primary key,
  migration text not null, direction text not null,
  load text not null,
  action text not null,
  key jsonb not null,
  image jsonb not null,
  by text not null, reason text not null, at timestamptz not null default clock_timestamp(),
  restored_at timestamptz, restored_by text
);
create index if not exists repaired_load on slackwater.repaired (migration, direction, load);
""",
    ),
)

VERSION = STEPS[-1].number
"""The control schema that this program makes, and the only one that it works with."""
