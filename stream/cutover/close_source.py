"""The point of no return: the intent, and the commit that closes the source in the session that holds its writers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from connectors.failpoint import failpoint
from connectors.postgres import turn as turns
from connectors.postgres.control import Turn
from connectors.postgres.hold import Relation
from connectors.postgres.session import translated
from schemas.direction import Side
from schemas.errors import Aborted, Ambiguous, Contended, SlackwaterError, Unavailable
from stream.cutover import record
from stream.cutover.attempt import GRACE_S, Turning, ping
from stream.cutover.hold import patience
from stream.cutover.progress import How

IN_DOUBT_S = 15.0  # how long a commit whose answer was lost is waited for
RETRY_S = 0.2


def intend(t: Turning) -> None:
    """Journal `switching`, under both turn rows' locks, old first. Errors: Aborted when somebody else has turned."""
    with t.steps.step("journal"):
        old, new = t.conns[Side.OLD], t.conns[Side.NEW]
        with translated("locking old's turn row"), old.transaction():
            turns.rows_locked(old, t.migration, Side.OLD)
            with translated("journalling the intent"), new.transaction():
                turns.rows_locked(new, t.migration, Side.NEW)
                now = t.standing()
                if now.how is not How.BEFORE or now.turn != t.turn:
                    raise Aborted("somebody else has turned the tide meanwhile", hint=f"{t.command} status")
                record.intend(t, new)
                failpoint("turn.before_intent_commit")
                t.intended = True  # from here on it may stand, though the commit fails
    failpoint("turn.after_intent")


def close(t: Turning, held: Sequence[Relation]) -> None:
    """Close the source and commit. Errors: Aborted when it is certain that nothing was closed, else Ambiguous."""
    assert t.holder is not None
    with t.steps.step("fence"):
        try:
            with translated("closing the source"):
                patience(t, t.holder)
                turns.close(t.holder, t.migration, t.source, t.turn, [(r.schema, r.name) for r in held])
                patience(t, t.holder)
            failpoint("turn.before_close_commit")
            t.may_go_on()
        except SlackwaterError:
            t.holder.close()
            raise
        try:
            with translated("closing the source"):
                t.holder.execute("commit")
                ping(t.holder)
        except SlackwaterError as error:
            t.holder.close()
            _look_again(t, error)
        t.closed = True
    failpoint("turn.after_close")


def _look_again(t: Turning, lost: SlackwaterError) -> None:
    """The commit's answer was lost: the row itself tells, once whoever still holds it has come to an end.

    Returns when the source is closed. Errors: Aborted when it is not; Ambiguous when nobody answers in time.
    """
    give_up = time.monotonic() + IN_DOUBT_S
    while True:
        try:
            row = _row(t)
            break
        except (Unavailable, Contended) as error:
            if time.monotonic() > give_up:
                raise Ambiguous(
                    f"whether {t.source} was closed for turn {t.turn} is not known: {lost.cause}; {error.cause}",
                    hint=f"when {t.source} answers again, run `{t.again}`: it finds out, and finishes or begins anew",
                ) from error
            time.sleep(RETRY_S)
    if row is not None and row.fence_turn == t.turn + 1:
        return
    raise Aborted(f"{t.source} was not closed: {lost.cause}", hint=t.again) from lost


def _row(t: Turning) -> Turn | None:
    """The source's row, over a session of its own, once nobody holds it. Errors: Unavailable, Contended."""
    with (
        t.connect(t.source, lock_timeout=f"{IN_DOUBT_S}s", statement_timeout=f"{IN_DOUBT_S}s") as conn,
        t.answered(IN_DOUBT_S + GRACE_S, conn),
        translated("looking whether the source was closed"),
        conn.transaction(),
    ):
        return turns.rows_locked(conn, t.migration, t.source)
