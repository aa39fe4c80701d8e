"""Old -> new -> old within one statement on old: the reverse SELECT over the forward SELECTs over old's own rows.

Invariant: both sides of a comparison come from one statement, so from one snapshot: traffic makes no difference.
Values pass through the types of new's columns, with their lengths, as rows that are written there do. Types that old
lacks are made for the session alone, in pg_temp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.postgres import column_types, mirror, user_path
from connectors.postgres.ranges import Chunk, KeySpace, Kind, relation
from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import Path
from schemas.bind import bound
from schemas.errors import Refused
from schemas.mapping import Mapping as TableMapping
from schemas.names import EQ, qualified, quote
from schemas.table import Column, Table

TEMP = "pg_temp"
SAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of one chunk's rows: those that are meant by the way back (`rows`), those that it leaves alone (`outside`), and
    of the former, how they came back. `differing` and `filled` (old's values that are not null) are per column."""

    rows: int
    outside: int
    missing: int
    extra: int
    differing: dict[str, int]
    filled: dict[str, int]


def prepare_types(old: Connection, new: Connection, tables: Sequence[Table]) -> None:
    """Make, for this session of old, the types of new's columns that old lacks. Errors: Refused."""
    wanted = mirror.user_types(new, [c.type_oid for table in tables for c in table.columns])
    with translated("cannot make the types of new's columns on old, for this session alone"):
        made = mirror.stand_ins(old, wanted, TEMP)
        if made.impossible:
            raise Refused(
                f"old lacks types that new's columns have: {', '.join(made.impossible)}",
                hint="create them on old too: usually the same extension (create extension ...)",
            )
        for statement in made.statements:
            old.execute(statement.encode())


@dataclass(slots=True)
class Composition:
    """One old table there and back. `forward` are the mappings that write the new tables which `back` reads."""

    conn: Connection
    table: Table
    back: TableMapping
    forward: Mapping[str, TableMapping]
    old: Mapping[str, Table]
    new: Mapping[str, Table]
    path: Path = ()  # the user's on old

    @property
    def compared(self) -> tuple[str, ...]:
        return self.back.columns

    @property
    def cuttable(self) -> bool:
        """Whether a range of the table's key can be judged by itself, reading little else."""
        return bool(self.table.key) and all(self._follows(m) for m in self.forward.values())

    def judge(self, space: KeySpace, chunk: Chunk) -> Counts:
        """One chunk's counts. Errors: those of the statement."""
        if not self.back.key:
            return self._unkeyed()
        differing = [f"pg_catalog.count(*) filter (where o and b and {self._differs(c)})" for c in self.compared]
        filled = [f"pg_catalog.count(o{i})" for i in range(len(self._names))]
        query = (
            "select pg_catalog.count(*) filter (where o and meant), pg_catalog.count(*) filter (where o and not meant),"
            " pg_catalog.count(*) filter (where o and meant and not b), pg_catalog.count(*) filter (where not o),"
            f" {', '.join([*differing, *filled])}\nfrom ({self._both(space, chunk)}) j"
        )
        counts = [int(v) for v in self._one(query)]
        cut = 4 + len(differing)
        return Counts(
            rows=counts[0],
            outside=counts[1],
            missing=counts[2],
            extra=counts[3],
            differing=dict(zip(self.compared, counts[4:cut], strict=True)),
            filled=dict(zip(self._names, counts[cut:], strict=True)),
        )

    def keys(self, space: KeySpace, chunk: Chunk, which: str, limit: int = SAMPLES) -> list[dict[str, str]]:
        """Keys of rows that are `missing`, or `extra`, or whose column of that name came back otherwise."""
        if not self.back.key:
            return []
        conditions = {"missing": "o and meant and not b", "extra": "not o"}
        where = conditions.get(which, "") if which not in self.compared else f"o and b and {self._differs(which)}"
        side, places = ("b", self.compared) if which == "extra" else ("o", self._names)
        values = [f"j.{side}{places.index(k)}" for k in self.table.key]
        both = self._both(space, chunk)
        with (
            translated(f"judging the way back to {self.table.name}"),
            self.conn.transaction(),
            user_path.within(self.conn, self.path),
        ):
            rows: list[Any] = self.conn.execute(
                f"select {', '.join(f'{v}::text' for v in values)} from ({both}) j where {where}"
                f" order by {', '.join(values)} limit {limit}".encode()
            ).fetchall()
        return [dict(zip(self.table.key, map(str, row), strict=True)) for row in rows]

    # The statement.

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.table.columns if not c.generated)

    def _differs(self, column: str) -> str:
        """By image, as the engine compares: 1.0 and 1.00 differ."""
        mine, back = self._names.index(column), self.compared.index(column)
        return f"row(o{mine})::record operator(pg_catalog.*<>) row(b{back})::record"

    def _both(self, space: KeySpace, chunk: Chunk) -> str:
        """Old's rows (`o`, with `meant`: whether the way back speaks of them) beside those that came back (`b`)."""
        condition = space.condition(self.conn, chunk)
        names = self._names
        mine = ", ".join(f"{quote(c)} as o{i}" for i, c in enumerate(names))
        back = ", ".join(f"{quote(c)} as b{i}" for i, c in enumerate(self.compared))
        scope = f"({self.back.scope}) is true" if self.back.scope is not None else "true"
        name = qualified(self.table.schema, self.table.name)
        held = column_types.of_columns(self.conn, [name])[name]
        on = " and ".join(
            f"x.o{names.index(k)} {held[k].equal} {held[k].cast(f'y.b{self.compared.index(k)}')}"
            for k in self.table.key
        )
        shown = [f"x.o{i}" for i in range(len(names))] + [f"y.b{i}" for i in range(len(self.compared))]
        return (
            f"select {', '.join(shown)}, coalesce(x.meant, true) as meant, x.o is true as o, y.b is true as b\n"
            f"from (select {mine}, {scope} as meant, true as o from {relation(self.table)} q\nwhere {condition}) x\n"
            f"full join (select {back}, true as b from (\n{self._returned(condition)}\n) r\nwhere {condition}) y"
            f" on {on}"
        )

    def _returned(self, condition: str) -> str:
        """The reverse SELECT over the forward ones, in the old table's types."""
        text = bound(self.back.text, {name: self._forward(name, condition) for name in self.back.sources})
        outputs = ", ".join(_cast(self.table.column(c), self.table.column(c).type_full) for c in self.compared)
        return f"select {outputs} from (\n{text}\n) q"

    def _forward(self, name: str, condition: str) -> str:
        """A new table as the forward mapping fills it from old's rows, in new's types."""
        mapping, table = self.forward[name], self.new[name]
        within = f" where {condition}" if self._follows(mapping) else ""
        bindings = {
            s: f"select {', '.join(map(quote, mapping.reads[s]))} from {relation(self.old[s])}"
            + (within if s == self.table.name else "")
            for s in mapping.sources
        }
        outputs = ", ".join(
            _cast(table.column(c), mirror.spelled(self.conn, table.column(c).type_full, TEMP)) for c in mapping.columns
        )
        return f"select {outputs} from (\n{bound(mapping.text, bindings)}\n) q"

    def _follows(self, mapping: TableMapping) -> bool:
        """Whether the new rows that a range of the old table decides are those that come back as that range.

        So it is where each row stands for itself, or where both mappings find their rows by the old table's key.
        """
        if self.table.name not in mapping.sources or not self.table.key:
            return False
        if mapping.row_local and self.back.row_local:
            return True
        there, here = mapping.feeds.get(self.table.name), self.back.feeds.get(mapping.target)
        if there is None or here is None or there.restrict is None or here.restrict is None:
            return False
        owners = dict(zip(mapping.owner, there.restrict, strict=False))  # new's owner column -> over old's columns
        found = [owners.get(e[1:-1].replace('""', '"')) for e in here.restrict]
        return self.back.owner == self.table.key and found == [quote(k) for k in self.table.key]

    def _unkeyed(self) -> Counts:
        """Rows without a key are told apart by all that they hold, and counted."""
        names = ", ".join(quote(c) for c in self.compared)
        image = f"row({names})::text"
        more, fewer = (f"greatest({x} operator(pg_catalog.-) {y}, 0)" for x, y in ("ob", "bo"))
        query = (
            f"select coalesce(pg_catalog.sum(o), 0), coalesce(pg_catalog.sum({more}), 0),"
            f" coalesce(pg_catalog.sum({fewer}), 0)\n"
            "from (select coalesce(x.n, 0) as o, coalesce(y.n, 0) as b\n"
            f"from (select {image} as image, pg_catalog.count(*) as n from {relation(self.table)} group by 1) x\n"
            f"full join (select {image} as image, pg_catalog.count(*) as n"
            f" from (\n{self._returned('true')}\n) r group by 1) y on x.image {EQ} y.image) j"
        )
        rows, missing, extra = (int(v) for v in self._one(query))
        none = dict.fromkeys(self.compared, 0)
        return Counts(rows=rows, outside=0, missing=missing, extra=extra, differing=none, filled=none)

    def _one(self, query: str) -> tuple[Any, ...]:
        with (
            translated(f"judging the way back to {self.table.name}"),
            self.conn.transaction(),
            user_path.within(self.conn, self.path),
        ):
            row: Any = self.conn.execute(query.encode()).fetchone()
        return tuple(row)


_LONGER = ("character varying", "bit varying")


def _cast(column: Column, type_: str) -> str:
    """A value as its column would hold it; a text that is too long is refused there, so it is not cut here."""
    length = "(" in type_ and column.type in _LONGER
    return f"q.{quote(column.name)}::{column.type if length else type_} as {quote(column.name)}"


def whole(space: KeySpace) -> KeySpace:
    """The same rows, not cut."""
    return KeySpace(table=space.table, key=space.key, kind=Kind.WHOLE, integer=False)
