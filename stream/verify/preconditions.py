"""What a comparison stands on: which side leads, what is loaded, and that nobody else compares.

Invariant: where it cannot stand, there is no answer; never a clean one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from connectors.postgres import control
from connectors.postgres.control import Turn
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from schemas.errors import ConfigError, Unavailable
from schemas.plan import Plan

WAIT_S = 15.0  # for the role, which makes way for a person


class NotReady(Unavailable):
    """There is nothing to compare yet, or not now: it may be asked again."""


def link_of(turns: Mapping[Side, Turn | None], direction: Direction) -> Direction:
    """The direction that carries the open side's writes to the other side.

    Errors: NotReady while neither side, or each of them, is open.
    """
    open_ = [s for s in Side if (turn := turns[s]) is not None and _open(turn)]
    if len(open_) == 1:
        return next(d for d in Direction if d.source is open_[0])
    raise NotReady(
        f"{direction} rows cannot be compared while {'both sides are' if open_ else 'no side is'} open",
        hint="slackwater status",
    )


def _open(turn: Turn) -> bool:
    return turn.fence_turn is None or turn.open_turn >= turn.fence_turn


def wanted(plan: Plan, only: Sequence[str]) -> list[str]:
    """The target tables that are asked for. Errors: ConfigError for one that is not of this direction."""
    names = [m.target for m in plan.mappings]
    for name in only:
        if name not in names:
            raise ConfigError(f"no table {name} is written by the {plan.direction} direction", hint=", ".join(names))
    return list(only) or names


def assert_loaded(target: Connection, plan: Plan, names: Sequence[str]) -> None:
    """Errors: NotReady, with the tables that hold only part of their rows."""
    states = control.loads(target, plan.migration, plan.direction)
    missing = [f"{name} ({states[name][1] if name in states else 'not recorded'})" for name in names
               if name not in states or states[name][1] != "done"]  # fmt: skip
    if missing:
        raise NotReady(
            f"{len(missing)} of {len(names)} tables are not loaded yet: {', '.join(missing[:5])}",
            hint="slackwater wait --for phase=streaming",
        )


def _lock(plan: Plan) -> str:
    return f"slackwater.verify.{plan.migration}.{plan.direction}"


def _wanted(plan: Plan) -> str:
    return f"{_lock(plan)}.wanted"


def guard(conn: Connection, plan: Plan, stop: threading.Event, *, patience_s: float | None) -> bool:
    """Become the only process that verifies this direction, for as long as the session lives. False: told to stop.

    With a patience, the role is asked to make way meanwhile; None waits for as long as it takes.
    Errors: NotReady when another process is not out of the way in time.
    """
    deadline = None if patience_s is None else time.monotonic() + patience_s
    asked = False
    while not stop.is_set():
        with translated("taking the verification's lock"):
            row = conn.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", (_lock(plan),)).fetchone()
        if row == (True,):
            return True
        if deadline is not None and not asked:
            asked = True
            with translated("announcing a verification"):
                conn.execute("select pg_try_advisory_lock_shared(hashtextextended(%s, 0))", (_wanted(plan),))
        if deadline is not None and time.monotonic() > deadline:
            holder = _holder(conn, plan)
            raise NotReady(
                f"another process verifies the {plan.direction} direction" + (f" (pid {holder})" if holder else ""),
                hint="wait for it, or stop it",
            )
        stop.wait(0.5)
    return False


def release(conn: Connection, plan: Plan) -> None:
    """Let others verify."""
    with translated("releasing the verification's lock"):
        conn.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", (_lock(plan),))


def is_wanted(conn: Connection, plan: Plan) -> bool:
    """Whether somebody waits for the guard."""
    with translated("asking who wants to verify"):
        row = conn.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", (_wanted(plan),)).fetchone()
        if row == (True,):
            conn.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", (_wanted(plan),))
    return row != (True,)


def _holder(conn: Connection, plan: Plan) -> int | None:
    with translated("asking who verifies"):
        row = conn.execute(
            "select l.pid from pg_locks l where l.locktype = 'advisory' and l.granted and l.objsubid = 1"
            " and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended(%s, 0)",
            (_lock(plan),),
        ).fetchone()
    return None if row is None else int(str(row[0]))
