"""Samples of suspect rows: source images staged and transformed on the target by the engine's own SELECT, target rows.

Invariant: a difference between the servers (version, locale, collation, a missing function) never makes a row differ:
what is compared was computed, and spelled, by one server, the target. Only what cannot be staged (a table without a
key; a join in which a source does not say which owner its rows feed) is computed on the source and spelled there.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.postgres import user_path
from connectors.postgres.ranges import Chunk, chunk_key, relation
from connectors.postgres.session import Connection, translated
from connectors.postgres.sight import Sight
from schemas import digest
from schemas.bind import bound
from schemas.direction import Direction, Side
from schemas.errors import Halt, RowRejected, StatementRefused
from schemas.names import EQ, quote
from schemas.plan import Plan
from schemas.position import Lsn, parse_lsn
from stream.backfill.load_table import MIRROR
from stream.engine import build
from stream.engine.mapping_sql import Load, columns
from stream.engine.staging import Stage
from stream.verify.digests import SCAN_S, Pair
from stream.verify.evidence import Image, Key, Row, Sample
from stream.verify.lookup import among, cells, feeding, images_by_key, key_of, literal, scanned, spelled_among
from stream.verify.queries import View, bare, owners, restricts

LOOK_S = 60.0
REFUSED: Row = ("(this row cannot be computed)",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Source rows as they were read, by source table: their staged columns, as text."""

    rows: Mapping[str, Sequence[Sequence[str | None]]]
    owner_of: Mapping[str, Sequence[Key]]  # the owner that each of them feeds
    versions: Mapping[Key, Hashable]  # by owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sample stands. `unsettled`: rows that it may lack wait to be read again."""

    lsn: Lsn
    unsettled: bool = False


class Witness:
    """Reads samples over a pair of sessions. `link` is the direction that carries the leader's writes over."""

    def __init__(self, pair: Pair, plan: Plan, link: Direction) -> None:
        self._pair = pair
        self._plan = plan
        self.link = link
        self._order = 0
        conn = pair.target.rows
        self._stages: dict[str, Stage] = build.stages(conn, plan)
        self._loads: dict[str, Load] = build.loads(conn, plan)
        self._made: set[str] = set()

    @property
    def leader(self) -> Sight:
        return self._at(self.link.source)

    @property
    def follower(self) -> Sight:
        return self._at(self.link.target)

    @property
    def source(self) -> Sight:
        return self._pair.source

    def _at(self, side: Side) -> Sight:
        return self._pair.source if side is self._plan.direction.source else self._pair.target

    def lead(self, view: View, keys: Sequence[Key], scan: Chunk | None = None) -> Sample:
        """The rows on the side that takes writes, and how new they are at most.

        `scan`: read that chunk, as the digests do, instead of looking the keys up.
        """
        return self._sample(view, keys, scan, leading=True)

    def follow(self, view: View, keys: Sequence[Key], scan: Chunk | None = None) -> Sample:
        """The rows on the other side, and up to where the stream had been applied to it."""
        return self._sample(view, keys, scan, leading=False)

    def blind(self, view: View, chunk: Chunk, keys: Sequence[Key]) -> list[Key]:
        """Keys under which a look-up finds another number of rows than a digest counts, in one and the same snapshot.

        What a look-up cannot see would be on neither side, and agree; or on one alone, and be called extra.
        """
        pair, by = self._pair, restricts(view)
        if by is None or not view.mapping.key or not keys:
            return []
        doing = f"looking for rows of {view.name}"
        with pair.source.look(view.sources, timeout_s=SCAN_S, path=view.source_path):
            seen = scanned(pair.source, view, view.source(pair.source.rows, chunk), keys, doing)
            raw = self._read(view, by, owners(view, keys))
        with pair.target.look([view.table], timeout_s=SCAN_S, path=view.target_path):
            there = scanned(pair.target, view, view.anywhere.target(pair.target.rows, chunk), keys, doing)
            found, _ = self._stored(view, keys)
        made = self._transformed(view, raw, owners(view, keys))
        return [
            key
            for key in keys
            if REFUSED not in made.get(key, ())
            and (len(seen.get(key, ())), len(there.get(key, ()))) != (len(made.get(key, ())), len(found.get(key, ())))
        ]

    def made(self, view: View, wanted: Sequence[Key]) -> list[Key]:
        """Keys of the rows that the SELECT makes for some owners, where the sources say which rows feed them."""
        by = restricts(view)
        assert by is not None
        with self._pair.source.look(view.sources, timeout_s=LOOK_S, path=view.source_path):
            raw = self._read(view, by, wanted)
        return list(self._transformed(view, raw, wanted))

    def _sample(self, view: View, keys: Sequence[Key], scan: Chunk | None, *, leading: bool) -> Sample:
        sight = self.leader if leading else self.follower
        self._order += 1
        order = self._order
        if scan is not None:
            place, images, versions = self._scanned(sight, view, keys, scan, leading=leading)
        elif sight is self._pair.source:
            place, images, versions = self._of_source(view, keys, leading=leading)
        else:
            place, images, versions = self._of_target(view, keys, leading=leading)
        return Sample(
            order=order,
            at_s=time.monotonic(),
            lsn=place.lsn,
            images=images,
            versions=versions,
            unsettled=place.unsettled,
        )

    def _place(self, sight: Sight, view: View, *, leading: bool) -> Place:
        """Within a look: how new it is at most, or what had been applied when it was taken."""
        if leading:
            return Place(lsn=sight.position())
        mine = f"migration {EQ} '{self._plan.migration}' and direction {EQ} '{self.link}'"
        written = [view.name] if sight is self._pair.target else [t.name for t in view.sources]
        rows = sight.all(
            "select end_lsn::text, exists (select from slackwater.reread"
            f" where {mine} and (load {EQ} any (array[{', '.join(map(literal, written))}])"
            f" or pg_catalog.starts_with(load, '{MIRROR}')))"
            f" from slackwater.checkpoint where {mine}",
            "reading the checkpoint",
        )
        if not rows:
            raise Halt(f"there is no {self.link} checkpoint", hint="`slackwater prepare` writes it")
        return Place(lsn=parse_lsn(str(rows[0][0])), unsettled=bool(rows[0][1]))

    def _scanned(
        self, sight: Sight, view: View, keys: Sequence[Key], chunk: Chunk, *, leading: bool
    ) -> tuple[Place, dict[Key, Image], dict[Key, Hashable]]:
        """The rows as the digests see them, spelled by the side that has them."""
        of_source = sight is self._pair.source
        path = view.source_path if of_source else view.target_path
        with sight.look(view.sources if of_source else [view.table], timeout_s=SCAN_S, path=path):
            place = self._place(sight, view, leading=leading)
            rows = view.source(sight.rows, chunk) if of_source else view.anywhere.target(sight.rows, chunk)
            return place, scanned(sight, view, rows, keys, f"reading {view.name}"), {}

    # The target's rows.

    def _of_target(
        self, view: View, keys: Sequence[Key], *, leading: bool
    ) -> tuple[Place, dict[Key, Image], dict[Key, Hashable]]:
        sight = self._pair.target
        with sight.look([view.table], timeout_s=LOOK_S, path=view.target_path):
            place = self._place(sight, view, leading=leading)
            if not view.mapping.key:
                rows = digest.held(view.mapping, view.table, view.bases)
                found = sight.all(digest.counted(rows, view.how, _images(keys)), f"reading {view.name} on the target")
                return place, {(m,): ((n,),) for m, n in found}, {}
            images, stored = self._stored(view, keys)
        return place, images, stored

    def _stored(self, view: View, keys: Sequence[Key]) -> tuple[dict[Key, Image], dict[Key, Hashable]]:
        """The target's rows of the owners of some keys, and their versions; within a look."""
        types = [view.table.column(o).type for o in view.mapping.owner]
        where = among([quote(o) for o in view.mapping.owner], types, owners(view, keys))
        rows = digest.held(view.anywhere.mapping, view.table, view.bases, where)
        stored_at = "q.tableoid::text, q.ctid::text, q.xmin::text"
        query = f"select {cells(rows)}, {stored_at} from {rows.source} where {rows.where}"
        found = self._pair.target.all(query, f"reading {view.name} on the target")
        stored = defaultdict[Key, list[Any]](list)
        for row in found:
            stored[key_of(view, row)].append(row[-3:])
        images = images_by_key(view, [row[:-3] for row in found])
        return images, {k: tuple(v) if len(v) == 1 else None for k, v in stored.items()}

    # The source's rows.

    def _of_source(
        self, view: View, keys: Sequence[Key], *, leading: bool
    ) -> tuple[Place, dict[Key, Image], dict[Key, Hashable]]:
        by = restricts(view)
        with self._pair.source.look(view.sources, timeout_s=LOOK_S, path=view.source_path):
            place = self._place(self._pair.source, view, leading=leading)
            if by is None:
                return place, self._computed(view, keys), {}
            raw = self._read(view, by, owners(view, keys))
        images = self._transformed(view, raw, owners(view, keys))
        at = [view.mapping.key.index(o) for o in view.mapping.owner]
        versions = {key: raw.versions.get(tuple(key[i] for i in at)) for key in keys}
        return place, images, versions

    def _computed(self, view: View, keys: Sequence[Key]) -> dict[Key, Image]:
        """The SELECT run on the source itself, within a look."""
        source = self._pair.source
        over = {t.name: f"select * from {relation(t)}" for t in view.sources}
        rows = digest.made(view.mapping, view.table, over, view.bases)
        doing = f"computing {view.name} on the source"
        if not view.mapping.key:
            found = source.all(digest.counted(rows, view.how, _images(keys)), doing)
            return {(m,): ((n,),) for m, n in found}
        texts = [rows.keys[view.mapping.key.index(o)] for o in view.mapping.owner]
        among_owners = spelled_among(texts, owners(view, keys))
        found = source.all(f"select {cells(rows)} from {rows.source} where {among_owners}", doing)
        return images_by_key(view, found)

    def _read(self, view: View, by: Mapping[str, Sequence[str]], wanted: Sequence[Key]) -> Raw:
        """The stored rows that feed some owners, within a look."""
        rows: dict[str, list[Sequence[str | None]]] = {}
        fed: dict[str, list[Key]] = {}
        versions: defaultdict[Key, list[Hashable]] = defaultdict(list)
        for table in view.sources:
            stage = self._stages[table.name]
            expressions = by[table.name]
            texts, where = feeding(view, table, expressions, wanted)
            query = (
                f"copy (select {columns(stage.names)}, {', '.join(texts)}, tableoid::text, ctid::text, xmin::text"
                f" from {relation(table)} where {where}) to stdout"
            )
            width, count = len(stage.names), len(expressions)
            rows[table.name], fed[table.name] = [], []
            with (
                translated(f"reading {table.schema}.{table.name}"),
                self._pair.source.rows.cursor() as cursor,
                cursor.copy(query.encode()) as copy,
            ):
                for row in copy.rows():
                    owner = tuple(row[width : width + count])
                    rows[table.name].append(row[:width])
                    fed[table.name].append(owner)
                    versions[owner].append((table.name, *row[width + count :]))
        exact = self._exact(view, by)
        return Raw(
            rows=rows,
            owner_of=fed,
            versions={o: tuple(v) for o, v in versions.items() if exact and len(v) == 1},
        )

    def _exact(self, view: View, by: Mapping[str, Sequence[str]]) -> bool:
        """Whether an owner names one stored row: then its version tells whether anything was written in between."""
        if not view.mapping.row_local:
            return False
        table = view.sources[0]
        named_columns = {bare(e, table) for e in by[table.name]}
        key = chunk_key(table)
        return bool(key) and set(key) <= named_columns

    # The engine's own way, on the target.

    def _transformed(self, view: View, raw: Raw, wanted: Sequence[Key]) -> dict[Key, Image]:
        """What the SELECT makes of staged rows. Rows that cannot be computed are REFUSED, each by itself."""
        try:
            return self._run(view, raw, wanted)
        except (RowRejected, StatementRefused) as error:
            if isinstance(error, StatementRefused) and wanted:
                self._run(view, _only(raw, ()), ())  # without any row, too: then it is no row's fault, and raised
            if len(wanted) == 1:
                at = {view.mapping.key.index(o): v for o, v in zip(view.mapping.owner, wanted[0], strict=True)}
                return {tuple(at.get(i) for i in range(len(view.mapping.key))): (REFUSED,)}
            half = len(wanted) // 2
            found: dict[Key, Image] = {}
            for part in (wanted[:half], wanted[half:]):
                found |= self._transformed(view, _only(raw, part), part)
            return found

    def _run(self, view: View, raw: Raw, wanted: Sequence[Key]) -> dict[Key, Image]:
        conn, load = self._pair.target.rows, self._loads[view.name]
        self._make(conn, view, load)
        doing = f"transforming suspect rows of {view.name} on the target"
        with translated(doing):
            conn.execute(
                f"begin; set local statement_timeout = {int(LOOK_S * 1000)}; {user_path.local(view.target_path)}"
            )
        try:
            with translated(doing, rows=True):
                for table in view.sources:
                    self._stages[table.name].copy(conn, self._stages[table.name].new, _padded(raw.rows[table.name]))
                bindings = {t.name: self._stages[t.name].reading() for t in view.sources}
                conn.execute(_whole(load, bindings).encode())
                kept = digest.held(view.mapping, view.table, view.bases)
                query = f"select {cells(kept)} from {load.rows} q"
                found = conn.execute(query.encode()).fetchall()
        finally:
            if not conn.closed and not conn.broken:
                conn.execute("rollback")
        mine = set(wanted)
        at = [view.mapping.key.index(o) for o in view.mapping.owner]
        rows = [row for row in found if tuple(key_of(view, row)[i] for i in at) in mine]
        return images_by_key(view, rows)

    def _make(self, conn: Connection, view: View, load: Load) -> None:
        wanted = [(t.name, self._stages[t.name].create()) for t in view.sources] + [(f"-> {view.name}", load.create())]
        for name, statements in wanted:
            if name not in self._made:
                with translated("making temporary tables"):
                    for statement in statements:
                        conn.execute(statement.encode())
                self._made.add(name)


def _whole(load: Load, bindings: dict[str, str]) -> str:
    m = load.mapping
    return (
        f"insert into {load.rows} ({columns(m.columns)})\nselect {load.values()} from (\n{bound(m.text, bindings)}\n) q"
    )


def _padded(rows: Iterable[Sequence[str | None]]) -> list[list[object]]:
    """With the columns that a batch of the stream has beside them."""
    return [[*row, None, 0] for row in rows]


def _only(raw: Raw, wanted: Collection[Key]) -> Raw:
    mine = set(wanted)
    kept = {t: [i for i, o in enumerate(raw.owner_of[t]) if o in mine] for t in raw.rows}
    return Raw(
        rows={t: [raw.rows[t][i] for i in at] for t, at in kept.items()},
        owner_of={t: [raw.owner_of[t][i] for i in at] for t, at in kept.items()},
        versions=raw.versions,
    )


def _images(keys: Sequence[Key]) -> list[str]:
    return [str(key[0]) for key in keys]
