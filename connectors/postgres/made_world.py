"""A handful of made rows on old, in temporary tables: taken back by the reverse mappings, and forth again.

Invariant: no table of the user's is written, and no value of a row leaves this module but in the rows themselves. The
tables are like old's (types, NOT NULL, CHECKs, the key) and die with the transaction, so old's own answer to a row is
asked without a trigger, a default or a sequence of it being touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql

from connectors.postgres import mirror, user_path
from connectors.postgres.composed import TEMP
from connectors.postgres.made_rows import Refusal, Row, Unmade, bounded, making
from connectors.postgres.ranges import relation
from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import Path
from schemas.bind import bound
from schemas.mapping import Mapping as TableMapping
from schemas.names import qualified, quote
from schemas.table import Column, Table

LOOKED_AT = 2_000  # rows of a table, from its key's beginning, among which the fullest is taken to go by
ARGUMENTS = 90  # a function takes at most 100

Rows = Mapping[str, Sequence[Row]]
"""New table -> its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of some rows of new: old's rows by table, or what old refused; and the new rows that those give again
    (None: not asked, or that failed)."""

    images: dict[str, tuple[tuple[str | None, ...], ...]] = field(default_factory=dict)
    refused: Refusal | None = None
    again: tuple[dict[str, str | None], ...] | None = None


@dataclass(slots=True)
class World:
    """Rows of old that belong together, one a table (`w`), and room for what comes back (`r`)."""

    conn: Connection
    old: Mapping[str, Table]
    new: Mapping[str, Table]
    path: Path = ()  # the user's on old
    _spelled: dict[str, str] = field(default_factory=dict)
    _filled: dict[str, str] = field(default_factory=dict)  # old table -> its `w`
    _room: dict[str, str] = field(default_factory=dict)  # old table -> its `r`

    @contextmanager
    def open(self) -> Iterator[None]:
        """The transaction that everything of it dies with."""
        with translated("cannot take made rows back to old"), self.conn.transaction(force_rollback=True):
            bounded(self.conn)
            user_path.enter(self.conn, self.path)
            yield

    # Old's rows.

    def sample(self, table: Table, by: TableMapping | None) -> dict[str, str | None] | None:
        """A row of the table to go by, the fullest of the first ones; `by`: one that the mapping makes a row of."""
        names = [quote(c.name) for c in table.columns if not c.generated]
        where = "true"
        if by is not None and by.row_local:
            own = ", ".join(f"s.{quote(c)} as {quote(c)}" for c in by.reads[table.name])
            where = f"exists (select from ({bound(by.text, {table.name: f'select {own}'})}) f)"
        order = ", ".join(f"s.{quote(k)}" for k in table.key)
        first = f"select * from {relation(table)} s where {where}" + (f" order by {order}" if order else "")
        filled = ", ".join(f"s.{n}" for n in names[:ARGUMENTS])
        query = (
            f"select {', '.join(f's.{n}::text' for n in names)} from ({first} limit {LOOKED_AT}) s"
            f" order by pg_catalog.num_nonnulls({filled}) desc{', ' + order if order else ''} limit 1"
        )
        with making(table.name):
            row: Any = self.conn.execute(query.encode()).fetchone()
        return None if row is None else dict(zip([c.name for c in table.columns if not c.generated], row, strict=True))

    def fill(self, table: Table, row: Row) -> None:
        """The world's one row of an old table. Errors: Unmade."""
        name = f"slackwater_w{len(self._filled)}"
        names = [c for c in row if not table.column(c).generated]
        values = sql.SQL(", ").join(
            sql.SQL("cast({} as {})").format(sql.Literal(row[c]), sql.SQL(table.column(c).type)) for c in names
        )
        with making(table.name):
            self._like(table, name)
            self.conn.execute(
                sql.SQL("insert into {} ({}) values ({})").format(
                    sql.SQL(f"pg_temp.{name}"), sql.SQL(", ".join(map(quote, names))), values
                )
            )
        self._filled[table.name] = name

    def _like(self, table: Table, name: str) -> None:
        source = qualified(table.schema, table.name)
        self.conn.execute(f"create temp table {name} (like {source} including constraints)".encode())
        free = [c.name for c in table.columns if c.generated and c.not_null]
        for column in free:
            self.conn.execute(f"alter table pg_temp.{name} alter column {quote(column)} drop not null".encode())

    def forward(self, mapping: TableMapping) -> list[dict[str, str | None]]:
        """New's rows that the world gives, as PostgreSQL prints them. Errors: Unmade."""
        with making(mapping.target):
            return self._forth(mapping, self._filled)

    def _forth(self, mapping: TableMapping, tables: Mapping[str, str]) -> list[dict[str, str | None]]:
        table = self.new[mapping.target]
        bindings = {
            s: f"select {', '.join(map(quote, mapping.reads[s]))} from pg_temp.{tables[s]}" for s in mapping.sources
        }
        outputs = ", ".join(f"{self._as_new(table.column(c))}::text" for c in mapping.columns)
        query = f"select {outputs} from (\n{bound(mapping.text, bindings)}\n) q"
        rows: list[Any] = self.conn.execute(query.encode()).fetchall()
        return [dict(zip(mapping.columns, row, strict=True)) for row in rows]

    def _as_new(self, column: Column) -> str:
        """By assignment, as far as a cast can: a text that is too long is not cut."""
        cut = column.type in ("character varying", "bit varying", "character", "bpchar")
        return f"q.{quote(column.name)}::{self._type(column.type if cut else column.type_full)}"

    def _type(self, type_: str) -> str:
        if type_ not in self._spelled:
            self._spelled[type_] = mirror.spelled(self.conn, type_, TEMP)
        return self._spelled[type_]

    # There and back.

    def try_out(self, backs: Sequence[TableMapping], rows: Rows, again: TableMapping | None) -> Outcome:
        """What old would hold of these rows of new, and what `again` makes of that."""
        images: dict[str, tuple[tuple[str | None, ...], ...]] = {}
        for back in backs:
            self._make_room(back)
        made = None
        try:
            with self.conn.transaction(force_rollback=True):
                for back in backs:
                    with making(back.target):
                        images[back.target] = self._back(back, rows)
                if again is not None:
                    with making(again.target):
                        tables = self._filled | {b.target: self._room[b.target] for b in backs}
                        made = tuple(self._forth(again, tables))
        except Unmade as error:
            return Outcome(refused=error.refusal)
        return Outcome(images=images, again=made)

    def _make_room(self, back: TableMapping) -> None:
        if back.target in self._room:
            return
        table = self.old[back.target]
        name = f"slackwater_r{len(self._room)}"
        self._like(table, name)
        if table.key:
            key = ", ".join(map(quote, table.key))
            self.conn.execute(f"alter table pg_temp.{name} add primary key ({key})".encode())
        self._room[back.target] = name

    def _back(self, back: TableMapping, rows: Rows) -> tuple[tuple[str | None, ...], ...]:
        """One old table's rows. What the mapping does not give is as in the world's row: an update leaves it alone."""
        table = self.old[back.target]
        bindings = {s: self._values(s, back.reads[s], rows.get(s, ())) for s in back.sources}
        given = [c for c in back.columns if not table.column(c).generated]
        rest = [c.name for c in table.columns if c.name not in given and not c.generated]
        outputs = [f"q.{quote(c)}::{table.column(c).type}" for c in given] + [f"w.{quote(c)}" for c in rest]
        shown = ", ".join(f"{quote(c)}::text" for c in given)
        query = (
            f"insert into pg_temp.{self._room[back.target]} ({', '.join(map(quote, [*given, *rest]))})\n"
            f"select {', '.join(outputs)} from (\n{bound(back.text, bindings)}\n) q"
            f" left join pg_temp.{self._filled[back.target]} w on true returning {shown}"
        )
        found: list[Any] = self.conn.execute(query.encode()).fetchall()
        return tuple(sorted(map(tuple, found), key=repr))

    def _values(self, name: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
        """Rows of new as a SELECT, in new's types."""
        table = self.new[name]
        types = {c: self._type(table.column(c).type_full) for c in columns}
        selects = [
            "select " + ", ".join(f"cast({self._literal(row.get(c))} as {types[c]}) as {quote(c)}" for c in columns)
            for row in rows
        ]
        nothing = ", ".join(f"cast(null as {types[c]}) as {quote(c)}" for c in columns)
        return "\nunion all\n".join(selects) if selects else f"select {nothing} where false"

    def _literal(self, text: str | None) -> str:
        return sql.Literal(text).as_string(self.conn)
