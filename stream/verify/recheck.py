"""What changed without an event is compared and read again, by itself, beside the role that reads rows again.

Invariants (hazard J5): the verdicts on what a change concerns are voided before it is called seen; nothing is read
again until the stream has passed the moment at which the change was seen, or an older change would be written over what
was read; a row is never deleted here, for whoever drops a partition may mean to keep what was copied of it. A change is
done with when every table that it concerns is clean, by a pass that began later, whoever made it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from connectors.postgres import session, silent_changes
from connectors.postgres.mirror import mirror_key
from connectors.postgres.ranges import relation
from connectors.postgres.session import Connection, translated
from connectors.postgres.sight import Sight
from connectors.postgres.silent_changes import Silent
from connectors.postgres.target import Target
from schemas.control import MIRROR_SCHEMA, mirror_name
from schemas.direction import Side
from schemas.errors import Refused, SlackwaterError
from schemas.fingerprint import Kind
from schemas.names import qualified, quote
from schemas.plan import Plan
from schemas.repair import Repair
from schemas.spec import Verify
from stream.backfill.reread import assert_closed
from stream.backfill.throttle import Throttle
from stream.verify import repair
from stream.verify.digests import Pair
from stream.verify.judge import Applied, Found, Stopped
from stream.verify.preconditions import NotReady, assert_loaded, guard, is_wanted, release
from stream.verify.queries import View
from stream.verify.role import health_of, throttled
from stream.verify.sweep import Sweep
from stream.verify.task import Task
from stream.verify.verdicts import Kind as Mismatched
from stream.verify.verdicts import Store, TableVerdict, Verdict, latest, void

log = logging.getLogger("slackwater.verify")

TICK_S = 1.0
GUARD_S = 15.0
AGAIN_S = 5.0  # after an attempt that left something; twice as long each time
LONGEST_S = 600.0
SETTLES_S = 120.0  # for rows to be read again, before they are compared once more
GENTLE = 0.25  # of the time is spent comparing a table of which nothing says that its values moved
REASON = "changed without an event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One direction, as it is prepared. `task` raises NotReady while no side, or each, is open."""

    plan: Plan
    task: Callable[[], Task]
    options: Callable[[], Verify]
    max_lag_s: Callable[[], float]
    lag_s: Callable[[], float | None]
    paused: Callable[[Connection], str | None]


@dataclass(slots=True)
class _Attempts:
    """When what waits is tried again."""

    of: frozenset[tuple[Side, int]] = frozenset()
    pause_s: float = AGAIN_S
    due_at: float = field(default_factory=time.monotonic)


class Recheck:
    """A thread beside a direction's backfill. It works while the direction carries the open side's writes."""

    def __init__(self) -> None:
        self.way: Way | None = None  # set, and set anew, by whoever builds the role
        self._ended = threading.Event()
        self._attempts = _Attempts()
        self._computed: set[tuple[Side, int]] = set()  # changes of code since which each row was computed again
        self._said: str | None = None
        self._sessions: dict[Side, Connection] = {}
        self._thread = threading.Thread(target=self._run, name="recheck", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while not self._ended.wait(TICK_S):
                if self.way is not None:
                    self._try(self.way)
        finally:
            self._let_go()

    def _try(self, way: Way) -> None:
        try:
            self._tick(way)
            self._said = None
        except (Stopped, NotReady):
            self._let_go()
        except SlackwaterError as error:
            self._let_go()
            if not self._ended.is_set() and error.cause != self._said:
                log.warning("what changed without an event is not compared yet: %s", error.cause)
            self._said = error.cause

    def _sides(self, way: Way, task: Task) -> Mapping[Side, Connection]:
        """A session on each side, kept from one look to the next: there is one each second."""
        ends = {way.plan.direction.source: task.source_dsn, way.plan.direction.target: task.target_dsn}
        for side, dsn in ends.items():
            if side not in self._sessions:
                name = f"slackwater recheck {way.plan.migration}.{way.plan.direction}"
                self._sessions[side] = session.connect(dsn, application=name)
        return self._sessions

    def _let_go(self) -> None:
        for conn in self._sessions.values():
            conn.close()
        self._sessions.clear()

    def _tick(self, way: Way) -> None:
        task = way.task()
        if task.link is not way.plan.direction:
            return
        sides = self._sides(way, task)
        if not (found := self._found(way, sides)):
            return
        if unseen := [one for one in found if one.voided_at is None]:
            for one in unseen:
                self._see(way, task, sides, one)
            found = self._found(way, sides)
        left = self._done(way, task, sides, found)
        if left and self._is_due(left):
            try:
                self._attempt(way, task, sides[way.plan.direction.target], left)
            finally:
                self._let_go()  # what it has asked others to make way for goes with its session
            self._done(way, task, self._sides(way, task), found)

    def _found(self, way: Way, sides: Mapping[Side, Connection]) -> list[Silent]:
        """What waits on either side."""
        waits = [silent_changes.waiting(conn, way.plan.migration, side) for side, conn in sides.items()]
        return [one for ones in waits for one in ones]

    def _see(self, way: Way, task: Task, sides: Mapping[Side, Connection], one: Silent) -> None:
        """Void what it concerns; a mirror of it is copied anew."""
        plan = way.plan
        source, target = sides[plan.direction.source], sides[plan.direction.target]
        mirrored = one.kind is Kind.VALUES and one.side is plan.direction.source and one.table in plan.mirrors
        if mirrored:
            self._passed(task)
        with translated("voiding a verification"), target.transaction():
            void(target, plan.migration, plan.direction, tables=concerned(plan, one), cause=one.cause)
            now: Any = target.execute("select pg_catalog.clock_timestamp()").fetchone()
            if mirrored:
                assert_closed(target, plan.migration, plan.direction)
                keys = _every_key(source, target, plan, one.table)
                Target(target, plan.migration, plan.direction).ask_reread(
                    f"mirror:{one.table}", one.table, keys, REASON
                )
        silent_changes.voided(sides[one.side], one, now[0])
        log.warning("%s: %s; %s is compared again", one.side, one.cause, ", ".join(concerned(plan, one)))

    def _passed(self, task: Task) -> None:
        """Until the stream has carried over all that is visible on the source now."""
        with (
            contextlib.closing(Sight(task.source_dsn, application="slackwater recheck")) as leader,
            contextlib.closing(Sight(task.target_dsn, application="slackwater recheck")) as follower,
        ):
            applied = Applied(
                leader=leader, follower=follower, migration=task.plan.migration, link=task.link, stop=self._ended
            )
            with leader.look([], timeout_s=10):
                at = leader.position()
            applied.past(at)

    def _done(self, way: Way, task: Task, sides: Mapping[Side, Connection], found: Iterable[Silent]) -> list[Silent]:
        """Writes down what is over; what is left, that may mend itself."""
        plan = way.plan
        verdicts = latest(
            sides[plan.direction.target], plan.migration, plan.direction, fingerprint=task.fingerprint
        ).tables
        left = []
        for one in found:
            if one.kind.stays:
                continue
            tables = concerned(plan, one)
            computed = one.kind is not Kind.CODE or (one.side, one.id) in self._computed
            if computed and all(_clean_since(verdicts.get(table), one) for table in tables):
                silent_changes.done(sides[one.side], [one.id])
                log.info("%s: %s: compared since, and clean", one.side, one.cause)
            elif tables:
                left.append(one)
        return left

    def _is_due(self, left: Sequence[Silent]) -> bool:
        of = frozenset((one.side, one.id) for one in left)
        if not of <= self._attempts.of:
            self._attempts = _Attempts(of=of)
        return time.monotonic() >= self._attempts.due_at

    def _attempt(self, way: Way, task: Task, target: Connection, left: Sequence[Silent]) -> None:
        """Compare what is concerned; have what differs read again; compare once more."""
        plan = way.plan
        tables = sorted({table for one in left for table in concerned(plan, one)})
        assert_loaded(target, plan, tables)
        if not guard(target, plan, self._ended, patience_s=GUARD_S):
            raise Stopped
        try:
            hurry = GENTLE if all(one.kind is Kind.FILE for one in left) else 1.0
            coded = [one for one in left if one.kind is Kind.CODE]
            each = frozenset(table for one in coded for table in concerned(plan, one))
            for _ in range(2):
                if not self._pass(way, task, target, tables, hurry, each):
                    break
            self._computed.update((one.side, one.id) for one in coded)
        finally:
            release(target, plan)
            at = self._attempts
            at.due_at, at.pause_s = time.monotonic() + at.pause_s, min(LONGEST_S, 2 * at.pause_s)

    def _pass(
        self, way: Way, task: Task, target: Connection, tables: Sequence[str], hurry: float, each: Collection[str]
    ) -> bool:
        """One pass; whether rows were asked for, and have been read again. Of `each`, every row is computed again.

        Digests would not tell: the source computes with code of its own, and what is there was computed alike.
        """
        wanted: list[tuple[str, repair.Asked]] = []

        def mend(pair: Pair, view: View, found: Sequence[Found]) -> None:
            missed = [f.mismatch for f in found if f.mismatch.kind is not Mismatched.EXTRA]
            if missed and view.mapping.key:
                wanted.append((view.name, repair.plan_repair(pair, way.plan, view, missed)))

        with contextlib.closing(session.connect(task.source_dsn, application="slackwater recheck")) as source:
            throttle = Throttle(
                throttled(way.options(), way.max_lag_s()),
                lag_s=way.lag_s,
                paused=lambda: way.paused(target),
                health=health_of(source),
            )
            sweep = Sweep(
                replace(task, workers=1),
                throttle=throttle,
                only=tables,
                resume=False,  # one that was left may have begun before the change
                hurry=hurry,
                mend=mend,
                yielding=lambda: is_wanted(target, way.plan),
                each=each,
            )
            sweep.run(self._ended)
        # Only now: what is asked for voids the pass that it is asked in.
        mended = Repair(deletes=False, by="slackwater", reason=REASON)
        asked = sum(
            repair.ask(Store(target, way.plan.migration, way.plan.direction), name, rows, mended)
            for name, rows in wanted
            if rows.rows
        )
        if asked:
            log.info("%d rows of %s are read again", asked, ", ".join(tables))
        deadline = time.monotonic() + SETTLES_S
        while asked and repair.left(target, way.plan) and time.monotonic() < deadline:
            if self._ended.wait(0.2):
                raise Stopped
        return asked > 0


def _clean_since(verdict: TableVerdict | None, one: Silent) -> bool:
    """By a pass that began after everybody knew of the change."""
    if verdict is None or verdict.at is None or one.voided_at is None:
        return False
    return verdict.state is Verdict.CLEAN and verdict.at > one.voided_at


def concerned(plan: Plan, one: Silent) -> list[str]:
    """The targets whose rows a change may have made wrong."""
    if one.side is plan.direction.target:
        return [one.table] if one.table in plan.targets else []
    return sorted(mapping.target for mapping in plan.reading(one.table))


def _every_key(source: Connection, target: Connection, plan: Plan, name: str) -> list[dict[str, str | None]]:
    """Of each row that is in a table, or in its mirror."""
    table = plan.sources[name]
    key = mirror_key(table)
    picked = ", ".join(f"{quote(k)}::text" for k in key)
    copy = qualified(MIRROR_SCHEMA, mirror_name(plan.migration, plan.direction, name))
    found: dict[tuple[object, ...], None] = {}
    for conn, place in ((source, relation(table)), (target, copy)):
        with translated(f"reading the keys of {name}"):
            found |= dict.fromkeys(conn.execute(f"select {picked} from {place}".encode()).fetchall())
    if not key:
        raise Refused(f"{name} has no key: its mirror cannot be copied anew", hint="slackwater prepare")
    return [{k: None if v is None else str(v) for k, v in zip(key, row, strict=True)} for row in found]
