"""What would become of a made row of new on the way back: it reaches old, old refuses it, or it is lost without a word.

Invariant: a row reaches old when there is no other row that old would hold the same for. So it is taken back, and forth
again; what comes out otherwise than it went in is taken back once more, and when old cannot tell the two apart, what
differs between them was lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from connectors.postgres.made_world import Outcome, World
from schemas.made import Kind, Made
from schemas.mapping import Mapping as TableMapping
from schemas.roundtrip import MadeVerdict
from schemas.table import Table

Row = dict[str, str | None]
Rows = dict[str, list[Row]]

_SAID = {
    Kind.LONG: "a longer text",
    Kind.LARGE: "a larger value",
    Kind.DIGITS: "more digits after the point",
    Kind.OTHER: "a value that the mapping never gives",
    Kind.LABEL: "a label",
    Kind.NULL: "NULL",
}


@dataclass(slots=True, kw_only=True)
class MadeJudge:
    """One table's made rows, held against what old would hold of them. `base` is a row of it and of each table that its
    ways back read, as the mappings made them of rows of old."""

    world: World
    new: Mapping[str, Table]
    name: str
    backs: Sequence[TableMapping]
    writer: TableMapping
    base: Rows
    found: list[MadeVerdict] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)

    def judge(self, variants: Sequence[tuple[Made, Row]]) -> None:
        """The row by itself, then with each other value of a column."""
        by_itself = self._alone()
        usual = self._out(self.base)
        if usual.refused is not None:
            self.untried.append(f"{self.name}, column by column: old does not take the row to go by")
            return
        unsteady = self._changed(self.base, usual)
        for made, row in variants:
            rows = {**self.base, self.name: [row]}
            if made.column in self.new[self.name].key:  # what else belongs to that key is not made
                if not by_itself:
                    continue
                rows = self._with_parents(row)
            self._column(made, rows, unsteady)

    # A row by itself.

    def _alone(self) -> bool:
        """Whether such a row reaches old."""
        row = self.base[self.name][0]
        rows = self._with_parents(row)
        others = [g for g in self.base if g not in rows]
        got = self._out(rows)
        if got.refused is not None:
            if not got.refused.of_the_row:
                self.untried.append(f"{self._lonely(others)}: {got.refused.said}")
            elif others:
                self._say("", Kind.ALONE, lost=False, why=f"{self._lonely(others)}: {got.refused.said}")
            return False
        lost = self._lost(rows, got, self._unread)
        if not lost:
            return True
        if self._out({**rows, self.name: []}).images == got.images:
            why = f"{self._lonely(others)} never reaches old: nothing that old would hold tells of it"
            self._say("", Kind.ALONE, lost=True, why=why)
            return False
        for column in lost:
            self._say(column, Kind.ALONE, lost=True, why=f"of {self._lonely(others)}, it does not come back")
        return True

    @property
    def _unread(self) -> set[str]:
        """Columns that no way back reads: that is said of them, whatever they hold."""
        read = {c for b in self.backs for c in b.reads.get(self.name, ())}
        return set(self.writer.columns) - read

    def _lonely(self, others: Collection[str]) -> str:
        return f"a row of {self.name}" + (f" without its row of {', '.join(others)}" if others else "")

    def _with_parents(self, row: Row) -> Rows:
        """The row, and those that its foreign keys ask for, as far as a way back reads them."""
        rows: Rows = {self.name: [row]}
        waiting = [self.name]
        while waiting:
            name = waiting.pop()
            for reference in self.new[name].references:
                held = rows[name][0]
                if reference.table in rows or reference.table not in self.base or not self.base[reference.table]:
                    continue
                if all(held.get(c) is not None for c in reference.columns):
                    rows[reference.table] = self.base[reference.table]
                    waiting.append(reference.table)
        return rows

    # A row with another value.

    def _column(self, made: Made, rows: Rows, unsteady: Collection[str]) -> None:
        got = self._out(rows)
        value = "NULL" if made.text is None else {Kind.LABEL: f"the label {made.text}"}.get(made.kind, _SAID[made.kind])
        if got.refused is not None:
            if got.refused.of_the_row:
                self._say(made.column, made.kind, lost=False, why=f"{value}: {got.refused.said}")
            else:
                self.untried.append(f"{self.name}.{made.column} ({made.kind}): {got.refused.said}")
            return
        if lost := self._lost(rows, got, {*unsteady, *self._unread} - {made.column}):
            with_ = "" if lost == [made.column] else f", and {', '.join(lost)} with it"
            self._say(made.column, made.kind, lost=True, why=f"{value} does not come back{with_}")

    # Judging.

    def _out(self, rows: Rows) -> Outcome:
        return self.world.try_out(self.backs, rows, self.writer)

    def _changed(self, rows: Rows, got: Outcome) -> list[str]:
        """Columns that come forth again otherwise than they went back; all of them, where the row does not."""
        again = self._same_row(rows[self.name][0], got)
        row = rows[self.name][0]
        return [c for c in self.writer.columns if again is None or again[c] != row[c]]

    def _same_row(self, row: Row, got: Outcome) -> Row | None:
        key = self.new[self.name].key
        return next((r for r in got.again or () if all(r.get(k) == row[k] for k in key)), None)

    def _lost(self, rows: Rows, got: Outcome, unsteady: Collection[str]) -> list[str]:
        """The columns that old knows nothing of: what comes forth again is something else, and old holds the same."""
        row = rows[self.name][0]
        changed = [c for c in self._changed(rows, got) if c not in unsteady]
        if not changed:
            return []
        again = self._same_row(row, got)
        if again is None:
            if self._out({**rows, self.name: []}).images == got.images:
                return changed
            return self._unknown(rows, got, changed)
        return [c for c in changed if self._out({**rows, self.name: [{**row, c: again[c]}]}).images == got.images]

    def _unknown(self, rows: Rows, got: Outcome, columns: Sequence[str]) -> list[str]:
        """Of a row that old holds something of, but not enough to make it again: columns that make no difference."""
        row, keyed = rows[self.name][0], self.new[self.name].key
        silent = []
        for column in columns:
            if column in keyed or row[column] is None:
                continue
            without = self._out({**rows, self.name: [{**row, column: None}]})
            if without.refused is None and without.images == got.images:
                silent.append(column)
        return silent

    def _say(self, column: str, kind: Kind, *, lost: bool, why: str) -> None:
        remedy = (
            "write the way back so that it begins there, or keep such rows out of new: by a foreign key, or NOT NULL"
        )
        if column and kind is not Kind.ALONE:
            remedy = f"a CHECK on new keeps such values of {self.name}.{column} out while the way back is open"
            remedy += "; or write how the column comes back"
        self.found.append(MadeVerdict(table=self.name, column=column, kind=kind, lost=lost, why=why, remedy=remedy))
