"""The one table of the phases a migration goes through. Pure: what may follow what, and nothing else.

Invariant: no phase is written that this table does not allow. Failure is not a phase: it is `last_error` beside it.
"""

from __future__ import annotations

from enum import StrEnum

from schemas.errors import Refused


class Phase(StrEnum):
    PLANNED = "planned"  # a file, and nothing on the servers
    PREPARED = "prepared"  # control schema, publication, slot, topics, fence on new
    BACKFILLING = "backfilling"  # the stream runs and chunks are loaded
    STREAMING = "streaming"  # every row is there; every change follows
    ARMED = "armed"  # the reverse direction is proven
    SWITCHING = "switching"  # between two turns
    SWITCHED = "switched"  # the other side is open
    FINALIZED = "finalized"
    CANCELLED = "cancelled"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.PLANNED: frozenset({Phase.PREPARED, Phase.CANCELLED}),
    Phase.PREPARED: frozenset({Phase.BACKFILLING, Phase.CANCELLED}),
    # `prepare` again after an edit loads changed tables anew, so a streaming migration is backfilling once more.
    Phase.BACKFILLING: frozenset({Phase.STREAMING, Phase.CANCELLED}),
    Phase.STREAMING: frozenset({Phase.BACKFILLING, Phase.ARMED, Phase.CANCELLED}),
    # A cutover that aborts before its point of no return goes back to armed; after a rollback it is
    # armed again, and may end there. `may_cancel` and `may_finalize` tell the two ways out of armed apart.
    Phase.ARMED: frozenset({Phase.BACKFILLING, Phase.STREAMING, Phase.SWITCHING, Phase.FINALIZED, Phase.CANCELLED}),
    Phase.SWITCHING: frozenset({Phase.ARMED, Phase.SWITCHED}),
    Phase.SWITCHED: frozenset({Phase.SWITCHING, Phase.FINALIZED}),
    Phase.FINALIZED: frozenset(),
    Phase.CANCELLED: frozenset(),
}
"""From a phase to the phases that may follow it."""


def allowed(current: Phase, to: Phase) -> bool:
    return to in TRANSITIONS[current]


def require(current: Phase, to: Phase) -> None:
    """Refused when `to` may not follow `current`."""
    if not allowed(current, to):
        after = ", ".join(sorted(TRANSITIONS[current])) or "nothing"
        raise Refused(
            f"a migration that is {current} cannot become {to}: after {current} comes {after}",
            hint="`slackwater status` says where the migration stands and what is next",
        )


def may_cancel(current: Phase, turn: int) -> bool:
    """Before the first switch only: afterwards rows exist that the old side has through the reverse stream alone."""
    return turn == 0 and allowed(current, Phase.CANCELLED)


def may_finalize(current: Phase, turn: int) -> bool:
    """After a first switch only: before it, `cancel` is the way to end a migration."""
    return turn > 0 and allowed(current, Phase.FINALIZED)


def reachable(current: Phase) -> frozenset[Phase]:
    """Every phase that can still come, the current one included: what `wait` must not wait for in vain."""
    seen = {current}
    todo = [current]
    while todo:
        for phase in TRANSITIONS[todo.pop()] - seen:
            seen.add(phase)
            todo.append(phase)
    return frozenset(seen)
