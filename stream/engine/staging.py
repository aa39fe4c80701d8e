"""Staged source rows: session-lifetime temporary tables that every mapping reads through a CTE of the source's name.

Two per source table. `new` holds the rows as they are after the batch, numbered, with the part they belong to (rows
that lack the same columns form one part). `old` holds what rows were before, as far as PostgreSQL sent it: rows that
went away, and rows whose key or feed columns changed. Temporary tables are made once per session, never per batch:
their catalog rows would bloat pg_class.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from connectors.failpoint import failpoint
from connectors.postgres.session import Connection
from connectors.postgres.target import key_text
from schemas.change import Image
from schemas.equality import ColumnType
from schemas.names import EQ, quote
from schemas.table import Table
from stream.engine.fold import Folded, Key
from stream.engine.mapping_sql import PART, N, columns
from stream.engine.small_batch import Direct, by_column

GONE = 0  # an old image whose owners may lose rows
STAYED = 1  # one that only says which of a mirror's rows are about to change
LEFT = 2  # like GONE, and its row is not under this key any more: whatever is there from now on is another row


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of a batch that lack the same columns.

    `moved`: one row whose key changed, alone: what was not sent, or is not mapped, stands under its old key.
    `entering`: rows that are new and yet lack columns (they were written before a column was added).
    """

    number: int
    missing: frozenset[str]
    moved: bool
    entering: bool
    rows: tuple[int, ...]


@dataclass(slots=True)
class Staged:
    """What one batch staged of one source table."""

    truncated: bool
    parts: list[Part] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)  # by row number, the key the row has now (or had, if it is gone)
    origins: list[Key | None] = field(default_factory=list)
    has_new: bool = False
    has_old: bool = False
    has_gone: bool = False
    left: list[int] = field(default_factory=list)  # the numbers of those that are under their old key no more
    carried: bool = False  # a reread: unmapped columns of its rows were set aside
    direct: Direct | None = None  # set: nothing is in the temporary tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """A fold as rows of the temporary tables, and what `Staged` says of them. Made apart from any session."""

    new: list[list[object]]
    old: list[list[object]]
    staged: Staged


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The temporary tables of one source table. `names` are the columns staged.

    `types` says of each column how it is held: as the type below every domain (an old image is NULL where nothing was
    sent, and a domain may refuse that), under the source's collation. `domains` are those that mappings read it as.
    """

    number: int
    source: Table
    key: tuple[str, ...]
    names: tuple[str, ...]
    types: Mapping[str, ColumnType]
    domains: Mapping[str, str]
    watched: frozenset[str]  # columns whose change moves a row to other owners
    mirrored: bool
    naming: frozenset[str]  # columns beside the key that a row's own target row is named by
    moves_alone: bool  # a row whose key changed is a part of its own even when it lacks nothing
    lasting: tuple[str, ...]  # see `Folded`
    at_once: bool

    @property
    def feeding(self) -> frozenset[str]:
        """The watched columns beside the key."""
        return self.watched - set(self.key)

    def folded(self) -> Folded:
        """The table's changes, before the first."""
        return Folded(key=self.key, feeding=self.feeding, lasting=self.lasting, at_once=self.at_once)

    @property
    def new(self) -> str:
        return f"pg_temp.slackwater_new_{self.number}"

    @property
    def old(self) -> str:
        return f"pg_temp.slackwater_old_{self.number}"

    def named(self, key: Key) -> dict[str, str | None]:
        """A key as a document: what stands in the queue of rereads, and in quarantine."""
        return dict(zip(self.key, map(key_text, key), strict=True))

    def create(self) -> list[str]:
        typed = ", ".join(f"{quote(n)} {held(self.types[n])}" for n in self.names)
        tail = f"{N} integer, {PART} integer not null default 0) on commit delete rows"
        return [f"create temporary table {table} ({typed}, {tail}" for table in (self.new, self.old)]

    def reading(
        self,
        *,
        part: int | None = None,
        missing: Collection[str] = (),
        rows: Sequence[int] | None = None,
        skip: Sequence[int] = (),
    ) -> str:
        """The SQL that stands for the source over the new images, or some of them, which lack what is `missing`."""
        where = self._where(None if part is None else (part,), rows, skip)
        return f"select {self._read(self.domains.keys() - set(missing))} from {self.new}{where}"

    def reading_old(self, *, rows: Sequence[int] | None = None, skip: Sequence[int] = ()) -> str:
        """The old images of rows that went away, or whose key or feed columns changed."""
        return f"select {self._read(self.watched)} from {self.old}{self._where((GONE, LEFT), rows, skip)}"

    def reading_left(self, *, skip: Sequence[int] = ()) -> str:
        """Those of them that are under their key no more."""
        return f"select {self._read(self.watched)} from {self.old}{self._where((LEFT,), None, skip)}"

    def _read(self, whole: Collection[str]) -> str:
        """The columns as mappings read them; of `whole` those that are of a domain, of others the values have to do."""
        return ", ".join(
            f"{quote(n)}::{self.domains[n]} as {quote(n)}" if n in self.domains and n in whole else quote(n)
            for n in self.names
        )

    def declared(self, whole: Collection[str]) -> tuple[tuple[str, str, str], ...]:
        """(name, how it is held, the domain that mappings read it as or '') of each column; `whole` as in `_read`."""
        return tuple((n, held(self.types[n]), self.domains.get(n, "") if n in whole else "") for n in self.names)

    def numbered(self, rows: Sequence[int]) -> tuple[str, str]:
        """The new images of some rows, and their old ones, with their numbers."""
        where = self._where(None, rows, ())
        return f"select * from {self.new}{where}", f"select * from {self.old}{where}"

    def _where(self, parts: tuple[int, ...] | None, rows: Sequence[int] | None, skip: Sequence[int]) -> str:
        tests = []
        if parts is not None:
            tests.append(" or ".join(f"{PART} {EQ} {part}" for part in parts).join("()"))
        if rows is not None:
            tests.append(f"{N} {EQ} any('{{{','.join(map(str, rows))}}}'::integer[])")
        if skip:
            tests.append(f"{N} operator(pg_catalog.<>) all('{{{','.join(map(str, skip))}}}'::integer[])")
        return " where " + " and ".join(tests) if tests else ""

    def fill(self, conn: Connection, laid: Laid, *, direct: bool = False, omit: Collection[int] = ()) -> Staged:
        """COPY a fold, but for rows to `omit`, into the temporary tables; or keep it as arrays to go `direct`."""
        if direct:
            width = len(self.names)
            return replace(laid.staged, direct=Direct(new=by_column(laid.new, width), old=by_column(laid.old, width)))
        for table, rows in ((self.new, laid.new), (self.old, laid.old)):
            self.copy(conn, table, [row for row in rows if row[-2] not in omit] if omit else rows)
        return laid.staged

    def lay(self, folded: Folded) -> Laid:
        """Number a fold's rows, and say which part each belongs to."""
        staged = Staged(truncated=folded.truncated)
        new: list[list[object]] = []
        old: list[list[object]] = []
        parts: dict[tuple[frozenset[str], bool], int] = {(_WHOLE, False): 0}
        about: list[tuple[frozenset[str], bool, bool, list[int]]] = [(_WHOLE, False, False, [])]
        names, wanted = self.names, frozenset(self.names)
        staying: set[Key] = set()
        n = 0
        for key, row in folded.rows.items():
            after = row.after
            assert after is not None
            origin = row.origin
            moved = origin is not None and (origin != key or (bool(self.naming) and self._renamed(row.before, after)))
            lacking = row.missing & wanted if row.missing else _WHOLE
            part = 0
            if lacking or moved:
                entering = bool(lacking) and origin is None
                alone = moved and (bool(lacking) or self.moves_alone)
                part = -1 if alone else parts.get((lacking, entering), -1)
                if part < 0:
                    part = len(about)
                    about.append((lacking, alone, entering, []))
                    if not alone:
                        parts[lacking, entering] = part
            about[part][3].append(n)
            new.append([*map(after.get, names), n, part])
            staged.keys.append(key)
            staged.origins.append(origin)
            if origin is not None:
                if moved:
                    staged.left.append(n)
                    old.append(self._image(row.before, origin, n, LEFT))
                else:
                    staying.add(origin)
                    if row.before is not None and self._changed(row.before, after, lacking):
                        old.append(self._image(row.before, origin, n, GONE))
                    elif self.mirrored:
                        old.append(self._image(row.before, origin, n, STAYED))
            n += 1
        for row in folded.gone:
            assert row.origin is not None
            left = row.origin not in staying
            staged.left += [n] if left else []
            old.append(self._image(row.before, row.origin, n, LEFT if left else GONE))
            staged.keys.append(row.origin)
            staged.origins.append(row.origin)
            n += 1
        staged.has_new, staged.has_old = bool(new), bool(old)
        staged.has_gone = any(image[-1] != STAYED for image in old)
        staged.parts = [
            Part(number=i, missing=missing, moved=moved, entering=entering, rows=tuple(rows))
            for i, (missing, moved, entering, rows) in enumerate(about)
            if rows
        ]
        return Laid(new=new, old=old, staged=staged)

    def _changed(self, before: Image, after: Image, lacking: frozenset[str]) -> bool:
        return any(before.get(c) != after.get(c) for c in self.watched if c not in lacking)

    def _renamed(self, before: Image | None, after: Image) -> bool:
        """Whether the row keeps its key, and yet its target row is another one."""
        return before is not None and any(before.get(c) != after.get(c) for c in self.naming)

    def _image(self, before: Image | None, origin: Key, n: int, part: int) -> list[object]:
        image = dict(before) if before is not None else {}
        image.update(zip(self.key, origin, strict=True))
        return [image.get(c) for c in self.names] + [n, part]

    def copy(self, conn: Connection, into: str, rows: Sequence[list[object]]) -> None:
        if not rows:
            return
        with (
            conn.cursor() as cursor,
            cursor.copy(f"copy {into} ({columns(self.names)}, {N}, {PART}) from stdin") as copy,
        ):
            for row in rows:
                copy.write_row(row)
            failpoint("apply.in_copy")


def held(type_: ColumnType) -> str:
    """As a column is declared."""
    return f"{type_.base} collate {type_.collation}" if type_.collation else type_.base


_WHOLE: frozenset[str] = frozenset()
