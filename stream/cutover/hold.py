"""Holding the source's writers back, within a budget, and again after a pause where it was not enough."""

from __future__ import annotations

import math
import random
import time
from contextlib import closing

from connectors.failpoint import failpoint
from connectors.postgres import hold as locks
from connectors.postgres.hold import Blocker, LockNotHad, Relation
from connectors.postgres.session import Connection, translated
from schemas.errors import Aborted, Contended, Refused
from schemas.table import Table
from stream.cutover.attempt import Turning

STUCK_S = 3.0  # a transaction that has been open for so long will not end within our budget
FIRST_BACK_OFF_S = 0.25
LONGEST_BACK_OFF_S = 4.0
EVICTIONS = 3  # how often a vacuum is made to leave a table before the attempt is given up


def obstacles(t: Turning) -> list[str]:
    """What no waiting resolves: prepared transactions and anti-wraparound vacuums on source, subscriptions on both."""
    found: list[str] = []
    for side in (t.source, t.to):
        conn = t.conns[side]
        held = locks.relations(conn, t.tables(side))
        found += [f"{side}: {clause}" for clause in locks.subscriptions(conn, held)]
        if side is t.source:
            found += [str(b) for b in locks.blockers(conn, held) if b.pid is None or b.wraparound]
    return found


def hold(t: Turning) -> tuple[Relation, ...]:
    """Hold every table of the source against writers, in `t.holder`'s open transaction.

    Errors: Aborted after `attempts`, naming who was in the way; Refused where no waiting helps.
    """
    tables = t.tables(t.source)
    watcher = t.conns[t.source]
    t.holder = holder = t.connect(t.source)
    deadlock_ms = locks.deadlock_timeout_ms(watcher)
    last: list[Blocker] = []
    with t.steps.step("lock"):
        for number in range(1, t.order.attempts + 1):
            t.may_go_on()
            if number > 1:
                time.sleep(_back_off_s(number))
            last = locks.blockers(watcher, locks.relations(watcher, tables), besides=holder.info.backend_pid)
            if fixed := [str(b) for b in last if b.pid is None or b.wraparound]:
                raise Refused("the tables cannot be held", reasons=tuple(fixed), hint="end these first, then run again")
            stuck = [b for b in last if b.age_s is not None and b.age_s > STUCK_S]
            if stuck and t.order.terminate_blockers and number > 1:
                _terminate(t, stuck)
                continue
            if stuck:
                # Our locks would hold the writers up for nothing; the last attempt is made all the same.
                t.say(f"attempt {number} of {t.order.attempts}: waiting for {stuck[0]}")
                if number < t.order.attempts:
                    continue
            try:
                return _attempt(t, holder, watcher, tables, deadlock_ms)
            except Contended as error:
                t.say(f"attempt {number} of {t.order.attempts}: {error.cause}")
                _release(t, holder)
    found = locks.blockers(watcher, locks.relations(watcher, tables), besides=holder.info.backend_pid) or last
    # Whoever writes at this moment is in the list as well; those who stay are the ones to see to.
    found = [b for b in found if b.age_s is None or b.age_s * 1000 > locks.budget_ms(deadlock_ms)]
    raise Aborted(
        f"the tables of {t.source} could not be held in {t.order.attempts} attempts",
        reasons=tuple(str(b) for b in found) or ("no one transaction stood in the way; too many short ones did",),
        hint=f"end what is named, or {t.again} --terminate-blockers",
    )


def _attempt(
    t: Turning, holder: Connection, watcher: Connection, tables: list[Table], deadlock_ms: float
) -> tuple[Relation, ...]:
    """One try, in one transaction. Errors: LockNotHad; the caller rolls back."""
    with translated("holding the tables"):
        holder.execute("begin")
        wanted = locks.relations(holder, tables)
        _gather(t, holder, wanted, deadlock_ms)
        failpoint("turn.after_intent_locks")
        # Partitions are neither made nor attached from here on: what is listed now is all there is.
        held = locks.relations(holder, tables)
        _gather(t, holder, [r for r in held if r not in wanted], deadlock_ms)
        if not locks.wait_for_calm(watcher, deadlock_ms):
            raise LockNotHad("a table (transactions wait for one another without an end)")
        t.pause_began = time.monotonic()
        try:
            locks.lock(holder, held, locks.HOLD, locks.budget_ms(deadlock_ms))
        except BaseException:
            _release(t, holder)
            raise
        patience(t, holder)
    failpoint("turn.after_hold")
    return tuple(held)


def patience(t: Turning, holder: Connection) -> None:
    """The server ends the session, and lets the writers go, when we are not heard of for what is left of the pause."""
    left_ms = max(1, math.ceil(t.left_s() * 1000))
    with translated("holding the tables"):
        holder.execute(f"set local idle_in_transaction_session_timeout = {left_ms}")
        holder.execute(f"set local statement_timeout = {left_ms}")


def _gather(t: Turning, holder: Connection, wanted: list[Relation], deadlock_ms: float) -> None:
    """Keep vacuums and schema changes off every table; writers go on. Errors: LockNotHad.

    What is had is kept while the rest is waited for: an autovacuum that is made to leave one table goes to the next. It
    is waited for in a session that holds nothing, past `deadlock_timeout`, which makes it leave: nobody can deadlock
    with that one, nor with `holder`, which never waits here. A schema change that waits for `holder` has writers wait
    behind it: so the search for more ends, too, where a pause would.
    """
    give_up = time.monotonic() + t.order.max_pause_s
    missing = locks.take(holder, wanted, locks.INTENT)
    for _ in range(EVICTIONS):
        if not missing:
            return
        with closing(t.connect(t.source)) as alone:
            for relation in missing:
                t.may_go_on()
                if time.monotonic() > give_up:
                    raise LockNotHad(relation.name)
                with alone.transaction(force_rollback=True):
                    locks.wait_alone(alone, relation, deadlock_ms)
                locks.take(holder, [relation], locks.INTENT)
        missing = locks.take(holder, missing, locks.INTENT)
    if missing:
        raise LockNotHad(missing[0].name)


def _release(t: Turning, holder: Connection) -> None:
    t.pause_began = None
    if not (holder.closed or holder.broken):
        holder.execute("rollback")


def _terminate(t: Turning, stuck: list[Blocker]) -> None:
    conn = t.conns[t.source]
    for blocker in stuck:
        if blocker.pid is not None and blocker.kind == "client backend":
            t.note(f"ended {blocker}")
            locks.terminate(conn, blocker.pid)


def _back_off_s(number: int) -> float:
    pause_s: float = FIRST_BACK_OFF_S * 2 ** (number - 2)
    return min(LONGEST_BACK_OFF_S, pause_s) * random.uniform(0.7, 1.3)
