"""From the file and the tables of both sides to mappings, or to everything that is wrong, all at once.

Nothing here knows which side is old: a direction's source and target are given. Types are judged by PostgreSQL
(`connectors.postgres.bindings`), never here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from collections.abc import Mapping as Map
from dataclasses import dataclass, field

from schemas import reverse
from schemas.control import MIRROR_SCHEMA, mirror_name
from schemas.coverage import forgotten, misnamed
from schemas.direction import Direction
from schemas.draft import Draft, as_written, copies, drafts, dropped_columns, matching, nearest
from schemas.mapping import Feed, Mapping, Output, Ref
from schemas.names import qualified, readable
from schemas.owner import of_join, of_row, row_local
from schemas.problem import Problem
from schemas.reversal import How, Reversal
from schemas.shape import Item, Shape
from schemas.spec import ReverseEntry, Spec
from schemas.sql_text import select_items
from schemas.table import Identity, Table

__all__ = ["Problem", "Resolution", "finish", "resolve"]

Tables = Map[str, Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """`mappings` can be used only when there are no `problems`. `streamed` are all sources that are read, in the
    tables' order; `mirrors` those of them that some mapping joins or aggregates. `reversals` are each old column's way
    back (reverse only), tables that have none included. `strays` are, by old table, the new tables of which a row that
    stands alone comes back to nothing."""

    mappings: tuple[Mapping, ...]
    mirrors: tuple[str, ...]
    streamed: tuple[str, ...]
    problems: tuple[Problem, ...]
    reversals: tuple[Reversal, ...] = ()
    strays: Map[str, tuple[str, ...]] = field(default_factory=dict)


def resolve(spec: Spec, direction: Direction, sources: Tables, targets: Tables) -> Resolution:
    """Every mapping of one direction. Tables are keyed by their unqualified names."""
    if direction is Direction.REVERSE:
        return _reverse(spec, sources, targets)
    made, dropped = _forward(spec, sources, targets)
    resolution = _resolved(spec, direction, made, sources, targets)
    problems = misnamed(spec, spec.tables, sources) + forgotten(spec, made, sources, dropped)
    return dataclasses.replace(resolution, problems=tuple(dict.fromkeys((*resolution.problems, *problems))))


def _forward(spec: Spec, old: Tables, new: Tables) -> tuple[list[Draft], set[Ref]]:
    """Entries and copies, read; and the old columns that are left behind on purpose."""
    dropped = dropped_columns(spec, spec.tables)
    everywhere = dropped_columns(spec, ())  # what one entry does without, another one of the same table may have
    made = drafts(spec.tables, old, new, everywhere)
    _unqualified_drops(made, dropped)
    made += copies(_copied(spec, made, old), old, new, everywhere, spec.place("copy"))
    return made, dropped


def _reverse(spec: Spec, new: Tables, old: Tables) -> Resolution:
    """What stands under `reverse`, and what is derived from the forward mappings for every other old table."""
    direction = Direction.REVERSE
    mirrors = _mirrors(spec, Direction.FORWARD, old)
    there, _ = _forward(spec, old, new)
    forward = [(d, m) for d in there if (m := _mapping(d, old, new, mirrors)) is not None]
    added = {e.to: e for e in spec.reverse if e.adds}
    made = drafts([e for e in spec.reverse if not e.adds], new, old, set(), direction)
    _unqualified_drops(made, set())
    written = {d.target for d in made}
    reversals = [r for d in made if d.target in old for r in reverse.written(d, old[d.target])]
    scopes: dict[str, str] = {}
    strays: dict[str, tuple[str, ...]] = {}
    unmade = [Problem(cause=c, remedy=r, where=e.place) for e in added.values() for c, r in _useless(e, old, forward)]
    for way in reverse.derive(forward, old, new, added):
        if way.table in written:
            continue
        reversals += way.reversals
        if way.text is None:
            if way.table in added:
                unmade.append(_underived(added[way.table], way.why))
            continue
        made.append(_derived(spec, way, added.get(way.table), new))
        if way.scope is not None:
            scopes[way.table] = way.scope
        if way.strays:
            strays[way.table] = way.strays
    resolution = _resolved(spec, direction, made, new, old)
    return dataclasses.replace(
        resolution,
        mappings=tuple(dataclasses.replace(m, scope=scopes.get(m.target)) for m in resolution.mappings),
        problems=tuple(dict.fromkeys((*resolution.problems, *unmade))),
        reversals=tuple(reversals),
        strays=strays,
    )


def _derived(spec: Spec, way: reverse.Derived, entry: ReverseEntry | None, new: Tables) -> Draft:
    """A derived SELECT, read as if it had been written."""
    place = entry.place if entry is not None else f"{spec.place('reverse')}: {way.table}"
    draft = Draft(
        target=way.table, text=way.text or "", origin=way.origin, place=place, entry=entry, direction=Direction.REVERSE
    )
    draft.expected = [r.column for r in way.reversals if r.how is not How.NONE]
    draft.read(new)
    if entry is not None:
        as_written(draft)
    return draft


def _useless(entry: ReverseEntry, old: Tables, forward: reverse.Forward) -> list[tuple[str, str]]:
    if entry.to not in old:
        return [(f"there is no old table {entry.to}{nearest(entry.to, old)}", "correct `to`")]
    unknown = [c for c in entry.set_ if c not in old[entry.to].column_names]
    if unknown:
        near = nearest(unknown[0], old[entry.to].column_names)
        return [(f"`set` names {unknown[0]}, which old's {entry.to} has not{near}", "name columns of the old table")]
    if not any(entry.to in m.sources for _, m in forward):
        return [(f"no mapping reads {entry.to}, so nothing of it is derived", "write its `select` over new tables")]
    return []


def _underived(entry: ReverseEntry, why: str) -> Problem:
    return Problem(
        cause=f"the way back to {entry.to} cannot be derived, so there is nothing to `set` columns of: {why}",
        remedy="write its `select` over new tables",
        where=entry.place,
    )


def _mirrors(spec: Spec, direction: Direction, sources: Tables) -> dict[str, str]:
    return {n: qualified(MIRROR_SCHEMA, mirror_name(spec.migration, direction, n)) for n in sources}


def _resolved(spec: Spec, direction: Direction, made: list[Draft], sources: Tables, targets: Tables) -> Resolution:
    mirrors = _mirrors(spec, direction, sources)
    mappings = [m for d in made if (m := _mapping(d, sources, targets, mirrors)) is not None]
    problems = [p for d in made for p in d.problems]
    problems += _twice(made)
    problems += _unstreamable(made, mappings, sources)
    read = {s for m in mappings for s in m.sources}
    mirrored = {s for m in mappings if not m.row_local for s in m.sources}
    return Resolution(
        mappings=tuple(mappings),
        mirrors=tuple(n for n in sources if n in mirrored),
        streamed=tuple(n for n in sources if n in read),
        problems=tuple(dict.fromkeys(problems)),
    )


def _copied(spec: Spec, made: Iterable[Draft], sources: Tables) -> list[str]:
    """The tables that `copy` stands for: `*` is what no entry reads, a name or pattern is what it says."""
    read = {s for d in made for s in (*d.sources, *((d.entry.from_,) if d.entry and d.entry.from_ else ()))}
    if any(d.shape is None and d.origin == "select" for d in made):
        read |= {d.target for d in made}  # what could not be read may well read its namesake
    excluded = matching(spec.exclude, sources)
    chosen = {n for n in sources if n not in read and n not in excluded} if "*" in spec.copy_ else set()
    chosen |= matching([p for p in spec.copy_ if p != "*"], sources) - excluded
    return [n for n in sources if n in chosen]


def _unqualified_drops(made: Iterable[Draft], dropped: set[tuple[str, str]]) -> None:
    """`drop: [fax]` in an entry with a SELECT over one table means that table's."""
    for draft in made:
        if draft.entry is None or draft.entry.from_ is not None:
            continue
        for name in draft.entry.drop:
            if "." not in name and len(draft.sources) == 1:
                dropped.add((draft.sources[0], name))
            elif "." not in name:
                draft.refuse(f"`drop` of {draft.target} names {name}: of which table?", "write table.column")


def _twice(made: Iterable[Draft]) -> list[Problem]:
    by_target: dict[str, list[Draft]] = {}
    for draft in made:
        by_target.setdefault(draft.target, []).append(draft)
    return [
        Problem(
            cause=f"{len(several)} mappings write {target}: {'; '.join(d.place for d in several)}",
            remedy="keep one; two old tables become one new one in one SELECT, with a join or `union all`"
            + ("" if all(d.origin != "copy" for d in several) else ", or take the name out of `copy`"),
            where=several[-1].place,
        )
        for target, several in by_target.items()
        if len(several) > 1
    ]


def _unstreamable(made: Iterable[Draft], mappings: Iterable[Mapping], sources: Tables) -> list[Problem]:
    """Sources whose deleted and changed rows could not be known."""
    problems = []
    places = {s: d for d in made for s in d.sources}
    mirrored = {s: m for m in mappings if not m.row_local for s in m.sources}
    for name, draft in places.items():
        table = sources.get(name)
        if table is None:
            continue
        full = f"alter table {qualified(table.schema, name)} replica identity full"
        if not table.key and name in mirrored:
            cause = f"{draft.here} table {name} has no primary key, and {mirrored[name].target} joins or aggregates it"
            remedy = f"give {name} a primary key, or map it by itself, row by row"
        elif not table.key and table.identity is not Identity.FULL:
            cause = f"{draft.here} table {name} has no primary key, so its changes do not say which row they are about"
            remedy = f"run: {full}; or give {name} a primary key"
        elif table.key and not set(table.key) <= set(table.identity_columns):
            cause = (
                f"the replica identity of {draft.here} table {name} does not hold its primary key"
                f" ({', '.join(table.key)}), so a change does not say which row it is about"
            )
            remedy = f"run: alter table {qualified(table.schema, name)} replica identity default; or: {full}"
        else:
            continue
        problems.append(Problem(cause=cause, remedy=remedy, where=draft.place))
    return problems


def _mapping(draft: Draft, sources: Tables, targets: Tables, mirrors: Map[str, str]) -> Mapping | None:
    """The draft as a mapping; None, with the draft's problems, when it is not one."""
    shape = draft.shape
    target = targets.get(draft.target)
    if target is None and draft.origin == "select":
        draft.refuse(
            f"there is no {draft.there} table {draft.target}{nearest(draft.target, targets)}",
            f"create it in {draft.there}, or correct `to`",
        )
    if shape is None or target is None or draft.problems:
        return None
    _outputs(draft, shape, target)
    if not draft.sources:
        draft.refuse(
            f"the mapping of {draft.target} reads no {draft.here} table", f"write a SELECT over {draft.here} tables"
        )
    key = _key(draft, shape, target)
    if draft.problems:
        return None
    local = row_local(shape)
    if local:
        owner = of_row(draft, shape, sources[draft.sources[0]], key)
    else:
        owner = of_join(draft, shape, sources, target, key, mirrors)
    if owner is None or draft.problems:
        return None
    touched = draft.touched | {(t, c) for t, f in owner.feeds.items() for c in f.columns}
    reads = {s: tuple(c.name for c in sources[s].columns if (s, c.name) in touched) for s in draft.sources}
    mapping = Mapping(
        target=draft.target,
        text=draft.text,
        origin=draft.origin,
        sources=draft.sources,
        row_local=local,
        key=key,
        owner=owner.columns,
        feeds=owner.feeds,
        outputs=_described(draft, shape),
        row_deps=frozenset(shape.row_deps),
        reads=reads,
        fingerprint="",
    )
    return dataclasses.replace(mapping, fingerprint=_fingerprint(mapping, sources))


def _outputs(draft: Draft, shape: Shape, target: Table) -> None:
    """Each output is a column that new has and can be given; each column that new needs is an output."""
    names = [o.name for o in shape.outputs]
    for number, name in enumerate(names, 1):
        if not name:
            draft.refuse(
                f"output {number} of the mapping of {draft.target} has no name", "name it: `... as column_of_new`"
            )
        elif name not in target.column_names:
            draft.refuse(
                f"the mapping of {draft.target} gives a column {name}, which {draft.there}'s {draft.target} has not"
                f"{nearest(name, target.column_names)}",
                f"name it as {draft.there} does (`... as name`), leave it out, or add {name} to {draft.target}",
            )
        elif target.column(name).generated:
            draft.refuse(
                f"column {draft.target}.{name} is generated in {draft.there}, so it cannot be written",
                f"leave {name} out",
            )
    for name in dict.fromkeys(n for n in names if n and names.count(n) > 1):
        draft.refuse(f"the mapping of {draft.target} gives {name} {names.count(name)} times", "keep one of them")
    for column in target.columns:
        needed = column.not_null and not (column.has_default or column.identity or column.generated)
        if needed and column.name not in names:
            draft.refuse(
                f"column {draft.target}.{column.name} is NOT NULL without a default, and the mapping does not give it",
                _give(draft, column.name),
            )


def _give(draft: Draft, column: str) -> str:
    name, of = readable(column), f"or give it a default in {draft.there}"
    if draft.direction is Direction.REVERSE and (draft.entry is None or draft.entry.set_):
        source = ", ".join(draft.sources)
        return (
            f"say how it is computed from {source}: `reverse: [{{to: {draft.target}, set: {{{name}: <expression>}}}}]`"
            f" (a constant will do, such as \"''\"), {of}"
        )
    return f"add it to the mapping (`... as {name}`), {of}"


def _key(draft: Draft, shape: Shape, target: Table) -> tuple[str, ...]:
    asked = draft.entry.key if draft.entry is not None else None
    key = tuple(asked) if asked is not None else target.key
    names = [o.name for o in shape.outputs]
    for name in key:
        if name not in target.column_names:
            draft.refuse(
                f"`key` of {draft.target} names {name}, which {draft.there}'s {draft.target} has not"
                f"{nearest(name, target.column_names)}",
                f"name columns of the {draft.there} table",
            )
        elif name not in names:
            draft.refuse(
                f"key column {draft.target}.{name} is not given by the mapping",
                f"add it (`... as {readable(name)}`), or name under `key:` what tells the rows apart",
            )
    return key


def _described(draft: Draft, shape: Shape) -> tuple[Output, ...]:
    written = select_items(draft.text) or []
    usable = len(written) == len(shape.outputs)
    return tuple(
        Output(name=o.name, expression=_expression(o, written[i] if usable else ""), deps=o.deps, plain=o.plain)
        for i, o in enumerate(shape.outputs)
    )


def _expression(item: Item, written: str) -> str:
    """For people: the old column, or the expression as it was written."""
    if item.origin is not None:
        return f"{readable(item.origin[0])}.{readable(item.origin[1])}"
    if item.node is not None:
        return item.node.sql(dialect="postgres", comments=False)
    return " ".join((written or item.name).split())


def _fingerprint(mapping: Mapping, sources: Tables) -> str:
    """Of everything that changes what is written."""

    def fed(feed: Feed) -> list[object]:
        return [feed.query, sorted(feed.columns), feed.restrict]

    content = {
        "target": mapping.target,
        "text": mapping.text,
        "key": mapping.key,
        "owner": mapping.owner,
        "feeds": {t: fed(f) for t, f in mapping.feeds.items()},
        "reads": {s: [[c, sources[s].column(c).type_full] for c in columns] for s, columns in mapping.reads.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


TEXTS = frozenset({"text", "character varying", "unknown", "character", "bpchar"})


def finish(mapping: Mapping, described: Map[str, str], target: Table) -> Mapping:
    """The mapping with `cast` where a text output meets a column that is not text.

    `described` are the outputs' types, without lengths, as the server describes the prepared SELECT.
    """
    outputs = tuple(
        dataclasses.replace(o, cast=described[o.name] in TEXTS and target.column(o.name).type not in TEXTS)
        for o in mapping.outputs
    )
    return dataclasses.replace(mapping, outputs=outputs)
