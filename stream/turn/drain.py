"""Zero lag, proven: a token sent through the whole pipe is committed by the target, and nothing waits beside it."""

from __future__ import annotations

import secrets
import time
from typing import Any

from connectors.failpoint import failpoint
from connectors.postgres import sequences
from connectors.postgres import turn as turns
from connectors.postgres.sequences import Pair
from connectors.postgres.session import Connection, translated
from schemas.direction import Side
from schemas.errors import Aborted
from stream.prepared import plan_for
from stream.turn.turning import PACE_S, Turning

RESERVE = 0.1  # of the pause: what the steps after the token may take

_WAITING = """
select (select count(*) from slackwater.quarantine q
         where q.migration = %(m)s and q.direction = %(d)s and q.state <> 'waived'),
       (select count(*) from slackwater.reread r where r.migration = %(m)s and r.direction = %(d)s),
       (select count(*) from slackwater.load l where l.migration = %(m)s and l.direction = %(d)s and l.state <> 'done'),
       (select string_agg(role, ', ') from slackwater.role x
         where x.migration = %(m)s and x.direction = %(d)s and x.state = 'halted' and x.role <> 'backfill')
"""


def token(t: Turning, *, within_s: float) -> float:
    """Send a token and wait until the target has committed it; returns the seconds. Errors: Aborted in time.

    It goes out over another session than the one that holds, and is durable on the source before it is waited for.
    """
    word = secrets.token_hex(16)
    began = time.monotonic()
    turns.send_token(t.conns[t.source], t.migration, t.direction, t.turn, word)
    failpoint("turn.after_token_sent")
    while not turns.token_seen(t.conns[t.to], t.migration, t.direction, word):
        t.may_go_on()
        waited = time.monotonic() - began
        if waited > within_s:
            raise Aborted(
                f"a token has not come through from {t.source} to {t.to} in {waited:.2f} s",
                reasons=(f"{t.direction} capture, Kafka, or {t.direction} apply was too slow, or stands still",),
                hint=f"{t.command} status",
            )
        time.sleep(PACE_S)
    failpoint("turn.after_token")
    return time.monotonic() - began


def drain(t: Turning) -> None:
    """Under the hold: everything that was written on the source is on the target. Errors: Aborted."""
    with t.steps.step("drain"):
        token(t, within_s=max(0.05, t.left_s() - RESERVE * t.order.max_pause_s))


def final(t: Turning) -> None:
    """Under the hold, once more: queues and halts on the target. Errors: Aborted."""
    with t.steps.step("check"):
        if reasons := unfinished(t.conns[t.to], t):
            raise Aborted("something came up at the last moment", reasons=tuple(reasons), hint=f"{t.command} status")
        t.may_go_on()
    failpoint("turn.after_check")


def sequences_of(t: Turning) -> list[Pair]:
    """The sequences of the side that opens, looked up before anybody waits. Errors: Refused for a file that changed."""
    assert t.prepared is not None
    plan = plan_for(t.spec, t.prepared, t.direction)
    return sequences.pairs(t.conns[t.source], t.conns[t.to], plan)


def advance(t: Turning, found: list[Pair]) -> None:
    """Under the hold: set them past the other side's, and past every value that is there."""
    with t.steps.step("sequences"):
        moved = sequences.advance(t.conns[t.source], t.conns[t.to], found)
        for one in moved:
            if one.note:
                t.note(f"sequence {one.sequence}: {one.note}")
        t.may_go_on()
    failpoint("turn.after_sequences")


def unfinished(conn: Connection, t: Turning) -> list[str]:
    """What of the direction is not on its target, as far as the target itself knows."""
    with translated("the final check"):
        row: Any = conn.execute(_WAITING, {"m": t.migration, "d": t.direction.value}).fetchone()
    quarantined, rereads, loads, halted = row
    found = []
    if quarantined:
        found.append(f"{quarantined} rows are in quarantine")
    if rereads:
        found.append(f"{rereads} rows wait to be read again")
    if loads and t.to is Side.NEW:
        found.append(f"{loads} tables are not loaded")
    if halted:
        found.append(f"{t.direction} {halted} has halted")
    return found
