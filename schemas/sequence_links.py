"""Which sequence of a side that opens goes on from which of the other side: by columns, by name, or by the file. Pure.

Invariant: every sequence of either schema is owned by a column, feeds one, is linked, or is excluded by the file; any
other one is named, for an application that draws from it would be given values twice after a turn. (What a trigger or
a function of the user's draws from feeds no column, as far as the catalogs know: it is treated alike.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from schemas.direction import Direction, Side
from schemas.draft import nearest
from schemas.mapping import Mapping as TableMapping
from schemas.names import readable
from schemas.problem import Problem
from schemas.spec import Spec

Fed = tuple[str, str, str]
"""A column by its schema, its table (of a partition, the root) and its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A sequence of one side, as the catalog has it. `owned`: it goes with a column (serial, identity, OWNED BY)."""

    oid: int
    schema: str
    name: str
    type: str  # smallint, integer or bigint
    owned: bool = False
    feeds: tuple[Fed, ...] = ()
    readable: bool = True  # whether the role that asks may read where it stands
    outside: bool = False  # in no schema of the migration, and feeding no column
    spoken_of: bool = False  # by a function of the schema, or one that its triggers or defaults call
    users: tuple[str, ...] = ()  # of one that feeds no column: roles, no superusers, that may draw from it

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def spelled(self) -> str:
        """For SQL that people read, and run."""
        return f"{readable(self.schema)}.{readable(self.name)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One sequence of the side that opens, with what it must be set past.

    `others` are the other side's, `here` the mapped columns that it feeds, `there` the columns that these come from.
    """

    own: Known
    others: tuple[Known, ...] = ()
    here: tuple[Fed, ...] = ()
    there: tuple[Fed, ...] = ()
    how: str = "columns"  # columns, name, file

    @property
    def feeds(self) -> tuple[str, ...]:
        return tuple(f"{table}.{column}" for _, table, column in self.here)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """A sequence that feeds no column, and of which nothing says what it goes on from, or what goes on from it."""

    side: Side
    sequence: Known
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Everything about the sequences of one direction. `excluded` are of both sides, by the file."""

    direction: Direction
    links: tuple[Link, ...] = ()
    excluded: tuple[tuple[Side, Known], ...] = ()
    undecided: tuple[Undecided, ...] = ()
    problems: tuple[Problem, ...] = ()  # names in the file that stand for nothing

    def needed(self, side: Side) -> tuple[Known, ...]:
        """The sequences of `side` whose state decides."""
        of_target = side is self.direction.target
        found = [s for link in self.links for s in ((link.own,) if of_target else link.others)]
        return tuple(dict.fromkeys(found))


@dataclass(slots=True, kw_only=True)
class _Side:
    side: Side
    schema: str
    known: tuple[Known, ...]
    covered: set[int] = field(default_factory=set)  # those that feed a column that the migration carries
    excluded: set[int] = field(default_factory=set)
    shares: bool = False  # both sides are one database: what lies outside of the schemas is the same for both
    partners: dict[int, list[Known]] = field(default_factory=dict)
    by_file: set[int] = field(default_factory=set)

    def named(self, name: str) -> Known | None:
        """By its name alone where it lies in the side's own schema, else with its schema."""
        mine = next((s for s in self.known if s.schema == self.schema and s.name == name), None)
        return mine or next((s for s in self.known if s.label == name), None)

    def matching(self, pattern: str) -> list[Known]:
        return [s for s in self.known if any(n == pattern or fnmatchcase(n, pattern) for n in self.names(s))]

    def names(self, sequence: Known) -> list[str]:
        return [sequence.label] if sequence.schema != self.schema else [sequence.name, sequence.label]

    def loose(self, sequence: Known) -> bool:
        """Whether no column that is carried stands for it: an application may draw from it all the same."""
        return (
            (sequence.schema == self.schema or (sequence.outside and not self.shares))
            and not sequence.owned
            and sequence.oid not in self.covered
            and sequence.oid not in self.excluded
        )


def carried(forward: Iterable[TableMapping]) -> frozenset[tuple[Side, str, str]]:
    """The columns (side, table, column) that the migration carries: what the forward mappings read and write."""
    made = list(forward)
    read = {(Side.OLD, table, column) for m in made for table, columns in m.reads.items() for column in columns}
    return frozenset(read | {(Side.NEW, m.target, column) for m in made for column in m.columns})


def links(
    spec: Spec,
    direction: Direction,
    mappings: Iterable[TableMapping],
    old: Iterable[Known],
    new: Iterable[Known],
    *,
    columns: Collection[tuple[Side, str, str]],
    same_database: bool = False,
) -> Links:
    """Every link of a direction, whose own `mappings` these are; `columns` are what `carried` says."""
    sides = {
        side: _Side(
            side=side,
            schema=schema,
            known=tuple(s for s in known if not (same_database and s.outside) or s.label in named(spec, side)),
            shares=same_database,
        )
        for side, schema, known in ((Side.OLD, spec.old.schema_, old), (Side.NEW, spec.new.schema_, new))
    }
    for one in sides.values():
        mine = {(one.schema, table, column) for side, table, column in columns if side is one.side}
        one.covered = {s.oid for s in one.known if mine & set(s.feeds)}
    problems = [*_exclude(spec, sides), *_by_file(spec, sides)]
    _by_name(spec, sides)
    target, source = sides[direction.target], sides[direction.source]
    shared = {s.oid for s in source.known} if same_database else set()
    return Links(
        direction=direction,
        links=tuple(link for link in _linked(mappings, source, target) if link.own.oid not in shared),
        excluded=tuple((one.side, s) for one in sides.values() for s in one.known if s.oid in one.excluded),
        undecided=tuple(_undecided(sides)),
        problems=tuple(problems),
    )


def named(spec: Spec, side: Side) -> list[str]:
    """What the file names of the side's sequences, as it is written."""
    listed = [e.from_ if side is Side.OLD else e.to for e in spec.sequences if e.pattern is None]
    return [*listed, *(n for n in spec.exclude_sequences if "." in n)]


def _exclude(spec: Spec, sides: Mapping[Side, _Side]) -> Iterable[Problem]:
    for i, pattern in enumerate(spec.exclude_sequences):
        found = [(one, s) for one in sides.values() for s in one.matching(pattern)]
        for one, s in found:
            one.excluded.add(s.oid)
        if not found and not any(c in pattern for c in "*?["):
            every = [name for one in sides.values() for s in one.known for name in one.names(s)]
            yield Problem(
                cause=f"`exclude_sequences` names {pattern}, and neither side has a sequence {pattern}"
                f"{nearest(pattern, every)}",
                remedy="correct the name, or take it out",
                where=spec.place("exclude_sequences", i),
            )


def _by_file(spec: Spec, sides: Mapping[Side, _Side]) -> Iterable[Problem]:
    for i, entry in enumerate(spec.sequences):
        if entry.pattern is not None:
            continue
        found: list[Known] = []
        for one, name, key in ((sides[Side.OLD], entry.from_, "from"), (sides[Side.NEW], entry.to, "to")):
            place, known = spec.place("sequences", i, key), one.named(name)
            if known is None:
                every = [n for s in one.known for n in one.names(s)]
                yield Problem(
                    cause=f"`sequences` names {name}, and {one.side} has no sequence {name}{nearest(name, every)}",
                    remedy=f"correct `{key}` (with its schema where it is not {one.schema}), or make the sequence",
                    where=place,
                )
            elif known.oid in one.excluded:
                yield Problem(
                    cause=f"{one.side}'s sequence {name} is excluded, and `sequences` names it",
                    remedy="take it out of `exclude_sequences`, or out of `sequences`",
                    where=place,
                )
            else:
                found.append(known)
        if len(found) == 2:
            _pair(sides, *found)
            for one, known in zip((sides[Side.OLD], sides[Side.NEW]), found, strict=True):
                one.by_file.add(known.oid)


def _pair(sides: Mapping[Side, _Side], old: Known, new: Known) -> None:
    for mine, theirs, one in ((old, new, sides[Side.OLD]), (new, old, sides[Side.NEW])):
        partners = one.partners.setdefault(mine.oid, [])
        if theirs not in partners:
            partners.append(theirs)


def _by_name(spec: Spec, sides: Mapping[Side, _Side]) -> None:
    """Namesakes, of which one at least is fed to no column that is carried: where the file copies everything, or names
    them."""
    patterns = patterns_of(spec)
    for old, new in _namesakes(sides):
        decided = old.oid in sides[Side.OLD].partners or new.oid in sides[Side.NEW].partners
        excluded = old.oid in sides[Side.OLD].excluded or new.oid in sides[Side.NEW].excluded
        if decided or excluded or not (sides[Side.OLD].loose(old) or sides[Side.NEW].loose(new)):
            continue
        if any(fnmatchcase(name, pattern) for pattern in patterns for name in sides[Side.OLD].names(old)):
            _pair(sides, old, new)


def patterns_of(spec: Spec) -> list[str]:
    """What the names of sequences match that are set by name."""
    return [*(e.pattern for e in spec.sequences if e.pattern is not None), *(["*"] if "*" in spec.copy_ else [])]


def _namesakes(sides: Mapping[Side, _Side]) -> list[tuple[Known, Known]]:
    """Those of the sides' own schemas by their names, those outside with their schemas."""
    here, there = ({one.names(s)[0]: s for s in one.known if _named_here(one, s)} for one in sides.values())
    return [(s, there[name]) for name, s in here.items() if name in there]


def _named_here(one: _Side, s: Known) -> bool:
    return s.schema == one.schema or (s.outside and not one.shares)


def _linked(mappings: Iterable[TableMapping], source: _Side, target: _Side) -> list[Link]:
    """By columns first; what the file, or the name, says of the same sequence joins that."""
    found: dict[int, Link] = {}
    feeding_there = _feeding(source)
    feeding_here = _feeding(target)
    for mapping in mappings:
        for column in mapping.columns:
            here = (target.schema, mapping.target, column)
            origin = mapping.output(column).plain
            there = None if origin is None else (source.schema, *origin)
            for own in feeding_here(here):
                if own.oid not in target.excluded:
                    others = () if there is None else tuple(feeding_there(there))
                    _join(found, own, others, (here,), () if there is None else (there,), "columns")
    for own in target.known:
        if (partners := target.partners.get(own.oid)) and own.oid not in target.excluded:
            _join(found, own, tuple(partners), (), (), "file" if own.oid in target.by_file else "name")
    return list(found.values())


def _feeding(side: _Side) -> Callable[[Fed], list[Known]]:
    by_column: dict[Fed, list[Known]] = {}
    for sequence in side.known:
        for fed in sequence.feeds:
            by_column.setdefault(fed, []).append(sequence)
    return lambda fed: [s for s in by_column.get(fed, []) if s.oid not in side.excluded]


def _join(
    found: dict[int, Link],
    own: Known,
    others: tuple[Known, ...],
    here: tuple[Fed, ...],
    there: tuple[Fed, ...],
    how: str,
) -> None:
    """A sequence may feed several columns, and go on from several others: it must be past all of them."""
    before = found.get(own.oid, Link(own=own, how=how))
    found[own.oid] = Link(
        own=own,
        others=tuple(dict.fromkeys((*before.others, *others))),
        here=tuple(dict.fromkeys((*before.here, *here))),
        there=tuple(dict.fromkeys((*before.there, *there))),
        how=how if how == "file" else before.how,
    )


def _undecided(sides: Mapping[Side, _Side]) -> Iterable[Undecided]:
    namesakes = {(Side.OLD, old.oid): new for old, new in _namesakes(sides)}
    namesakes |= {(Side.NEW, new.oid): old for old, new in _namesakes(sides)}
    told: set[str] = set()
    for one in sides.values():
        for s in one.known:
            other = namesakes.get((one.side, s.oid))
            if not one.loose(s) or s.oid in one.partners:
                continue
            if other is None and s.outside and not s.spoken_of:
                continue  # somebody else's, as far as anything tells
            if other is None and s.feeds:
                continue  # the rows of a column that is not carried draw from it, as anybody's do
            if other is not None:
                if one.names(s)[0] in told:
                    continue
                told.add(one.names(s)[0])
            cause, remedy = _untold(one, sides[one.side.other], s, other)
            yield Undecided(side=one.side, sequence=s, cause=cause, remedy=remedy)


def _untold(one: _Side, there: _Side, s: Known, other: Known | None) -> tuple[str, str]:
    """(cause, remedy)"""
    name = in_yaml(one.names(s)[0])
    leave = f"`exclude_sequences: [{name}]`"
    if other is not None:
        return (
            f"sequence {one.names(s)[0]} feeds no column, and nothing says that new's goes on from old's",
            f"add `sequences: [{name}]` to the file, or leave it alone: {leave}",
        )
    if one.side is Side.OLD:
        schema = s.schema if s.outside else there.schema
        made = f"where new has none: create sequence {readable(schema)}.{readable(s.name)}"
        return (
            f"old's sequence {s.label} feeds no column, and nothing says which one of new goes on from it",
            f"add `sequences: [{{to: ..., from: {name}}}]` to the file ({made}), or leave it behind: {leave}",
        )
    return (
        f"new's sequence {s.label} feeds no column, and nothing says which one of old it goes on from",
        f"add `sequences: [{{to: {name}, from: ...}}]` to the file, or leave it alone: {leave}",
    )


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def in_yaml(name: str) -> str:
    """A name as YAML takes it."""
    return name if _PLAIN.fullmatch(name) and name.lower() not in _WORDS else json.dumps(name, ensure_ascii=False)


_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])
