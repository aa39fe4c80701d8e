"""Runs the loads of one direction over one target session.

Invariants: every row-writing transaction begins with the echo mark, holds the direction's advisory lock and has read
its target's turn row; a row's unsent values never come from another row; a replay writes nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from connectors.failpoint import failpoint
from connectors.postgres import fence, user_path
from connectors.postgres.session import Connection, translated
from connectors.postgres.target import CARRYING, Key, LoadState, Target, canonical
from schemas.control import ECHO_PREFIX
from schemas.errors import Halt, PrivilegeMissing
from schemas.plan import Plan
from schemas.position import Lsn
from stream.engine import build, small_batch
from stream.engine.chunk import Chunk
from stream.engine.fold import Folded
from stream.engine.graves import Graves
from stream.engine.joins import Owners
from stream.engine.keyless import Keyless
from stream.engine.mapping_sql import DONE, Load
from stream.engine.planner import MISLED, SESSION, Plans, trees
from stream.engine.repairs import Repairs
from stream.engine.small_batch import SMALL_ROWS, plain, small
from stream.engine.staging import Laid, Stage, Staged
from stream.engine.temp_tables import Made
from stream.engine.toast import Partial

Lock = Literal["exclusive", "shared"]
NOTHING_LAID: Mapping[str, Laid] = {}
NOTHING_OMITTED: Mapping[str, Collection[int]] = {}

ALWAYS = (
    "{0}: {1} is generated always, so no UPDATE can set it, and this role may not set session_replication_role, without"
    " which a row cannot be taken out and put back: triggers and foreign keys would act on that"
)

_PASS = secrets.token_hex(32)  # one per process; a successor's replaces it in slackwater.pass


class Engine:
    """One session's engine. The connection is a pinned one in autocommit mode; the engine owns its transactions.

    `current` names the load whose statement ran last: when the target refuses a row, that load's.
    """

    def __init__(self, conn: Connection, plan: Plan) -> None:
        self.conn = conn
        self.plan = plan
        self.target = Target(conn, plan.migration, plan.direction, apart=self.apart)
        self.current = self.staging = ""
        self.deletes_last = False
        self.careful = False  # wait for each statement, so that `current` is exact
        self._pipeline: Any = None
        self._path = user_path.spelled(plan.target_path)
        self._fires = False  # the user's path is in force
        self._fired: dict[str, bool] = {}  # savepoint -> whether it was
        self._posted: list[Any] = []
        self.written = 0
        self._many = False  # rows are staged
        self.mirrors_only = False  # the target's own rows are not to be touched in this transaction
        self.states: dict[str, LoadState] = {}
        self.carrying: set[str] = set()  # loads of which rows that wait to be read again brought something along
        self._side = str(plan.direction.target)
        self._holders: set[str] = set()
        self.made = Made(conn)
        self.plans = Plans(self.post)
        with translated("opening a session on the target"):
            conn.prepare_threshold = 1_000_000  # only what is asked to be prepared is
            conn.prepared_max = 2_000
            conn.execute(SESSION)
        user_path.assert_safe(conn, plan.target_path, plan.target_schema)
        self.replica = self._become_replica()
        self.stages: dict[str, Stage] = build.stages(conn, plan)
        self.loads: dict[str, Load] = build.loads(conn, plan)
        self.order: tuple[str, ...] = build.parents_first(conn, self.loads)
        self._relations = trees(conn, [x.into for x in self.loads.values()])
        self._texts: dict[tuple[str, str], str] = {}
        self._direct = build.direct_sources(plan, self.stages, self.loads)
        self.partial = Partial(self)
        self.keyless = Keyless(self)
        self.owners = Owners(self)
        self.repairs = Repairs(self)
        self.graves = Graves(self)
        self.chunk = Chunk(self)

    def _become_replica(self) -> bool:
        """Whether the session may skip the target's triggers and foreign-key checks (`session_replication_role`)."""
        try:
            with translated("setting session_replication_role"):
                self.conn.execute("set session_replication_role = replica")
        except PrivilegeMissing:
            return False
        return True

    # The transaction.

    def begin(
        self,
        *,
        holder: str,
        lock: Lock,
        writing: bool = True,
        mirrors_only: bool | None = False,
        of_turn: int | None = None,
        as_application: bool = False,
    ) -> None:
        """Open a transaction that may write rows: echo mark, pass, advisory lock, turn row, states of the loads.

        `mirrors_only`: rows reach the mirrors and nothing else, which may be while the target is open; None: only then,
        or where it has been opened since `of_turn`, with which the source had opened last when they were written.
        `as_application`: without the mark, into a target that is open: the rows are the open side's own from then on.
        Errors: Halt when the target is open to the application, and its own rows are to be written by this direction.
        """
        migration, direction = self.plan.migration, str(self.plan.direction)
        if holder not in self._holders:
            fence.give_pass(self.conn, migration, self.plan.direction.target, holder, _PASS)
            self._holders.add(holder)
        take = "pg_advisory_xact_lock" if lock == "exclusive" else "pg_advisory_xact_lock_shared"
        with translated("opening a transaction on the target"):
            with self.conn.pipeline():
                self.conn.execute("begin", prepare=True)
                if not as_application:
                    self.conn.execute(
                        "select pg_catalog.pg_logical_emit_message(true, %s, %s)",
                        (ECHO_PREFIX, f"{migration}.{direction}"),
                        prepare=True,
                    )
                self.conn.execute("select set_config('slackwater.pass', %s, true)", (_PASS,), prepare=True)
                self.conn.execute(
                    f"select {take}(hashtextextended(%s, 0))", (f"slackwater.{migration}.{direction}",), prepare=True
                )
                turn = self.conn.execute(
                    "select fence_turn is null or open_turn >= fence_turn, open_turn > %s::bigint from slackwater.turn "
                    "where migration = %s and side = %s for share",
                    (of_turn, migration, self._side),
                    prepare=True,
                )
                misled = self.conn.execute(MISLED, (self._relations,), prepare=True)
                carrying = self.conn.execute(CARRYING, (migration, direction), prepare=True)
            row, doubt = turn.fetchone(), misled.fetchone()
            self.carrying = {str(load) for (load,) in carrying.fetchall()}
            self.plans.begin(misled=doubt is not None and bool(doubt[0]))
            self.states = self.target.loads()
            self.owners.begin()
        self.repairs.begin()
        self.graves.begin()
        self.written = 0
        self._fires = False
        self.mirrors_only = mirrors_only or (mirrors_only is None and row is not None and any(row))
        refused = writing and not self.mirrors_only and row is not None and bool(row[0]) is not as_application
        if row is None or refused:
            self.rollback()
            raise Halt(
                f"{self._side} is {'closed' if as_application else 'open'} to the application:"
                " this direction must not write to it"
                if row is not None
                else f"{self._side} holds no turn row for {migration}",
                hint="`slackwater status` shows which side takes writes",
            )

    def commit(self) -> None:
        with translated("committing on the target"):
            if not self.replica and self._path:  # constraints that were deferred are checked now
                self.conn.execute(user_path.SET, (self._path,))
            self.conn.execute("commit")
        self.made.committed()

    def rollback(self) -> None:
        with translated("rolling back on the target"):
            self.conn.execute("rollback")
        self.made.rolled_back()

    def abandon(self) -> None:
        """Roll back on the way out of an error; a session that is broken rolls back by itself."""
        if not self.conn.closed and not self.conn.broken:
            self.rollback()

    def savepoint(self, name: str) -> None:
        self.conn.execute(f"savepoint {name}", prepare=True)
        self.made.mark(name)
        self._fired[name] = self._fires

    def back_to(self, name: str) -> None:
        """Undo everything since the savepoint, which stays."""
        with translated("rolling back to a savepoint"):
            self.conn.execute(f"rollback to savepoint {name}", prepare=True)
        self.made.back_to(name)
        self._fires = self._fired[name]

    def clear(self, tables: Collection[str]) -> None:
        """Empty the temporary tables between the parts of one transaction."""
        stages = [self.stages[t] for t in tables if f"stage {t}" in self.made]
        names = [name for stage in stages for name in (stage.new, stage.old)]
        for load in self.loads.values():
            if load.name in self.made and any(s in tables for s in load.mapping.sources):
                names += [load.rows, *([load.owners] if load.mapping.owner else [])]
                names += [load.kept] if f"kept {load.name}" in self.made else []
        if names:
            self.run("truncate " + ", ".join(names))

    # The path of the user's functions.

    @contextmanager
    def firing(self) -> Iterator[None]:
        """Statements that fire users' code: theirs is the `search_path` meanwhile, and our own SQL is written for it.

        After an error the transaction goes on, if at all, from a savepoint that was set before.
        """
        if self._fires or not self._path:
            yield
            return
        self._under(self._path)
        try:
            yield
        except BaseException:
            self._fires = False
            raise
        self._under("")

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Statements amid those that have nothing to do with the user's code, and see PostgreSQL's own names alone."""
        if not self._fires:
            yield
            return
        self._under("")
        yield
        self._under(self._path)

    def _under(self, path: str) -> None:
        self.conn.execute(user_path.SET, (path,), prepare=True)
        self._fires = bool(path)

    # An epoch.

    def apply(
        self,
        tables: Mapping[str, Folded],
        *,
        swap: Collection[str] = (),
        skip: Mapping[str, Sequence[int]] | None = None,
        applied_lsn: Lsn,
    ) -> None:
        """Write folded changes. `applied_lsn` is where the target stands before them.

        `swap` names loads in which a unique value moves between rows; `skip` the staged rows a load leaves out.
        Errors: RowRejected, with `current` naming the load; the caller rolls back.
        """
        staged = self.stage(tables, straight=not (swap or skip))
        self.settle(staged, swap=swap, skip=skip or {}, applied_lsn=applied_lsn)

    def stage(
        self,
        tables: Mapping[str, Folded],
        *,
        laid: Mapping[str, Laid] = NOTHING_LAID,
        straight: bool = True,
        omit: Mapping[str, Collection[int]] = NOTHING_OMITTED,
    ) -> dict[str, Staged]:
        """Fill the temporary tables, or, if `straight`, leave them out where that can be; empty folds stage nothing.

        `laid` are those of the folds that somebody has laid out already; `omit` rows of them, by number, that the
        tables do not take. After an error `staging` names the source whose rows it met.
        """
        staged = {}
        for name, folded in tables.items():
            if not (folded.truncated or folded.rows or folded.gone):
                continue
            stage = self.stages[name]
            self.current = self.staging = name
            with translated(f"staging {name}", rows=True):
                bare = straight and not self.careful and name in self._direct and small(folded) and plain(folded)
                bare = (
                    bare
                    and not self.graves.dug
                    and not any(name in self.loads[x].mapping.sources for x in self.carrying)
                )
                if not bare:
                    self.stage_of(name)
                rows = laid.get(name) or stage.lay(folded)
                with self.firing() if not bare else nullcontext():  # domains have checks
                    staged[name] = stage.fill(self.conn, rows, direct=bare, omit=omit.get(name, ()))
        self.staging = ""
        return staged

    @contextmanager
    def _pipelined(self) -> Iterator[None]:
        """Statements are sent without waiting for answers: an error comes late, and `current` says little then."""
        if self.careful or self._pipeline is not None:
            yield
            return
        posted: list[Any] = []
        self._posted = posted
        try:
            with translated("applying", rows=True), self.conn.pipeline() as pipeline:
                self._pipeline = pipeline
                yield
        finally:
            self._pipeline = None
            self._posted = []
        self.written += sum(max(cursor.rowcount, 0) for cursor in posted)

    def settle(
        self,
        staged: Mapping[str, Staged],
        *,
        swap: Collection[str] = (),
        skip: Mapping[str, Sequence[int]],
        applied_lsn: Lsn,
        only: Collection[str] | None = None,
    ) -> None:
        """Bring every awake load that reads what is staged to its new state; `only` restricts which."""
        wanted = [self.loads[name] for name in self.order if only is None or name in only]
        if self.mirrors_only:
            wanted = [x for x in wanted if x.is_mirror]
        touched = [x for x in wanted if not self.asleep(x.name) and any(s in staged for s in x.mapping.sources)]
        for x in touched:
            if not x.mapping.row_local or staged[x.mapping.sources[0]].direct is None:
                self.prepare(x)
        joined = [x for x in touched if not x.mapping.row_local]
        row_local = [x for x in touched if x.mapping.row_local]
        with self._pipelined(), self.firing():
            many = sum(len(s.keys) for s in staged.values())
            self._many = many >= SMALL_ROWS
            hashing = self.plans.suit(many) and bool(joined)
            with self.plans.hashing(on=hashing):
                for load in joined:
                    self.owners.before(load, staged)
            self._run([x for x in row_local if x.is_mirror], staged, swap, skip, applied_lsn)
            self._run([x for x in row_local if not x.is_mirror], staged, swap, skip, applied_lsn)
            with self.plans.hashing(on=hashing):
                for load in joined:
                    self.owners.after(load, staged)
                for load in joined:
                    whole = any(s in staged and staged[s].truncated for s in load.mapping.sources)
                    self.owners.recompute(load, whole=whole, swap=load.name in swap)

    def asleep(self, name: str) -> bool:
        """A mapping over mirrors that waits for them, or a table without a key before its chunk."""
        state = self.states.get(name)
        if state is None:
            raise Halt(f"no load is recorded for {name}", hint="`slackwater prepare` records it")
        return state.state == "asleep"

    def _run(
        self,
        loads: Sequence[Load],
        staged: Mapping[str, Staged],
        swap: Collection[str],
        skip: Mapping[str, Sequence[int]],
        applied_lsn: Lsn,
    ) -> None:
        """Row-local loads: transform all, delete children first, write parents first, then rows that lack values.

        `deletes_last`: the other way about, for rows that leave a parent which goes, or come to one that comes.
        """
        loads = [x for x in loads if x.mapping.key]
        for load in loads:
            with self.writing(load):
                left_out = skip.get(load.name, ())
                self._transform(load, staged[load.mapping.sources[0]], left_out, applied_lsn, self._whole(load, swap))
        failpoint("apply.in_pipeline")
        last = self.deletes_last and not any(s.truncated for s in staged.values())
        with self.plans.by_index():
            if not last:
                self._deletes(loads, staged, swap, skip, last=False)
            for load in loads:
                with self.writing(load):
                    rows = staged[load.mapping.sources[0]]
                    if rows.direct is not None and rows.has_new:
                        self._straight(load, "write", rows.direct.new)
                    elif rows.has_new:
                        moved = bool(load.unmapped) and (rows.carried or any(p.moved for p in rows.parts))
                        self.write(load, swap=load.name in swap, moved=moved, first=last)
            if last:
                self._deletes(loads, staged, swap, skip, last=True)
        for load in loads:
            rows = staged[load.mapping.sources[0]]
            if not self._whole(load, swap) and any(p.missing and not p.moved for p in rows.parts):
                with self.writing(load):
                    self.partial.write(load, rows, skip.get(load.name, ()))

    def _deletes(
        self,
        loads: Sequence[Load],
        staged: Mapping[str, Staged],
        swap: Collection[str],
        skip: Mapping[str, Sequence[int]],
        *,
        last: bool,
    ) -> None:
        for load in reversed(loads):
            with self.writing(load):
                left_out = skip.get(load.name, ())
                self._delete(load, staged[load.mapping.sources[0]], left_out, self._whole(load, swap), last=last)

    def _whole(self, load: Load, swap: Collection[str]) -> bool:
        """Whether rows may be taken out and put back: even those that lack values are completed then."""
        return load.name in swap or bool(load.fixed)

    def _transform(self, load: Load, staged: Staged, skip: Sequence[int], applied_lsn: Lsn, whole: bool) -> None:
        if staged.direct is not None:
            return
        source = load.mapping.sources[0]
        stage = self.stages[source]
        left = self.partial.leave(load, staged) if load.name in self.carrying else {}
        if any(p.moved for p in staged.parts):
            self.partial.move(load, staged, skip, applied_lsn, left)
        if whole and any(p.missing and not p.moved for p in staged.parts):
            self.partial.complete(load, staged, skip)
        if any(p.number == 0 for p in staged.parts):
            self.post(load.transform({source: stage.reading(part=0, skip=skip)}), prepare=not skip)

    def _delete(self, load: Load, staged: Staged, skip: Sequence[int], whole: bool, *, last: bool) -> None:
        if staged.direct is not None:
            if staged.has_gone:
                self._straight(load, "delete", staged.direct.old)
            return
        if staged.truncated:
            self.post(load.delete_all(), writes=True)
            return
        source = load.mapping.sources[0]
        stage = self.stages[source]
        if staged.has_gone:
            # A row in quarantine is read again by its key, which does not say what its target row was called before.
            lost = () if load.named_by(source) - set(stage.key) else skip
            if not last:
                self.graves.bury(load, staged, lost)
            if load.unmapped and staged.left and not last:  # what is there by now is what has come
                # A row that comes under a key which another one had must not find that one's unmapped columns there.
                self.post(load.delete_left(source, stage.reading_left(skip=lost)), prepare=not lost, writes=True)
            self.post(load.collect_owners(source, {source: stage.reading_old(skip=lost)}), prepare=not lost)
            self.partial.spare(load, staged, completed=whole)
        if load.leaves_gaps and staged.has_new:
            coming = {source: stage.reading(part=0, skip=skip)}
            self.post(load.collect_owners(source, coming), prepare=not skip)
        if staged.has_gone or (load.leaves_gaps and staged.has_new):
            self.repairs.delete_stale(load)

    def write(self, load: Load, *, swap: bool = False, moved: bool = False, first: bool = False) -> None:
        """Bring the target to `rows`. `first`: nothing is deleted yet; rows that come are written before others."""
        self.repairs.keep_overwritten(load)
        moved = self.graves.exhume(load) or moved
        fixed = () if swap else load.fixed
        if fixed and not self.replica:
            raise Halt(ALWAYS.format(load.name, ", ".join(fixed)), hint=f"on {self._side}: {load.by_default()}")
        aside = bool(swap or moved or fixed)  # then temporary tables, which have no index, are joined with one another
        if aside:
            self.keep(load)
        if swap or fixed:
            with self.plans.hashing(on=self._many):
                self.post(load.take_out(differing=fixed))
        if first:
            if aside:
                self.post(load.put_back(), writes=True)
            self.post(load.insert(), prepare=True, writes=True)
        if not swap and (update := load.update()) is not None:
            self.post(update, prepare=True, writes=True)
        with self.plans.hashing(on=self._many and aside):
            if moved and not swap and (carry := load.carry()) is not None:
                self.post(carry)
            if aside:
                self.post(load.put_back(), writes=True)
        self.post(load.insert(), prepare=True, writes=True)

    def _straight(self, load: Load, step: Literal["write", "delete"], images: small_batch.Images) -> None:
        """One step of a load whose rows travel with the statement."""
        text = self._texts.get((load.name, step))
        if text is None:
            stage = self.stages[load.mapping.sources[0]]
            make = small_batch.write if step == "write" else small_batch.delete
            columns = stage.declared(stage.names if step == "write" else stage.watched)
            text = self._texts[load.name, step] = make(load, small_batch.source(columns))
        self.post(text, images, prepare=True, writes=True)

    # Shared by the steps.

    def reread(
        self, load: Load, staged: Staged, rows: Sequence[int], reason: str, *, carried: Sequence[Key] = ()
    ) -> None:
        """Queue staged rows, by number, to be read again from the source for this load."""
        source = load.mapping.sources[0]
        stage = self.stages[source]
        keys = [stage.named(staged.keys[n]) for n in rows]
        if keys:
            self.carrying |= {load.name} if carried else set()
            self.target.ask_reread(load.name, source, keys, reason, carried)

    def filtered_out(self, load: Load) -> bool:
        """Whether the row whose key changed has no place in the target, so that it needs no values."""
        row = self.conn.execute(f"select not exists (select from {load.rows} where {DONE} is null)").fetchone()
        return row is not None and bool(row[0])

    def in_reread(self, load: Load, staged: Staged, row: int) -> bool:
        origin = staged.origins[row]
        stage = self.stages[load.mapping.sources[0]]
        if origin is None:
            return False
        return (load.name, canonical(stage.named(origin))) in self.target.rereads()

    def run(self, sql: str, *, prepare: bool = False) -> int:
        """Execute one statement and wait for it; rows affected."""
        cursor = self.conn.execute(sql, prepare=prepare)
        if self._pipeline is not None:
            self._pipeline.sync()
        return max(cursor.rowcount, 0)

    def post(
        self, sql: str, parameters: Sequence[object] | None = None, *, prepare: bool = False, writes: bool = False
    ) -> None:
        """Execute one statement whose answer nobody needs now; `writes`: its rows count as written."""
        cursor = self.conn.execute(sql, parameters, prepare=prepare)
        if self._pipeline is None:
            self.written += max(cursor.rowcount, 0) if writes else 0
        elif writes:
            self._posted.append(cursor)

    @contextmanager
    def writing(self, load: Load) -> Iterator[None]:
        self.current = load.name
        with translated(f"writing {load.name}", rows=True), self.firing():
            yield

    def stage_of(self, source: str) -> Stage:
        stage = self.stages.get(source)
        if stage is None:
            raise Halt(
                f"a change of {source} arrived, which no mapping reads",
                hint="`slackwater prepare` after an edit of the file",
            )
        self.made.make(f"stage {source}", stage.create())
        return stage

    def make(self, what: str, statements: Sequence[str]) -> None:
        """Make a temporary table of ours, unless it is there."""
        self.made.make(what, statements)

    def prepare(self, load: Load) -> None:
        self.made.make(load.name, load.create())

    def keep(self, load: Load) -> None:
        """Make the load's table for rows set aside, which few batches need."""
        self.made.make(f"kept {load.name}", load.create_kept())
