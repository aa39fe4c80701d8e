"""Whether each sequence of a side that opens can go on from the other side's, and what makes it so. Pure.

Invariant: what is not known is never taken to be right; a position of a sequence may be said, a row's value never is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.direction import Direction, Side
from schemas.mapping import Mapping as TableMapping
from schemas.names import quote, readable
from schemas.sequence_links import Fed, Known, Link, Links, carried, in_yaml, links
from schemas.sequences import Place, Sequence, place
from schemas.spec import Spec

LIMITS = {
    "smallint": (-(1 << 15), (1 << 15) - 1),
    "integer": (-(1 << 31), (1 << 31) - 1),
    "bigint": (-(1 << 63), (1 << 63) - 1),
}
UNLIMITED = LIMITS["bigint"]  # a sequence gives no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column that a sequence feeds. `type` is its base type's name, `digits` what a numeric holds before the point.

    `low` and `high` are its extremes, as far as they were looked at: `indexed` tells that an index gives them at once,
    `scanned` that every row was read for them.
    """

    at: Fed
    type: str
    digits: int | None = None
    partitioned: bool = False
    indexed: bool = False
    scanned: bool = False
    low: int | None = None
    high: int | None = None

    @property
    def relation(self) -> str:
        """For FROM."""
        schema, table, _ = self.at
        return f"{'' if self.partitioned else 'only '}{quote(schema)}.{quote(table)}"

    @property
    def limit(self) -> tuple[int, int]:
        if self.digits is not None:
            return -(10**self.digits) + 1, 10**self.digits - 1
        return LIMITS.get(self.type, UNLIMITED)

    @property
    def tells(self) -> bool:
        """Whether its values say anything: they are numbers, and, where all were looked at, there are some."""
        return self.indexed or (self.scanned and self.high is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One side, as it was read: sequences by their oid (not those that may not be read), and columns."""

    sequences: Mapping[int, Sequence] = field(default_factory=dict)
    columns: Mapping[Fed, Column] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One link, and where its sequence has to stand; `unknown` says why that is not known.

    `cause` says what is wrong, or what is in doubt; `sql` mends what is wrong, on the side that opens.
    """

    link: Link
    place: Place | None = None
    unknown: str = ""
    cause: str = ""
    sql: str = ""

    @property
    def wrong(self) -> bool:
        return self.place is not None and self.place.wrong

    @property
    def remedy(self) -> str:
        """Before a turn."""
        leave = f"`exclude_sequences: [{in_yaml(self.link.own.label)}]`, where nothing draws from it"
        return f"{self.sql} -- or {leave}" if self.sql else leave

    @property
    def afterwards(self) -> str:
        """What mends it once the side has opened, as far as it could be set then."""
        needs = None if self.place is None else self.place.needs
        at = "" if needs is None else f"select setval('{self.link.own.spelled}', {needs})"
        return "; ".join(part for part in (self.sql, at) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """Everything about the sequences of one side's schema; `database` tells two databases apart."""

    known: tuple[Known, ...]
    standing: Standing
    database: tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What a turn would do with the sequences, and what is wrong with that."""

    links: Links
    judged: tuple[Judged, ...]
    denied: tuple[tuple[str, str], ...] = ()  # (cause, remedy): roles that may draw on the other side alone

    @property
    def wrong(self) -> tuple[tuple[str, str], ...]:
        """(cause, remedy) of everything that a turn must not go over."""
        return (
            *((f"{p.where}: {p.cause}", p.remedy) for p in self.links.problems),
            *((u.cause, u.remedy) for u in self.links.undecided),
            *((j.cause, j.remedy) for j in self.judged if j.wrong),
            *self.denied,
        )

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(j.unknown for j in self.judged if j.unknown)

    @property
    def doubts(self) -> tuple[str, ...]:
        return tuple(j.cause for j in self.judged if j.cause and not j.wrong)

    @property
    def excluded(self) -> tuple[str, ...]:
        return tuple(f"{side}'s {known.label}" for side, known in self.links.excluded)


def examined(
    spec: Spec,
    direction: Direction,
    mappings: Iterable[TableMapping],
    forward: Iterable[TableMapping],
    sides: Mapping[Side, Surveyed],
) -> Examined:
    """What a turn in that direction would find now: with room to spare, for what is drawn until it comes."""
    old, new = sides[Side.OLD], sides[Side.NEW]
    found = links(
        spec,
        direction,
        mappings,
        old.known,
        new.known,
        columns=carried(forward),
        same_database=old.database == new.database,
    )
    source, target = sides[direction.source].standing, sides[direction.target].standing
    return Examined(
        links=found,
        judged=tuple(judged(direction, found.links, source, target, spare=1)),
        denied=tuple(_denied(spec, found)),
    )


def _denied(spec: Spec, found: Links) -> Iterable[tuple[str, str]]:
    """What feeds a column is the gate `grants`' matter: whoever may write the table must be able to draw."""
    grants = spec.cutover.gates.grants
    source, target = found.direction.source, found.direction.target
    for link in found.links if grants.on else ():
        if link.own.feeds:
            continue
        may = {role for other in link.others for role in other.users}
        for role in sorted(may - {*link.own.users, *grants.except_}):
            other = link.others[0].label
            yield (
                f"role {role} may draw from {source}'s {other}, and not from {target}'s {link.own.label}",
                f"grant usage on sequence {link.own.spelled} to {readable(role)}",
            )


def judged(
    direction: Direction,
    links: Iterable[Link],
    source: Standing,
    target: Standing,
    *,
    margins: int = 1,
    spare: int = 0,
    strides: Mapping[str, int] | None = None,
) -> list[Judged]:
    """Each link of the direction. `margins`, `spare` as for `place`; `strides` by the name of the side that opens."""
    kept = strides or {}
    return [_judged(direction, link, source, target, margins, spare, kept.get(link.own.label, 0)) for link in links]


def _judged(
    direction: Direction, link: Link, source: Standing, target: Standing, margins: int, spare: int, stride: int
) -> Judged:
    own = target.sequences.get(link.own.oid)
    unread = [s for s in link.others if s.oid not in source.sequences]
    if own is None or unread:
        side, known = (direction.target, link.own) if own is None else (direction.source, unread[0])
        return Judged(link=link, unknown=f"{side}'s sequence {known.label} may not be read, or is gone")
    others = [source.sequences[s.oid] for s in link.others]
    here = [target.columns[c] for c in link.here if c in target.columns]
    there = [source.columns[c] for c in link.there if c in source.columns]
    found = place(
        own,
        others,
        _extremes(own, there),
        here=_extremes(own, here),
        limit=_limit(here),
        reach=_reach(own, others, there),
        margins=margins,
        spare=spare,
        stride=stride,
    )
    if not found.wrong:
        cause = f"{link.own.label}: {found.note}" if found.note else ""
        return Judged(link=link, place=found, cause=cause)
    return Judged(
        link=link,
        place=found,
        cause=_cause(direction, link, own, here, found),
        sql=_remedy(link, own, others, here, found),
    )


def _extremes(own: Sequence, columns: Iterable[Column]) -> list[int]:
    found = (column.high if own.up else column.low for column in columns)
    return [value for value in found if value is not None]


def _limit(columns: Iterable[Column]) -> tuple[int, int]:
    limits = [c.limit for c in columns]
    lows, highs = ([limit[i] for limit in limits] for i in (0, 1))
    return max(lows, default=UNLIMITED[0]), min(highs, default=UNLIMITED[1])


def _reach(own: Sequence, others: Iterable[Sequence], there: Iterable[Column]) -> int | None:
    """How far the other side could go on: as far as its sequences can, and no further than its columns hold."""
    low, high = _limit(there)
    ends = [s.end for s in others if s.up is own.up]
    if own.up:
        return min(max(ends), high) if ends else (high if high < UNLIMITED[1] else None)
    return max(min(ends), low) if ends else (low if low > UNLIMITED[0] else None)


def _cause(direction: Direction, link: Link, own: Sequence, here: list[Column], found: Place) -> str:
    target, source = direction.target, direction.source
    from_ = ", ".join(s.label for s in link.others)
    said = f"{target}'s sequence {link.own.label} cannot go on from {source}'s {from_ or 'rows'}: {found.note}"
    if found.needs is None:
        return said
    narrow = [c for c in here if _short(c.limit, found.needs)]
    if _short((own.minimum, own.maximum), found.needs):
        said += f" (it ends at {own.end})"
    if narrow:
        said += f" ({', '.join(f'{c.at[1]}.{c.at[2]} is {c.type}' for c in narrow)})"
    return said


def _short(limits: tuple[int, int], needs: int) -> bool:
    return not limits[0] <= needs <= limits[1]


def _remedy(link: Link, own: Sequence, others: list[Sequence], here: list[Column], found: Place) -> str:
    """What makes it right, as SQL on the side that opens; empty where nothing of this kind does."""
    name = link.own.spelled
    cycling = [s for s in others if s.cycle]
    if found.needs is None or (own.cycle and cycling):
        low, high = min(s.minimum for s in cycling), max(s.maximum for s in cycling)
        if found.needs is None:
            return f"alter sequence {name} cycle"
        return f"alter sequence {name} minvalue {low} maxvalue {high}"
    made = []
    for column in here:
        if _short(column.limit, found.needs):
            schema, table, of = column.at
            made.append(f"alter table {readable(schema)}.{readable(table)} alter column {readable(of)} type bigint")
    if _short((own.minimum, own.maximum), found.needs):
        said = "" if link.own.type == "bigint" else " as bigint"
        if own.end != LIMITS[link.own.type][1 if own.up else 0]:
            said += " no maxvalue" if own.up else " no minvalue"
        made += [f"alter sequence {name}{said}"] if said else []
    return "; ".join(made)
