"""The one function that turns the tide, in either direction: design.md section 7.

Invariants: nothing is closed before everything on it is proven to be on the other side; after the closing commit there
is only forward. Every step can be killed and run again: the turn rows say where it stands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from connectors.failpoint import failpoint
from connectors.postgres import control
from connectors.postgres import turn as turns
from connectors.postgres.lease import Lease
from connectors.postgres.session import Connection
from schemas.direction import Side
from schemas.errors import Aborted, Ambiguous, ConfigError, Refused, SlackwaterError, Superseded, Unavailable
from schemas.remedy import on_file
from schemas.spec import Spec
from stream.cutover import catalogs, close_source, comparison, drain, hold, hooks, open_target, record, sequences
from stream.cutover.attempt import GRACE_S, Gates, Order, Turning, ping
from stream.cutover.outcome import Outcome, follows, result_of
from stream.cutover.progress import How, writes
from stream.migration import phase_store, prepared, turn_journal
from stream.migration.journal import Actor
from stream.migration.phases import Phase

FOLLOWING_S = 15.0  # how long what follows an opening, or tells of an abort, may take


def turn(
    spec: Spec,
    order: Order,
    *,
    actor: Callable[[Connection], Actor],
    gates: Gates,
    say: Callable[[str], None],
    stop: threading.Event,
) -> Outcome:
    """Move the application's writes to `order.to`, or say why not. `stop` ends it before the point of no return.

    Whatever happens is an Outcome; only a wrong configuration is raised. Errors: ConfigError.
    """
    return concluded(Turning(spec=spec, order=order, actor=actor, gates=gates, say=say, stop=stop), _turn, _look)


def concluded(t: Turning, run: Callable[[Turning, Outcome], str], look: Callable[[Turning, Outcome], None]) -> Outcome:
    """What `run` came to, and `look` saw afterwards: past the point of no return, whatever fails is `ambiguous`."""
    outcome = Outcome(verb=t.order.verb, result="failed", dry_run=t.order.dry_run)
    try:
        outcome.result = run(t, outcome)
    except ConfigError:
        raise
    except SlackwaterError as error:
        _explain(t, outcome, error)
    except Exception as error:
        _explain(t, outcome, SlackwaterError(f"{type(error).__name__}: {error}", hint="this is a defect of slackwater"))
        if not t.closed and not t.intended:
            raise
    finally:
        _let_go(t)
        try:
            look(t, outcome)
        finally:
            t.close_sessions()
    return outcome


def _turn(t: Turning, outcome: Outcome) -> str:
    t.open_sessions()
    t.lease = Lease(t.dsn(Side.NEW), t.migration, who=t.application, idle_s=max(20.0, 2 * t.order.max_pause_s))
    t.prepared = prepared.load(t.conns[Side.NEW], t.migration)
    if t.prepared is None:
        raise Refused(f"migration {t.migration} is not prepared", hint=f"{t.command} prepare")
    now = t.standing()
    t.turn = now.turn
    match now.how:
        case How.BOTH:
            raise Ambiguous(
                f"old and new both take writes: {t.source} lost its fence, as in a failover to a standby that lagged",
                hint=f"stop the application on {t.source}; compare the sides (`{t.command} verify`); then"
                f" {t.command} failover --to {t.to} --accept-loss --source-isolated closes {t.source}",
            )
        case How.ELSEWHERE:
            other = t.again.removesuffix(t.order.verb) + ("rollback" if t.order.verb == "cutover" else "cutover")
            raise Refused(
                f"{t.to} is closed and {t.source} is not yet open: turn {now.turn} has not come to its end",
                hint=f"`{other}` finishes it",
            )
        case How.OPEN:
            return _complete(t)
        case How.CLOSED if t.order.dry_run:
            raise Refused(
                f"turn {now.turn} has not come to its end: {t.source} is closed, and {t.to} is not open yet",
                hint=f"`{t.again}` finishes it",
            )
        case How.CLOSED:
            return _resume(t)
    return _whole(t, outcome)


def _whole(t: Turning, outcome: Outcome) -> str:
    """From the gates to the end."""
    new = t.conns[Side.NEW]
    if record.put_right(t, new):
        t.say("an earlier attempt had ended before anything was changed")
    with t.steps.step("gates"):
        if _after_failover(t):
            drain.token(t, within_s=max(10.0, t.order.max_pause_s), direction=t.direction.opposite)
        _gates(t)
    failpoint("turn.after_gates")
    if t.order.dry_run:
        _rehearse(t, outcome)
        return "done"
    turns.ask_for(t.conns[t.to], t.migration, t.to, t.turn)
    hooks.before(t)
    failpoint("turn.after_before_hook")
    with t.steps.step("look"):
        seen = catalogs.look(t)
        found = sequences.look(t)
        comparison.ready(t)
        keep_spare(t)
    failpoint("turn.after_look")
    held = hold.hold(t)
    with t.answered(t.left_s() + GRACE_S, *comparison.sessions(t)):
        catalogs.held(t, seen)
        drain.drain(t)
        catalogs.still(t, seen)
        drain.final(t)
        comparison.under_hold(t)
        failpoint("turn.after_check")
        sequences.advance(t, found)
        t.may_go_on()
        comparison.keep_left(t)
        close_source.intend(t)
        close_source.close(t, held)
    open_target.open_other(t)
    _after(t)
    comparison.afterwards(t, outcome)
    return "done"


def keep_spare(t: Turning) -> None:
    """From the turn on new is not to be done without; but the way back has to be gone to its end if new dies.

    Either side keeps of the other's sequences what it has to know of them when that one is gone.
    """
    assert t.prepared is not None
    old = t.conns[Side.OLD]
    prepared.keep_strides(t.spec, t.prepared, old, t.conns[Side.NEW])
    with control.transaction(old, "keeping what was prepared on old"):
        control.keep_spare(old, t.migration, t.prepared.to_json())


def _resume(t: Turning) -> str:
    """The source is closed, and nobody opened the other side: an earlier run died in between."""
    t.say(f"{t.source} is closed for turn {t.turn}: opening {t.to}")
    t.closed = True
    age_s = turns.changed_at_age_s(t.conns[t.source], t.migration, t.source)
    if turn_journal.begun_as(t.conns[Side.NEW], t.migration, t.turn) == "failover":
        _prove(t)
        sequences.catch_up(t)
    open_target.open_other(t)
    t.pause_s = age_s
    _after(t)
    return "done"


def _prove(t: Turning) -> None:
    """A failover closes before it drains: what it left behind is opened once that is made good. Errors: Ambiguous."""
    try:
        drain.token(t, within_s=max(10.0, t.order.max_pause_s))
    except Aborted as error:
        raise Ambiguous(
            f"a failover closed {t.source} and did not come to its end: that all of it is on {t.to} is not proven:"
            f" {error.cause}",
            hint=f"see that {t.direction} capture and apply run, then `{t.again}`; to do without what has not come:"
            f" {t.command} failover --to {t.to} --accept-loss --source-isolated",
        ) from error


def _complete(t: Turning) -> str:
    """The side is open. What an earlier run left undone after that is done."""
    if t.order.dry_run:
        return "already"
    last = turn_journal.latest(t.conns[Side.NEW], t.migration, "done")
    phase = phase_store.phase(t.conns[Side.NEW], t.migration)
    if last is not None and last.turn >= t.turn and phase is not Phase.SWITCHING:
        t.closed = True
        return "already"
    if t.turn == 0:
        return "already"
    t.closed = True
    t.say(f"{t.to} is open with turn {t.turn}: finishing what is left to do")
    _after(t)
    return "done"


def _after(t: Turning) -> None:
    """Phase, route, hooks, and the record: each may be done again, and none once the writes have moved on."""
    try:
        for side in Side:
            _fresh(t, side)
        with t.answered(FOLLOWING_S):
            open_target.finish(t)
        hooks.after(t, still=partial(_still, t))
        failpoint("turn.after_hooks")
        new = _fresh(t, Side.NEW)
        with t.answered(FOLLOWING_S):
            record.done(t, new)
    except Superseded as error:
        t.note(f"{error.cause}; nothing more is done for that turn")
    except SlackwaterError as error:
        t.note(f"{t.to} is open; what follows is not done yet: {error.cause}. Run `{t.again}` again to finish")


def _still(t: Turning) -> None:
    _fresh(t, t.to)
    with t.answered(FOLLOWING_S):
        t.still()


# -- before anything --------------------------------------------------------------------------------------------------


def _after_failover(t: Turning) -> bool:
    """Whether the last turn was one: what the side that opens had not sent then may still be on its way, and foreign.

    It was journalled on the side that answered.
    """
    found = [turn_journal.latest(conn, t.migration, "done") for conn in t.conns.values()]
    last = max((one for one in found if one is not None), key=lambda one: one.turn, default=None)
    return last is not None and last.verb == "failover"


def _gates(t: Turning) -> None:
    """Errors: Refused, with every reason."""
    failing: list[str] = []
    remedies: list[str] = []
    for gate in t.gates(t.direction):
        if gate["state"] == "passed":
            continue
        line = f"{gate['gate']}: {gate['detail']}" + ("" if gate["state"] == "failed" else f" ({gate['state']})")
        rehearsed = t.order.dry_run and gate["gate"] == "window"  # a rehearsal may be held at any hour
        if gate["blocks"] and gate["gate"] not in t.order.waive and not rehearsed:
            failing.append(line)
            if gate.get("remedy"):
                remedies.append(str(gate["remedy"]))
        else:
            t.note(f"gone over: {line}")
    phase = phase_store.phase(t.conns[Side.NEW], t.migration)
    if phase is not record.home(t) and not failing:
        failing.append(f"phase: the migration is {phase}, not {record.home(t)}")
    failing += hold.obstacles(t)
    if failing:
        raise Refused(
            f"the writes cannot be moved to {t.to} as things stand",
            reasons=tuple(failing),
            hint=remedies[0] if remedies else f"{t.command} status",
        )


def _rehearse(t: Turning, outcome: Outcome) -> None:
    """Tokens through the whole pipe, without a hold: the pause to expect."""
    with t.steps.step("token"):
        taken = [drain.token(t, within_s=max(10.0, t.order.max_pause_s)) for _ in range(3)]
    outcome.expected_pause_seconds = max(taken) + _FENCE_S * len(t.tables(t.source)) + _FIXED_S


_FENCE_S = 0.002  # per table: its lock, and its fence
_FIXED_S = 0.1  # journal, closing, opening


# -- the end ----------------------------------------------------------------------------------------------------------


def _explain(t: Turning, outcome: Outcome, error: SlackwaterError) -> None:
    """What an error means, by how far the turn has come."""
    result = result_of(error)
    if t.closed and result != "ambiguous":
        result = "ambiguous"
    elif result == "failed" and (t.holder is not None or t.intended):
        result = "aborted"
    elif isinstance(error, Unavailable):
        result = "refused"  # a server is down, and nothing was begun
    outcome.result = result
    outcome.reasons = list(getattr(error, "reasons", ())) or [error.cause]
    outcome.error = {"cause": error.cause, "remedy": on_file(error.hint, t.command)}


def _let_go(t: Turning) -> None:
    """Release the writers, at once, where the source was not closed."""
    if t.holder is not None:
        t.holder.close()
        t.holder = None


def _look(t: Turning, outcome: Outcome) -> None:
    """What is so now; and the journal, where something was begun and did not happen."""
    outcome.steps = t.steps.seconds()
    outcome.pause_seconds = t.pause_s
    outcome.notes = list(t.notes)
    unfinished = outcome.result in ("refused", "aborted", "failed")
    if unfinished and t.turn and not t.closed and not t.order.dry_run and t.prepared is not None:
        try:
            detail: dict[str, Any] = {"turn": t.turn, "reasons": outcome.reasons, "to": t.to.value}
            outcome_word = "refused" if outcome.result == "refused" else "aborted"
            record.withdraw(t, _fresh(t, Side.NEW), outcome_word, detail)
        except SlackwaterError as error:
            outcome.notes.append(f"the journal could not be written: {error.cause}")
    try:
        if len(t.conns) == 2 and not t.order.dry_run:
            for side in Side:
                _fresh(t, side)
        rows = t.rows() if len(t.conns) == 2 else {}
        outcome.writes = writes(rows) if rows else None
        outcome.turn = max([0, *(row.open_turn for row in rows.values())]) if rows else None
    except SlackwaterError:
        outcome.writes = outcome.turn = None
    outcome.next = _next(t, outcome)


def _fresh(t: Turning, side: Side) -> Connection:
    conn = t.conns.get(side)
    try:
        if conn is not None and not conn.closed:
            with t.answered(FOLLOWING_S):
                ping(conn)
            return conn
    except SlackwaterError:  # it went away with its server, or was cut
        t.say(f"{side} is asked anew")
    t.conns[side] = conn = t.connect(side)
    return conn


def _next(t: Turning, outcome: Outcome) -> str | None:
    if t.next_ is not None:
        return t.next_
    match outcome.result:
        case "done" if outcome.dry_run:
            return t.again
        case "done" | "already":
            return t.again if any("to finish" in note for note in outcome.notes) else f"{t.command} status"
    remedy = outcome.error["remedy"] if outcome.error else ""
    return follows(outcome.result, remedy, command=t.command, again=t.again)
