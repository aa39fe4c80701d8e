"""One target transaction of the stream: epochs in, rows and checkpoint out.

Invariant 2: rows, checkpoint, quarantine and rereads commit together. Invariant 6: what the target refuses is isolated
and set aside by name, or the stream halts; it is never left out in silence.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

from connectors.failpoint import failpoint
from connectors.postgres import canary
from connectors.postgres.control import Checkpoint
from connectors.postgres.session import translated
from connectors.postgres.target import Carried, Key, canonical
from schemas.change import Change
from schemas.epoch import Epoch
from schemas.errors import Halt, RowRejected, StatementRefused, Unavailable
from schemas.position import Lsn
from stream.apply.altered import assert_as_it_was
from stream.apply.probe import SAVEPOINT, Probe, Refused, Unstaged
from stream.apply.work import Folding, Work, merged
from stream.engine import Engine
from stream.engine.staging import Staged

log = logging.getLogger("slackwater.apply")

FOREIGN_KEY_VIOLATION = "23503"
MAX_FOLDED_ROWS = 200_000


class Batch:
    """Writes runs of epochs. `more` waits for the stream's next epoch; it returns None only when told to stop.

    `overtaken` keeps rows that are too late: the target is open to the application, or was since they were written.
    They reach the mirrors alone.
    """

    def __init__(
        self,
        engine: Engine,
        folding: Folding,
        *,
        holder: str,
        quarantine_limit: Callable[[], int],
        more: Callable[[], Work | None],
        overtaken: Callable[[Work], None],
    ) -> None:
        self._engine = engine
        self._folding = folding
        self._holder = holder
        self._limit = quarantine_limit
        self._more = more
        self._overtaken = overtaken
        self._late = False  # the transaction's rows were overtaken
        self._keys = folding.keys
        engine.owners.limit = quarantine_limit
        self._quarantined: dict[str, set[str]] = {}
        self.counted = Counter[tuple[str, str]]()  # (op, source table) of the latest write

    def write(self, work: Work, checkpoint: Checkpoint) -> tuple[list[Epoch], Checkpoint]:
        """Apply `work` (and what continues it, while its last epoch is incomplete) and commit.

        Returns every epoch that the transaction took, and the checkpoint it left.
        """
        e = self._engine
        done: list[Epoch] = []
        self.counted.clear()
        echo = work.echo
        e.begin(
            holder=self._holder,
            lock="exclusive",
            writing=bool(work.changes),
            mirrors_only=True if echo else None,
            of_turn=work.turn,
        )
        self._late = e.mirrors_only and not echo
        try:
            with translated("applying"):
                self._quarantined = e.target.quarantined()
                e.graves.dug = not work.complete
                self._part(work, checkpoint.end_lsn)
                while not work.complete:
                    following = self._more()
                    if following is None:
                        raise Unavailable(
                            f"told to stop inside epoch {work.epochs[-1].epoch}, which continues",
                            hint="start apply again: nothing of that transaction was applied, and nothing is lost",
                        )
                    following.offsets = merged(work.offsets, following.offsets)
                    following.canaries = work.canaries + following.canaries
                    done += work.epochs
                    work = following
                    e.clear(list(self._keys))
                    self._part(work, checkpoint.end_lsn)
                failpoint("apply.before_checkpoint")
                epochs = [*done, *work.epochs]
                last = epochs[-1]
                offsets = merged(checkpoint.offsets, work.offsets)
                e.target.advance(checkpoint.epoch, epochs, offsets)
                if work.canaries:
                    self._seen(work.canaries, last.epoch)
                failpoint("apply.before_commit")
        except BaseException:
            e.abandon()
            raise
        e.commit()
        failpoint("apply.after_commit")
        return epochs, Checkpoint(
            epoch=last.epoch,
            end_lsn=last.end_lsn,
            last=last.last,
            offsets=offsets,
            system_id=checkpoint.system_id,
            timeline=checkpoint.timeline,
            slot=checkpoint.slot,
        )

    def _seen(self, canaries: list[Change], epoch: int) -> None:
        """Of the canaries that came through: the newest of this migration's."""
        plan = self._engine.plan
        for change in reversed(canaries):
            row = change.after
            if row is not None and row["migration"] == plan.migration:
                token, at = str(row["token"]), str(row["at"])
                canary.note(self._engine.conn, plan.migration, str(plan.direction), token, at, epoch)
                return

    def _part(self, work: Work, applied_lsn: Lsn) -> None:
        """Write one part of the transaction, again and again until the target takes it or the cause is known."""
        if not work.changes:
            return
        e = self._engine
        e.careful = e.deletes_last = False
        swap: set[str] = set()
        fresh: set[tuple[str, str]] = set()  # (load, key) of what this part has put into quarantine
        omit: dict[str, set[int]] = {}
        while True:
            e.savepoint("part")
            try:
                straight = not (self._quarantined or omit)
                staged = e.stage(work.tables, laid=work.laid, straight=straight, omit=omit)
                known = {} if e.mirrors_only else self._known(staged)
                carried = self._carried(staged, known)
                e.settle(staged, swap=swap, skip=known, applied_lsn=applied_lsn)
                for source, changes in work.keyless.items() if not e.mirrors_only else ():
                    e.keyless.apply(source, changes)
                self._join(work, staged, known, fresh, carried)
            except Halt as error:
                load, source = e.current, e.staging
                e.back_to("part")
                if not e.careful:
                    e.careful = True  # once more, statement by statement: which load was it?
                    continue
                assert_as_it_was(e, load, error)
                if not isinstance(error, (RowRejected, StatementRefused)):
                    raise
                if source:
                    self._unstageable(source, error, work, fresh, omit)
                elif self._of_a_parent(error):
                    e.deletes_last = True
                elif not self._collision(load, error, swap, work):
                    self._isolate(load, error, work, fresh, applied_lsn, swap, omit)
            else:
                if self._late:
                    self._overtaken(work)
                self.counted.update(map(attrgetter("op", "table"), work.changes))
                return

    # What the target refuses.

    def _of_a_parent(self, error: RowRejected | StatementRefused) -> bool:
        """Whether it may be the order of statements that a foreign key refuses, where they are checked row by row."""
        e = self._engine
        return error.sqlstate == FOREIGN_KEY_VIOLATION and not (e.replica or e.deletes_last)

    def _collision(self, load: str, error: RowRejected | StatementRefused, swap: set[str], work: Work) -> bool:
        """A unique value moved between rows of the batch, or stands in a chunk that is newer than the batch.

        False: neither is so; if it is another row at all that stands in the way, it stays there.
        """
        e = self._engine
        if not (isinstance(error, RowRejected) and error.collides):
            return False
        if e.replica and load not in swap and load in e.loads and e.loads[load].mapping.key:
            swap.add(load)
            return True
        state = e.states.get(load)
        newest = state.newest_lsn if state is not None else Lsn(0)
        # The rest of the transaction, or of what the chunk has shown already, may free the value.
        if (not work.complete or work.end_lsn < newest) and len(work.changes) < MAX_FOLDED_ROWS:
            further = self._more()
            if further is None:
                raise Unavailable(
                    f"told to stop after epoch {work.epochs[-1].epoch}, which needs those that follow it",
                    hint="start apply again: nothing of that transaction was applied, and nothing is lost",
                )
            if not work.takes(further.epochs[0]):
                raise Unavailable(
                    f"epoch {work.epochs[-1].epoch} cannot be applied together with the next, which is of another kind",
                    hint="it is tried again by itself; if it stays so, see the unique constraint named before it",
                ) from error
            work.canaries += further.canaries
            for number, epoch in enumerate(further.epochs):
                changes = further.changes if number == 0 else []
                self._folding.add(work, epoch, changes, further.offsets)
            return True
        if e.replica:
            return False
        raise RowRejected(
            f"{error.cause}: a row of {load} wants what another one has, or is about to give up, which a role can only"
            " tell that may set session_replication_role",
            hint="grant set on parameter session_replication_role to the role, and start again; where two rows really"
            " want the same, change the data on the source, the mapping or the constraint. Nothing was lost",
            sqlstate=error.sqlstate,
        ) from error

    def _isolate(
        self,
        load: str,
        error: RowRejected | StatementRefused,
        work: Work,
        fresh: set[tuple[str, str]],
        applied_lsn: Lsn,
        swap: set[str],
        omit: dict[str, set[int]],
    ) -> None:
        """Find the staged rows (of a mapping over mirrors: the owners) that the target refuses, and set them aside."""
        e = self._engine
        if load not in e.loads:
            raise error
        if not e.loads[load].mapping.key:
            if isinstance(error, StatementRefused):
                raise error
            raise RowRejected(
                f"{error.cause}: a row of a table without a key, which cannot be set aside",
                hint="correct the mapping or the target's column or constraint, and start again; nothing was lost",
                sqlstate=error.sqlstate,
            ) from error
        if not e.loads[load].mapping.row_local:
            if load in e.owners.isolate:
                raise error
            e.owners.isolate.add(load)
            return
        source = e.loads[load].mapping.sources[0]
        staged = e.stage(work.tables, laid=work.laid, omit=omit)
        every = range(len(staged[source].keys))
        already = set(self._known(staged).get(load, ()))
        e.savepoint(SAVEPOINT)
        probe = Probe(e, load, staged, set(every), applied_lsn, swap={load} & swap)
        if isinstance(error, StatementRefused) and probe.error(()) is not None:
            e.back_to("part")
            raise error  # without any row, too
        rows = [n for n in every if n not in already]
        if isinstance(error, RowRejected) and error.collides:
            found = probe.colliding(rows, error)
        else:
            found = probe.refused(rows, blamed=False)
        self._record(found, [load], source, staged[source], error, work, fresh)

    def _unstageable(
        self,
        source: str,
        error: RowRejected | StatementRefused,
        work: Work,
        fresh: set[tuple[str, str]],
        omit: dict[str, set[int]],
    ) -> None:
        """Find rows that not even a temporary table of the target takes, and set them aside for all that read them."""
        e = self._engine
        reading = [x.name for x in e.loads.values() if source in x.mapping.sources and x.mapping.row_local]
        if not all(e.loads[name].mapping.key for name in reading):
            raise error
        laid = work.laid.setdefault(source, e.stages[source].lay(work.tables[source]))
        known = self._known({source: laid.staged})
        apart = set.intersection(*(set(known.get(name, ())) for name in reading))
        if not apart <= omit.setdefault(source, set()):
            omit[source] |= apart  # they have been set aside before, perhaps for this
            return
        e.savepoint(SAVEPOINT)
        probe = Unstaged(e, source, work.tables[source], laid)
        if probe.error(()) is not None:
            e.back_to("part")
            raise error
        found = probe.refused([n for n in range(len(laid.staged.keys)) if n not in omit[source]], blamed=True)
        self._record(found, reading, source, laid.staged, error, work, fresh)
        omit[source] |= {n for n, _ in found}

    def _record(
        self,
        found: Refused,
        loads: Sequence[str],
        source: str,
        staged: Staged,
        error: RowRejected | StatementRefused,
        work: Work,
        fresh: set[tuple[str, str]],
    ) -> None:
        """Put staged rows into quarantine, for these loads."""
        e = self._engine
        # One that takes another key stands there under both: under the old one, too, it will have to be read again.
        refused = [(n, why, key) for n, why in found for key in self._named(source, staged, n)]
        e.back_to("part")
        if not refused:
            raise error
        more = len(refused) * len(loads)
        held = e.target.quarantine_size()
        if held + more > (limit := self._limit()):
            raise RowRejected(
                f"{found[0][1].cause}: {held + more} rows would stand in quarantine, and the limit is {limit}",
                hint="`slackwater quarantine list` shows them; mend the mapping or the data, or raise quarantine.limit",
                sqlstate=error.sqlstate,
            ) from error
        folded = work.tables[source]
        order = [*folded.rows.values(), *folded.gone]
        for load in loads:
            for n, why, key in refused:
                e.target.quarantine(load, source, key, order[n].position, why.sqlstate, why.cause)
                self._quarantined.setdefault(load, set()).add(canonical(key))
                fresh.add((load, canonical(key)))
            log.error("%d rows of %s are in quarantine: %s", len(refused), load, found[0][1].cause)

    def _known(self, staged: dict[str, Staged]) -> dict[str, list[int]]:
        """Staged rows whose key stands in quarantine already, or that take one's place: they join it."""
        joined: dict[str, list[int]] = {}
        for load, apart in self._quarantined.items():
            x = self._engine.loads.get(load)
            if x is None or x.mapping.sources[0] not in staged:
                continue
            source = x.mapping.sources[0]
            rows, held = staged[source], set(apart)
            left = {n: {canonical(k) for k in self._named(source, rows, n)} for n in range(len(rows.keys))}
            while joining := [n for n, names in left.items() if names & held]:
                joined.setdefault(load, []).extend(joining)
                for n in joining:
                    held |= left.pop(n)
        return joined

    def _named(self, source: str, rows: Staged, n: int) -> list[dict[str, str | None]]:
        """The key that a staged row has now, and the one that it had before if that is another one."""
        now, origin = rows.keys[n], rows.origins[n]
        named = self._engine.stages[source].named
        return [named(key) for key in dict.fromkeys([now, now if origin is None else origin])]

    def _carried(self, staged: dict[str, Staged], known: dict[str, list[int]]) -> dict[str, list[tuple[Key, Carried]]]:
        """What rows in quarantine carry after this part, where it changes that: as it is before anything is written."""
        loads = self._engine.loads
        return {
            load: self._engine.partial.aside(loads[load], staged[loads[load].mapping.sources[0]], rows)
            for load, rows in known.items()
            if loads[load].unmapped
        }

    def _join(
        self,
        work: Work,
        staged: dict[str, Staged],
        known: dict[str, list[int]],
        fresh: set[tuple[str, str]],
        carried: dict[str, list[tuple[Key, Carried]]],
    ) -> None:
        """Count later changes on the rows in quarantine; one that took another key stands there under that too."""
        target = self._engine.target
        for load, rows in known.items():
            source = self._engine.loads[load].mapping.sources[0]
            folded = work.tables[source]
            every = [*folded.rows.values(), *folded.gone]
            apart = {*self._quarantined[load]}
            for n in rows:
                now, *before = self._named(source, staged[source], n)
                for key in [now, *(k for k in before if canonical(k) not in apart)]:
                    if (load, canonical(key)) not in fresh:
                        error = "an earlier change of this row stands in quarantine"
                        target.quarantine(load, source, key, every[n].position, "", error)
            if load in carried:
                target.carry(load, source, carried[load])
