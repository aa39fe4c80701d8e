"""Opening the other side, while its counterpart is known, and kept, to be closed.

Invariant 3: the row of the closed side is locked and read until the opening has committed. A process that is stopped
in between loses the session that would open before it loses the one that locks: one that wakes late opens nothing.
"""

from __future__ import annotations

import time

from connectors.failpoint import failpoint
from connectors.postgres import turn as turns
from connectors.postgres.session import Connection, translated
from schemas.direction import Side
from schemas.errors import Ambiguous, Contended, SlackwaterError, Superseded, Unavailable
from stream.cutover import record
from stream.cutover.attempt import Turning, ping
from stream.cutover.progress import How, standing

PATIENCE_S = 8.0  # how long the opening is tried again
RETRY_S = 0.1
TOLD = 100  # rows named


def open_other(t: Turning) -> None:
    """Open `to` for the turn. Errors: Ambiguous when it cannot be done, or proven, in time."""
    with t.steps.step("open"):
        give_up = time.monotonic() + max(PATIENCE_S, t.left_s())
        while True:
            try:
                with t.answered(PATIENCE_S):
                    _once(t)
                break
            except Superseded as error:
                raise Ambiguous(error.cause, hint=f"{t.command} status") from error
            except (Unavailable, Contended) as error:
                if time.monotonic() > give_up:
                    words = "--accept-loss --source-isolated"
                    raise Ambiguous(
                        f"{t.source} is closed and {t.to} could not be opened: {error.cause}",
                        hint=f"when both sides answer again, run `{t.again}`: it opens {t.to}. If one is gone for good:"
                        f" {t.command} failover --to {t.source} {words} reopens {t.source},"
                        f" {t.command} failover --to {t.to} {words} opens {t.to}",
                    ) from error
                t.say(f"{t.to} could not be opened yet: {error.cause}")
                time.sleep(RETRY_S)
                _reconnect(t)
        if t.pause_began is not None:
            t.pause_s = time.monotonic() - t.pause_began
    failpoint("turn.after_open")


def _once(t: Turning) -> None:
    """Lock both rows, old first; look; open; make sure that the lock still stands; commit."""
    opening, keeping = t.conns[t.to], t.conns[t.source]
    try:
        with translated("opening"):
            for side in (Side.OLD, Side.NEW):
                t.conns[side].execute("begin")
                turns.rows_locked(t.conns[side], t.migration, side)
            now = standing(t.rows(), t.to)
            if now.how is How.OPEN and now.turn == t.turn:
                return  # by an attempt whose answer was lost
            if now.how is not How.CLOSED or now.turn != t.turn:
                raise Superseded(
                    f"turn {t.turn} is not what comes next: {t.to} is not opened", hint=f"{t.command} status"
                )
            turns.open_(opening, t.migration, t.to, t.turn)
            tell(t, turns.settle_rereads(opening, t.migration, t.to))
            if t.to is Side.NEW:
                record.reach(t, opening)
            ping(keeping)
            failpoint("turn.before_open_commit")
            opening.execute("commit")
    finally:
        for conn in (opening, keeping):
            _end(conn)


def tell(t: Turning, settled: turns.Settled) -> None:
    """What is let go of for the opening's sake: said before its commit, whose answer may be lost."""
    lines = []
    if settled.rows:
        lines.append(f"{settled.rows} rows that were to be read again stay as they are on {t.to}: they waited still")
    if lost := settled.lost:
        named = ", ".join(f"{load} {key}" for load, key in lost[:TOLD])
        more = f" and {len(lost) - TOLD} more" if len(lost) > TOLD else ""
        lines.append(f"on {t.to}, columns that no mapping writes are lost of rows not written again: {named}{more}")
    for line in lines:
        if line not in t.notes:
            t.note(line)


def _end(conn: Connection) -> None:
    if not (conn.closed or conn.broken):
        try:
            conn.execute("rollback")
        except Exception:  # noqa: BLE001 - its server ends the transaction; the session is made anew
            conn.close()


def _reconnect(t: Turning) -> None:
    for side in Side:
        conn = t.conns[side]
        if conn.closed or conn.broken:
            try:
                t.conns[side] = t.connect(side)
            except SlackwaterError as error:
                t.say(error.cause)


def finish(t: Turning) -> None:
    """What follows an opening, and can be done again: the phase, and the route on the side that was closed.

    Errors: Superseded when the writes have moved on.
    """
    new = t.conns[Side.NEW]
    with translated("moving the phase"), new.transaction():
        record.reach(t, new)
    turns.tell(t.conns[t.source], t.migration, t.to, t.turn)
    failpoint("turn.after_route")
