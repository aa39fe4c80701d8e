"""Which version the control schema of a database is of, and how one that is in use is brought to this program's.

Invariant: nothing but `bring` touches a control schema of another version, and it takes all steps in one transaction,
under the lock under which the schema is made and dropped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas import control
from schemas.control_steps import STEPS, VERSION, Step
from schemas.direction import Direction, Side
from schemas.errors import OtherVersion, Outdated

LOCK = "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('slackwater.control', 0))"

_THERE = """
select pg_catalog.to_regclass('slackwater.migration') is not null,
       pg_catalog.to_regclass('slackwater.version') is not null
"""

_NOT_OWNED = """
select o.name, pg_catalog.pg_get_userbyid(o.owner) from (
  select c.oid::pg_catalog.regclass::text, c.relowner, c.relnamespace from pg_catalog.pg_class c where c.relkind = 'r'
  union all select p.oid::pg_catalog.regprocedure::text, p.proowner, p.pronamespace from pg_catalog.pg_proc p
  union all select 'schema ' || n.nspname, n.nspowner, n.oid from pg_catalog.pg_namespace n
) o(name, owner, namespace)
 where o.namespace = 'slackwater'::pg_catalog.regnamespace
   and not pg_catalog.pg_has_role(o.owner, 'USAGE') order by 1
"""


def of(conn: Connection) -> int | None:
    """The version of this database's control schema; None where there is none, 0 where it does not say."""
    with translated("cannot look for the control schema"):
        there, says = conn.execute(_THERE).fetchone() or (False, False)
        if not there:
            return None
        row = conn.execute("select version from slackwater.version").fetchone() if says else None
    return 0 if row is None else int(row[0])


def current(conn: Connection) -> bool:
    """Whether the control schema is there, in this program's version; False: there is none.

    Errors: Outdated, OtherVersion where it is of another one.
    """
    version = of(conn)
    if version is None:
        return False
    if version < VERSION:
        raise Outdated(
            f"the control schema in database {conn.info.dbname} is of version {version}, this program works with"
            f" version {VERSION}: it was made by an older slackwater",
            hint="stop the migration's roles, then run `slackwater upgrade`",
        )
    not_newer(conn, version)
    return True


def not_newer(conn: Connection, version: int) -> None:
    """Errors: OtherVersion where this program is older than the control schema."""
    if version > VERSION:
        raise OtherVersion(
            f"the control schema in database {conn.info.dbname} is of version {version}, this program knows none above"
            f" {VERSION}: this migration was upgraded by a newer slackwater",
            hint="run that version of slackwater, or a newer one; `slackwater --version` prints which one this is",
        )


def record(conn: Connection) -> None:
    """Write down that the schema is of this program's version, in the caller's transaction."""
    conn.execute(
        "insert into slackwater.version as v (version) values (%s) on conflict (single) do update"
        " set version = excluded.version, at = clock_timestamp() where v.version < excluded.version",
        (VERSION,),
    )


def missing(version: int | None) -> tuple[Step, ...]:
    """The steps that a schema of this version has ahead of it; none where there is no schema."""
    return () if version is None else tuple(step for step in STEPS if step.number > version)


def bring(conn: Connection, sides: Collection[Side]) -> tuple[Step, ...]:
    """Bring the schema to this program's version, in the caller's transaction; the steps that were taken.

    `sides` are those that live in this database. Errors: OtherVersion where it is newer than this program.
    """
    conn.execute(LOCK)
    version = of(conn)
    if version is not None:
        not_newer(conn, version)
    steps = missing(version)
    for step in steps:
        for statements in (step.sql, *_for(step, sides)):
            if statements:
                conn.execute(statements.encode())
    if steps:
        conn.execute(control.FUNCTIONS.encode())
        record(conn)
    return steps


def _for(step: Step, sides: Collection[Side]) -> Iterator[str]:
    own: Mapping[Side, str] = {Side.OLD: step.old, Side.NEW: step.new}
    return (text for side, text in own.items() if side in sides)


# -- rows of a migration, whichever version they are of ---------------------------------------------------------------


def document(conn: Connection, migration: str) -> dict[str, Any] | None:
    """The prepared document as it stands on new; None before `prepare`. The control schema is there."""
    return _json(conn, "select prepared::text from slackwater.migration where migration = %s", migration)


def spare(conn: Connection, migration: str) -> dict[str, Any] | None:
    """The document as old keeps it; None before the first switch. The control schema is there."""
    return _json(conn, "select prepared::text from slackwater.spare where migration = %s", migration)


def _json(conn: Connection, query: str, migration: str) -> dict[str, Any] | None:
    with translated(f"cannot read what was prepared for {migration}"):
        row: Any = conn.execute(query.encode(), (migration,)).fetchone()
    return None if row is None else json.loads(row[0])


def keep_readers(conn: Connection) -> None:
    """Let whoever asks for a migration wait for the caller's transaction: no role begins on what is being changed."""
    conn.execute("lock table slackwater.migration in access exclusive mode")


def rewrite(conn: Connection, migration: str, prepared: str) -> None:
    """Put the document in its new form in the place of the old one, in the caller's transaction."""
    conn.execute(
        "update slackwater.migration set prepared = %s::jsonb, changed_at = clock_timestamp() where migration = %s",
        (prepared, migration),
    )


def relabel(conn: Connection, migration: str, direction: Direction, fingerprints: Mapping[str, str]) -> None:
    """The loads' fingerprints as this version reckons them, in the caller's transaction; load name -> fingerprint."""
    conn.execute(
        "update slackwater.load l set fingerprint = f.value from pg_catalog.jsonb_each_text(%s::jsonb) f(name, value)"
        " where l.migration = %s and l.direction = %s and l.name = f.name and l.fingerprint <> f.value",
        (json.dumps(fingerprints), migration, direction.value),
    )


def not_owned(conn: Connection) -> list[str]:
    """What of the control schema this session may not alter, as 'slackwater.turn (of slackwater_operator)'."""
    with translated("cannot look up who owns the control schema"):
        rows: list[Any] = conn.execute(_NOT_OWNED).fetchall()
    return [f"{name} (of {owner})" for name, owner in rows]


def forget_roundtrip(conn: Connection, migration: str) -> None:
    """What was proven of the way back is to be proven anew, on new, in the caller's transaction."""
    conn.execute("delete from slackwater.roundtrip where migration = %s", (migration,))
