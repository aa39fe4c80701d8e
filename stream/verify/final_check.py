"""Both sides compared while they stand still: under a turn's hold, and after it, from snapshots taken under it.

Invariants: a snapshot is taken when nobody writes on the source and the target has all of it; then whatever differs
differs, and no stream has to be waited for. Two servers may spell a value in two ways, so rows are judged as in any
pass: by the target's own spelling (`sampler`). What there was no time for, or what could not be asked, is named; it is
never passed over. A table that was rewritten since cannot be read in an older snapshot, and counts as not compared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from connectors.postgres import catalog
from connectors.postgres.ranges import Chunk, Kind
from connectors.postgres.session import Connection, connect, sever, translated
from connectors.postgres.sight import Sight, bases
from schemas import digest
from schemas.errors import Halt, SlackwaterError
from schemas.plan import Plan
from stream.verify import row_by_row
from stream.verify.coverage import covers, gaps
from stream.verify.digests import RANGE_S, Pair, agreed_hash, compare
from stream.verify.judge import BATCH, Found, doubtful, mismatch
from stream.verify.pass_record import not_waived
from stream.verify.queries import Key, View, views
from stream.verify.sampler import Witness
from stream.verify.verdicts import LISTED, Mismatch

APPLICATION = "slackwater turn compare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A chunk to compare, of a table by its name."""

    load: str
    chunk: Chunk


@dataclass(slots=True, kw_only=True)
class Looked:
    """What was compared. `mismatches` by table; `unproven`: tables whose digests differ, and nothing says where."""

    pieces: int = 0
    rows: int = 0
    mismatches: dict[str, list[Mismatch]] = field(default_factory=dict)
    unproven: set[str] = field(default_factory=set)
    causes: dict[str, str] = field(default_factory=dict)  # table -> what kept it from being compared

    @property
    def tables(self) -> set[str]:
        """Those that differ, or seem to."""
        return self.mismatches.keys() | self.unproven


TOUCHED = """
select c.load, c.chunk, c.lower, c.upper
  from slackwater.verify_chunk c
 where c.migration = %s and c.direction = %s
 order by c.youngest nulls last, c.chunk desc
"""
# What a rewrite, or a TRUNCATE, gives a table, and each of its partitions: an older snapshot shows it empty then.
NODES = """
select t.oid::bigint, pg_catalog.pg_relation_filenode(t.oid)::bigint
  from (select pg_catalog.unnest(%s::oid[]) as oid
        union select p.relid from pg_catalog.unnest(%s::oid[]) r(oid), pg_catalog.pg_partition_tree(r.oid) p) t
 order by 1
"""


def pieces(target: Connection, plan: Plan) -> list[Piece]:
    """Every table in chunks as the last pass cut them, those that were written last first.

    A table that was never compared is one piece.
    """
    with translated("reading the chunks"):
        rows: list[Any] = target.execute(TOUCHED, (plan.migration, plan.direction.value)).fetchall()
    found = [
        Piece(load=load, chunk=Chunk(number=number, kind=Kind.RANGE, lower=lower, upper=upper))
        for load, number, lower, upper in rows
        if load in plan.targets
    ]
    known = {name: [p.chunk for p in found if p.load == name] for name in plan.targets}
    for name, chunks in known.items():
        if not chunks:
            found.append(Piece(load=name, chunk=Chunk(number=0)))
        elif not covers(chunks) and any(c.lower or c.upper for c in chunks):
            found += [Piece(load=name, chunk=gap) for gap in gaps(chunks)]
    return found


class Standstill:
    """Everything that is needed to compare two sides, opened before anybody waits; `freeze` takes the snapshots.

    `left` are the pieces that are still to be compared, in their order. `accepted`: target columns (`table.column`)
    whose loss was accepted. It has sessions of its own, and none of them holds a lock for longer than a statement.
    Errors: Halt where the servers have no hash in common; Unavailable.
    """

    def __init__(self, source_dsn: str, target_dsn: str, plan: Plan, accepted: Collection[str] = ()) -> None:
        self.plan = plan
        with ExitStack() as stack:
            self._keepers = []
            for dsn in (source_dsn, target_dsn):
                keeper = connect(dsn, application=APPLICATION)
                stack.callback(keeper.close)
                self._keepers.append(keeper)
            source = Sight(source_dsn, application=APPLICATION)
            stack.callback(source.close)
            target = Sight(target_dsn, application=APPLICATION)
            stack.callback(target.close)
            self._pair = Pair(source, target)
            self._views = {v.name: v for v in self._all_views(accepted)}
            self._sampler = Witness(self._pair, plan, plan.direction)
            self.left = pieces(target.primary, plan)
            self.suspects: list[Piece] = []
            self._nodes = {name: self._nodes_of(view) for name, view in self._views.items()}
            stack.pop_all()

    def _all_views(self, accepted: Collection[str]) -> list[View]:
        plan, source, target = self.plan, self._pair.source.primary, self._pair.target.primary
        sources, targets = catalog.tables(source, plan.source_schema), catalog.tables(target, plan.target_schema)
        return views(
            plan,
            source,
            bases=bases(target, list(plan.targets.values())),
            how=agreed_hash(self._pair.source, self._pair.target),
            sources={n: sources.get(n, t) for n, t in plan.sources.items()},
            targets={n: targets.get(n, t) for n, t in plan.targets.items()},
            accepted=accepted,
        )

    @property
    def sessions(self) -> list[Connection]:
        """For whoever has to cut them when a server says nothing any more."""
        return [*self._keepers, self._pair.source.primary, self._pair.target.primary]

    def close(self) -> None:
        self._pair.close()
        for keeper in self._keepers:
            keeper.close()

    def sever(self) -> None:
        """From another thread: whatever runs ends with an error, as if the servers had gone away."""
        for conn in self.sessions:
            sever(conn)

    def freeze(self, *, for_s: float) -> None:
        """From now on both sides are read as they are now, for at most `for_s`. Both stand still while it is called."""
        for keeper, sight in zip(self._keepers, (self._pair.source, self._pair.target), strict=True):
            with translated("taking a snapshot"):
                keeper.execute(
                    f"set idle_in_transaction_session_timeout = {int(for_s * 1000)};"
                    " begin isolation level repeatable read, read only".encode()
                )
                row = keeper.execute("select pg_catalog.pg_export_snapshot()").fetchone()
            assert row is not None
            sight.snapshot = str(row[0])

    def sum_up(self, *, deadline_s: float) -> Looked:
        """Digests of one piece after another until `time.monotonic()` is `deadline_s`.

        What agrees, or could not be asked, is told; pieces whose digests differ are left as `suspects`. `left` is what
        remains. A statement that would outlast the deadline is cancelled.
        """
        looked, left = Looked(), list[Piece]()
        self.suspects = []
        with self._until(deadline_s):
            while self.left and time.monotonic() < deadline_s:
                piece = self.left.pop(0)
                view, chunk = self._viewed(piece)
                try:
                    mine, theirs = self._digests(view, chunk)
                    self._assert_readable(view)
                except SlackwaterError as error:
                    if time.monotonic() < deadline_s:
                        looked.causes[view.name] = error.cause
                    left.append(piece)
                    continue
                if mine == theirs:
                    looked.pieces += 1
                    looked.rows += int(mine[0])
                else:
                    self.suspects.append(piece)
        self.left = left + self.left
        return looked

    def judge(self, looked: Looked, suspects: Sequence[Piece], *, deadline_s: float) -> None:
        """Which rows of pieces differ, into `looked`; a table of which that could not be told is unproven."""
        for piece in suspects:
            if time.monotonic() >= deadline_s:
                looked.unproven.add(piece.load)
                continue
            try:
                with self._until(deadline_s):
                    self._judge(looked, piece)
            except SlackwaterError as error:
                looked.unproven.add(piece.load)
                looked.causes[piece.load] = error.cause

    def rest(self, *, deadline_s: float, stop: threading.Event) -> Looked:
        """What is left, compared and judged in the snapshots; until the deadline, or until told to stop."""
        looked, left = Looked(), list[Piece]()
        with self._until(deadline_s):
            while self.left and time.monotonic() < deadline_s and not stop.is_set():
                piece = self.left.pop(0)
                try:
                    self._judge(looked, piece)
                except SlackwaterError as error:
                    looked.causes[piece.load] = error.cause
                    left.append(piece)
        self.left = left + self.left
        return looked

    # One piece.

    def _judge(self, looked: Looked, piece: Piece) -> None:
        """Errors: what the servers say; Halt where rows cannot be told apart, or are too many to be."""
        view, chunk = self._viewed(piece)
        try:
            compared = compare(self._pair, view, chunk)
        except Halt as error:
            if not row_by_row.lacks(error):
                raise
            compared = row_by_row.every_row(self._pair, self._sampler, view, chunk, error)
        found: list[Found] = []
        for i in range(0, len(compared.suspects), BATCH):
            if len(found) >= LISTED:
                break
            found += self._differing(view, compared.suspects[i : i + BATCH])
        if unseen := set(self._sampler.blind(view, chunk, doubtful(compared, found))):
            found = [f for f in found if f.key not in unseen]
            found += self._differing(view, sorted(unseen, key=repr), chunk)
        self._assert_readable(view)
        found = not_waived(self._pair.target.primary, self.plan, view, found)
        looked.pieces += 1
        looked.rows += compared.rows
        if found:
            looked.mismatches.setdefault(view.name, []).extend(f.mismatch for f in found)

    def _digests(self, view: View, chunk: Chunk) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        (mine,), (theirs,) = self._pair.both(view, chunk, lambda rows: digest.whole(rows, view.how), RANGE_S)
        return mine[:3], theirs[:3]

    def _differing(self, view: View, keys: Sequence[Key], scan: Chunk | None = None) -> list[Found]:
        """Nobody writes: one sample of each side is all the evidence that there can be."""
        source, target = self._sampler.lead(view, keys, scan), self._sampler.follow(view, keys, scan)
        pairs = ((key, source.image(key), target.image(key)) for key in keys)
        return [mismatch(view, key, here, there) for key, here, there in pairs if here != there]

    def _viewed(self, piece: Piece) -> tuple[View, Chunk]:
        view = self._views[piece.load]
        return view, piece.chunk if view.space is not None else Chunk(number=0, kind=Kind.WHOLE)

    @contextmanager
    def _until(self, deadline_s: float) -> Iterator[None]:
        for sight in (self._pair.source, self._pair.target):
            sight.deadline_s = deadline_s
        try:
            yield
        finally:
            for sight in (self._pair.source, self._pair.target):
                sight.deadline_s = None

    def _nodes_of(self, view: View) -> list[Any]:
        """Where the view's tables are stored, on either side."""
        found: list[Any] = []
        pairs = ((self._pair.source, [t.oid for t in view.sources]), (self._pair.target, [view.table.oid]))
        for sight, oids in pairs:
            with translated("asking where tables are stored"):
                found += sight.primary.execute(NODES, (oids, oids)).fetchall()
        return found

    def _assert_readable(self, view: View) -> None:
        """Errors: Halt when a table was rewritten or truncated since: in a snapshot from before it has no rows."""
        if self._nodes_of(view) != self._nodes[view.name]:
            raise Halt(f"{view.name}, or what it is made of, was rewritten meanwhile", hint="slackwater verify")


def merged(left: Sequence[Piece]) -> dict[str, list[tuple[str | None, str | None]]]:
    """Table -> the ranges of its key that pieces cover, adjoining ones as one; (None, None) is all of it."""
    found: dict[str, list[tuple[str | None, str | None]]] = {}
    for piece in sorted(left, key=lambda p: (p.load, p.chunk.lower is not None, int(p.chunk.lower or 0))):
        ranges = found.setdefault(piece.load, [])
        if ranges and ranges[-1][1] is not None and ranges[-1][1] == piece.chunk.lower:
            ranges[-1] = (ranges[-1][0], piece.chunk.upper)
        else:
            ranges.append((piece.chunk.lower, piece.chunk.upper))
    return found
