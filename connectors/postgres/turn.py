"""The turn rows and what moves with them: closing a side, opening one, the route, and the token that proves zero lag.

Invariants: a side is closed in the transaction that holds its writers back, and opened by its own row alone; each row
moves by compare-and-set, so whoever comes late changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from connectors.postgres import control, fence
from connectors.postgres.control import Turn
from connectors.postgres.session import Connection, translated
from schemas.control import ROUTE_CHANNEL, TOKEN_PREFIX, TURN_PREFIX
from schemas.direction import Direction, Side
from schemas.errors import Superseded
from schemas.turns import TurnMessage
from schemas.wire_version import VERSION

NOBODY = "none"


def close(conn: Connection, migration: str, side: Side, turn: int, held: Iterable[fence.Relation]) -> None:
    """Close `side`, whose writers this transaction holds back, because turn `turn` begins on the other; not committed.

    Errors: Superseded when the side is not open with a turn before it: somebody else has turned.
    """
    fence.create_held(conn, migration, side, turn + 1, held)
    moved = conn.execute(
        "update slackwater.turn set fence_turn = %s, changed_at = clock_timestamp()"
        " where migration = %s and side = %s and open_turn < %s and (fence_turn is null or fence_turn <= open_turn)",
        (turn + 1, migration, side.value, turn),
    )
    if moved.rowcount != 1:
        raise Superseded(
            f"{side} is not open with a turn before {turn} any more: somebody else has turned the tide",
            hint="slackwater status",
        )
    _emit(conn, TurnMessage(migration=migration, side=side, closed=True, turn=turn))
    _route(conn, migration, NOBODY, turn - 1)


def open_(conn: Connection, migration: str, side: Side, turn: int) -> bool:
    """Open `side` for `turn`, in the caller's transaction; False when it was open for it already.

    Errors: Superseded when its fence asks for a later turn by now: then nothing is changed.
    """
    moved = conn.execute(
        "update slackwater.turn set open_turn = %s, changed_at = clock_timestamp()"
        " where migration = %s and side = %s and open_turn < %s and coalesce(fence_turn, 0) <= %s",
        (turn, migration, side.value, turn, turn),
    )
    if moved.rowcount != 1:
        found = control.turn(conn, migration, side)
        if found is not None and found.open_turn == turn and found.open:
            return False
        raise Superseded(
            f"{side} cannot be opened for turn {turn}: its fence asks for another turn by now",
            hint="slackwater status",
        )
    _emit(conn, TurnMessage(migration=migration, side=side, closed=False, turn=turn))
    _route(conn, migration, side.value, turn)
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How many rows were to be read again; (load, key) of those whose columns that no mapping writes went with that."""

    rows: int
    lost: list[tuple[str, str]]


def settle_rereads(conn: Connection, migration: str, side: Side) -> Settled:
    """Let go of the rows of a side that wait to be read again, in the transaction that opens it.

    From then on they are the application's own, and what was tried again is in quarantine as before, with nothing kept
    for it. Mirrors are not: theirs go on.
    """
    direction = next(d for d in Direction if d.target is side)
    of = "migration = %s and direction = %s and load not like 'mirror:%%'"
    values = (migration, direction.value)
    kept = conn.execute(
        f"select load, key::text from slackwater.quarantine where {of} and carried is not null", values
    ).fetchall()
    gone = conn.execute(
        f"delete from slackwater.reread where {of} returning load, key::text, carried is not null", values
    ).fetchall()
    conn.execute(
        "update slackwater.quarantine set carried = null, state = case state when 'retrying' then 'open' else state end"
        f" where {of} and (state = 'retrying' or carried is not null)",
        values,
    )
    lost = {(load, key) for load, key in kept} | {(load, key) for load, key, carried in gone if carried}
    return Settled(rows=len(gone), lost=sorted(lost))


def ask_for(conn: Connection, migration: str, side: Side, turn: int) -> None:
    """Let a closed side's row ask for at least `turn`, so that an opening of an earlier one comes to nothing."""
    with translated(f"cannot move the fence of {side}"):
        conn.execute(
            "update slackwater.turn set fence_turn = %s, changed_at = clock_timestamp()"
            " where migration = %s and side = %s and open_turn < fence_turn and fence_turn < %s",
            (turn, migration, side.value, turn),
        )


def tell(conn: Connection, migration: str, writes: Side, turn: int) -> None:
    """The route on the side that was closed, once the other one is open."""
    with translated("cannot write the route"), conn.transaction():
        _route(conn, migration, writes.value, turn)


def _emit(conn: Connection, message: TurnMessage) -> None:
    conn.execute("select pg_catalog.pg_logical_emit_message(true, %s, %s)", (TURN_PREFIX, message.to_json()))


def _route(conn: Connection, migration: str, writes: str, turn: int) -> None:
    """Where to write, and a word to whoever listens. A later turn's word is never overwritten by an earlier one's."""
    moved = conn.execute(
        "insert into slackwater.route as r (migration, writes, turn, changed_at)"
        " values (%s, %s, %s, clock_timestamp()) on conflict (migration) do update"
        " set writes = excluded.writes, turn = excluded.turn, changed_at = excluded.changed_at"
        " where r.turn < excluded.turn or (r.turn = excluded.turn and r.writes <> excluded.writes)",
        (migration, writes, turn),
    )
    if moved.rowcount == 1:
        word = json.dumps({"migration": migration, "writes": writes, "turn": turn})
        conn.execute("select pg_catalog.pg_notify(%s, %s)", (ROUTE_CHANNEL, word))


def rows_locked(conn: Connection, migration: str, side: Side) -> Turn | None:
    """The side's row, locked: it waits for a transaction that is in doubt."""
    return control.turn(conn, migration, side, lock=True)


def keep_closed(conn: Connection, migration: str, side: Side, turn: int) -> None:
    """Lock the row of `side`, which is yet to open for `turn`: nobody opens it before the caller's transaction ends.

    Errors: Superseded when it is open, or was for `turn` or a later one: somebody else has turned.
    """
    row = rows_locked(conn, migration, side)
    if row is None or row.open or row.open_turn >= turn:
        raise Superseded(
            f"{side} is not to be opened for turn {turn} any more: somebody else has turned the tide",
            hint="slackwater status",
        )


def changed_at_age_s(conn: Connection, migration: str, side: Side) -> float | None:
    """How long ago the side's row was changed, by its own clock."""
    with translated(f"cannot read when {side} was turned"):
        row: Any = conn.execute(
            "select extract(epoch from clock_timestamp() - changed_at)::float8 from slackwater.turn"
            " where migration = %s and side = %s",
            (migration, side.value),
        ).fetchone()
    return None if row is None else float(row[0])


# -- the token --------------------------------------------------------------------------------------------------------


def send_token(conn: Connection, migration: str, direction: Direction, turn: int, token: str) -> None:
    """Send a token through the direction's whole pipe, in a transaction of its own that is durable on return."""
    content = {"migration": migration, "direction": direction.value, "turn": turn, "token": token, "version": VERSION}
    with translated("cannot send the token"):
        conn.execute("select pg_catalog.pg_logical_emit_message(true, %s, %s)", (TOKEN_PREFIX, json.dumps(content)))


def token_seen(conn: Connection, migration: str, direction: Direction, token: str) -> bool:
    """Whether the target has committed everything that came before the token."""
    with translated("cannot look for the token"):
        row = conn.execute(
            "select from slackwater.token where migration = %s and direction = %s and token = %s",
            (migration, direction.value, token),
            prepare=True,
        ).fetchone()
    return row is not None
