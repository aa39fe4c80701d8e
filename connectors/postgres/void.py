"""Verdicts that say nothing any more, because rows may have moved unseen since their pass began.

Invariant: a pass that had begun when its table was voided never ends in a verdict: it is taken away in the statement
that voids, under the row's lock, and one that begins later waits for that lock. So it matters to nobody what a clock
says, nor whether the caller's transaction takes long.
"""

from __future__ import annotations

from collections.abc import Collection

from connectors.postgres.session import Connection, translated
from schemas.direction import Direction

_VOID = """
insert into slackwater.verification as v (migration, direction, load, void_at, void_cause)
select %(m)s, %(d)s, n.load, (select clock_timestamp()), %(cause)s from (
  select pg_catalog.unnest(%(tables)s::text[]) as load
  union select k.load from slackwater.verification k
         where %(tables)s::text[] is null and k.migration = %(m)s and k.direction = %(d)s
  union select l.name from slackwater.load l
         where %(tables)s::text[] is null and l.migration = %(m)s and l.direction = %(d)s
           and l.name not like 'mirror:%%') n
 order by n.load
    on conflict (migration, direction, load) do update
   set void_at = excluded.void_at, void_cause = excluded.void_cause,
       pass_began_at = null, pass_fingerprint = null, pass_ground = null, pass_listed = '[]', pass_mismatched = 0
"""


def void(conn: Connection, migration: str, direction: Direction, *, tables: Collection[str] | None, cause: str) -> None:
    """From now on the verdicts on `tables` (of the direction's target; None: all of them) say nothing.

    Only a complete pass that begins later gives another one; a pass under way begins anew. Rows that were found to
    differ stay found. `conn` reaches the direction's target; in the caller's transaction, if it has one open.
    `cause` is a clause in the past tense, without a value of a row in it: "column t.c was retyped". It is read as "not
    verified since ...".
    """
    if tables is not None and not tables:
        return
    names = None if tables is None else sorted(set(tables))
    with translated("voiding a verification"):
        conn.execute(_VOID, {"m": migration, "d": direction.value, "tables": names, "cause": cause})
