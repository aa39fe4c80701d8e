"""The sequences of a side that is about to open, set past the other side's.

No logical stream carries sequences, and what the applier writes does not move them. `pairs` looks them up in the
catalogs, before anybody waits; `advance` reads them live and sets them, under the hold.
Invariants: values are read from the sequences themselves, never from a statistics view, and set for good at once
(`setval` is outside transactions): an aborted turn leaves a gap, never a repetition. They are read and set while the
side's turn row is locked and says that it is yet to open: a process that wakes late moves nothing that is in use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from connectors.failpoint import failpoint
from connectors.postgres import turn as turns
from connectors.postgres.session import Connection, translated
from schemas import sequences
from schemas.direction import Side
from schemas.names import qualified, quote
from schemas.plan import Plan
from schemas.table import Table

LIMITS = {
    "smallint": (-(1 << 15), (1 << 15) - 1),
    "integer": (-(1 << 31), (1 << 31) - 1),
    "bigint": (-(1 << 63), (1 << 63) - 1),
}
UNLIMITED = LIMITS["bigint"]  # a sequence gives no more

# Owned (serial, identity), or named by the default: as a dependency, or as text that is looked up when it is used.
_FEEDING = r"""
select a.attname, s.oid::bigint, n.nspname, s.relname, q.seqincrement, q.seqmin, q.seqmax, q.seqstart, q.seqcache,
       q.seqcycle
  from pg_catalog.pg_attribute a
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  cross join lateral (
    select p.objid as seq from pg_catalog.pg_depend p
     where p.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       and p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
       and p.refobjid = a.attrelid and p.refobjsubid = a.attnum and p.deptype in ('a', 'i')
    union
    select p.refobjid from pg_catalog.pg_depend p
     where p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and p.objid = d.oid
       and p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    union
    select pg_catalog.to_regclass(m[1])::oid
      from pg_catalog.regexp_matches(pg_catalog.pg_get_expr(d.adbin, d.adrelid), 'nextval\(+''([^'']+)''', 'g') m
  ) f
  join pg_catalog.pg_class s on s.oid = f.seq and s.relkind = 'S'
  join pg_catalog.pg_namespace n on n.oid = s.relnamespace join pg_catalog.pg_sequence q on q.seqrelid = s.oid
 where a.attrelid = %s::oid and a.attnum > 0 and not a.attisdropped
 order by a.attnum, n.nspname, s.relname
"""

# An extreme that an index gives at once; a scan of the table is not for when writers wait.
_INDEXED = """
select t.typcategory = 'N',
       exists (select from pg_catalog.pg_index i join pg_catalog.pg_class x on x.oid = i.indexrelid
                 join pg_catalog.pg_am m on m.oid = x.relam
                where i.indrelid = a.attrelid and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null
                  and m.amname = 'btree')
  from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
 where a.attrelid = %s::oid and a.attname = %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A sequence of one side by its name, as the catalog defines it."""

    oid: int
    schema: str
    name: str
    definition: tuple[int, int, int, int, int, bool]  # increment, min, max, start, cache, cycle

    @property
    def spelled(self) -> str:
        return qualified(self.schema, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column whose values count. `scanned`: its extremes (min, max), where no index gives them at once."""

    relation: str  # spelled for FROM
    name: str
    indexed: bool
    scanned: tuple[int | None, int | None] = (None, None)

    @property
    def tells(self) -> bool:
        """Whether its values say anything: they are numbers, and, where all were looked at, there are some."""
        return self.indexed or self.scanned != (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One sequence of the side that opens, with what it must be set past."""

    own: Found
    feeds: tuple[str, ...]  # "table.column" of this side
    others: tuple[Found, ...]
    here: tuple[Column, ...]
    there: tuple[Column, ...]
    limit: tuple[int, int]
    stride: int = 0  # of the other side's sequences, where that side cannot be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A sequence that was set (`value`), or that stands well (None). `note` says what a person should know."""

    sequence: str
    feeds: tuple[str, ...]
    value: int | None
    note: str


def pairs(source: Connection | None, target: Connection, plan: Plan) -> list[Pair]:
    """Every sequence of the target that feeds a mapped column. Reads catalogs, and columns that have no index.

    Without the source, what is known on the target stands for it: `advance` is given the target for both, and the
    strides are those that were kept there.
    """
    found: dict[int, Pair] = {}
    strides = _kept(target, plan.migration, plan.direction.source) if source is None else {}
    with translated("looking up the sequences"):
        feeding: dict[str, dict[str, list[Found]]] = {}
        for mapping in plan.mappings:
            table = plan.targets[mapping.target]
            for name, own in _feeding(target, table).items():
                if name not in mapping.columns:
                    continue  # rows that the applier writes draw from it as anybody's do
                here = _column(target, table, name)
                origin = mapping.output(name).plain
                others: list[Found] = []
                there: list[Column] = []
                if source is None:
                    others, there = own, [here]
                elif origin is not None:
                    other = plan.sources[origin[0]]
                    if other.name not in feeding:
                        feeding[other.name] = _feeding(source, other)
                    others = feeding[other.name].get(origin[1], [])
                    there = [_column(source, other, origin[1])]
                stride = 0 if origin is None else strides.get(".".join(origin), 0)
                for sequence in own:
                    _join(found, sequence, table, name, others, here, there, stride)
    return list(found.values())


def _join(
    found: dict[int, Pair],
    own: Found,
    table: Table,
    column: str,
    others: Iterable[Found],
    here: Column,
    there: Iterable[Column],
    stride: int,
) -> None:
    """A sequence may feed several columns: it must be past all of them, and within what each can hold."""
    low, high = LIMITS.get(table.column(column).type, UNLIMITED)
    before = found.get(own.oid)
    if before is not None:
        low, high = max(low, before.limit[0]), min(high, before.limit[1])
    found[own.oid] = Pair(
        own=own,
        feeds=(*(before.feeds if before else ()), f"{table.name}.{column}"),
        others=tuple(dict.fromkeys([*(before.others if before else ()), *others])),
        here=(*(before.here if before else ()), here),
        there=(*(before.there if before else ()), *there),
        limit=(low, high),
        stride=max(stride, before.stride if before else 0),
    )


def keep_strides(conn: Connection, migration: str, side: Side, tables: Iterable[Table], other: Connection) -> None:
    """Have the other side keep how far apart the values lie that `side`, which `conn` reaches, gives to `tables`.

    A session takes as many at a time as the sequence caches.
    """
    with translated(f"keeping the strides of {side}'s sequences"):
        strides = {
            f"{table.name}.{column}": max(abs(s.definition[0]) * s.definition[4] for s in feeding)
            for table in tables
            for column, feeding in _feeding(conn, table).items()
        }
        other.execute(
            "insert into slackwater.stride (migration, side, strides) values (%s, %s, %s::jsonb)"
            " on conflict (migration, side) do update set strides = excluded.strides, kept_at = clock_timestamp()",
            (migration, side.value, json.dumps(strides)),
        )


def _kept(conn: Connection, migration: str, side: Side) -> dict[str, int]:
    row: Any = conn.execute(
        "select strides from slackwater.stride where migration = %s and side = %s", (migration, side.value)
    ).fetchone()
    return {} if row is None else dict(row[0])


def _feeding(conn: Connection, table: Table) -> dict[str, list[Found]]:
    rows: list[Any] = conn.execute(_FEEDING, (table.oid,)).fetchall()
    found: dict[str, list[Found]] = {}
    for column, oid, schema, name, *definition in rows:
        found.setdefault(column, []).append(Found(oid=oid, schema=schema, name=name, definition=tuple(definition)))
    return found


def _column(conn: Connection, table: Table, name: str) -> Column:
    relation = f"{'' if table.partitioned else 'only '}{qualified(table.schema, table.name)}"
    row: Any = conn.execute(_INDEXED, (table.oid, name)).fetchone()
    number, indexed = row
    column = Column(relation=relation, name=name, indexed=number and indexed)
    if column.indexed or not number:  # of what is not a number (an order's code), the sequence alone can tell
        return column
    low, high = _rows(conn, [_extremes(column)])[0]
    return Column(relation=relation, name=name, indexed=False, scanned=(low, high))


def advance(
    source: Connection,
    target: Connection,
    found: Iterable[Pair],
    *,
    migration: str,
    side: Side,
    turn: int,
    margins: int = 1,
) -> list[Moved]:
    """Set each of the target's sequences past the source's, by what both hold at this moment. Under the hold.

    The target is `side`, which is yet to be opened for `turn`, and stays closed meanwhile.
    Errors: Superseded when it is not; PrivilegeMissing, Unavailable; what was set before stays set, which does no harm.
    """
    wanted = list(found)
    if not wanted:
        return []
    with translated("setting the sequences"), target.transaction():
        turns.keep_closed(target, migration, side, turn)
        others = list(dict.fromkeys(s for pair in wanted for s in pair.others))
        there = list(dict.fromkeys(c for pair in wanted for c in pair.there))
        here = list(dict.fromkeys(c for pair in wanted for c in pair.here))
        with translated("reading the sequences"):
            read = _read(source, others, there)
            own = _read(target, [pair.own for pair in wanted], here)
        moved = [_moved(pair, own, read, margins) for pair in wanted]
        failpoint("turn.before_setval")
        _set(target, [(pair.own, m.value) for pair, m in zip(wanted, moved, strict=True) if m.value is not None])
    return moved


@dataclass(frozen=True, slots=True)
class _State:
    sequences: dict[Found, sequences.Sequence]
    extremes: dict[Column, tuple[int | None, int | None]]


def _moved(pair: Pair, here: _State, there: _State, margins: int) -> Moved:
    own = here.sequences[pair.own]

    def values(state: _State, columns: Iterable[Column]) -> list[int]:
        found = (state.extremes[c][1 if own.up else 0] for c in columns)
        return [value for value in found if value is not None]

    place = sequences.place(
        own,
        [there.sequences[s] for s in pair.others],
        values(there, pair.there),
        here=values(here, pair.here),
        limit=pair.limit,
        margins=margins,
        stride=pair.stride,
    )
    return Moved(sequence=f"{pair.own.schema}.{pair.own.name}", feeds=pair.feeds, value=place.value, note=place.note)


def _read(conn: Connection, found: list[Found], columns: list[Column]) -> _State:
    """Live values, in one query."""
    indexed = [c for c in columns if c.indexed]
    queries = [f"select case when is_called then last_value end, null::bigint from {s.spelled}" for s in found]
    rows = _rows(conn, [*queries, *map(_extremes, indexed)])
    states = {}
    for one, (last, _) in zip(found, rows, strict=False):
        increment, minimum, maximum, start, cache, cycle = one.definition
        states[one] = sequences.Sequence(
            increment=increment, minimum=minimum, maximum=maximum, start=start, cache=cache, cycle=cycle, last=last
        )
    extremes = {c: c.scanned for c in columns}
    extremes |= {c: (low, high) for c, (low, high) in zip(indexed, rows[len(found) :], strict=True)}
    return _State(sequences=states, extremes=extremes)


def _extremes(column: Column) -> str:
    """Lowest and highest value."""
    return f"select min({quote(column.name)})::numeric, max({quote(column.name)})::numeric from {column.relation}"


def _rows(conn: Connection, queries: list[str]) -> list[tuple[int | None, int | None]]:
    if not queries:
        return []
    union = " union all ".join(f"(select {n}, * from ({q}) q{n}(a, b))" for n, q in enumerate(queries))
    rows: list[Any] = conn.execute(f"select a::text, b::text from ({union}) u(n, a, b) order by n".encode()).fetchall()
    return [(_whole(a, up=False), _whole(b, up=True)) for a, b in rows]


def _whole(text: str | None, *, up: bool) -> int | None:
    """A number as a whole one at or past it; None for none, and for NaN and infinities, which no sequence meets."""
    if text is None or text in ("NaN", "Infinity", "-Infinity"):
        return None
    whole, _, rest = text.partition(".")
    value = int(whole)
    if rest.strip("0"):
        value += (1 if not text.startswith("-") else 0) if up else (-1 if text.startswith("-") else 0)
    return value


def _set(conn: Connection, values: list[tuple[Found, int]]) -> None:
    if values:
        calls = ", ".join("pg_catalog.setval(%s::pg_catalog.regclass, %s::bigint, true)" for _ in values)
        conn.execute(f"select {calls}".encode(), [x for one, value in values for x in (one.spelled, value)])
