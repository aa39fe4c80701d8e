"""`cancel`: ends a migration before its first switch, and takes away every trace of it on both sides.

Invariants: never after a switch, when new may hold the only copy of a row; the turn rows are locked, old first, while
that is looked at; what this removes is named for this migration, and no table of a user's is ever among it. Every step
can be repeated, so a cancel that was killed is completed by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from connectors.postgres import control, session
from connectors.postgres.session import Connection
from schemas.direction import Direction, slot_name
from schemas.errors import Refused, Unavailable
from schemas.spec import Spec
from stream.lifecycle import build
from stream.lifecycle.teardown import Outcome, assert_stopped, every_topic, say_kept_rows, take_away, turns_locked
from stream.migration.phase_store import phase
from stream.migration.phases import Phase, may_cancel
from stream.migration.prepared import Prepared
from stream.migration.topics import FlowTopics
from stream.preflight import name_conflicts


def cancel(
    spec: Spec, *, say: Callable[[str], None], confirm: Callable[[str], None], keep_topics: bool = False
) -> Outcome:
    """End the migration and remove its slot, publication, fences, mirrors, control rows and topics.

    `confirm` is asked once, before anything is changed, and raises to say no.
    Errors: Refused after the first switch, and while roles run; Contended while others hold a table or the slot.
    """
    steps: list[str] = []

    def done(step: str) -> None:
        steps.append(step)
        say(step)

    with ExitStack() as stack:
        old = stack.enter_context(session.connect(str(spec.old.dsn), application="slackwater cancel"))
        new = stack.enter_context(_new(spec))
        topics = stack.enter_context(FlowTopics(spec))
        stack.enter_context(build.alone(new, spec.migration))
        _ours(spec, old, new)
        _may(spec, old, new, mark=False)
        row = control.migration(new, spec.migration)
        prepared = None if row is None else Prepared.from_json(row.prepared)
        names = [] if keep_topics else every_topic(spec, old, new, prepared)
        say_kept_rows(spec, old, new, say)
        confirm(f"End migration {spec.migration}: drop its slots, fences, control rows and topics on both sides?")
        _may(spec, old, new, mark=True)
        take_away(spec, old, new, done, verb="cancel", topics=topics, names=names)
    left = () if prepared is None else (f"the tables of new.{spec.new.schema_} stay as they are, with what was copied",)
    return Outcome(result="cancelled" if steps else "already", steps=tuple(steps), left=left)


def _new(spec: Spec) -> Connection:
    """A session on new; where new is gone for good, what is left on old has to be removed by hand."""
    try:
        return session.connect(str(spec.new.dsn), application="slackwater cancel")
    except Unavailable as error:
        name = slot_name(spec.migration, Direction.FORWARD)
        raise Unavailable(
            error.cause,
            hint=f"{error.hint}. If new is gone for good, run on old: select pg_drop_replication_slot('{name}');"
            f" drop publication {name}; delete from slackwater.turn where migration = '{spec.migration}'",
        ) from error


def _ours(spec: Spec, old: Connection, new: Connection) -> None:
    """Refused where the slot or the publication of this name is another migration's."""
    problems = name_conflicts.foreign(spec, old, new)
    if problems:
        raise Refused(
            f"what is called {spec.migration} here is not this migration",
            reasons=tuple(str(problem) for problem in problems),
        )


def _may(spec: Spec, old: Connection, new: Connection, *, mark: bool) -> None:
    """Refused after a switch, or while roles run. Both turn rows are locked while that is looked at, old first.

    `mark` sets the phase under the same locks, so that no cutover can begin from then on.
    """
    with turns_locked(spec.migration, old, new) as (there, here):
        now = phase(new, spec.migration)
        opened = max(there.open_turn if there else 0, here.open_turn if here else -1)
        fenced = there is not None and there.fence_turn is not None
        killed = now in (Phase.PLANNED, Phase.CANCELLED)  # a prepare, or a cancel, that was killed half-way
        if opened > 0 or fenced or not (killed or may_cancel(now, opened)):
            raise Refused(
                f"migration {spec.migration} is {now}: writes were moved, or are being; new may hold the only copy",
                hint="`slackwater rollback` brings writes back to old, `slackwater finalize` ends it after a switch",
            )
        assert_stopped(spec.migration, old, new, "cancel")
        if mark and not killed:
            control.set_phase(new, spec.migration, Phase.CANCELLED)
