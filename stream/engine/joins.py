"""Mappings over mirrors: owners are recomputed whole; one whose rows the target refuses is set aside by name.

Invariant: an owner is either as the mirrors have it, or stands in quarantine (source '', its key the owner columns);
what is computed for it later joins it there, until it is tried again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from connectors.postgres.target import Key, canonical
from schemas.equality import among, matches
from schemas.errors import RowRejected, StatementRefused
from schemas.names import quote
from stream.engine.mapping_sql import Load, columns
from stream.engine.staging import Staged

if TYPE_CHECKING:
    from stream.engine.engine import Engine

log = logging.getLogger("slackwater.apply")


class Owners:
    """The engine's steps for loads that are computed from mirrors.

    `limit` is the quarantine's. `isolate` names the loads whose owners are tried one by one in this transaction.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._any = any(not x.mapping.row_local for x in engine.loads.values())
        self._apart: dict[str, list[Key]] = {}
        self._renamed: dict[str, str] = {}  # by load: owners that are called otherwise since this part, as JSON
        self.limit: Callable[[], int] = lambda: 0
        self.isolate: set[str] = set()

    def begin(self) -> None:
        """A transaction has begun."""
        self.isolate = set()
        self._renamed = {}
        self._apart = self._engine.target.owners_apart() if self._any else {}

    def recompute(self, load: Load, *, whole: bool, swap: bool = False) -> int:
        """Bring the load's rows of `owners`, or of every owner there can be, to what the mirrors have; returns rows."""
        e = self._engine
        alone = load.name in self.isolate
        with e.writing(load):
            if whole and (alone or self._apart.get(load.name)):
                whole = False
                self._every(load)
            if alone:
                self._set_aside(load, swap)
            if not whole:
                self._leave_out(load)
                return self._write(load, swap)
            with e.plans.hashing():
                rows = e.run(load.transform(self.bindings(load, restricted=False)))
                e.run(f"insert into {load.owners} select {columns(load.mapping.owner)} from {load.into}")
                self._replace(load, swap)
        return rows

    def retry(self, load: Load, owners: Sequence[Key]) -> None:
        """Compute owners that stand in quarantine once more; those that are refused again stay there."""
        e = self._engine
        asked = set(map(canonical, owners))
        self._apart[load.name] = [k for k in self._apart.get(load.name, ()) if canonical(k) not in asked]
        self.isolate = {load.name}
        e.prepare(load)
        with e.writing(load):
            self._fill(load, owners)
            if load.unmapped and (carried := e.target.carried(load.name, owners, apart=True)):
                self._renamed[load.name] = "[]"
                self._keep(load, [document for found in carried.values() for document in found])
            self.recompute(load, whole=False, swap=e.replica)
            refused = set(map(canonical, self._apart[load.name]))
            e.target.owners_read(load.name, owners, [k for k in owners if canonical(k) not in refused])

    def _write(self, load: Load, swap: bool) -> int:
        e = self._engine
        rows = 0
        sql = load.transform(self.bindings(load, restricted=True), where_owner=True)
        if e.careful:
            rows = e.run(sql, prepare=True)
        else:
            e.post(sql, prepare=True)
        self._replace(load, swap)
        return rows

    def _replace(self, load: Load, swap: bool) -> None:
        e = self._engine
        renamed = self._renamed.get(load.name)
        if renamed is not None:  # whoever comes under such an owner's old name has nothing of it
            e.post(load.delete_renamed(), (renamed,))
        e.repairs.delete_stale(load)
        e.write(load, swap=swap, moved=renamed is not None)

    def _every(self, load: Load) -> None:
        """Every owner that a row of a mirror feeds, or that has rows now."""
        e = self._engine
        for source in load.mapping.sources:
            e.run(load.collect_owners(source, self.bindings(load, restricted=False)))
        e.run(f"insert into {load.owners} select {columns(load.mapping.owner)} from {load.into}")

    # Which owners a batch touches.

    def bindings(self, load: Load, *, restricted: bool) -> dict[str, str]:
        """Bindings of every source to its mirror, restricted to the touched owners where a feed says how."""
        return {s: self._mirror(load, s, restricted) for s in load.mapping.sources}

    def _mirror(self, load: Load, source: str, restricted: bool) -> str:
        e = self._engine
        sql = f"select {self._columns(source)} from {e.loads['mirror:' + source].into} m"
        feed = load.mapping.feeds.get(source)
        if not restricted or feed is None or feed.restrict is None:
            return sql
        return f"{sql} where {load.among_owners(feed.restrict)}"

    def _columns(self, source: str) -> str:
        """A mirror's columns (of `m`), under the source's collations also where it was made without them."""
        e = self._engine
        held, wanted = e.loads["mirror:" + source].types, e.stages[source].types
        other = {n for n, t in wanted.items() if t.collation and n in held and held[n].collation != t.collation}
        if not other:
            return "m.*"
        return ", ".join(
            f"m.{quote(n)} collate {wanted[n].collation} as {quote(n)}" if n in other else f"m.{quote(n)}" for n in held
        )

    def before(self, load: Load, staged: Mapping[str, Staged]) -> None:
        """The owners fed by the mirrors' rows as they were before this batch, and by the old images."""
        e = self._engine
        with e.writing(load):
            self._carry(load, staged)
            for source in load.mapping.sources:
                if source not in staged or staged[source].truncated:
                    continue
                stage = e.stages[source]
                keys = matches(stage.key, "m", "o", stage.types)
                mirror = e.loads["mirror:" + source].into
                touched = f"exists (select from {stage.old} o where {keys})"
                was = f"select {self._columns(source)} from {mirror} m where {touched}"
                if staged[source].has_old:
                    e.post(
                        load.collect_owners(source, self.bindings(load, restricted=False) | {source: was}), prepare=True
                    )

    def _carry(self, load: Load, staged: Mapping[str, Staged]) -> None:
        """What no mapping writes goes along with an owner that is called by a row's key, where the row took another.

        Where another row comes under a key that one had which is gone, nothing of that one's stays for it.
        """
        self._renamed.pop(load.name, None)
        e, m = self._engine, load.mapping
        called = [m.output(name).plain for name in m.owner]
        source = called[0][0] if called and called[0] is not None else ""
        if not load.unmapped or source not in staged or {(source, k) for k in e.stages[source].key} != set(called):
            return
        rows, stage = staged[source], e.stages[source]

        def owner(key: tuple[object, ...]) -> dict[str, str | None]:
            named = stage.named(key)
            return {name: named[place[1]] for name, place in zip(m.owner, called, strict=True) if place is not None}

        numbers = [part.rows[0] for part in rows.parts if part.moved]
        moves = [(owner(was), owner(rows.keys[n])) for n in numbers if (was := rows.origins[n]) is not None]
        coming = {n for part in rows.parts for n in part.rows}
        gone = {rows.keys[n] for n in rows.left if n not in coming}
        others = [owner(rows.keys[n]) for n in coming if rows.origins[n] is None and rows.keys[n] in gone]
        if not (moves or others):
            return
        pairs = [{"was": list(was.values()), "now": list(now.values())} for was, now in moves]
        self._renamed[load.name] = json.dumps([*pairs, *({"was": list(o.values()), "now": []} for o in others)])
        e.keep(load)
        e.conn.execute(load.keep_owners(), (json.dumps(pairs),))
        left = e.target.carried(load.name, [was for was, _ in moves], apart=True)
        self._keep(load, [document | now for was, now in moves for document in left.get(canonical(was), ())])

    def _keep(self, load: Load, documents: Sequence[Key]) -> None:
        if documents:
            self._engine.keep(load)
            self._engine.conn.execute(load.keep_documents(), (json.dumps([dict(d) for d in documents]),))

    def after(self, load: Load, staged: Mapping[str, Staged]) -> None:
        """The owners fed by the mirrors' rows as they are now, where this batch touched them."""
        e = self._engine
        with e.writing(load):
            for source in load.mapping.sources:
                if source not in staged or not staged[source].has_new:
                    continue
                stage = e.stages[source]
                mirror = e.loads["mirror:" + source].into
                keys = [stage.types[n] for n in stage.key]
                touched = among([f"m.{quote(n)}" for n in stage.key], keys, stage.new, stage.key)
                now = f"select {self._columns(source)} from {mirror} m where {touched}"
                e.post(load.collect_owners(source, self.bindings(load, restricted=False) | {source: now}), prepare=True)

    def wake(self, name: str) -> int:
        """Compute a sleeping mapping from its mirrors alone and mark it done; returns the rows it has.

        The caller holds the exclusive lock and has seen that each mirror is complete and applied past its newest chunk.
        """
        e = self._engine
        load = e.loads[name]
        e.prepare(load)
        rows = self.recompute(load, whole=True)
        with e.writing(load):
            e.target.woken(name, rows)
        return rows

    # Owners in quarantine.

    def _leave_out(self, load: Load) -> None:
        """Take the owners in quarantine out of `owners`; each that is among them has had one more change."""
        if not (apart := self._apart.get(load.name)):
            return
        e = self._engine
        sql = (
            f"delete from {load.owners} o using pg_catalog.jsonb_populate_recordset(null::{load.owners}, %s::jsonb) k "
            f"where {load.matches(load.mapping.owner, 'o', 'k')} returning {_document(load)}"
        )
        found = {canonical(k): k for (k,) in e.conn.execute(_escaped(sql), (_json(apart),)).fetchall()}
        for key in found.values():
            e.target.quarantine(load.name, "", key, None, "", "an earlier change of this owner stands in quarantine")

    def _set_aside(self, load: Load, swap: bool) -> None:
        """Find the owners whose rows the target refuses, by bisection, and put them into quarantine."""
        e = self._engine
        self._leave_out(load)
        e.savepoint("owners")
        if (whoever := self._refusal(load, [], swap)) is not None:
            raise whoever  # without any owner, too
        owners = [k for (k,) in e.conn.execute(f"select distinct {_document(load)} from {load.owners} o").fetchall()]
        found = self._refused(load, owners, swap)
        e.back_to("owners")
        for key, why in found:
            e.target.quarantine(load.name, "", key, None, why.sqlstate, why.cause)
        if not found:
            return
        if load.name in self._renamed:
            sql = (
                f"select {_document(load)}, pg_catalog.jsonb_agg(pg_catalog.to_jsonb(k)) from {load.kept} k "
                f"join pg_catalog.jsonb_populate_recordset(null::{load.owners}, %s::jsonb) o "
                f"on {load.matches(load.mapping.owner, 'k', 'o')} group by 1"
            )
            named = e.conn.execute(_escaped(sql), (_json([key for key, _ in found]),)).fetchall()
            e.target.carry(load.name, "", [(owner, documents) for owner, documents in named])
        if (held := e.target.quarantine_size()) > (limit := self.limit()):
            why = found[0][1]
            raise RowRejected(
                f"{why.cause}: {held} rows would stand in quarantine, and the limit is {limit}",
                hint="`slackwater quarantine list` shows them; mend the mapping or the data, or raise quarantine.limit",
                sqlstate=why.sqlstate,
            ) from why
        refused = [key for key, _ in found]
        kept = set(map(canonical, refused))
        self._fill(load, [k for k in owners if canonical(k) not in kept])
        self._apart.setdefault(load.name, []).extend(refused)
        log.error("%d owners of %s are in quarantine: %s", len(found), load.name, found[0][1].cause)

    def _refused(self, load: Load, owners: Sequence[Key], swap: bool) -> list[tuple[Key, RowRejected]]:
        """Each owner whose rows are refused when it is computed alone, with the error."""
        if not owners:
            return []
        refusal = self._refusal(load, owners, swap)
        if refusal is None:
            return []
        if len(owners) == 1:
            error = refusal if isinstance(refusal, RowRejected) else refusal.rejected()
            # Alone, it may want a value that another owner is about to give up.
            return [] if error.collides and not swap else [(owners[0], error)]
        half = len(owners) // 2
        return self._refused(load, owners[:half], swap) + self._refused(load, owners[half:], swap)

    def _refusal(self, load: Load, owners: Sequence[Key], swap: bool) -> RowRejected | StatementRefused | None:
        """What the target has against the rows of these owners; nothing of what is tried stays."""
        e = self._engine
        found: RowRejected | StatementRefused | None = None
        try:
            with e.writing(load):
                self._fill(load, owners)
                self._write(load, swap)
        except (RowRejected, StatementRefused) as error:
            found = error
        e.back_to("owners")
        return found

    def _fill(self, load: Load, owners: Sequence[Key]) -> None:
        e = self._engine
        e.run(f"truncate {load.owners}, {load.rows}")
        e.conn.execute(
            _escaped(
                f"insert into {load.owners} select {columns(load.mapping.owner)} "
                f"from pg_catalog.jsonb_populate_recordset(null::{load.owners}, %s::jsonb)"
            ),
            (_json(owners),),
        )


def _document(load: Load) -> str:
    """An owner as quarantine spells it: each column's text."""
    pairs = ", ".join(f"'{n.replace(chr(39), chr(39) * 2)}', o.{quote(n)}::text" for n in load.mapping.owner)
    return f"pg_catalog.jsonb_build_object({pairs})"


def _json(owners: Sequence[Key]) -> str:
    return json.dumps([dict(k) for k in owners])


def _escaped(sql: str) -> str:
    """For a statement with one parameter: names may hold a percent sign."""
    return sql.replace("%", "%%").replace("%%s::jsonb", "%s::jsonb")
