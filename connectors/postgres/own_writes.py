"""What a transaction of ours that writes rows has to know of its side before it does.

Invariant: the turn row is locked, so no cutover can open the side while the transaction lasts.
"""

from __future__ import annotations

from connectors.postgres import control
from connectors.postgres.session import Connection
from schemas.direction import Side
from schemas.errors import Halt


def still_closed(conn: Connection, migration: str) -> None:
    """In the caller's transaction, for as long as it lasts. Errors: Halt when new is open to the application."""
    turn = control.turn(conn, migration, Side.NEW, lock=True)
    if turn is None or turn.fence_turn is None or turn.open_turn >= turn.fence_turn:
        raise Halt(
            "new is open to the application: nothing of it may be emptied",
            hint="slackwater status",
        )
