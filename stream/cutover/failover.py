"""`failover`: the open side is dead. What Kafka holds is applied, the other side opens, and what is lost is named.

Invariant: a side that still answers is closed first, in its own row and on its own tables; one that does not is out of
reach by the operator's word alone (`--source-isolated`), and that word is journalled.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from connectors.failpoint import failpoint
from connectors.postgres import control
from connectors.postgres import turn as turns
from connectors.postgres.control import Turn
from connectors.postgres.lease import Lease
from connectors.postgres.session import Connection, translated
from schemas.direction import Side, epochs_topic
from schemas.epoch import Epoch
from schemas.errors import Aborted, Refused, SlackwaterError, Superseded
from schemas.position import format_lsn
from schemas.spec import Spec
from stream.cutover import close_source, drain, hold, hooks, open_target, record, sequences
from stream.cutover.attempt import PACE_S, Order, Turning, ping
from stream.cutover.outcome import Outcome
from stream.cutover.procedure import concluded, keep_spare
from stream.cutover.progress import writes
from stream.migration import journal, phase_store, prepared, turn_journal
from stream.migration.journal import Actor
from stream.migration.phases import Phase
from stream.migration.prepared import Prepared, plan_for
from stream.migration.topics import FlowTopics
from stream.monitoring.clock import from_epoch_seconds, rfc3339

PATIENCE_S = 60.0  # how long the applier may stand still before Kafka's rest is given up on
TOKEN_S = 15.0  # how long the stream of a side that still answers may be silent before it is given up
CLOSING_S = 120.0  # how long a source that answers may take to be closed
POLL_S = 0.2


def failover(
    spec: Spec, order: Order, *, actor: Callable[[Connection], Actor], say: Callable[[str], None], stop: threading.Event
) -> Outcome:
    """Open `order.to` although the other side may be gone. Whatever happens is an Outcome."""
    t = Turning(spec=spec, order=order, actor=actor, gates=lambda _: [], say=say, stop=stop)
    return concluded(t, _failover, _look)


def _failover(t: Turning, _outcome: Outcome) -> str:
    rows = _reach(t)
    here, there = rows[t.to], rows.get(t.source)
    # Both may be open, as after a partition: only the one that opened last stays as it is.
    stays = here.open and (there is None or here.open_turn > there.open_turn)
    if stays and (there is None or not there.open):
        t.turn = here.open_turn
        return _complete(t)
    t.prepared = _prepared(t)
    t.turn = here.open_turn if stays else _turn(here, there, t.to)
    _intend(t)
    t.intended = True
    failpoint("failover.after_intent")
    if t.to is Side.NEW and t.source in t.conns:
        keep_spare(t)
    if there is not None and there.open:
        _close(t)
    if not here.open:
        _drain(t)
        failpoint("failover.after_drain")
        sequences.catch_up(t)
    elif not stays:
        t.note(f"what was written on {t.source} since it was opened is on {t.source} alone, and foreign to the stream")
    if not stays:
        _open(t)
    failpoint("failover.after_open")
    _after(t)
    return "done"


def _complete(t: Turning) -> str:
    """The side is open, and alone. What an earlier run left undone after that is done."""
    last = turn_journal.latest(_home(t), t.migration, "done")
    unsettled = (record.home(t), Phase.SWITCHING)
    undone = Side.NEW in t.conns and phase_store.phase(t.conns[Side.NEW], t.migration) in unsettled
    if t.turn <= 0 or (last is not None and last.turn >= t.turn and not undone):
        return "already"
    t.say(f"{t.to} is open with turn {t.turn}: finishing what is left to do")
    _after(t)
    return "done"


def _prepared(t: Turning) -> Prepared:
    """What was prepared, from new, or from what old keeps of it. Errors: Refused where neither says."""
    if Side.NEW in t.conns:
        found = prepared.load(t.conns[Side.NEW], t.migration)
    else:
        kept = control.spare(t.conns[Side.OLD], t.migration)
        found = None if kept is None else Prepared.from_json(kept)
    if found is None:
        raise Refused(f"{t.to} keeps nothing of what was prepared for {t.migration}")
    plan_for(t.spec, found, t.direction)  # refused now, and not when the other side is closed
    return found


def _reach(t: Turning) -> dict[Side, Turn]:
    """The side that opens, which must answer, and the other one if it does."""
    for side in (t.to, t.source):
        try:
            t.conns[side] = t.connect(side)
        except SlackwaterError as error:
            if side is t.to:
                raise Refused(f"{side} cannot be reached: it cannot be opened", hint=error.hint) from error
            t.note(f"{side} does not answer; by your word nobody can write there: {error.cause}")
    home = Side.NEW if Side.NEW in t.conns else t.to
    t.lease = Lease(t.dsn(home), t.migration, who=t.application)
    found: dict[Side, Turn] = {}
    for side, conn in t.conns.items():
        row = control.turn(conn, t.migration, side)
        if row is None:
            raise Refused(f"migration {t.migration} is not prepared: {side} holds no turn row")
        found[side] = row
    return found


def _turn(here: Turn, there: Turn | None, to: Side) -> int:
    """The turn that opens `to`: one that its fence lets through, and later than any that was."""
    least = max(here.fence_turn or 0, here.open_turn + 1, 0 if there is None else there.open_turn + 1)
    odd = 1 if to is Side.NEW else 0
    return least if least % 2 == odd else least + 1


def _home(t: Turning) -> Connection:
    """Where the journal is written: on new, where it answers."""
    return t.conns[Side.NEW] if Side.NEW in t.conns else t.conns[t.to]


def _intend(t: Turning) -> None:
    conn = _home(t)
    detail: dict[str, Any] = {"turn": t.turn, "from": t.source.value, "to": t.to.value, "attempt": t.attempt}
    detail |= {"accept_loss": True, "source_answers": t.source in t.conns, "reason": t.order.reason}
    journal.append(conn, t.migration, actor=t.actor(conn), step="failover", outcome="intent", detail=detail)


def _close(t: Turning) -> None:
    """The other side answers, and takes writes: it is closed as in any turn."""
    t.say(f"{t.source} answers, and takes writes: it is closed first")
    with t.answered(CLOSING_S):
        held = hold.hold(t)
        close_source.close(t, held)


def _drain(t: Turning) -> None:
    """Everything that Kafka has is on the side that opens; what the dead side had beyond that is lost, and named.

    Errors: Aborted when asked to stop, or when the applier stands still: then nothing is opened.
    """
    with t.steps.step("drain"):
        if t.source in t.conns and _came_through(t):
            t.note(f"a token came through from {t.source}: nothing is lost")
            return
        last = _last_epoch(t)
        _applied(t, last)
    beyond = f"what came later is on {t.source} alone" if t.source in t.conns else "what came later is lost"
    t.note(
        f"everything that committed on {t.source} up to {format_lsn(last.end_lsn)}"
        f" ({rfc3339(from_epoch_seconds(last.committed_at))}) is on {t.to}; {beyond}"
    )


def _came_through(t: Turning) -> bool:
    """Whether a token has come from a source that answers; it is waited for as long as anything comes.

    Errors: Aborted when asked to stop: giving up on the source's rows is for the stream's silence alone to decide.
    """
    word = secrets.token_hex(16)
    with t.answered(TOKEN_S):
        turns.send_token(t.conns[t.source], t.migration, t.direction, t.turn, word)
    moved_at, before = time.monotonic(), -1
    while not turns.token_seen(t.conns[t.to], t.migration, t.direction, word):
        now = _epoch(t)
        if now != before:
            moved_at, before = time.monotonic(), now
        if t.stop.is_set():
            raise Aborted(f"stopped before {t.to} was opened", hint=t.again)
        if time.monotonic() - moved_at > TOKEN_S:
            t.note(f"{t.source} answers, but nothing has come from it for {TOKEN_S:.0f} s")
            return False
        time.sleep(PACE_S)
    return True


def _epoch(t: Turning) -> int:
    """How far the applier is; -1 where it has no checkpoint."""
    checkpoint = control.checkpoint(t.conns[t.to], t.migration, t.direction)
    return -1 if checkpoint is None else checkpoint.epoch


def _last_epoch(t: Turning) -> Epoch:
    """The newest whole one: of a transaction that Kafka holds in part nothing is ever applied."""
    with FlowTopics(t.spec, t.direction) as topics:
        found = topics.last_epoch(epochs_topic(t.spec.kafka.topic_prefix, t.migration, t.direction), complete=True)
    if found is None:
        raise Refused(f"Kafka holds no epoch of the {t.direction} stream: nothing says what is on {t.to}")
    return found


def _applied(t: Turning, last: Epoch) -> None:
    """Until the applier has reached `last`. Errors: Aborted when it stands still."""
    moved_at, before = time.monotonic(), -1
    while True:
        now = _epoch(t)
        if now >= last.epoch:
            return
        if now != before:
            moved_at, before = time.monotonic(), now
            t.say(f"{last.epoch - now} epochs to apply")
        if t.stop.is_set() or time.monotonic() - moved_at > PATIENCE_S:
            raise Aborted(
                f"{t.direction} apply stands at epoch {now}, and Kafka has {last.epoch}",
                hint=f"see that it runs: {t.command} run apply --direction {t.direction}; then {t.again}",
            )
        time.sleep(POLL_S)


def _open(t: Turning) -> None:
    """Open `to`, while the source's row, where it answers, is kept to be closed. Errors: Aborted when it is not."""
    conn = t.conns[t.to]
    for clause in drain.unfinished(conn, t).values():
        t.note(f"gone over: {clause}")
    with t.steps.step("open"), t.answered(TOKEN_S), translated(f"opening {t.to}"), ExitStack() as transactions:
        for side in (Side.OLD, Side.NEW):
            if side in t.conns:
                transactions.enter_context(t.conns[side].transaction())
                row = turns.rows_locked(t.conns[side], t.migration, side)
                if side is t.source and row is not None and row.open:
                    raise Aborted(f"{t.source} was opened meanwhile: {t.to} stays closed", hint=t.again)
        turns.open_(conn, t.migration, t.to, t.turn)
        open_target.tell(t, turns.settle_rereads(conn, t.migration, t.to))
        if t.to is Side.NEW:
            record.force(t, conn)
        if t.source in t.conns:
            ping(t.conns[t.source])
        failpoint("failover.before_open_commit")
        t.closed = True  # a commit whose answer is lost may have opened it


def _after(t: Turning) -> None:
    """The phase and the route where they can be written; hooks; the record."""
    t.closed = True
    try:
        _follow(t)
    except Superseded as error:
        t.note(f"{error.cause}; nothing more is done for that turn")


def _follow(t: Turning) -> None:
    """Errors: Superseded when the writes have moved on."""
    try:
        if t.to is Side.OLD and Side.NEW in t.conns:
            new = t.conns[Side.NEW]
            with translated("moving the phase"), new.transaction():
                record.force(t, new)
        if t.source in t.conns:
            turns.tell(t.conns[t.source], t.migration, t.to, t.turn)
    except Superseded:
        raise
    except SlackwaterError as error:
        t.note(f"{t.to} is open; {t.source} does not know it yet: {error.cause}")
    hooks.after(t, still=t.still)
    conn = _home(t)
    detail: dict[str, Any] = {"turn": t.turn, "from": t.source.value, "to": t.to.value, "notes": t.notes}
    journal.append(conn, t.migration, actor=t.actor(conn), step="failover", outcome="done", detail=detail)


def _look(t: Turning, outcome: Outcome) -> None:
    """Who writes now, as far as it can be seen; an isolated side counts as closed, by the operator's word."""
    outcome.steps, outcome.notes = t.steps.seconds(), list(t.notes)
    found: dict[Side, Turn] = {}
    try:
        for side, conn in t.conns.items():
            row = control.turn(conn, t.migration, side)
            if row is not None:
                found[side] = row
    except SlackwaterError as error:
        outcome.notes.append(error.cause)
    outcome.writes = writes(found) if t.to in found else None
    outcome.turn = max((row.open_turn for row in found.values()), default=None)
    outcome.next = f"{t.command} status" if outcome.result in ("done", "already") else t.again
