"""The phase and the journal of a turn: they follow the turn rows, which are the authority."""

from __future__ import annotations

from typing import Any

from connectors.postgres import control, silent_changes
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from schemas.errors import Refused
from schemas.fingerprint import Change, Kind
from stream.cutover.attempt import Turning
from stream.migration import phase_store
from stream.migration.journal import append
from stream.migration.phases import Phase
from stream.migration.turn_journal import latest


def home(t: Turning) -> Phase:
    """The phase of a migration whose turn towards `to` has not happened."""
    return Phase.ARMED if t.turn % 2 else Phase.SWITCHED


def arrived(t: Turning) -> Phase:
    """The phase of one whose turn towards `to` has."""
    return Phase.SWITCHED if t.turn % 2 else Phase.ARMED


def intend(t: Turning, conn: Connection) -> None:
    """The intent, in the caller's transaction on new, and the phase with it. Errors: Refused."""
    now = phase_store.phase(conn, t.migration, lock=True)
    if now is not home(t):
        raise Refused(f"migration {t.migration} is {now}, not {home(t)}", hint=f"{t.command} status")
    detail = {"turn": t.turn, "from": t.source.value, "to": t.to.value, "attempt": t.attempt}
    append(conn, t.migration, actor=t.actor(conn), step=t.order.verb, outcome="intent", detail=detail)
    phase_store.advance(conn, t.migration, Phase.SWITCHING, actor=t.actor(conn))


def withdraw(t: Turning, conn: Connection, outcome: str, detail: dict[str, Any]) -> None:
    """Nothing happened: the phase goes back, if the intent that stands is this run's own (or nobody's who lives)."""
    with translated("recording that nothing happened"), conn.transaction():
        now = phase_store.phase(conn, t.migration, lock=True)
        newest = latest(conn, t.migration)
        mine = newest is not None and newest.outcome == "intent" and newest.detail.get("attempt") == t.attempt
        if now is Phase.SWITCHING and mine:
            phase_store.advance(conn, t.migration, home(t), actor=t.actor(conn))
        append(conn, t.migration, actor=t.actor(conn), step=t.order.verb, outcome=outcome, detail=detail)


def put_right(t: Turning, conn: Connection) -> bool:
    """A turn that died before anything happened leaves `switching` behind: back to where it was. True if it did."""
    with translated("putting the phase right"), conn.transaction():
        if phase_store.phase(conn, t.migration, lock=True) is not Phase.SWITCHING:
            return False
        phase_store.advance(conn, t.migration, home(t), actor=t.actor(conn), detail={"because": "nothing had happened"})
    return True


def force(t: Turning, conn: Connection) -> None:
    """After a failover: the phase that goes with the side that is open, whatever it was. Errors: Superseded."""
    now = phase_store.phase(conn, t.migration, lock=True)
    t.still()
    if now in (Phase.ARMED, Phase.SWITCHING, Phase.SWITCHED):
        reach(t, conn)
        return
    # Before `arm`, new may be opened all the same: there is no way back, and the phase says what is open.
    control.set_phase(conn, t.migration, arrived(t))
    append(conn, t.migration, actor=t.actor(conn), step="phase", detail={"from": str(now), "to": str(arrived(t))})


def reach(t: Turning, conn: Connection) -> None:
    """The phase follows the turn rows, in the caller's transaction on new: they are the authority.

    Errors: Superseded when `to` has been closed meanwhile. Whoever closes it comes by here too, and waits for the lock.
    """
    now = phase_store.phase(conn, t.migration, lock=True)
    t.still()
    if now is arrived(t):
        return
    phase_store.advance(conn, t.migration, Phase.SWITCHING, actor=t.actor(conn))
    phase_store.advance(conn, t.migration, arrived(t), actor=t.actor(conn), detail={"turn": t.turn})
    _compute_again(t, conn)


def _compute_again(t: Turning, conn: Connection) -> None:
    """What is computed from several tables was not while new was open: it is compared, and computed again, from now on.

    What the way back brought to old has reached the mirrors alone, for new's own rows were the application's.
    """
    if t.to is not Side.OLD:
        return
    told = [
        Change(table=name, kind=Kind.VALUES, cause=f"{name} was not computed while new was open")
        for name in control.computed(conn, t.migration, Direction.FORWARD)
    ]
    silent_changes.lock(conn, t.migration, Side.NEW)
    silent_changes.record(conn, t.migration, Side.NEW, told)


def done(t: Turning, conn: Connection) -> None:
    """The record of a turn that came to its end, before that of any later one. Errors: Superseded."""
    detail = {
        "turn": t.turn,
        "from": t.source.value,
        "to": t.to.value,
        "pause_seconds": None if t.pause_s is None else round(t.pause_s, 3),
        "steps": {name: round(seconds, 4) for name, seconds in t.steps.taken},
        "notes": t.notes,
    }
    with translated("recording the turn"), conn.transaction():
        phase_store.phase(conn, t.migration, lock=True)
        t.still()
        append(conn, t.migration, actor=t.actor(conn), step=t.order.verb, outcome="done", detail=detail)
