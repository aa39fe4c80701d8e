"""The rows that a turn compares: under its hold as many as there is time for, and right after the pause the rest.

Invariants: nothing is opened over rows that are known to differ on the way there; what was found to differ is a
mismatch from then on, by key, so that no gate passes before a later, complete, clean pass; what there was no time for
is written down on the target before the source is closed, and goes only when it was compared. Both sides are compared
as they were under the hold, the one moment at which they have to be equal without a doubt: what the application writes
later is in no snapshot from before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import closing

from connectors.failpoint import failpoint
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from schemas.errors import Aborted, Ambiguous, SlackwaterError
from stream.cutover.attempt import GRACE_S, Turning
from stream.cutover.outcome import Outcome
from stream.migration import journal
from stream.migration.prepared import plan_for
from stream.verify.final_check import Looked, Piece, Standstill, merged
from stream.verify.verdicts import Mismatch, Store, latest, void

COMPARE_S = 0.2
COMPARE_PART = 0.06  # of the pause
JUDGE_PART = 0.5  # of what is left of it, where rows seem to differ: either they do not, or this turn ends here
AFTER_S = 120.0  # how old the snapshots may get: they hold back what VACUUM may remove
NAMED = 10  # rows of a table, in a reason
WATCH_S = 0.2


def ready(t: Turning) -> None:
    """Everything that can be looked up before anybody waits. Nothing, where the gate `verification` is off."""
    assert t.prepared is not None
    if not t.spec.cutover.gates.verification.on:
        return
    plan = plan_for(t.spec, t.prepared, t.direction)
    accepted = t.spec.roundtrip.accept if t.to is Side.OLD else ()
    t.standstill = Standstill(t.dsn(t.source), t.dsn(t.to), plan, accepted)


def sessions(t: Turning) -> list[Connection]:
    return [] if t.standstill is None else t.standstill.sessions


def under_hold(t: Turning) -> None:
    """The verdicts once more, then the chunks written last, as many as there is time for.

    Nobody writes, and everything is applied: what differs is wrong. On the way back that stops nothing, for what is on
    new stays there: it is compared again afterwards. Errors: Aborted on the way there, with the rows by name.
    """
    if t.standstill is None:
        return
    with t.steps.step("compare"):
        if t.to is Side.NEW:
            _ask_again(t)
        t.standstill.freeze(for_s=t.left_s() + 2 * AFTER_S)
        budget_s = min(COMPARE_S, COMPARE_PART * t.order.max_pause_s, t.left_s())
        deadline_s = time.monotonic() + budget_s
        failpoint("turn.before_compare")
        looked = t.standstill.sum_up(deadline_s=deadline_s)
        suspects = t.standstill.suspects
        if t.to is Side.OLD:
            t.standstill.left = [*suspects, *t.standstill.left]
        elif suspects:
            t.standstill.judge(looked, suspects, deadline_s=time.monotonic() + max(budget_s, JUDGE_PART * t.left_s()))
        if t.to is Side.NEW and looked.tables:
            _stopped(t, looked)
        t.may_go_on()


def _ask_again(t: Turning) -> None:
    """Whether the verdicts still stand, which the gates have read a while ago. Errors: Aborted."""
    assert t.prepared is not None
    flow = t.prepared.flow(t.direction)
    found = latest(
        t.conns[t.to],
        t.migration,
        t.direction,
        fingerprint=t.prepared.judged_under(t.spec),
        targets=tuple(flow.mappings),
    )
    if found.objections:
        t.next_ = _verify(t)
        raise Aborted(
            "what was verified does not count any more", reasons=tuple(found.objections), hint=f"{_verify(t)}"
        )


def _stopped(t: Turning, looked: Looked) -> None:
    """Rows differ: the writers go on at once, and the gate knows from now on. Errors: Aborted."""
    if t.holder is not None:
        t.holder.close()
        t.holder = None
    t.next_ = _verify(t)
    raise Aborted(
        "rows differ under the hold, when nobody writes and everything is applied",
        reasons=(*_named(looked), *_recorded(t, looked)),
        hint=f"{_verify(t)} finds all of them, and `--repair` has them read again; find out first what wrote them",
    )


def _recorded(t: Turning, looked: Looked) -> list[str]:
    """Keep what was found in the verification, where the gate reads it; or why that could not be done."""
    assert t.prepared is not None
    try:
        with closing(t.connect(t.to)) as conn:
            store = Store(conn, t.migration, t.direction)
            for name, mismatches in looked.mismatches.items():
                store.proven(name, t.prepared.judged_under(t.spec), mismatches)
            unproven = looked.unproven - looked.mismatches.keys()
            cause = f"rows of it differed under the hold of a {t.order.verb}, with no time to tell which"
            void(conn, t.migration, t.direction, tables=unproven, cause=cause)
    except SlackwaterError as error:
        return [f"this could not be recorded, so no gate knows it: {error.cause}"]
    return []


def keep_left(t: Turning) -> None:
    """Before the point of no return: what was not compared is on the target, whatever becomes of this process."""
    if t.standstill is not None:
        _keep(t.conns[t.to], t)


def _keep(conn: Connection, t: Turning) -> None:
    assert t.standstill is not None
    left = [(load, lower, upper) for load, ranges in merged(t.standstill.left).items() for lower, upper in ranges]
    with translated("recording what was not compared"), conn.transaction():
        conn.execute(
            "delete from slackwater.uncompared where migration = %s and direction = %s",
            (t.migration, t.direction.value),
        )
        conn.execute(
            "insert into slackwater.uncompared (migration, direction, turn, load, chunk, lower, upper)"
            " select %s, %s, %s, x.load, x.n, x.lower, x.upper"
            " from unnest(%s::text[], %s::text[], %s::text[]) with ordinality x(load, lower, upper, n)",
            (t.migration, t.direction.value, t.turn, *map(list, zip(*left, strict=True) if left else ((), (), ()))),
        )
    failpoint("turn.after_keep_left")


def afterwards(t: Turning, outcome: Outcome) -> None:
    """The writes have moved; what the pause had no time for is compared now. Errors: Ambiguous when rows differ."""
    still = t.standstill
    if still is None:
        return
    looked = Looked()
    if still.left:
        failpoint("turn.before_rest")
        t.say(f"{t.to} is open; comparing what the pause had no time for: {_tables(still.left)}")
        with t.steps.step("compare after"), t.answered(AFTER_S + GRACE_S, *still.sessions):
            looked = _rest(t, still)
    outcome.uncompared = {load: len(ranges) for load, ranges in merged(still.left).items()}
    unrecorded = _noted(t, looked)
    if still.left:
        t.next_ = _verify(t)
        why = "".join(f"; {load}: {cause}" for load, cause in sorted(looked.causes.items()))
        t.note(f"not compared as it was at the turn: {_tables(still.left)}{why}. `{_verify(t)}` compares it")
    if not looked.mismatches:
        return
    reasons = (*_named(looked), *unrecorded)
    if "verification" in t.order.waive:
        for reason in reasons:
            t.note(f"gone over: {reason}")
        return
    t.next_ = _verify(t)
    raise Ambiguous(
        f"{t.to} is open, and rows of it are not what {t.source} held when it was closed",
        reasons=reasons,
        hint=f"`{t.command} show TABLE --key K` puts both sides beside each other; put the rows right on {t.to}, as the"
        f" application would, or go back while {t.source} is as it should be",
    )


def _rest(t: Turning, still: Standstill) -> Looked:
    """What is left, until the snapshots get too old, or somebody wants to have an end."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            if t.stop.is_set():
                still.sever()
                return

    watching = threading.Thread(target=watch, name="stop", daemon=True)
    watching.start()
    try:
        looked = still.rest(deadline_s=time.monotonic() + AFTER_S, stop=t.stop)
        if t.stop.is_set():
            looked.causes.clear()  # its sessions were cut for that
        return looked
    finally:
        over.set()
        watching.join()


def _noted(t: Turning, looked: Looked) -> list[str]:
    """Keep what came of it: on the target, and in the journal."""
    assert t.standstill is not None
    if not looked.pieces and not looked.causes:
        return []  # nothing was left, or nothing was looked at
    lines = _recorded(t, looked)
    detail = {
        "turn": t.turn,
        "chunks": looked.pieces,
        "rows": looked.rows,
        "differ": {name: len(found) for name, found in sorted(looked.mismatches.items())},
        "left": {load: len(ranges) for load, ranges in merged(t.standstill.left).items()},
    }
    try:
        with closing(t.connect(t.to)) as conn:
            _keep(conn, t)
        with closing(t.connect(Side.NEW)) as new:
            journal.append(new, t.migration, actor=t.actor(new), step=f"{t.order.verb} compare", detail=detail)
    except SlackwaterError as error:
        t.note(f"what was compared after the pause could not be recorded: {error.cause}")
    return lines


def _named(looked: Looked) -> list[str]:
    """Tables and the keys of the rows that differ; never a value."""
    lines = [f"{name}: {_rows(found)}" for name, found in sorted(looked.mismatches.items())]
    lines += [
        f"{name} differs; there was no time to tell in which rows"
        + (f" ({looked.causes[name]})" if name in looked.causes else "")
        for name in sorted(looked.unproven - looked.mismatches.keys())
    ]
    return lines


def _rows(found: list[Mismatch]) -> str:
    total = sum(m.rows for m in found)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{total:,} {'row differs' if total == 1 else 'rows differ'}: {'; '.join(map(str, found[:NAMED]))}{more}"


def _tables(left: Iterable[Piece]) -> str:
    return ", ".join(sorted({piece.load for piece in left}))


def _verify(t: Turning) -> str:
    return f"{t.command} verify" + ("" if t.direction is Direction.FORWARD else f" --direction {t.direction}")
