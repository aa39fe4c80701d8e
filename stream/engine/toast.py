"""Rows that lack values, because PostgreSQL does not send TOASTed ones that did not change.

Invariant: a missing value is either left alone where it stands, taken from the row's own old place, or read again from
the source; it is never another row's, and never NULL by default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from connectors.postgres.target import Carried, Key, canonical
from schemas.errors import RowRejected
from schemas.names import EQ, quote
from schemas.position import Lsn
from stream.engine.mapping_sql import PART, Load
from stream.engine.small_batch import SMALL_ROWS
from stream.engine.staging import Part, Staged

if TYPE_CHECKING:
    from stream.engine.engine import Engine


Split = tuple[tuple[str, ...], tuple[str, ...]]
"""(columns to write, columns to leave alone)."""


class Partial:
    """The engine's steps for the parts of a batch that lack columns."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def split(self, load: Load, missing: frozenset[str]) -> Split | None:
        """What of a row can be written; None where an expression, a filter or a key needs both."""
        source = load.mapping.sources[0]
        lacking = frozenset((source, c) for c in missing)
        if load.mapping.row_deps & lacking:
            return None
        write, keep = [], []
        for output in load.mapping.outputs:
            if not output.deps & lacking:
                write.append(output.name)
            elif output.deps <= lacking and output.name not in load.mapping.key:
                keep.append(output.name)
            else:
                return None
        return tuple(write), tuple(keep)

    def leave(self, load: Load, staged: Staged) -> dict[str, Carried]:
        """What rows that wait to be read again carry under keys that they leave with this batch, by canonical key.

        Whoever waits under these keys from now on is another row.
        """
        e = self._engine
        if staged.truncated:
            e.target.drop_carried(load.name, None)
            return {}
        stage = e.stages[load.mapping.sources[0]]
        keys = [stage.named(origin) for n in staged.left if (origin := staged.origins[n]) is not None]
        left = e.target.carried(load.name, keys)
        e.target.drop_carried(load.name, keys)
        return left

    def move(
        self, load: Load, staged: Staged, skip: Sequence[int], applied_lsn: Lsn, left: Mapping[str, Carried]
    ) -> None:
        """Rows whose key changed: into `rows`, whole, with what was not sent taken from under their old key.

        Before any write of the batch, so that the old place is still as it was. What the mapping does not write goes
        along in any case: with the row, or in the queue of rows to be read again. `left`: see `leave`.
        """
        e = self._engine
        source = load.mapping.sources[0]
        stage = e.stages[source]
        state = e.states[load.name]
        settled = state.state == "done" and applied_lsn >= state.newest_lsn and not load.fans_out
        together = self._move_whole(load, staged, skip) if not left else set()
        for part in staged.parts:
            row = part.rows[0]
            if not part.moved or row in skip or row in together:
                continue
            split = self.split(load, self._lacked(load, part))
            safe = settled and not e.in_reread(load, staged, row)
            if split is None or (split[1] and not safe):
                why = "a key changed while values were not sent"
                e.reread(load, staged, part.rows, why, carried=self._carried(load, staged, part, left))
                continue
            reading = stage.reading(part=part.number, missing=part.missing)
            e.run(load.transform({source: reading}, without=split[1]))
            if split[1] or load.unmapped:
                e.run(load.collect_owners(source, {source: stage.reading_old(rows=part.rows)}))
                found = not split[1] or e.run(load.fill_moved(split[1])) or e.filtered_out(load)
                if found and load.unmapped:
                    e.keep(load)
                    if not e.run(load.keep_moved()) and (waiting := self._waiting(load, staged, part, left)):
                        e.conn.execute(load.keep_documents(), (json.dumps(waiting),))
                e.run(f"delete from {load.owners}")
                if not found:
                    e.run(load.drop_moved())
                    e.reread(load, staged, part.rows, "a key changed, and the row under its old key is not here")
                    continue
            e.run(load.done_moved())

    def _move_whole(self, load: Load, staged: Staged, skip: Sequence[int]) -> set[int]:
        """All of them at once that lack nothing, where their owners can be computed side by side; those it has done."""
        e = self._engine
        source = load.mapping.sources[0]
        stage = e.stages[source]
        rows = [p.rows[0] for p in staged.parts if p.moved and p.rows[0] not in skip and not self._lacked(load, p)]
        if len(rows) < 2 or not load.unmapped or load.fans_out or load.mapping.feeds[source].restrict is None:
            return set()
        e.keep(load)
        e.run(load.transform({source: stage.reading(rows=rows)}))
        with e.plans.by_index(), e.plans.hashing(on=len(rows) >= SMALL_ROWS):
            e.run(load.keep_together(source, *stage.numbered(rows)))
        e.run(load.done_moved())
        return set(rows)

    def aside(self, load: Load, staged: Staged, rows: Sequence[int]) -> list[tuple[Key, Carried]]:
        """What rows that are set aside, by number, carry from now on, with their keys, where the batch changes that.

        Before any write of the batch.
        """
        e = self._engine
        stage = e.stages[load.mapping.sources[0]]
        named = [None if origin is None else stage.named(origin) for origin in staged.origins]
        left = e.target.carried(load.name, [k for n in rows if (k := named[n]) is not None], apart=True)
        found: dict[str, tuple[Key, Carried]] = {}
        coming = {n: part for part in staged.parts for n in part.rows}
        for n in sorted(rows, key=lambda n: n in coming):  # a row that comes in the place of one that is gone
            key, part = stage.named(staged.keys[n]), coming.get(n)
            carried: Carried = []
            if part is not None and part.moved:
                e.prepare(load)
                e.savepoint("aside")
                try:
                    with e.writing(load):
                        carried = self._carried(load, staged, part, left)
                except RowRejected:  # the target takes no such key: nothing is there under it
                    e.back_to("aside")
                    carried = self._waiting(load, staged, part, left)
            elif part is not None and named[n] is not None:
                continue  # as it stands there
            found[canonical(key)] = (key, carried)
        return list(found.values())

    def _carried(self, load: Load, staged: Staged, part: Part, left: Mapping[str, Carried]) -> Carried:
        """What a row whose key changed, and that is not written now, has in columns that no mapping writes."""
        if not load.unmapped:
            return []
        e = self._engine
        source = load.mapping.sources[0]
        stage = e.stages[source]
        e.run(load.collect_owners(source, {source: stage.reading_old(rows=part.rows)}))
        found = e.conn.execute(
            load.unmapped_of(source, {source: stage.reading(part=part.number, missing=part.missing)})
        ).fetchall()
        e.run(f"delete from {load.owners}")
        return [dict(document) for (document,) in found] or self._waiting(load, staged, part, left)

    def _waiting(self, load: Load, staged: Staged, part: Part, left: Mapping[str, Carried]) -> Carried:
        """The same, of a row that has waited to be read again since it took its last key."""
        e = self._engine
        source = load.mapping.sources[0]
        stage = e.stages[source]
        origin = staged.origins[part.rows[0]]
        waiting = [] if origin is None else left.get(canonical(stage.named(origin)), [])
        if not waiting:
            return []
        reading = stage.reading(part=part.number, missing=part.missing)
        owner = e.conn.execute(load.owners_of(source, {source: reading})).fetchone()
        now = {} if owner is None else dict(zip(load.mapping.owner, owner, strict=True))
        return [document | now for document in waiting]

    def complete(self, load: Load, staged: Staged, skip: Sequence[int]) -> None:
        """Rows under an unchanged key: into `rows`, whole, as they are to be taken out and put back.

        Before any write of the batch.
        """
        e = self._engine
        stage = e.stages[load.mapping.sources[0]]
        for part, rows, (_, kept) in self._lacking(load, staged, skip):
            reading = stage.reading(part=part.number, missing=part.missing, skip=skip)
            binding = {load.mapping.sources[0]: reading}
            e.run(load.transform(binding, without=kept))
            if load.leaves_gaps:
                e.run(load.collect_owners(load.mapping.sources[0], binding))
            if kept:
                e.run(load.fill_staying(kept))
                if absent := self._absent(load, part, rows):
                    e.reread(load, staged, absent, "a row that is not here yet lacks values")
                    e.run(load.drop_absent())
            e.run(load.done_moved())

    def spare(self, load: Load, staged: Staged, *, completed: bool) -> None:
        """Rows under an unchanged key that `rows` does not hold yet: their owners are not without a row for that."""
        e = self._engine
        source = load.mapping.sources[0]
        for part in staged.parts:
            if part.missing and not part.moved and not (completed and self.split(load, self._lacked(load, part))):
                reading = e.stages[source].reading(part=part.number, missing=part.missing)
                e.post(load.spare_owners(source, {source: reading}))

    def write(self, load: Load, staged: Staged, skip: Sequence[int]) -> None:
        """Rows that lack values under an unchanged key: update what was sent, leave the rest alone."""
        e = self._engine
        source = load.mapping.sources[0]
        stage = e.stages[source]
        for part, rows, (written, kept) in self._lacking(load, staged, skip):
            e.run(load.clear_rows())
            binding = {source: stage.reading(part=part.number, missing=part.missing, skip=skip)}
            e.run(load.transform(binding, without=kept), prepare=not skip)
            if load.leaves_gaps:
                e.run(f"delete from {load.owners}")
                e.run(load.collect_owners(source, binding))
                e.written += e.run(load.delete_stale())
            if kept:
                absent = e.conn.execute(load.absent()).fetchone()
                if absent is not None and absent[0]:
                    e.reread(load, staged, self._absent(load, part, rows), "a row that is not here yet lacks values")
            if (update := load.update(written)) is not None:
                e.written += e.run(update)
            if not kept:
                e.written += e.run(load.insert())

    def _lacking(self, load: Load, staged: Staged, skip: Sequence[int]) -> Iterator[tuple[Part, list[int], Split]]:
        """Parts that lack values under an unchanged key: their rows, and what of them can be written as it is.

        Rows of which nothing can be are read again instead.
        """
        for part in staged.parts:
            rows = [n for n in part.rows if n not in skip]
            if not part.missing or part.moved or not rows:
                continue
            split = self.split(load, self._lacked(load, part))
            if split is None or (part.entering and split[1]):
                self._engine.reread(load, staged, rows, "a value that was not sent is needed")
            else:
                yield part, rows, split

    def _lacked(self, load: Load, part: Part) -> frozenset[str]:
        """The part's missing columns that this load reads."""
        return part.missing & frozenset(load.mapping.reads[load.mapping.sources[0]])

    def _absent(self, load: Load, part: Part, rows: Sequence[int]) -> list[int]:
        """The numbers of staged rows whose target rows are not there."""
        e = self._engine
        source = load.mapping.sources[0]
        stage = e.stages[source]
        plain = {o.name: o.plain[1] for o in load.mapping.outputs if o.plain is not None}
        if all(n in plain for n in load.mapping.owner):
            types = {n: load.type(n) for n in load.mapping.owner}
            on = " and ".join(f"r.{quote(n)} {t.equal} {t.cast(f's.{quote(plain[n])}')}" for n, t in types.items())
            found = e.conn.execute(
                f"select distinct s.slackwater_n from {stage.new} s join {load.rows} r on {on} "
                f"where s.{PART} {EQ} {part.number} and not exists "
                f"(select from {load.into} t where {load.matches(load.mapping.key, 't', 'r')})"
            ).fetchall()
            return sorted(n for (n,) in found if n in set(rows))
        return list(rows)
