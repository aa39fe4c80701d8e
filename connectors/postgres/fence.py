"""The fence: the one trigger that is guard and fence, on every table of a side and on every partition of it.

Invariant 3: at most one side accepts application writes. Statement-level triggers fire on the relation a statement
names, so a partition carries its own; they are ENABLE ALWAYS, so replication roles do not pass. Whether a write passes
is decided by `slackwater.refuse()` alone, from the side's `turn` row or the session's pass. No trigger goes for that.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import errors, sql

from connectors.postgres import catalog
from connectors.postgres.session import Connection, translated
from schemas import control
from schemas.direction import Side
from schemas.errors import Contended, Halt
from schemas.table import Table

Relation = tuple[str, str]
"""(schema, name)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One fence trigger as the catalog has it."""

    schema: str
    table: str
    migration: str
    side: str
    turn: int
    always: bool

    @property
    def relation(self) -> Relation:
        return (self.schema, self.table)


_FENCES = """
select n.nspname, c.relname, t.tgargs, t.tgenabled = 'A'
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_class c on c.oid = t.tgrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where t.tgname = %s and not t.tgisinternal
 order by 1, 2
"""


def fences(conn: Connection) -> dict[Relation, Fence]:
    """Every fence in this database, of every migration, by relation."""
    with translated("cannot list the fence triggers"):
        rows: list[Any] = conn.execute(_FENCES, (control.FENCE_TRIGGER,)).fetchall()
    found: dict[Relation, Fence] = {}
    for schema, table, args, always in rows:
        migration, side, turn, *_ = [*bytes(args).decode().split("\0"), "", "", ""]
        if not turn.isdecimal():
            raise Halt(
                f"the trigger {control.FENCE_TRIGGER} on {schema}.{table} was not made by this version of slackwater",
                hint=f"see what made it; if nothing needs it, drop trigger {control.FENCE_TRIGGER} on {schema}.{table}",
            )
        fence = Fence(schema=schema, table=table, migration=migration, side=side, turn=int(turn), always=always)
        found[fence.relation] = fence
    return found


def relations(conn: Connection, tables: Iterable[Table]) -> list[Relation]:
    """What must carry the fence: every table, and every partition of it at any depth, as they are now."""
    return [relation for table in tables for relation in [(table.schema, table.name), *catalog.partitions(conn, table)]]


def create_in_transaction(conn: Connection, migration: str, side: Side, turn: int, relation: Relation) -> None:
    """Create or replace one fence within the caller's transaction; needs SHARE ROW EXCLUSIVE on the table.

    `create or replace` resets ENABLE ALWAYS, so both are one step. ONLY: the partitions get triggers of their own.
    """
    for statement in _created(sql.Identifier(*relation), migration, side, turn):
        conn.execute(statement)


def create_held(conn: Connection, migration: str, side: Side, turn: int, held: Iterable[Relation]) -> None:
    """The fence on every relation of `held`, in one round trip, within the transaction that holds their locks."""
    statements = [s for relation in held for s in _created(sql.Identifier(*relation), migration, side, turn)]
    if statements:
        conn.execute(sql.SQL("; ").join(statements))


def _created(table: sql.Identifier, migration: str, side: Side, turn: int) -> tuple[sql.Composed, sql.Composed]:
    trigger = sql.Identifier(control.FENCE_TRIGGER)
    return (
        sql.SQL(
            "create or replace trigger {} before insert or update or delete or truncate on {}"
            " for each statement execute function slackwater.refuse({}, {}, {})"
        ).format(trigger, table, sql.Literal(migration), sql.Literal(side.value), sql.Literal(str(turn))),
        sql.SQL("alter table only {} enable always trigger {}").format(table, trigger),
    )


def ensure(
    conn: Connection, migration: str, side: Side, turn: int, tables: Iterable[Table], *, patience_s: float = 120.0
) -> list[Relation]:
    """Fence every relation that is not yet fenced for `turn`; returns those that were fenced now.

    One table per transaction with a short lock_timeout and retries, so that nobody queues behind us for long.
    Errors: Contended after `patience_s`; Halt when a table carries another migration's fence.
    """
    wanted = relations(conn, tables)
    present = fences(conn)
    made: list[Relation] = []
    for relation in wanted:
        fence = present.get(relation)
        if fence is not None and fence.migration != migration:
            raise Halt(
                f"{relation[0]}.{relation[1]} carries the fence of migration {fence.migration}",
                hint="end that migration first, by `finalize` or `cancel` with its own file",
            )
        if fence is not None and fence.always and fence.side == side.value and fence.turn >= turn:
            continue

        def create(relation: Relation = relation) -> None:
            # Under the lock: whoever closes the side meanwhile asks for a later turn, in its row as on its tables.
            conn.execute(sql.SQL("lock table only {} in share row exclusive mode").format(sql.Identifier(*relation)))
            create_in_transaction(conn, migration, side, max(turn, _asked(conn, migration, side)), relation)

        patiently(conn, create, f"cannot fence {relation[0]}.{relation[1]}", patience_s)
        made.append(relation)
    return made


def _asked(conn: Connection, migration: str, side: Side) -> int:
    """The turn that the side's row asks for now; 0 where it asks for none."""
    row: Any = conn.execute(
        "select coalesce(fence_turn, 0) from slackwater.turn where migration = %s and side = %s",
        (migration, side.value),
    ).fetchone()
    return 0 if row is None else int(row[0])


def drop(conn: Connection, migration: str, *, patience_s: float = 120.0) -> list[Relation]:
    """Drop every fence of the migration in this database; returns the relations that carried one.

    ACCESS EXCLUSIVE for a moment each: one table per transaction, short lock_timeout, retries. Errors: Contended.
    """
    dropped: list[Relation] = []
    for fence in fences(conn).values():
        if fence.migration != migration:
            continue

        def away(fence: Fence = fence) -> None:
            conn.execute(
                sql.SQL("drop trigger if exists {} on {}").format(
                    sql.Identifier(control.FENCE_TRIGGER), sql.Identifier(*fence.relation)
                )
            )

        patiently(conn, away, f"cannot drop the fence of {fence.schema}.{fence.table}", patience_s)
        dropped.append(fence.relation)
    return dropped


def patiently(conn: Connection, work: Callable[[], object], doing: str, patience_s: float = 120.0) -> None:
    """Run `work` in a transaction under a lock_timeout of 500 ms, again with pauses, until `patience_s` is over."""
    give_up = time.monotonic() + patience_s
    pause_s = 0.1
    while True:
        try:
            with translated(doing), conn.transaction():
                conn.execute("set local lock_timeout = '500ms'")
                work()
            return
        except Contended as error:
            if time.monotonic() + pause_s > give_up:
                raise Contended(
                    f"{doing}: other transactions held the table for {patience_s:.0f} s",
                    hint="see pg_stat_activity for long transactions on it; then run this again: it goes on from here",
                ) from error
        except Halt as error:
            if isinstance(error.__cause__, errors.UndefinedTable):  # a partition dropped meanwhile carries nothing
                return
            raise
        time.sleep(pause_s * random.uniform(0.5, 1.5))
        pause_s = min(pause_s * 2, 5.0)


# -- the pass ---------------------------------------------------------------------------------------------------------


def give_pass(conn: Connection, migration: str, side: Side, holder: str, secret: str) -> None:
    """Let sessions that show `secret` write on `side`. Only its hash is kept; a new one replaces the old one."""
    with translated(f"cannot give {holder} a pass through the fence"):
        conn.execute(
            "insert into slackwater.pass (migration, side, holder, hash) values (%s, %s, %s, %s)"
            " on conflict (migration, side, holder) do update set hash = excluded.hash, given_at = clock_timestamp()",
            (migration, side.value, holder, hashlib.sha256(secret.encode()).digest()),
        )


def show_pass(conn: Connection, secret: str) -> None:
    """Present the pass for the rest of this transaction only: it must not leak to whoever uses the session next."""
    conn.execute("select pg_catalog.set_config('slackwater.pass', %s, true)", (secret,))


def take_pass(conn: Connection, migration: str, side: Side, holder: str) -> None:
    """Take a holder's pass away."""
    with translated(f"cannot take the pass of {holder}"):
        conn.execute(
            "delete from slackwater.pass where migration = %s and side = %s and holder = %s",
            (migration, side.value, holder),
        )
