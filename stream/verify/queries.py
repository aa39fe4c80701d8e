"""How one mapping's rows are compared: what both sides are asked for.

Invariant: what is compared covers every row that the mapping makes and every row that the target has: ranges of an
integer key are open at both ends, buckets are all of them, and nothing is left out by a key that only one side has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from collections.abc import Mapping as Map
from dataclasses import dataclass, replace

from connectors.postgres.ranges import Chunk, KeySpace, Kind, chunk_key, relation
from connectors.postgres.session import Connection
from schemas.digest import Hash, Rows, held, made
from schemas.mapping import Mapping
from schemas.names import quote
from schemas.plan import Plan
from schemas.table import Table

INTEGERS = frozenset({"smallint", "integer", "bigint"})
ROWS_PER_BUCKET = 256
MOST_BUCKETS = 1 << 16
CHUNK_ROWS = 50_000
CHUNK_BYTES = 32 << 20
ROW_BYTES = 200  # of a table that was never analysed
LEAST_ROWS = 500

Key = tuple[str | None, ...]
"""A row's key in the target as text; of a table without one, its image's strong hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One target table. `space` is its integer key on the source, where rows go by ranges; else they go by buckets."""

    mapping: Mapping
    table: Table
    sources: tuple[Table, ...]
    bases: Map[str, str]
    how: Hash
    space: KeySpace | None
    source_path: tuple[str, ...] = ()  # under which the mapping's text runs on the source,
    target_path: tuple[str, ...] = ()  # and what of it is asked of the target

    @property
    def name(self) -> str:
        return self.mapping.target

    @property
    def anywhere(self) -> View:
        """For rows that are named: the target's are looked at wherever they are.

        New may have made one that the way forward would have left in old, and that the digests so leave out there.
        """
        return replace(self, mapping=replace(self.mapping, scope=None))

    @property
    def rows_estimate(self) -> int:
        return max(t.rows_estimate or t.bytes_estimate // ROW_BYTES for t in (self.table, *self.sources))

    @property
    def chunk_rows(self) -> int:
        """How many rows a range is to have."""
        row_bytes = max(
            (t.bytes_estimate / t.rows_estimate for t in self.sources if t.rows_estimate > 0), default=ROW_BYTES
        )
        return max(LEAST_ROWS, min(CHUNK_ROWS, int(CHUNK_BYTES / max(1.0, row_bytes))))

    @property
    def mask(self) -> int:
        """One less than the number of buckets."""
        wanted = max(1, self.rows_estimate // ROWS_PER_BUCKET)
        return int(min(MOST_BUCKETS, 1 << (wanted - 1).bit_length()) - 1)

    def source(self, conn: Connection, chunk: Chunk) -> Rows:
        """What the source makes of a chunk."""
        bindings = {t.name: f"select * from {relation(t)}" for t in self.sources}
        if self.space is not None:
            source = self.sources[0]
            wanted = {*self.mapping.reads[source.name], *self.space.key}
            names = [c.name for c in source.columns if c.name in wanted]
            bindings[source.name] = self.space.select(conn, chunk, names)
        return made(self.mapping, self.table, bindings, self.bases)

    def target(self, conn: Connection, chunk: Chunk) -> Rows:
        """What the target has of a chunk."""
        where = "true"
        if self.space is not None:
            there = KeySpace(table=self.table, key=self.mapping.key, kind=Kind.RANGE, integer=True)
            where = there.condition(conn, chunk)
        return held(self.mapping, self.table, self.bases, where)


def views(
    plan: Plan,
    source: Connection,
    *,
    bases: Map[str, str],
    how: Hash,
    sources: Map[str, Table],
    targets: Map[str, Table],
    only: Sequence[str] = (),
    accepted: Collection[str] = (),
) -> list[View]:
    """A view of each mapping, or of those to `only` some targets. `sources` and `targets` carry today's sizes.

    `accepted` are target columns (`table.column`) whose loss was read and accepted: they are not compared.
    """
    return [
        View(
            mapping=_compared(m, accepted),
            table=targets.get(m.target, plan.targets[m.target]),
            sources=tuple(sources.get(s, plan.sources[s]) for s in m.sources),
            bases=bases,
            how=how,
            space=_space(plan, source, m),
            source_path=plan.source_path,
            target_path=plan.target_path,
        )
        for m in plan.mappings
        if not only or m.target in only
    ]


def _compared(mapping: Mapping, accepted: Collection[str]) -> Mapping:
    kept = [o for o in mapping.outputs if o.name in mapping.key or f"{mapping.target}.{o.name}" not in accepted]
    return replace(mapping, outputs=tuple(kept))


def _space(plan: Plan, source: Connection, mapping: Mapping) -> KeySpace | None:
    """The source's integer key, where the target's key is a copy of it."""
    if not mapping.row_local or len(mapping.key) != 1 or mapping.owner != mapping.key:
        return None
    table, column = plan.sources[mapping.sources[0]], mapping.key[0]
    plain = mapping.output(column).plain
    if (
        plain is None
        or chunk_key(table) != (plain[1],)
        or plan.targets[mapping.target].column(column).type not in INTEGERS
    ):
        return None
    space = KeySpace.of(source, table, whole=False)
    return space if space.integer else None


def owners(view: View, keys: Sequence[Key]) -> list[Key]:
    """The owners of rows of the target, each once."""
    at = [view.mapping.key.index(o) for o in view.mapping.owner]
    return list(dict.fromkeys(tuple(key[i] for i in at) for key in keys))


def named(view: View, key: Key) -> dict[str, str | None]:
    """A key with its columns' names; `{}` of a table without a key."""
    return dict(zip(view.mapping.key, key, strict=True)) if view.mapping.key else {}


def restricts(view: View) -> dict[str, tuple[str, ...]] | None:
    """For each source, expressions over its columns that equal the owner; None where one does not say."""
    found = {}
    for table in view.sources:
        feed = view.mapping.feeds.get(table.name)
        if feed is None or feed.restrict is None:
            return None
        found[table.name] = feed.restrict
    return found if view.mapping.owner else None


def bare(expression: str, table: Table) -> str | None:
    """The column that an expression is, if it is nothing else."""
    return next((c.name for c in table.columns if expression in (c.name, quote(c.name))), None)
