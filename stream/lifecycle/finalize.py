"""`finalize`: ends a migration after a switch: the side that takes writes stays as it is, and nothing of ours remains.

Invariants: never before a switch, nor between two turns; every gate of its own is looked at again under the locks of
both turn rows; what it removes is named for this migration, and no table of a user's is ever among it. Every step can
be repeated, so one that was killed is completed by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass

from connectors.postgres import control, foreign, quiet, session
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side
from schemas.errors import Refused
from schemas.spec import Spec
from stream.lifecycle import build
from stream.lifecycle.teardown import Outcome, assert_stopped, every_topic, say_kept_rows, take_away, turns_locked
from stream.migration.phase_store import phase
from stream.migration.phases import Phase, may_finalize
from stream.migration.prepared import Prepared
from stream.migration.topics import FlowTopics
from stream.preflight.finding import listed
from stream.verify.verdicts import Verdict, latest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """`open_`: the side that takes writes. `resumed`: a finalize that was killed half-way goes on."""

    open_: Side
    resumed: bool


WAIVABLE = ("verification", "foreign_writes")
"""What may be gone over, by name: a way back that is broken for good can neither be verified nor put right."""


def finalize(
    spec: Spec,
    *,
    say: Callable[[str], None],
    confirm: Callable[[str], None],
    drop_topics: bool = False,
    waive: Collection[str] = (),
) -> Outcome:
    """End the migration: slots, publications, fences, mirrors, control rows on both sides; topics if asked to.

    `confirm` is asked once, before anything is changed, and raises to say no. `waive`: of WAIVABLE, told and gone over.
    Errors: Refused with every reason; Contended while others hold a table or a slot.
    """
    steps: list[str] = []

    def done(step: str) -> None:
        steps.append(step)
        say(step)

    with ExitStack() as stack:
        old = stack.enter_context(session.connect(str(spec.old.dsn), application="slackwater finalize"))
        new = stack.enter_context(session.connect(str(spec.new.dsn), application="slackwater finalize"))
        topics = stack.enter_context(FlowTopics(spec))
        stack.enter_context(build.alone(new, spec.migration))
        row = control.migration(new, spec.migration)
        if row is None and not _remains(spec, old):
            return Outcome(result="already", steps=(), left=())
        prepared = None if row is None else Prepared.from_json(row.prepared)
        standing = _may(spec, old, new, mark=False)
        if not standing.resumed and prepared is not None:
            _gates(spec, prepared, standing, old, new, waive, done)
        closed = standing.open_.other
        say_kept_rows(spec, old, new, done)
        confirm(
            f"End migration {spec.migration} with writes on {standing.open_}: drop its slots, publications, fences and"
            f" control rows{', and its topics' if drop_topics else ''}, its journal among them, on both sides?"
            f" {closed} can be written to again then, and nothing of it reaches {standing.open_}."
        )
        names = every_topic(spec, old, new, prepared) if drop_topics else []
        _may(spec, old, new, mark=True)
        take_away(spec, old, new, done, verb="finalize", topics=topics, names=names)
    kept: tuple[str, ...] = (
        f"the tables of {closed} stay as they are",
        f"{standing.open_} takes the writes, and nothing here tells of it any more: `route` ends with exit 3",
    )
    kept += () if drop_topics else ("its topics stay in Kafka, until --drop-topics or their retention ends them",)
    return Outcome(result="finalized", steps=tuple(steps), left=kept)


def _remains(spec: Spec, old: Connection) -> bool:
    """What a finalize that was killed between the two sides has left on old."""
    return control.turn(old, spec.migration, Side.OLD) is not None


def _may(spec: Spec, old: Connection, new: Connection, *, mark: bool) -> _Standing:
    """Who takes writes. Refused before a switch, between turns, and while roles run; both turn rows are locked.

    `mark` sets the phase under the same locks, so that no turn can begin from then on.
    """
    with turns_locked(spec.migration, old, new) as (there, here):
        now = phase(new, spec.migration)
        opened = max(t.open_turn if t is not None else -1 for t in (there, here))
        if now is Phase.FINALIZED or (there is None and here is not None):
            return _Standing(open_=Side.NEW if opened % 2 else Side.OLD, resumed=True)
        if here is None or there is None or not may_finalize(now, opened):
            raise Refused(
                f"migration {spec.migration} is {now}: it can be finalized after a switch, and not between two turns",
                hint="`slackwater cancel` ends it before a switch; `slackwater status` says where it stands",
            )
        writers = [turn.side for turn in (there, here) if turn.open]
        if len(writers) != 1:
            raise Refused(
                f"{' and '.join(writers) or 'no side'} of migration {spec.migration} takes writes",
                hint="slackwater status",
            )
        if mark:
            assert_stopped(spec.migration, old, new, "finalize")
            control.set_phase(new, spec.migration, Phase.FINALIZED)
        return _Standing(open_=writers[0], resumed=False)


def _gates(
    spec: Spec,
    prepared: Prepared,
    standing: _Standing,
    old: Connection,
    new: Connection,
    waive: Collection[str],
    say: Callable[[str], None],
) -> None:
    """Refused, with every reason: verification that is not clean, foreign writes, somebody still on the closed side."""
    conns = {Side.OLD: old, Side.NEW: new}
    closed = standing.open_.other
    reasons: list[str] = []

    def object_(gate: str, reason: str) -> None:
        if gate in waive:
            say(f"gone over: {reason}")
        else:
            reasons.append(reason)

    # The direction that kept the closed side exact is the one whose verdict says that nothing is missing anywhere.
    direction = next(d for d in Direction if d.target is closed)
    found = latest(
        conns[closed],
        spec.migration,
        direction,
        fingerprint=prepared.fingerprint,
        targets=prepared.flow(direction).mappings,
    )
    if found.state is not Verdict.CLEAN:
        object_(
            "verification",
            f"the {direction} verification is {found.state}, not clean ({listed(found.objections)}):"
            f" {spec.command} verify --direction {direction}",
        )
    for side, conn in conns.items():
        if rows := foreign.waiting(conn, spec.migration, side):
            object_(
                "foreign_writes",
                f"{rows} foreign writes on {side} wait for a decision: {spec.command} foreign-writes list",
            )
    reasons += [f"a role runs: {role}" for conn in (old, new) for role in control.alive(conn, spec.migration)]
    if not reasons:
        tables = prepared.old if closed is Side.OLD else prepared.new
        mapped = prepared.forward.streamed if closed is Side.OLD else tuple(prepared.forward.mappings)
        reasons += _stir(conns[closed], closed, [tables[name].oid for name in mapped], spec.finalize.quiet_s, say)
    if reasons:
        raise Refused(
            f"migration {spec.migration} cannot be finalized as things stand",
            reasons=tuple(dict.fromkeys(reasons)),
            hint="see to each of these, then run `slackwater finalize` again; where the way back is broken for good,"
            " --waive verification,foreign_writes --reason TEXT goes over these two",
        )


def _stir(conn: Connection, side: Side, tables: list[int], quiet_s: float, say: Callable[[str], None]) -> list[str]:
    """Who reads or writes the closed side's tables within `quiet_s`."""
    say(f"looking for {quiet_s:g} s whether anybody still reads or writes {side}")
    before = quiet.counters(conn, tables)
    seen: dict[str, None] = {}
    give_up = time.monotonic() + quiet_s
    while True:
        for who in quiet.users(conn, tables):
            seen[who] = None
        if time.monotonic() >= give_up:
            break
        time.sleep(min(0.5, max(0.0, give_up - time.monotonic())))
    moved = quiet.moved(before, quiet.counters(conn, tables))
    reasons = [f"{side}'s tables are in use by {who}" for who in seen]
    if moved:
        candidates = quiet.sessions(conn)
        whose = f"; connected are {', '.join(candidates)}" if candidates else ""
        reasons += [f"{side}.{table} was {what} within {quiet_s:g} s{whose}" for table, what in moved]
    return reasons
