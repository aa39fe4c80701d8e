"""Entries of the file as texts: what was written as a SELECT, and what the shorthand and `copy` stand for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from schemas.direction import Direction
from schemas.lineage import Reader
from schemas.mapping import Ref
from schemas.names import readable
from schemas.problem import Problem
from schemas.shape import Shape
from schemas.spec import Spec, TableEntry
from schemas.sql_text import parse, select_items
from schemas.table import Table


@dataclass(slots=True, kw_only=True)
class Draft:
    """A mapping on its way: its text and its shape. `shape` is None when the text could not be read."""

    target: str
    text: str
    origin: str
    place: str
    entry: TableEntry | None = None
    shape: Shape | None = None
    touched: set[Ref] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # the outputs that a shorthand stands for
    direction: Direction = Direction.FORWARD

    def refuse(self, cause: str, remedy: str) -> None:
        self.problems.append(Problem(cause=cause, remedy=remedy, where=self.place))

    @property
    def here(self) -> str:
        """The side that it reads, for a message."""
        return self.direction.source.value

    @property
    def there(self) -> str:
        """The side that it writes, for a message."""
        return self.direction.target.value

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.shape.tables())) if self.shape is not None else ()

    def read(self, tables: Mapping[str, Table]) -> None:
        """Parse the text and follow it."""
        parsed = parse(self.text)
        self.text = parsed.text
        for fault in parsed.faults:
            self.refuse(f"the mapping of {self.target}: {fault.cause}", fault.remedy)
        if parsed.query is None:
            return
        reader = Reader(tables)
        self.shape = reader.read(parsed.query)
        self.touched = reader.touched
        for fault in reader.faults:
            self.refuse(f"the mapping of {self.target}: {fault.cause}", fault.remedy)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or nothing."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def matching(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """The names that any of the patterns stands for."""
    listed = list(patterns)
    return {n for n in names if any(n == p or fnmatchcase(n, p) for p in listed)}


def drafts(
    entries: Iterable[TableEntry],
    sources: Mapping[str, Table],
    targets: Mapping[str, Table],
    drop: set[Ref],
    direction: Direction = Direction.FORWARD,
) -> list[Draft]:
    """The file's entries, read."""
    made = []
    for entry in entries:
        draft = Draft(
            target=entry.to, text=entry.text or "", origin="select", place=entry.place, entry=entry, direction=direction
        )
        if entry.from_ is not None:
            draft.origin = "from"
            _shorthand(draft, entry, entry.from_, sources, targets, drop)
        if not draft.problems:
            draft.read(sources)
            if entry.from_ is not None:
                as_written(draft)
        made.append(draft)
    return made


def copies(
    names: Iterable[str], sources: Mapping[str, Table], targets: Mapping[str, Table], drop: set[Ref], place: str
) -> list[Draft]:
    """Tables taken over as they are."""
    made = []
    for name in names:
        where = f"{place}: {name}"
        if name not in targets:
            draft = Draft(target=name, text="", origin="copy", place=where)
            draft.refuse(
                f"table {name} is copied, but the other side has no table {name}{nearest(name, targets)}",
                f"create {name} in new, map it under `tables`, or name it under `exclude`",
            )
        else:
            draft = Draft(target=name, text="", origin="copy", place=where)
            pairs = _pairs(draft, sources[name], targets[name], {}, {c for t, c in drop if t == name}, ())
            draft.text = _select([(readable(a), b) for a, b in pairs], name)
            if pairs and not draft.problems:
                draft.read(sources)
            elif not draft.problems:
                draft.refuse(
                    f"old and new {name} have no column in common", "map it under `tables`, or name it under `exclude`"
                )
        made.append(draft)
    return made


def _pairs(
    draft: Draft, source: Table, target: Table, rename: Mapping[str, str], drop: set[str], written: Iterable[str]
) -> list[tuple[str, str]]:
    """(old column, new column) of what is taken over; a column that new has not is left to the check of coverage."""
    new = {c.name: c for c in target.columns}
    pairs = []
    for column in source.columns:
        name = rename.get(column.name, column.name)
        if column.name in drop or name in written or (name not in new and column.name not in rename):
            continue
        if column.generated:
            if not (name in new and new[name].generated):
                draft.refuse(
                    f"column {source.name}.{column.name} is generated: logical replication does not carry it, and"
                    f" {target.name}.{name} would stay empty",
                    f"write its expression under `set: {{{name}: ...}}`, make it generated in {draft.there} as well, or"
                    f" drop it on purpose: `drop: [{source.name}.{column.name}]`",
                )
            continue
        if name in new and new[name].generated:
            continue
        pairs.append((column.name, name))
    return pairs


def _select(items: list[tuple[str, str]], table: str) -> str:
    written = [e if e == readable(name) else f"{e} as {readable(name)}" for e, name in items]
    short = f"select {', '.join(written)} from {readable(table)}"
    if len(short) <= 100 and "\n" not in short:
        return short
    return "select " + ",\n       ".join(written) + f"\nfrom {readable(table)}"


def _shorthand(
    draft: Draft,
    entry: TableEntry,
    name: str,
    sources: Mapping[str, Table],
    targets: Mapping[str, Table],
    drop: set[Ref],
) -> None:
    source, target = sources.get(name), targets.get(entry.to)
    if source is None:
        draft.refuse(f"there is no {draft.here} table {name}{nearest(name, sources)}", "correct `from`")
    if target is None:
        draft.refuse(
            f"{draft.there} has no table {entry.to}{nearest(entry.to, targets)}",
            f"create {entry.to} in {draft.there}, or correct `to`",
        )
    if source is None or target is None:
        return
    for old in entry.rename:
        if old not in source.column_names:
            draft.refuse(f"`rename` names {old}, which {name} has not{nearest(old, source.column_names)}", "correct it")
    dropped = set(entry.drop) | {c for t, c in drop if t == name}
    pairs = _pairs(draft, source, target, entry.rename, dropped, entry.set_)
    items = [(readable(old), new) for old, new in pairs]
    items += [(expression.strip(), new) for new, expression in entry.set_.items()]
    if not items:
        draft.refuse(f"nothing of {name} reaches {entry.to}", "rename its columns, or write `set` or a `select`")
    draft.expected = [new for _, new in items]
    draft.text = _select(items, name)


def as_written(draft: Draft) -> None:
    """`set` holds expressions, and nothing that would end one and begin something else."""
    query = parse(draft.text).query
    items = select_items(draft.text)
    entry = draft.entry
    names = [o.name for o in draft.shape.outputs] if draft.shape is not None else []
    more = {k for k, v in query.args.items() if v} - {"expressions", "from_"} if query is not None else set()
    if entry is not None and entry.from_ is None:  # derived: it may join; its text has passed the same test without
        more -= {"joins", "where"}
    if draft.shape is None:
        return
    several = bool(draft.shape.branches)  # a derived `union all`
    other = entry is not None and entry.from_ is not None and draft.shape.tables() != [entry.from_]
    counted = several or len(items or ()) == len(names)
    if (more and not several) or names != draft.expected or not counted or other:
        draft.problems.clear()
        draft.refuse(
            f"`set` of {draft.target} is not a list of expressions",
            f"give each {draft.there} column one expression over {draft.here} columns",
        )


def dropped_columns(spec: Spec, entries: Iterable[TableEntry]) -> set[Ref]:
    """The old columns that are left behind on purpose, as far as the file alone says whose they are."""
    found: set[Ref] = set()
    for name in spec.drop:
        table, _, column = name.rpartition(".")
        found.add((table, column))
    for entry in entries:
        for name in entry.drop:
            if entry.from_ is not None:
                found.add((entry.from_, name))
            elif "." in name:
                table, _, column = name.rpartition(".")
                found.add((table, column))
    return found
