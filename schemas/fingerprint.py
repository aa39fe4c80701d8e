"""What of a table can change its rows, or their text, without an event in the stream; and what a difference means.

Invariant: parts are kept apart, so that a difference names its cause. What cannot be told to be harmless counts as if
values had moved: a table is compared once too often, never once too seldom.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

PERMANENT = "p"


class Kind(StrEnum):
    """What follows from a difference, the gravest last."""

    FILE = "file"  # the rows lie in another file, and nothing says that a value moved: one pass of digests
    VALUES = "values"  # values, or their text, may have moved: read again by digests
    CODE = "code"  # what computes values is another one: each row is computed again where it is computed
    SHAPE = "shape"  # a column that is used is not there any more as it was prepared
    LOST = "lost"  # rows were, or are, in no stream

    @property
    def stays(self) -> bool:
        """Whether only `prepare`, or undoing it, makes an end of it: what was accepted stays what it was."""
        return self in (Kind.SHAPE, Kind.LOST)


_GRAVITY = list(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A row of pg_attribute. `version` is its xmin: another one says that somebody altered the column somehow."""

    name: str
    type: int
    typmod: int
    collation: int
    dropped: bool
    generated: str
    missing: bool  # has a default that older rows lack
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A partition at any depth. `born` in its place, empty, or attached to it later; `link` is its place's version."""

    name: str  # schema.table
    kind: str  # pg_class.relkind
    persistence: str
    file: int
    born: bool
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """A type that is not PostgreSQL's own, used by a column, or by a type that is."""

    name: str
    base: int
    typmod: int
    element: int
    labels: Mapping[str, str] = field(default_factory=dict)  # of an enum, by their oid
    attributes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of a composite: (type, typmod) by number
    extension: str | None = None  # name and version, where one brought it


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One table. `member` is the oid of its place in the publication of the direction that begins on its side.

    `functions` are users' functions that compute its rows: signature -> a hash of what it is, behind an `e` where an
    extension brought it. None: nobody has looked at them.
    """

    oid: int
    persistence: str
    file: int
    member: int | None
    columns: Mapping[str, Column]  # by attnum
    leaves: Mapping[str, Leaf]  # by oid
    types: Mapping[str, Type]  # by oid
    collations: Mapping[str, tuple[str, str | None]]  # (name, version) by oid; the database's own is 0
    functions: Mapping[str, str] | None = None

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, doc: Mapping[str, Any]) -> Parts:
        """What `document` wrote."""
        return cls(
            oid=doc["oid"],
            persistence=doc["persistence"],
            file=doc["file"],
            member=doc["member"],
            columns={n: Column(**c) for n, c in doc["columns"].items()},
            leaves={n: Leaf(**x) for n, x in doc["leaves"].items()},
            types={
                n: Type(**{**t, "attributes": {a: (x[0], x[1]) for a, x in t["attributes"].items()}})
                for n, t in doc["types"].items()
            },
            collations={n: (c[0], c[1]) for n, c in doc["collations"].items()},
            functions=doc.get("functions"),
        )

    def keeping(self, before: Parts | None) -> Parts:
        """With what was known before of what nobody has looked at now."""
        if self.functions is not None or before is None or before.functions is None:
            return self
        return replace(self, functions=before.functions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has happened to one table. `cause` is a clause that names the table."""

    table: str
    kind: Kind
    cause: str


def compare(table: str, before: Parts, now: Parts | None, *, used: Collection[str], source: bool) -> Change | None:
    """What happened between two looks at a table; None where nothing did that could matter.

    `used` are its columns that mappings read, or write; `source`: the stream begins there.
    """
    if now is None:
        return Change(table=table, kind=Kind.LOST, cause=f"{table} was dropped or renamed")
    if now.oid != before.oid:
        cause = f"{table} was replaced: another table has taken its name, with whatever rows it holds"
        return Change(table=table, kind=Kind.LOST, cause=cause)
    found = [
        *_persistence(table, before, now, source),
        *_membership(table, before, now),
        *_leaves(table, before, now, source),
        *_columns(table, before, now, used),
        *_types(table, before, now),
        *_functions(table, before, now),
    ]
    if not found and _moved(before, now):
        what = f"{table} was rewritten, value for value as it seems (VACUUM FULL, CLUSTER, REPACK or a tablespace)"
        found = [(Kind.FILE, what)]
    if not found:
        return None
    kind = max((kind for kind, _ in found), key=_GRAVITY.index)
    return Change(table=table, kind=kind, cause="; ".join(dict.fromkeys(cause for _, cause in found)))


Found = Iterator[tuple[Kind, str]]


def _persistence(table: str, before: Parts, now: Parts, source: bool) -> Found:
    yield from _logged(table, before.persistence, now.persistence, source)


def _logged(name: str, before: str, now: str, source: bool) -> Found:
    if now != PERMANENT:
        why = "its changes are in no stream" if source else "a crash of its server would empty it"
        yield Kind.LOST, f"{name} is unlogged: {why}"
    elif before != PERMANENT:
        yield Kind.VALUES, f"{name} was unlogged, and what was written to it then is in no stream"


def _membership(table: str, before: Parts, now: Parts) -> Found:
    if before.member is None or before.member == now.member:
        return
    if now.member is None:
        yield Kind.LOST, f"{table} has left the publication: its changes are in no stream"
    else:
        yield Kind.LOST, f"{table} left the publication and got it back: what was changed in between is in no stream"


def _leaves(table: str, before: Parts, now: Parts, source: bool) -> Found:
    for oid, leaf in before.leaves.items():
        if oid not in now.leaves:
            yield Kind.VALUES, f"partition {leaf.name} of {table} was detached or dropped: its rows went without a word"
    for oid, leaf in now.leaves.items():
        known = before.leaves.get(oid)
        if leaf.kind == "f":
            yield Kind.LOST, f"partition {leaf.name} of {table} is a foreign table: its rows are in no stream"
            continue
        yield from _logged(
            f"partition {leaf.name} of {table}", PERMANENT if known is None else known.persistence,
            leaf.persistence, source,
        )  # fmt: skip
        if known is None and not leaf.born:
            yield Kind.VALUES, f"partition {leaf.name} was attached to {table}: its rows came without a word"
        elif known is not None and known.link != leaf.link:
            yield Kind.VALUES, f"partition {leaf.name} was detached from {table} and attached again"


def _moved(before: Parts, now: Parts) -> bool:
    """Whether rows that were there before lie in another file now."""
    same = (oid for oid in before.leaves if oid in now.leaves)
    return before.file != now.file or any(before.leaves[o].file != now.leaves[o].file for o in same)


def _columns(table: str, before: Parts, now: Parts, used: Collection[str]) -> Found:
    was, is_ = _by_name(before), _by_name(now)
    moved = _moved(before, now)
    for name in used:
        if name not in was:
            continue
        if name not in is_:
            yield Kind.SHAPE, _gone(table, name, now.columns.get(was[name]))
            continue
        then, current = before.columns[was[name]], now.columns[is_[name]]
        if was[name] != is_[name]:
            dropped = now.columns[was[name]].dropped if was[name] in now.columns else True
            how = "dropped and added anew" if dropped else "replaced by another one under its name"
            yield Kind.VALUES, f"column {name} of {table} was {how}"
        if then.type != current.type:
            yield Kind.SHAPE, f"column {name} of {table} has another type"
        elif (then.collation, then.generated) != (current.collation, current.generated):
            yield Kind.VALUES, f"column {name} of {table} was altered (its collation, or what it is generated from)"
        elif moved and then.typmod != current.typmod:
            yield Kind.VALUES, f"column {name} of {table} was rewritten with another length or precision"
        elif moved and then.version != current.version and then.missing == current.missing:
            yield Kind.VALUES, f"column {name} of {table} was rewritten"


def _by_name(parts: Parts) -> dict[str, str]:
    """Column name -> attnum, of those that are not dropped."""
    return {column.name: number for number, column in parts.columns.items() if not column.dropped}


def _gone(table: str, name: str, now: Column | None) -> str:
    if now is None or now.dropped:
        return f"column {name} of {table} was dropped"
    return f"column {name} of {table} was renamed to {now.name}"


def _types(table: str, before: Parts, now: Parts) -> Found:
    for oid, then in before.types.items():
        current = now.types.get(oid)
        if current is None:
            continue  # no column has it any more: that one was altered
        if then.name != current.name:
            yield Kind.SHAPE, f"type {then.name}, which {table} uses, was renamed to {current.name}"
        if any(current.labels.get(label) != text for label, text in then.labels.items()):
            yield Kind.VALUES, f"a label of type {current.name}, which {table} uses, was renamed"
        if then.attributes != current.attributes:
            yield Kind.VALUES, f"composite type {current.name}, which {table} uses, was altered"
        if then.extension is not None and then.extension != current.extension:
            yield Kind.VALUES, f"extension {then.extension}, whose type {table} uses, is another version now"
        if (then.base, then.typmod, then.element) != (current.base, current.typmod, current.element):
            yield Kind.VALUES, f"type {current.name}, which {table} uses, was altered"
    for oid, (name, version) in before.collations.items():
        if oid in now.collations and now.collations[oid][1] != version:
            yield Kind.VALUES, f"collation {name}, which {table} uses, has another version"


def _functions(table: str, before: Parts, now: Parts) -> Found:
    if before.functions is None or now.functions is None:
        return
    for name in sorted(before.functions.keys() | now.functions.keys()):
        then, current = before.functions.get(name), now.functions.get(name)
        if then is None and current is not None and current.startswith("e"):
            continue  # an extension that is new, with a function of a name that is called
        if then != current:
            how = "dropped" if current is None else "replaced" if then is not None else "added"
            yield Kind.CODE, f"function {name}, by which rows of {table} are computed, was {how}"
