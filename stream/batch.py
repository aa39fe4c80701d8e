"""One target transaction of the stream: epochs in, rows and checkpoint out.

Invariant 2: rows, checkpoint, quarantine and rereads commit together. Invariant 6: what the target refuses is isolated
and set aside by name, or the stream halts; it is never left out in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from connectors.failpoint import failpoint
from connectors.postgres.control import Checkpoint
from connectors.postgres.session import translated
from connectors.postgres.target import canonical, key_text
from schemas.change import Change
from schemas.epoch import Epoch
from schemas.errors import Halt, RowRejected
from schemas.position import Lsn
from stream.engine import Engine
from stream.engine.staging import Staged
from stream.fold import Folded, fold

log = logging.getLogger("slackwater.apply")

UNIQUE_VIOLATION = "23505"
MAX_FOLDED_ROWS = 500_000

Offsets = dict[str, dict[int, int]]


@dataclass(slots=True)
class Decoded:
    """One epoch record with its changes, in position order, and the offsets that follow it."""

    epoch: Epoch
    changes: list[Change]
    offsets: Offsets


@dataclass(slots=True)
class _Pending:
    """What is to be written next: folded tables, and the changes of tables without a key."""

    tables: dict[str, Folded]
    keyless: dict[str, list[Change]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(t.changes for t in self.tables.values())


class Batch:
    """Writes runs of epochs. `more` waits for the stream's next epoch; it returns None only when told to stop."""

    def __init__(
        self, engine: Engine, *, holder: str, quarantine_limit: int, more: Callable[[], Decoded | None]
    ) -> None:
        self._engine = engine
        self._holder = holder
        self._limit = quarantine_limit
        self._more = more
        self._keys = {name: stage.key for name, stage in engine.stages.items()}
        self._keyless = {x.mapping.sources[0] for x in engine.loads.values() if not x.mapping.key}
        self._quarantined: dict[str, set[str]] = {}

    def write(self, run: Sequence[Decoded], checkpoint: Checkpoint) -> tuple[list[Decoded], Checkpoint]:
        """Apply `run` (which continues with `more` while its last epoch is incomplete) and commit.

        Returns every epoch that the transaction took, and the checkpoint it left.
        """
        e = self._engine
        taken = list(run)
        e.begin(holder=self._holder, lock="exclusive", writing=any(d.changes for d in taken))
        try:
            with translated("applying"):
                self._quarantined = e.target.quarantined()
                self._part([c for d in taken for c in d.changes], taken, checkpoint.end_lsn)
                while not taken[-1].epoch.complete:
                    part = self._more()
                    if part is None:
                        raise Halt(
                            f"epoch {taken[-1].epoch.epoch} continues, but the stream ended",
                            hint="start apply again; nothing of this transaction was applied",
                        )
                    taken.append(part)
                    e.clear(list(self._keys))
                    self._part(part.changes, taken, checkpoint.end_lsn)
                failpoint("apply.before_checkpoint")
                last = taken[-1]
                offsets = merged(checkpoint.offsets, last.offsets)
                e.target.advance(checkpoint.epoch, [d.epoch for d in taken], offsets)
                failpoint("apply.before_commit")
        except BaseException:
            e.abandon()
            raise
        e.commit()
        failpoint("apply.after_commit")
        return taken, Checkpoint(
            epoch=last.epoch.epoch,
            end_lsn=last.epoch.end_lsn,
            last=last.epoch.last,
            offsets=offsets,
            system_id=checkpoint.system_id,
            timeline=checkpoint.timeline,
            slot=checkpoint.slot,
        )

    def _part(self, changes: list[Change], taken: list[Decoded], applied_lsn: Lsn) -> None:
        """Write one part of the transaction, again and again until the target takes it or the cause is known."""
        if not changes:
            return
        e = self._engine
        pending = self._fold(changes)
        swap: set[str] = set()
        skip: dict[str, list[int]] = {}
        while True:
            e.savepoint("part")
            try:
                staged = e.stage(pending.tables)
                known = self._known(staged)
                left_out = {name: [*skip.get(name, ()), *known.get(name, ())] for name in {*skip, *known}}
                e.settle(staged, swap=swap, skip=left_out, applied_lsn=applied_lsn)
                for source, rows in pending.keyless.items():
                    e.keyless.apply(source, rows)
                self._join(pending, staged, known)
                return
            except RowRejected as error:
                load = e.current
                e.back_to("part")
                if error.sqlstate == UNIQUE_VIOLATION:
                    self._unique(load, error, swap, pending, taken)
                else:
                    self._isolate(load, error, pending, skip)

    def _fold(self, changes: list[Change]) -> _Pending:
        if not self._keyless:
            return _Pending(fold(changes, self._keys))
        pending = _Pending(fold([c for c in changes if c.table not in self._keyless], self._keys))
        for change in changes:
            if change.table in self._keyless:
                pending.keyless.setdefault(change.table, []).append(change)
        return pending

    # What the target refuses.

    def _unique(self, load: str, error: RowRejected, swap: set[str], pending: _Pending, taken: list[Decoded]) -> None:
        """A unique value moved between rows of the batch, or stands in a chunk that is newer than the batch."""
        e = self._engine
        if e.replica and load not in swap and load in e.loads and e.loads[load].mapping.row_local:
            swap.add(load)
            return
        state = e.states.get(load)
        newest = state.newest_lsn if state is not None else Lsn(0)
        if taken[-1].epoch.complete and taken[-1].epoch.end_lsn < newest and pending.rows < MAX_FOLDED_ROWS:
            further = self._more()
            if further is not None and further.epoch.complete:
                taken.append(further)
                extra = self._fold(further.changes)
                if not (extra.keyless or pending.keyless):
                    for change in further.changes:
                        table = pending.tables.setdefault(change.table, Folded(key=self._keys[change.table]))
                        table.add(change)
                    return
        raise RowRejected(
            f"{error.cause}: two rows of the new table {load} want the same unique value",
            hint="the new constraint is stricter than the old one, or the mapping merges rows: change the data on old, "
            "or the mapping or the constraint, and start again; nothing was lost",
            sqlstate=error.sqlstate,
        ) from error

    def _isolate(self, load: str, error: RowRejected, pending: _Pending, skip: dict[str, list[int]]) -> None:
        """Find the staged rows that the target refuses, by bisection, and set them aside."""
        e = self._engine
        if load not in e.loads or not e.loads[load].mapping.row_local or not e.loads[load].mapping.key:
            raise error
        source = e.loads[load].mapping.sources[0]
        staged = e.stage(pending.tables)
        rows = [n for part in staged[source].parts for n in part.rows]
        already = {*skip.get(load, ()), *self._known(staged).get(load, ())}
        e.savepoint("probe")
        found = self._bisect(load, staged, [n for n in rows if n not in already], set(rows))
        keys = [self._key(source, staged[source].keys[n]) for n, _ in found]
        e.back_to("part")
        if not found:
            raise error
        held = e.target.quarantine_size()
        if held + len(found) > self._limit:
            raise RowRejected(
                f"{error.cause}: {held + len(found)} rows would stand in quarantine, and the limit is {self._limit}",
                hint="`slackwater quarantine list` shows them; mend the mapping or the data, or raise quarantine.limit",
                sqlstate=error.sqlstate,
            ) from error
        folded = pending.tables[source]
        order = list(folded.rows.values())
        for (n, why), key in zip(found, keys, strict=True):
            e.target.quarantine(load, source, key, order[n].position, why.sqlstate, why.cause)
            self._quarantined.setdefault(load, set()).add(canonical(key))
        skip.setdefault(load, []).extend(n for n, _ in found)
        log.error("%d rows of %s are in quarantine: %s", len(found), load, error.cause)

    def _bisect(
        self, load: str, staged: dict[str, Staged], rows: list[int], every: set[int]
    ) -> list[tuple[int, RowRejected]]:
        """Each row that is refused on its own, with the error."""
        if not rows:
            return []
        e = self._engine
        kept = set(rows)
        source = e.loads[load].mapping.sources[0]
        try:
            e.settle({source: staged[source]}, skip={load: sorted(every - kept)}, applied_lsn=Lsn(0), only={load})
        except RowRejected as error:
            e.back_to("probe")
            if len(rows) == 1:
                return [(rows[0], error)]
            half = len(rows) // 2
            return self._bisect(load, staged, rows[:half], every) + self._bisect(load, staged, rows[half:], every)
        e.back_to("probe")
        return []

    def _known(self, staged: dict[str, Staged]) -> dict[str, list[int]]:
        """Staged rows whose key stands in quarantine already: they join it."""
        joined: dict[str, list[int]] = {}
        for load, keys in self._quarantined.items():
            x = self._engine.loads.get(load)
            if x is None or x.mapping.sources[0] not in staged:
                continue
            source = x.mapping.sources[0]
            rows = staged[source]
            for n, (key, origin) in enumerate(zip(rows.keys, rows.origins, strict=True)):
                now = canonical(self._key(source, key))
                was = now if origin is None else canonical(self._key(source, origin))
                if now in keys or was in keys:
                    joined.setdefault(load, []).append(n)
        return joined

    def _join(self, pending: _Pending, staged: dict[str, Staged], known: dict[str, list[int]]) -> None:
        """Count later changes on the rows in quarantine; one that took another key stands there under that too."""
        for load, rows in known.items():
            source = self._engine.loads[load].mapping.sources[0]
            folded = pending.tables[source]
            every = [*folded.rows.values(), *folded.gone]
            for n in rows:
                key = self._key(source, staged[source].keys[n])
                error = "an earlier change of this row stands in quarantine"
                self._engine.target.quarantine(load, source, key, every[n].position, "", error)

    def _key(self, source: str, key: tuple[object, ...]) -> dict[str, str | None]:
        return dict(zip(self._keys[source], map(key_text, key), strict=True))


def merged(offsets: Offsets, newer: Offsets) -> Offsets:
    """`offsets` moved on by `newer`."""
    return {t: {**offsets.get(t, {}), **newer.get(t, {})} for t in {*offsets, *newer}}
