"""Rows that repairs have deleted or written over: listed, and put back.

Invariants: a row is put back as it was, column by column, where no row with its key is; a deleted row is put back once.
On a closed side the row is ours to write: marked, so that it does not travel, and different from the source until
somebody brings both together, so the table's verdict is void. On the open side it is the application's own from then
on: unmarked, its triggers and foreign keys in force, and the stream carries it over.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from connectors.postgres import column_types, control, fence, targets, user_path
from connectors.postgres.session import Connection, connect, translated
from connectors.postgres.user_path import Path
from connectors.postgres.void import void
from schemas.control import ECHO_PREFIX
from schemas.direction import Direction, Side
from schemas.errors import Contended, RowRejected
from schemas.names import EQ, qualified, quote
from schemas.repair import Action
from schemas.spec import Spec
from stream.migration.journal import Actor, append
from stream.migration.paths import NONE, in_force
from stream.migration.prepared import load

HOLDER = "repaired restore"

READ = """
select id, direction, load, action, key, image, by, reason, at, restored_at, restored_by
  from slackwater.repaired where migration = %s and direction = %s order by id
"""
COLUMNS = """
select attname from pg_catalog.pg_attribute
 where attrelid = pg_catalog.to_regclass(%s) and attnum > 0 and not attisdropped and attgenerated = ''
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row that was kept: `key` and `image` hold each column's text. `id` counts on its own side's database."""

    id: int
    direction: Direction
    load: str
    action: Action
    key: Mapping[str, str | None]
    image: Mapping[str, str | None]
    by: str
    reason: str
    at: datetime
    restored_at: datetime | None
    restored_by: str | None

    @property
    def side(self) -> Side:
        return self.direction.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """What became of a row that was to be put back: `result` is restored, there or refused; `why` where it is not."""

    row: Row
    result: str
    why: str = ""


def rows(conn: Connection, migration: str, direction: Direction) -> list[Row]:
    """All of a direction, oldest first; `conn` reaches the direction's target."""
    with translated("reading what repairs have kept"):
        found = conn.execute(READ, (migration, direction.value)).fetchall()
    names = tuple(Row.__dataclass_fields__)
    documents = [cast("dict[str, Any]", dict(zip(names, row, strict=True))) for row in found]
    return [Row(**d | {"direction": Direction(d["direction"]), "action": Action(d["action"])}) for d in documents]


def restore(spec: Spec, wanted: Sequence[Row], *, actor: Callable[[Connection], Actor]) -> list[Put]:
    """Put rows of one direction back. What is refused leaves the others alone.

    Errors: Contended where the side was opened, or closed, meanwhile; Unavailable.
    """
    direction = wanted[0].direction
    dsns = {Side.OLD: str(spec.old.dsn), Side.NEW: str(spec.new.dsn)}
    with (
        closing(connect(dsns[direction.target], application="slackwater repaired")) as conn,
        closing(connect(dsns[Side.NEW], application="slackwater repaired")) as new,
    ):
        who = actor(new)
        document = load(new, spec.migration)
        path = in_force(spec, NONE if document is None else document.paths).of(direction.target)
        done = _restore(spec, conn, direction, wanted, who, path)
        tables = sorted({p.row.load for p in done if p.result == "restored"})
        detail = {"direction": direction.value, "rows": sum(p.result == "restored" for p in done), "tables": tables}
        append(new, spec.migration, actor=who, step="repaired restore", detail=detail)
    return done


def _restore(
    spec: Spec, conn: Connection, direction: Direction, wanted: Sequence[Row], who: Actor, path: Path
) -> list[Put]:
    migration, side = spec.migration, direction.target
    schema = spec.new.schema_ if side is Side.NEW else spec.old.schema_
    user_path.assert_safe(conn, path, schema)
    open_ = _open(conn, migration, side, lock=False)
    replica = not open_ and targets.may_be_replica(conn)
    with control.transaction(conn, "cannot put rows back"):
        if not open_:
            conn.execute(
                "select pg_catalog.pg_logical_emit_message(true, %s, %s)", (ECHO_PREFIX, f"{migration}.{direction}")
            )
        conn.execute(
            "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%s, 0))",
            (f"slackwater.{migration}.{direction}",),
        )
        if _open(conn, migration, side, lock=True) is not open_:
            raise Contended(f"{side} was {'closed' if open_ else 'opened'} meanwhile", hint="run it again")
        if not open_:
            secret = secrets.token_hex(32)
            fence.give_pass(conn, migration, side, HOLDER, secret)
            fence.show_pass(conn, secret)
        if replica:
            conn.execute("set local session_replication_role = replica")
        done = [_put(conn, schema, row, who, path) for row in wanted]
        if not open_:
            fence.take_pass(conn, migration, side, HOLDER)
        back = {p.row.load for p in done if p.result == "restored"}
        void(conn, migration, direction, tables=back, cause="rows were put back that a repair had deleted")
        if not replica:  # constraints and triggers that were deferred come now
            user_path.enter(conn, path)
    return done


def _open(conn: Connection, migration: str, side: Side, *, lock: bool) -> bool:
    turn = control.turn(conn, migration, side, lock=lock)
    return turn is not None and turn.open


def _put(conn: Connection, schema: str, row: Row, who: Actor, path: Path) -> Put:
    if row.restored_at is not None:
        return Put(row=row, result="there", why="it was put back before")
    if row.action is not Action.DELETED:
        return Put(
            row=row, result="refused", why="it was written over, and is there; `--show-values` shows what it was"
        )
    name = qualified(schema, row.load)
    with translated(f"reading the columns of {row.load}"):
        there = {str(c) for (c,) in conn.execute(COLUMNS, (name,)).fetchall()}
    if gone := sorted(row.image.keys() - there):
        return Put(row=row, result="refused", why=f"{row.load} no longer has {', '.join(gone)}")
    try:
        with translated(f"putting a row of {row.load} back"), conn.transaction():
            if not _insert(conn, name, row, path):
                return Put(row=row, result="there", why="a row with its key, or a unique value of it, is there")
            conn.execute(
                "update slackwater.repaired set restored_at = clock_timestamp(), restored_by = %s where id = %s",
                (who.identity, row.id),
            )
    except RowRejected as error:
        return Put(row=row, result="refused", why=error.cause)
    return Put(row=row, result="restored")


def _insert(conn: Connection, name: str, row: Row, path: Path) -> bool:
    """Whether it was put there. Texts go as they are, of no type: each column's own input reads them."""
    if row.key:
        types = column_types.of_columns(conn, [name])[name]
        equal = {k: types[k].equal if k in types else EQ for k in row.key}
        same = " and ".join(f"t.{_escaped(quote(k))} {_escaped(equal[k])} %s" for k in row.key)
        found = conn.execute(
            f"select exists (select from {_escaped(name)} t where {same})".encode(), list(row.key.values())
        ).fetchone()
        if found == (True,):
            return False
    columns = _escaped(", ".join(quote(c) for c in row.image))
    values = ", ".join("%s" for _ in row.image)
    with user_path.within(conn, path):
        done = conn.execute(
            f"insert into {_escaped(name)} ({columns}) overriding system value values ({values})"
            " on conflict do nothing".encode(),
            list(row.image.values()),
        )
    return done.rowcount == 1


def _escaped(text: str) -> str:
    """For a statement with parameters: names may hold a percent sign."""
    return text.replace("%", "%%")
