"""Writing a chunk where little or nothing of it is in the target yet, which is the usual case of a backfill.

Invariant: the outcome is that of the engine's four steps. The chunk's owners span a range of the target key's first
column, and no row outside it can be touched; so the target's rows in that range are counted first. None: the SELECT is
inserted straight from what is staged, a third of the work. Few: rows are matched against those alone. Otherwise, and
wherever a range says nothing, the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.bind import bound
from schemas.names import quote
from stream.engine import Engine
from stream.engine.mapping_sql import Load, columns

FEW = 20_000  # rows of the target in the chunk's range


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a chunk can touch: target rows with `column` in [low, high] (as text); `there` of them, FEW + 1 at most."""

    column: str
    low: str
    high: str
    there: int


def apply_chunk(engine: Engine, name: str) -> int:
    """Transform and write what is staged of one load; returns target rows written. See `Chunk.apply`.

    Nothing but `Chunk.stage` may have staged rows: a reread's keys go through the engine.
    """
    load = engine.loads[name]
    reach = _reach(engine, load) if _ranged(load) else None
    if reach is None or reach.there > FEW:
        return engine.chunk.apply(name)
    with engine.writing(load):
        return _insert(engine, load) if not reach.there else _merge(engine, load, reach)


def _ranged(load: Load) -> bool:
    """Whether the target key's first column is an owner's (then owners bound what is touched), of a built-in type."""
    m = load.mapping
    owned = m.row_local and m.key and m.key[0] in m.owner and not load.fixed
    return bool(owned and "." not in load.table.column(m.key[0]).type)


def _reach(engine: Engine, load: Load) -> Reach | None:
    """None when nothing staged has an owner."""
    m = load.mapping
    source, column = m.sources[0], m.key[0]
    feed = bound(m.feeds[source].query, {source: engine.stages[source].reading()})
    aliases = ", ".join(f"o{i}" for i in range(len(m.owner)))
    first = load.type(column).cast(f"o{m.owner.index(column)}")  # in the order that the target's column has
    k = quote(column)
    # A plan that reads all of the target for every chunk would end in quadratic time.
    with engine.writing(load), engine.plans.by_index():
        row = engine.conn.execute(
            f"with o as materialized (select {first} as k from (\n{feed}\n) x({aliases})),\n"
            "low as materialized (select k from o where k is not null order by k limit 1),\n"
            "high as materialized (select k from o where k is not null order by k desc limit 1)\n"
            "select (select k from low)::text, (select k from high)::text, (select pg_catalog.count(*) from (\n"
            f"select from {load.into} t where t.{k} operator(pg_catalog.>=) (select k from low)"
            f" and t.{k} operator(pg_catalog.<=) (select k from high)\n"
            f"limit {FEW + 1}) r)"
        ).fetchone()
    if row is None or row[0] is None:
        return None
    return Reach(column=column, low=str(row[0]), high=str(row[1]), there=int(str(row[2])))


def _insert(engine: Engine, load: Load) -> int:
    m = load.mapping
    source = m.sources[0]
    text = bound(m.text, {source: engine.stages[source].reading()})
    return engine.run(
        f"insert into {load.into} ({columns(m.columns)}) overriding system value\n"
        f"select {load.values()} from (\n{text}\n) q"
    )


def _merge(engine: Engine, load: Load, reach: Reach) -> int:
    """Stale rows deleted, rows that differ updated, others inserted; all of them against the rows in reach."""
    m = load.mapping
    source = m.sources[0]
    binding = {source: engine.stages[source].reading()}
    column = f"t.{quote(reach.column)}"
    near = (
        f"{column} operator(pg_catalog.>=) {_literal(reach.low)}"
        f" and {column} operator(pg_catalog.<=) {_literal(reach.high)}"
    )
    written = 0
    engine.prepare(load)
    engine.run(load.transform(binding))
    if load.leaves_gaps:
        engine.run(load.collect_owners(source, binding))
        with engine.plans.by_index():
            written += engine.run(load.delete_stale())
    with engine.plans.by_range():
        if (update := load.update()) is not None:
            written += engine.run(f"{update} and {near}")
        known = f"select from {load.into} t where {load.matches(m.key, 't', 's')} and {near}"
        written += engine.run(
            f"insert into {load.into} ({columns(m.columns)}) overriding system value select {columns(m.columns, 's')}"
            f" from {load.rows} s where not exists ({known})"
        )
    return written


def _literal(text: str) -> str:
    """A string constant, which takes the type of what it is compared with (standard_conforming_strings is pinned)."""
    return "'" + text.replace("'", "''") + "'"
