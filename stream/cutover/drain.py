"""Zero lag, proven: a token sent through the whole pipe is committed by the target, and nothing waits beside it."""

from __future__ import annotations

import secrets
import time
from typing import Any

from connectors.failpoint import failpoint
from connectors.postgres import turn as turns
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from schemas.errors import Aborted
from stream.cutover.attempt import PACE_S, Turning

RESERVE = 0.1  # of the pause: what the steps after the token may take

_WAITING = """
select (select count(*) from slackwater.quarantine q
         where q.migration = %(m)s and q.direction = %(d)s and q.state <> 'waived'),
       (select count(*) from slackwater.reread r where r.migration = %(m)s and r.direction = %(d)s),
       (select count(*) from slackwater.load l where l.migration = %(m)s and l.direction = %(d)s and l.state <> 'done'),
       (select string_agg(role, ', ') from slackwater.role x
         where x.migration = %(m)s and x.direction = %(d)s and x.state = 'halted'
           and x.role not in ('backfill', 'verify'))
"""


def token(t: Turning, *, within_s: float, direction: Direction | None = None) -> float:
    """Send a token and wait until the target has committed it; returns the seconds. Errors: Aborted in time.

    It goes the way of the turn, if no other `direction` is named.
    It goes out over another session than the one that holds, and is durable on the source before it is waited for.
    """
    word = secrets.token_hex(16)
    began = time.monotonic()
    way = direction or t.direction
    turns.send_token(t.conns[way.source], t.migration, way, t.turn, word)
    failpoint("turn.after_token_sent")
    while not turns.token_seen(t.conns[way.target], t.migration, way, word):
        t.may_go_on()
        waited = time.monotonic() - began
        if waited > within_s:
            raise Aborted(
                f"a token has not come through from {way.source} to {way.target} in {waited:.2f} s",
                reasons=(f"{way} capture, Kafka, or {way} apply was too slow, or stands still",),
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
        waiting = unfinished(t.conns[t.to], t)
        for gate in waiting.keys() & set(t.order.waive):
            t.note(f"gone over: {waiting.pop(gate)}")
        if waiting:
            reasons = tuple(waiting.values())
            raise Aborted("something came up at the last moment", reasons=reasons, hint=f"{t.command} status")
        t.may_go_on()


def unfinished(conn: Connection, t: Turning) -> dict[str, str]:
    """What of the direction is not on its target, as far as the target itself knows, by the gate that speaks of it."""
    with translated("the final check"):
        row: Any = conn.execute(_WAITING, {"m": t.migration, "d": t.direction.value}).fetchone()
    quarantined, rereads, loads, halted = row
    found = {}
    if quarantined:
        found["quarantine"] = f"{quarantined} rows are in quarantine"
    if rereads:
        found["reread"] = f"{rereads} rows wait to be read again"
    if loads and t.to is Side.NEW:
        found["backfill"] = f"{loads} tables are not loaded"
    if halted:
        found["roles"] = f"{t.direction} {halted} has halted"
    return found
