"""Folding an epoch's changes to the last image per row.

Invariant: what a fold hands on is the difference between two states the source was in. Order is by position alone; a
row keeps the key it had before the epoch (its origin), so a key change stays one change, and values that PostgreSQL did
not send are merged from earlier images of the same row, never from another row.

A DELETE and an INSERT of one key are one row, which was changed, where one transaction has made both: so an application
replaces a row, and so PostgreSQL itself sends a row that moves to another partition. Of two transactions they are two
rows, in one epoch too: what becomes of a row must not depend on which transactions happened to share an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from schemas.change import Change, Image, Op
from schemas.errors import Halt
from schemas.position import Position

Key = tuple[object, ...]

INSERT, UPDATE, DELETE, TRUNCATE = (op.value for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE))


@dataclass(slots=True)
class Row:
    """One source row over the epoch. `origin` is its key before it, None for a row the epoch inserted.

    `before` is the earliest old image sent (identity columns, or all); `after` is None once it is deleted.
    `missing` names the columns of `after` that hold no value.
    """

    origin: Key | None
    before: Image | None
    after: Image | None
    missing: frozenset[str]
    position: Position


@dataclass(slots=True)
class Folded:
    """One source table's changes: rows by final key, rows that went away, and whether it was truncated first.

    `gone` also holds every image that a row had and left behind in between. A backfill chunk whose snapshot lies inside
    these changes has brought such an image to the target under a key that is neither the row's first nor its last;
    where none did, nothing is there to delete. `feeding` are the columns beside the key that decide which target rows
    an image feeds. `lasting`, where it is not empty, is the part of the key by which a row is still known when it comes
    back under another one; `at_once`: only as the very next change.
    """

    key: tuple[str, ...]
    feeding: frozenset[str] = frozenset()
    lasting: tuple[str, ...] = ()
    at_once: bool = False
    truncated: bool = False
    rows: dict[Key, Row] = field(default_factory=dict)
    _behind: list[Row] = field(default_factory=list)
    _deleted: dict[Key, Row] = field(default_factory=dict)  # by the key that the row had last
    _known_by: dict[Key, Key] = field(default_factory=dict)  # that key by its lasting part

    @property
    def gone(self) -> list[Row]:
        """Rows and images that went away."""
        return [*self._behind, *self._deleted.values()]

    def add(self, change: Change) -> None:
        """Fold the next change, which must be newer than all before it."""
        op = change.op
        if op == INSERT:
            self._insert(change)
        elif op == UPDATE:
            self._update(change)
        elif op == DELETE:
            self._delete(change)
        elif op == TRUNCATE:
            self.truncated = True
            self.rows.clear()
            self._behind.clear()
            self._deleted.clear()
        else:
            raise Halt(f"unknown operation {op!r} on {change.table}", hint="run the version that wrote this topic")

    def _key(self, image: Image, change: Change) -> Key:
        key = self.key
        try:
            return (image[key[0]],) if len(key) == 1 else tuple([image[c] for c in key])
        except KeyError as error:
            raise Halt(
                f"a change of {change.table} at {change.position} lacks its key column {error.args[0]}",
                hint="the table's replica identity changed; restore it, then start again",
            ) from error

    def _insert(self, change: Change) -> None:
        after = change.after
        assert after is not None
        missing = frozenset(change.missing) if change.missing else _NONE
        key = self._key(after, change)
        row = self._back(key, change) if self._deleted else None
        if row is None:
            row = Row(None, None, after, missing, change.position)
        else:
            row.after, row.missing, row.position = after, missing, change.position
        self.rows[key] = row

    def _back(self, key: Key, change: Change) -> Row | None:
        """The row that an INSERT puts in its place again: it is of the transaction that has deleted it."""
        after, at, was = change.after, change.position, key
        assert after is not None
        if key not in self._deleted and self.lasting:
            was = self._known_by.get(tuple([after[c] for c in self.lasting]), key)
        row = self._deleted.get(was)
        if row is None or row.position.commit_lsn != at.commit_lsn:
            return None
        if was != key and self.at_once and row.position.seq + 1 != at.seq:
            return None
        return self._deleted.pop(was)

    def _update(self, change: Change) -> None:
        after = change.after
        assert after is not None
        new_key = self._key(after, change)
        old_key = self._key(change.before, change) if change.before is not None else new_key
        row = self.rows.pop(old_key, None)
        if row is None:
            missing = frozenset(change.missing) if change.missing else _NONE
            row = Row(old_key, change.before, after, missing, change.position)
        else:
            earlier = row.after
            assert earlier is not None
            if (old_key != new_key and old_key != row.origin) or self._feeds_others(earlier, after):
                self._left(row, old_key)
            if change.missing:
                for name in change.missing:
                    if name in earlier and name not in row.missing:
                        after[name] = earlier[name]
                row.missing = frozenset(n for n in change.missing if n not in earlier or n in row.missing)
            else:
                row.missing = _NONE
            row.after = after
            row.position = change.position
        self.rows[new_key] = row

    def _delete(self, change: Change) -> None:
        assert change.before is not None
        key = self._key(change.before, change)
        row = self.rows.pop(key, None)
        if row is None:
            row = Row(key, change.before, None, _NONE, change.position)
        elif key != row.origin or self.feeding:
            self._left(row, key)
        row.after = None
        row.position = change.position
        if row.origin is not None:
            if (other := self._deleted.get(key)) is not None:  # another row, which had the key before
                self._behind.append(other)
            self._deleted[key] = row
            if self.lasting:
                self._known_by[tuple([change.before[c] for c in self.lasting])] = key

    def _left(self, row: Row, key: Key) -> None:
        """The row as it is now becomes one that may have to be deleted."""
        self._behind.append(Row(key, row.after, None, _NONE, row.position))

    def _feeds_others(self, earlier: Image, after: Image) -> bool:
        return any(earlier.get(c) != after.get(c) for c in self.feeding)


_NONE: frozenset[str] = frozenset()


def fold(changes: Iterable[Change], empty: Callable[[str], Folded]) -> dict[str, Folded]:
    """Fold changes in position order, by source table; `empty` begins a table's."""
    tables: dict[str, Folded] = {}
    for change in changes:
        folded = tables.get(change.table)
        if folded is None:
            folded = tables[change.table] = empty(change.table)
        folded.add(change)
    return tables
