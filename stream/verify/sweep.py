"""One pass over the tables of a direction: compared chunk by chunk by a few workers, judged, recorded, concluded.

Invariants: a chunk counts only once every suspect of it was judged, while the writes stayed where they were, in the
transaction that records what was found; a table is concluded only when its chunks cover all of it, and begun anew when
its pass was voided meanwhile; what could not be compared is a problem, by name.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from connectors.failpoint import failpoint
from connectors.postgres import catalog, control
from connectors.postgres.ranges import Chunk
from connectors.postgres.session import connect, translated
from connectors.postgres.sight import Sight, bases
from schemas.digest import Hash
from schemas.direction import Direction
from schemas.errors import Contended, Halt, SlackwaterError, Unavailable
from schemas.table import Table
from stream.backfill.throttle import Throttle
from stream.verify import counterparts, row_by_row
from stream.verify.digests import Compared, Pair, agreed_hash, compare
from stream.verify.judge import BATCH, MOST, Applied, Found, Judge, Stopped, TooMany, Unsettled, doubtful
from stream.verify.pass_record import APPLICATION, Ledger, Voided
from stream.verify.preconditions import NotReady
from stream.verify.queries import View, views
from stream.verify.sampler import Witness
from stream.verify.task import Tally, Task
from stream.verify.verdicts import Unrepresented

log = logging.getLogger("slackwater.verify")

IDLE_S = 0.1
JUDGE_S = 1.0  # how often the throttle is asked
PATIENT_S = 10.0  # after which whatever holds back is no matter of a moment
CONTENDED = 5  # times that a chunk is tried again after a lock was not to be had
QUERY_CANCELED = "57014"
MOST_ANEW = 5  # times that a table is begun anew in one pass
LONGEST_REST_S = 60.0  # after one chunk, or one scan of a table


class Sweep:
    """One pass. `throttle` is judged by the thread that calls `run`, `progress` is called by it about once a second.

    `hurry`: the share of the time that may be spent comparing; 1 is all of it. `mend` is given each chunk's mismatches
    before they are recorded; with it, a table is compared to its end however many there are.
    """

    def __init__(
        self,
        task: Task,
        *,
        throttle: Throttle | None,
        only: Sequence[str] = (),
        resume: bool = True,
        hurry: float = 1.0,
        count: Callable[[int], None] = lambda _: None,
        progress: Callable[[Sweep], None] = lambda _: None,
        yielding: Callable[[], bool] = lambda: False,
        mend: Callable[[Pair, View, Sequence[Found]], None] | None = None,
        each: Collection[str] = (),
    ) -> None:
        self._each = each
        self._task = task
        self.throttle = throttle
        self._only = only
        self._resume = resume
        self._hurry = hurry
        self._count = count
        self._progress = progress
        self._yielding = yielding
        self._mend = mend
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)  # a chunk is done
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self._pairs: set[Pair] = set()
        self.tallies: dict[str, Tally] = {}
        self._anew: Counter[str] = Counter()
        self._behind: set[str] = set()  # begun anew: what voided it has to be passed by the stream first
        self.began_s = time.monotonic()

    def run(self, stop: threading.Event) -> Mapping[str, Tally]:
        """Compare. Errors: Stopped; Unavailable and what else stands in the way of all of it."""
        task = self._task
        with contextlib.ExitStack() as stack:
            conn = stack.enter_context(
                contextlib.closing(connect(task.target_dsn, application=f"{APPLICATION} control"))
            )
            self._ledger = Ledger(conn, task)
            first = self._pair()
            stack.callback(first.close)
            first.source.assert_same(task.system_id, task.timeline)
            self._how = agreed_hash(first.source, first.target)
            self._first = first
            self._stands(first, stop)
            # Begun first: a change that voids what comes now is one that the stream has passed before rows are read.
            for view in self._views(self._only):
                self._open(view, resume=self._resume)
            self._flows(first, stop)
            workers = [
                threading.Thread(target=self._work, name=f"verify {n}", daemon=True) for n in range(task.workers)
            ]
            stack.callback(self._join, workers)
            for thread in workers:
                thread.start()
            self._watch(workers, stop)
        return self.tallies

    def _open(self, view: View, *, resume: bool) -> Tally:
        tally = self.tallies[view.name] = self._ledger.open(view, resume=resume)
        tally.counts = tuple(counterparts.counted_with(self._task.plan, view.name))
        return tally

    def _pair(self) -> Pair:
        task = self._task
        name = f"{APPLICATION} {task.plan.migration}.{task.plan.direction}"
        source = Sight(task.source_dsn, application=name, replica_dsn=task.replica_dsn)
        try:
            return Pair(source, Sight(task.target_dsn, application=name))
        except BaseException:
            source.close()
            raise

    def _stands(self, pair: Pair, stop: threading.Event) -> None:
        """Errors: Unavailable while the stream stands still: no suspect could be judged."""
        if (why := self._applied(pair, stop).standing()) is not None:
            raise Unavailable(
                f"rows cannot be compared while the stream stands still: {why}",
                hint="slackwater run; slackwater status",
            )

    def _flows(self, pair: Pair, stop: threading.Event) -> None:
        """The stream passes what was written before now: else nothing that is found says anything."""
        applied = self._applied(pair, stop)
        leader, _ = self._ranked(pair)
        with leader.look([], timeout_s=10):
            at = leader.position()
        applied.past(at)

    def _applied(self, pair: Pair, stop: threading.Event) -> Applied:
        task = self._task
        leader, follower = self._ranked(pair)
        return Applied(
            leader=leader,
            follower=follower,
            migration=task.plan.migration,
            link=task.link,
            stop=stop,
            standing=task.standing,
        )

    def _ranked(self, pair: Pair) -> tuple[Sight, Sight]:
        """The side that leads, and the one that follows."""
        ahead = self._task.link.source is self._task.plan.direction.source
        return (pair.source, pair.target) if ahead else (pair.target, pair.source)

    def _leads(self, pair: Pair) -> None:
        """Errors: NotReady when the writes have moved: what differed then is not yet applied, and no mismatch."""
        task = self._task
        leader, _ = self._ranked(pair)
        row = control.turn(leader.primary, task.plan.migration, task.link.source)
        if row is None or not row.open or row.open_turn != task.turn:
            raise NotReady(
                f"the writes moved away from {task.link.source} while rows were compared",
                hint="slackwater verify again, once a side is open: it goes on where it stopped",
            )

    def _views(self, only: Sequence[str]) -> list[View]:
        """How each table is compared, as both sides are now; without names, all of them."""
        task, plan, pair = self._task, self._task.plan, self._first
        with translated("reading the tables"):
            sources = catalog.tables(pair.source.primary, plan.source_schema)
            targets = catalog.tables(pair.target.primary, plan.target_schema)
        sized_sources = {n: _sized(t, sources.get(n)) for n, t in plan.sources.items()}
        sized_targets = {n: _sized(t, targets.get(n)) for n, t in plan.targets.items()}
        self._bases = bases(pair.target.primary, list(plan.targets.values()))
        return views(
            plan,
            pair.source.primary,
            bases=self._bases,
            how=self._how,
            sources=sized_sources,
            targets=sized_targets,
            only=only,
            accepted=task.accepted,
        )

    # The workers.

    def _watch(self, workers: Sequence[threading.Thread], stop: threading.Event) -> None:
        judged, pause_s = 0.0, IDLE_S
        while any(t.is_alive() for t in workers):
            if self._errors:
                raise self._errors[0]
            if stop.is_set():
                self._ended.set()
                raise Stopped
            if time.monotonic() - judged > pause_s:
                judged = time.monotonic()
                if self.throttle is not None:
                    self.throttle.judge()
                if self.throttle is None or self.throttle.reason is None or judged - self.began_s > PATIENT_S:
                    pause_s = JUDGE_S  # at first the lag is not known yet, which is over in a moment
                if self._yielding():
                    self._ended.set()
                    raise Stopped
                self._progress(self)
            next((t for t in workers if t.is_alive()), workers[0]).join(IDLE_S)
        if self._errors:
            raise self._errors[0]
        self._progress(self)

    def _join(self, workers: Sequence[threading.Thread]) -> None:
        self._ended.set()
        for thread in workers:
            while thread.is_alive():
                for pair in list(self._pairs):
                    pair.cancel()
                thread.join(0.5)

    def _work(self) -> None:
        try:
            with contextlib.closing(self._pair()) as pair:
                self._pairs.add(pair)
                try:
                    witness = Witness(pair, self._task.plan, self._task.link)
                    judge = Judge(witness, self._applied(pair, self._ended), self._ended)
                    while (job := self._take()) is not None:
                        tally, chunk = job
                        if chunk is None:
                            self._count_alone(pair, tally)
                        else:
                            self._one(pair, judge, tally, chunk)
                finally:
                    self._pairs.discard(pair)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that called `run`
            if not self._ended.is_set():
                self._errors.append(error)
            self._ended.set()

    def _take(self) -> tuple[Tally, Chunk | None] | None:
        """The next chunk of any table, or a table whose chunks are done and whose sources are to be counted (None).

        Waits while the throttle holds back. None alone: nothing is left.
        """
        while not self._ended.is_set():
            held = self.throttle is not None and (self.throttle.reason is not None or self.throttle.bucket.wait_s() > 0)
            if not held:
                with self._lock:
                    for tally in self.tallies.values():
                        if tally.problem is None and (chunk := self._planned(tally)) is not None:
                            return tally, chunk
                        if tally.course.over and tally.to_count:
                            tally.counting = True
                            return tally, None
                        if tally.course.over and not tally.counting:
                            self._conclude(tally)
                    if all(t.concluded for t in self.tallies.values()):
                        return None
                    self._moved.wait(IDLE_S)
            else:
                self._ended.wait(IDLE_S)
        return None

    def _conclude(self, tally: Tally) -> None:
        try:
            self._ledger.conclude(tally, self._first.source.primary)
        except Voided as error:
            self._begin_anew(tally, str(error))

    def _begin_anew(self, tally: Tally, cause: str) -> None:
        """What was compared of a table says nothing any more: all of it is compared again, as it is now."""
        name = tally.view.name
        tally.concluded = tally.course.ended = True  # whoever is at a chunk of it finds another tally in its place
        self._anew[name] += 1
        self._behind.add(name)
        log.warning("%s is compared from its beginning again: %s", name, cause)
        view = next((v for v in self._views([name]) if v.name == name), tally.view)
        anew = self._open(view, resume=False)
        if self._anew[name] > MOST_ANEW:
            anew.problem = Contended(
                f"{name} could not be compared in one go: time and again, {cause}", hint="slackwater verify"
            )
            anew.course.ended = True

    def _planned(self, tally: Tally) -> Chunk | None:
        try:
            return tally.course.take(self._first.source.primary)
        except (Halt, Contended) as error:
            self._fail(tally, error)
            return None

    def _one(self, pair: Pair, judge: Judge, tally: Tally, chunk: Chunk) -> None:
        view, spent = tally.view, 0.0
        if view.name in self._behind:
            self._flows(pair, self._ended)
            self._behind.discard(view.name)
        for attempt in range(CONTENDED):
            try:
                began_s = time.monotonic()
                compared = self._compared(pair, judge.witness, tally, chunk)
                spent += time.monotonic() - began_s  # judging is waiting, for the most part
                found, more = self._judged(judge, view, chunk, compared)
                if more and not found:
                    raise Halt(
                        f"more rows of {view.name} were waived than can be told apart from others that differ",
                        hint="slackwater quarantine retry",
                    )
                if compared.more and not found:
                    raise Contended(
                        f"so many rows of {view.name} are being written that not all could be looked at",
                        hint="slackwater verify, when there is less traffic",
                    )
                more = more or compared.more
                self._leads(pair)
                break
            except Contended as error:
                if attempt == CONTENDED - 1:
                    self._give_up(pair, tally, chunk, error)
                    return
                self._ended.wait(0.2 * 2**attempt)
            except SlackwaterError as error:
                if not self._smaller(tally, chunk, error, pair):
                    self._give_up(pair, tally, chunk, error)
                return
        if self._mend is not None and found:
            self._mend(pair, view, found)
            found = [replace(f, source=(), target=()) for f in found]  # there may be as many as rows
        failpoint("verify.before_record")
        with self._lock:
            if self.tallies[view.name] is tally:
                try:
                    self._ledger.record(tally, chunk, compared, found, more=more)
                except Voided as error:
                    self._begin_anew(tally, str(error))
            self._moved.notify_all()
        self._count(compared.rows)
        if self.throttle is not None:
            self.throttle.bucket.spend(compared.rows)
        if self._hurry < 1.0:
            self._ended.wait(min(LONGEST_REST_S, spent / self._hurry - spent))

    def _count_alone(self, pair: Pair, tally: Tally) -> None:
        """The rows of its source tables that nothing stands for; where they cannot be counted, that is said."""
        plan, began_s = self._task.plan, time.monotonic()
        found: dict[str, Unrepresented | None] = dict.fromkeys(tally.counts)
        problem: SlackwaterError | None = None
        for attempt in range(CONTENDED):
            try:
                found = dict(counterparts.count(pair.source, plan, tally.counts, self._bases, self._task.alone))
                problem = None
                break
            except SlackwaterError as error:
                problem = error
                if not isinstance(error, Contended):
                    break
                self._ended.wait(0.2 * 2**attempt)
        if problem is not None and self._gone(problem):
            raise problem
        if problem is not None:
            log.warning("%s", counterparts.uncountable(plan, tally.counts, problem).cause)
        with self._lock:
            tally.counting = False
            tally.unrepresented = found
            if problem is not None and plan.direction is Direction.REVERSE:
                self._fail(tally, counterparts.uncountable(plan, tally.counts, problem))
            self._moved.notify_all()
        if self._hurry < 1.0:
            spent = time.monotonic() - began_s
            self._ended.wait(min(LONGEST_REST_S, spent / self._hurry - spent))

    def _gone(self, error: SlackwaterError) -> bool:
        """Whether it is a server that does not answer, and no matter of one table."""
        timed_out = getattr(error.__cause__, "sqlstate", None) == QUERY_CANCELED and not self._ended.is_set()
        return isinstance(error, Unavailable) and not isinstance(error, (Contended, Unsettled)) and not timed_out

    def _compared(self, pair: Pair, witness: Witness, tally: Tally, chunk: Chunk) -> Compared:
        view = tally.view
        if view.name in self._each and row_by_row.possible(view):
            tally.by_rows = True
            return row_by_row.every_row(pair, witness, view, chunk)
        try:
            return compare(pair, view, chunk)
        except Halt as error:
            if not row_by_row.lacks(error):
                raise
            if not tally.by_rows:
                log.warning("%s is compared row by row, on the target alone: %s", view.name, error.cause)
            tally.by_rows = True
            return row_by_row.every_row(pair, witness, view, chunk, error)

    def _judged(self, judge: Judge, view: View, chunk: Chunk, compared: Compared) -> tuple[list[Found], bool]:
        """The suspects that are mismatches, and whether there are more.

        Rows that one side seems to lack, or has more of, have to be seen by their key on both, or they are looked for
        in the chunk: counts that stay apart are never clean, and what a look-up does not find is not extra for that.
        """
        try:
            batch = row_by_row.BATCH if compared.by_rows else BATCH
            most = MOST if self._mend is None else compared.rows + len(compared.suspects)
            found, more = judge.judge(view, compared.suspects, batch=batch, most=most), False
            if unseen := set(judge.witness.blind(view, chunk, doubtful(compared, found))):
                found = [f for f in found if f.key not in unseen]
                found += judge.judge(view, sorted(unseen, key=repr), scan=chunk, most=most)
        except TooMany as error:
            found, more = error.found, True
        with self._lock:
            return self._ledger.not_waived(view, found), more

    def _smaller(self, tally: Tally, chunk: Chunk, error: SlackwaterError, pair: Pair) -> bool:
        """A range that took too long is compared in two parts, if it can be cut."""
        space = tally.view.space
        if space is None or getattr(error.__cause__, "sqlstate", None) != QUERY_CANCELED or self._ended.is_set():
            return False
        with pair.source.look(tally.view.sources, timeout_s=10):
            at = space.boundary(pair.source.rows, chunk, max(1, tally.view.chunk_rows // 8))
        if at is None:
            return False
        with self._lock:
            tally.course.give_back(*(replace(c, number=0) for c in space.cut_at(chunk, at)))
        return True

    def _give_up(self, pair: Pair, tally: Tally, chunk: Chunk, error: SlackwaterError) -> None:
        """A table that cannot be compared; the others go on. A server that is gone ends all of it."""
        if isinstance(error, Unavailable) and not isinstance(error, (Contended, Unsettled)):
            raise error
        self._leads(pair)
        with self._lock:
            tally.course.give_back(chunk)
            self._fail(tally, error)

    def _fail(self, tally: Tally, error: SlackwaterError) -> None:
        tally.problem = tally.problem or error
        tally.course.ended = True
        log.error("%s cannot be compared: %s", tally.view.name, error.cause)

    @property
    def how(self) -> Hash:
        return self._how


def _sized(prepared: Table, now: Table | None) -> Table:
    """A table as it was prepared, with the size that it has now."""
    if now is None:
        return prepared
    return replace(prepared, rows_estimate=max(0, now.rows_estimate), bytes_estimate=max(0, now.bytes_estimate))
