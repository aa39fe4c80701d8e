"""Rows that only new can hold, tried on the way back before anybody relies on it.

Real rows come from old, so each has a row in every table that the mapping fills: none of them lacks a child, or has a
value that old never had. Here such rows are made from new's types, constraints and foreign keys, put into new's tables
for a moment (`connectors.postgres.made_rows`), and taken back on old over temporary tables (`made_world`).

Invariant: what could not be made or tried is said, with the reason. Nothing here is written: see `made_judge` for what
is asked of a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from connectors.postgres import made_rows, mirror
from connectors.postgres.made_rows import Refusal, Unmade
from connectors.postgres.made_world import World
from connectors.postgres.session import Connection
from schemas.made import Kind, Made, key_value, knows, plain_value, tried
from schemas.mapping import Mapping as TableMapping
from schemas.resolve import Resolution
from schemas.roundtrip import MadeVerdict
from schemas.spec import Spec
from schemas.table import Column, Table
from stream.migration.paths import Paths
from stream.verify.made_judge import MadeJudge, Row, Rows

BUDGET_S = 60.0  # for all tables; what is left then is said
OTHER_KEYS = 3  # where a made key is there already


class NotTried(Exception):
    """Why a table's rows could not be made."""


@dataclass(slots=True)
class Trial:
    """Everything that is tried, and what was found."""

    spec: Spec
    old_conn: Connection
    new_conn: Connection
    old: Mapping[str, Table]
    new: Mapping[str, Table]
    forward: Resolution
    back: Resolution
    paths: Paths
    say: Callable[[str], None]
    found: list[MadeVerdict] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    _labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _bases: dict[str, str] = field(default_factory=dict)  # domain -> the type that it is made of
    _rows: Rows = field(default_factory=dict)  # one row of each table of new that was made

    def run(self) -> None:
        """All tables of new that a way back reads. Errors: of a connection that is lost."""
        self._types()
        deadline = time.monotonic() + BUDGET_S
        names = [m.target for m in self.forward.mappings if m.target in self.back.streamed and not self._alike(m)]
        for number, name in enumerate(names):
            if time.monotonic() > deadline:
                self.untried.append(f"{', '.join(names[number:])}: {BUDGET_S:g} s were over")
                break
            try:
                self._table(name)
            except NotTried as error:
                self.untried.append(f"{name}: {error}")
        if names:
            self.say(f"rows that only new can hold: {len(names)} table{'' if len(names) == 1 else 's'} tried")
        self._together()

    # What there is.

    def _types(self) -> None:
        oids = {c.type_oid for tables in (self.new, self.old) for t in tables.values() for c in t.columns}
        for conn in (self.new_conn, self.old_conn):
            for type_ in mirror.user_types(conn, oids):
                name = f"{type_.schema}.{type_.name}"
                if type_.kind == "e":
                    self._labels[name] = tuple(label for label, _ in type_.parts)
                elif type_.kind == "d":
                    self._bases[name] = type_.parts[0][1]

    def _base(self, column: Column) -> Column:
        """Of a domain, a column of the type that it is made of."""
        full = self._bases.get(column.type.replace('"', ""))
        return column if full is None else replace(column, type=full, type_full=full, type_kind="b")

    def _of(self, column: Column) -> tuple[str, ...]:
        return self._labels.get(column.type.replace('"', ""), ())

    def _alike(self, mapping: TableMapping) -> bool:
        """A copy: each row is one row there and here, and each column takes there what it takes here."""
        backs = [b for b in self.back.mappings if mapping.target in b.sources]
        if len(backs) != 1 or not (mapping.row_local and backs[0].row_local):
            return False
        back, table = backs[0], self.new[mapping.target]
        if mapping.row_deps or back.row_deps or mapping.sources != (back.target,):
            return False
        here = self.old[back.target]
        plain = {o.plain[1]: here.column(o.name) for o in back.outputs if o.plain is not None}
        return all(
            c.name in plain
            and (plain[c.name].type_full, plain[c.name].type_kind) == (c.type_full, c.type_kind)
            and c.type_kind == "b"
            and (c.not_null or not plain[c.name].not_null)
            for c in table.columns
            if c.name in mapping.columns
        )

    def _group(self, name: str) -> tuple[list[TableMapping], list[str]]:
        """The ways back that read the table, and every table of new that they read."""
        backs = [b for b in self.back.mappings if name in b.sources]
        return backs, list(dict.fromkeys([name, *(s for b in backs for s in b.sources)]))

    # One table.

    def _table(self, name: str) -> None:
        backs, group = self._group(name)
        writers = {m.target: m for m in self.forward.mappings}
        unfed = [g for g in group if g not in writers]
        if unfed:
            raise NotTried(f"its way back reads {', '.join(unfed)}, which no mapping fills")
        for n in range(OTHER_KEYS):
            world = World(conn=self.old_conn, old=self.old, new=self.new, path=self.paths.old)
            with world.open():
                try:
                    self._fill(world, name, backs, [writers[g] for g in group], n)
                    rows: Rows = {g: world.forward(writers[g])[:1] for g in group}
                except Unmade as error:
                    raise NotTried(f"no row could be made to go by: {error}") from error
                if not rows[name]:
                    raise NotTried("the mapping makes no row of those that old has")
                whole = {g: [self._whole(self.new[g], row, n) for row in rows[g]] for g in group}
                made = self._put(name, whole[name][0])
                if isinstance(made, Refusal):
                    if made.state == "23505":
                        continue
                    raise NotTried(f"new does not take a row that is made: {made.said}")
                base, variants = made
                self._rows[name] = [base]
                judge = MadeJudge(
                    world=world, new=self.new, name=name, backs=backs, writer=writers[name],
                    base={**whole, name: [base]},
                )  # fmt: skip
                judge.judge(variants)
                self.found += judge.found
                self.untried += judge.untried
                return
        raise NotTried("every key that was made is there already")

    def _fill(
        self, world: World, name: str, backs: Sequence[TableMapping], group: Sequence[TableMapping], n: int
    ) -> None:
        """One row of each old table that has a part in it, with keys that nobody has."""
        wanted = dict.fromkeys([s for m in group for s in m.sources])
        wanted |= dict.fromkeys(b.target for b in backs)
        own = next(m for m in group if m.target == name)
        for source in wanted:
            table = self.old[source]
            by = own if own.sources == (source,) else None
            row = world.sample(table, by) or world.sample(table, None)
            if row is None:
                row = {c.name: self._plain(c, n) for c in table.columns if not c.generated}
            for column in self._links(table, group):
                value = key_value(self._base(table.column(column)), n)
                if value is not None and not self._of(table.column(column)):
                    row[column] = value
            world.fill(table, row)

    def _plain(self, column: Column, n: int) -> str | None:
        value = plain_value(self._base(column), self._of(column), n)
        return None if value is None and not column.not_null else value

    def _links(self, table: Table, group: Sequence[TableMapping]) -> list[str]:
        """Columns that rows are known by, or that say which rows belong together."""
        names = {*table.key}
        for other in self.old.values():
            for reference in other.references:
                if other.name == table.name:
                    names.update(reference.columns)
                if reference.table == table.name:
                    names.update(reference.to)
        for mapping in group:
            if not mapping.row_local and table.name in mapping.feeds:
                names.update(mapping.feeds[table.name].columns)
        return [c.name for c in table.columns if c.name in names and not c.generated]

    def _whole(self, table: Table, row: Row, n: int) -> Row:
        """With every column: no default and no sequence is asked."""
        for column in table.columns:
            if column.name not in row and not column.generated:
                row[column.name] = self._plain(column, n) if column.not_null else None
        return row

    def _put(self, name: str, base: Row) -> tuple[Row, list[tuple[Made, Row]]] | Refusal:
        """The row as new holds it, and what new holds when one column is another; what new refuses is not its own."""
        table = self.new[name]
        variants: list[tuple[Made, Row]] = []
        with made_rows.trying(self.new_conn, self.spec.migration) as replica:
            if (why := made_rows.obstacle(self.new_conn, table, replica=replica)) is not None:
                raise NotTried(f"{why} would fire" if why.startswith("its ") else why)
            held = made_rows.insert(self.new_conn, table, base, self.paths.new)
            if isinstance(held, Refusal):
                return held
            for made in self._made(table):
                row = made_rows.insert(self.new_conn, table, {**base, made.column: made.text}, self.paths.new)
                if not isinstance(row, Refusal):
                    variants.append((made, row))
                elif not row.of_the_row:
                    self.untried.append(f"{name}.{made.column} ({made.kind}): {row.said}")
        return held, variants

    def _made(self, table: Table) -> Iterator[Made]:
        read = self._telling(table)
        pointing = {c for r in table.references for c in r.columns}
        old = [c for t in self.old.values() for c in t.columns]
        unknown = []
        for column in table.columns:
            if column.name not in read or column.generated:
                continue
            base, labels = self._base(column), self._of(column)
            if not knows(base, labels) and not self._as_it_is(table, column):
                unknown.append(column.name)
            for made in tried(base, labels, old):
                keyed = column.name in table.key
                if made.kind is Kind.NULL or not (column.name in pointing or (keyed and made.kind is not Kind.LARGE)):
                    yield made
        if unknown:
            self.untried.append(f"{table.name}.{', '.join(unknown)}: no values of the type are known here, but NULL")

    def _as_it_is(self, table: Table, column: Column) -> bool:
        """Whether old takes the column's values over as they are, in a column of the same type."""
        return any(
            o.plain == (table.name, column.name) and self.old[b.target].column(o.name).type_full == column.type_full
            for b in self.back.mappings
            for o in b.outputs
        )

    def _telling(self, table: Table) -> set[str]:
        """The columns that old is to hear of: what a way back reads, and what holds an old column that nothing reads.

        Of an old column that two columns of new hold, one goes before the other; that is said of the other one.
        """
        read = {(s, c) for b in self.back.mappings for s in b.sources for c in b.reads[s]}
        held = {o.plain: m.target for m in self.forward.mappings for o in m.outputs if (m.target, o.name) in read}
        outputs = [o for m in self.forward.mappings if m.target == table.name for o in m.outputs]
        second = {
            o.name
            for o in outputs
            if (table.name, o.name) in read
            and o.plain is None
            and any(held.get(dep, table.name) != table.name for dep in o.deps)
            and len(o.deps) == 1
        }
        unread = [o for o in outputs if (table.name, o.name) not in read]
        missed = {o.name for o in unread if o.plain is not None and o.plain not in held}
        if apart := [*(o.name for o in unread if o.name not in missed), *sorted(second)]:
            names = ", ".join(apart)
            self.untried.append(
                f"{table.name}.{names}: old takes it from elsewhere, or not at all: what is written there alone"
                " stays on new"
            )
        return {c for t, c in read if t == table.name} - second | missed

    # Tables that come back as one.

    def _together(self) -> None:
        """Rows of several tables with one key."""
        for back in self.back.mappings:
            known = [s for s in back.sources if s in self._rows]
            if len(known) < 2 or len(known) < len(back.sources):
                continue
            world = World(conn=self.old_conn, old=self.old, new=self.new, path=self.paths.old)
            with world.open():
                try:
                    world.fill(self.old[back.target], self._any(world, self.old[back.target]))
                except Unmade:
                    continue  # it was said of its tables, one by one
                got = world.try_out([back], {s: self._rows[s] for s in known}, None)
            if got.refused is not None and got.refused.state == "23505":
                names = " and ".join(known)
                self.found.append(
                    MadeVerdict(
                        table=known[0], column="", kind=Kind.SAME_KEY, lost=True,
                        why=f"rows of {names} with the same key come back as one row of old's {back.target}",
                        remedy="draw the keys of both from one sequence and accept it by name, or write the way back",
                    )
                )  # fmt: skip

    def _any(self, world: World, table: Table) -> Row:
        row = world.sample(table, None)
        return row or {c.name: self._plain(c, 0) for c in table.columns if not c.generated}


def try_made_rows(
    spec: Spec,
    conns: tuple[Connection, Connection],
    tables: tuple[Mapping[str, Table], Mapping[str, Table]],
    forward: Resolution,
    back: Resolution,
    paths: Paths,
    say: Callable[[str], None],
) -> tuple[tuple[MadeVerdict, ...], tuple[str, ...]]:
    """(verdicts, what was not tried). `conns` and `tables` are old's and new's. Types that old lacks are there."""
    trial = Trial(
        spec=spec, old_conn=conns[0], new_conn=conns[1], old=tables[0], new=tables[1], forward=forward, back=back,
        paths=paths, say=say,
    )  # fmt: skip
    trial.run()
    return _once(trial.found), tuple(dict.fromkeys(trial.untried))


def _once(found: Sequence[MadeVerdict]) -> tuple[MadeVerdict, ...]:
    """One verdict a name: the same kind of a column may be lost by several values."""
    by_name: dict[str, MadeVerdict] = {}
    for one in found:
        before: Any = by_name.get(one.name)
        if before is None or (one.lost and not before.lost):
            by_name[one.name] = one
    return tuple(by_name.values())
