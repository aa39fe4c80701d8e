"""Nothing old is forgotten: every table is mapped, copied or excluded, every column read or dropped on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from schemas.draft import Draft, matching, nearest
from schemas.mapping import Ref
from schemas.problem import Problem
from schemas.spec import Spec, TableEntry
from schemas.table import Table


def forgotten(spec: Spec, drafts: Iterable[Draft], sources: Mapping[str, Table], dropped: set[Ref]) -> list[Problem]:
    """Tables and columns that nothing reads; a draft that could not be read is taken to read what it may."""
    readers = list(drafts)
    read: set[Ref] = set().union(*(d.touched for d in readers))
    tables = {s for d in readers for s in d.sources} | {d.target for d in readers if d.origin == "copy"}
    tables |= {d.entry.from_ for d in readers if d.entry is not None and d.entry.from_ is not None}
    unclear = any(d.shape is None for d in readers if d.origin == "select")
    excluded = matching(spec.exclude, sources)
    unread = {d.target for d in readers if d.origin == "copy" and d.shape is None}
    unread |= {d.entry.from_ for d in readers if d.entry is not None and d.entry.from_ is not None and d.shape is None}
    problems = []
    for name, table in sources.items():
        if name in excluded or (unclear and name not in tables) or name in unread:
            continue
        if name not in tables:
            problems.append(_table(spec, name))
            continue
        left = [c.name for c in table.columns if not c.generated and (name, c.name) not in read | dropped]
        if left and not unclear:
            problems.append(_columns(spec, name, left))
    problems += [
        Problem(
            cause=f"old table {name} is excluded, and a mapping reads it",
            remedy="take it out of `exclude`, or out of the mapping",
            where=spec.place("exclude"),
        )
        for name in sorted(excluded & tables)
    ]
    return problems


def _table(spec: Spec, name: str) -> Problem:
    return Problem(
        cause=f"old table {name} is read by nothing: its rows would be left behind",
        remedy=f"name {name} under `copy`, map it under `tables`, or leave it behind on purpose: `exclude: [{name}]`",
        where=spec.place("tables") if spec.tables else spec.place("copy"),
    )


def _columns(spec: Spec, table: str, left: list[str]) -> Problem:
    names = ", ".join(f"{table}.{c}" for c in left)
    return Problem(
        cause=f"old column{'s' if len(left) > 1 else ''} {names} {'are' if len(left) > 1 else 'is'} read by nothing",
        remedy=f"read what is needed in a mapping of {table}, or leave it behind on purpose: `drop: [{names}]`",
        where=spec.place("drop") if spec.drop else spec.place("tables") if spec.tables else spec.place("copy"),
    )


def misnamed(spec: Spec, entries: Iterable[TableEntry], sources: Mapping[str, Table]) -> list[Problem]:
    """Names under `copy`, `exclude` and `drop` that stand for nothing."""
    problems = []
    for key, names in (("copy", spec.copy_), ("exclude", spec.exclude)):
        for i, name in enumerate(names):
            if not any(c in name for c in "*?[") and name not in sources:
                problems.append(
                    Problem(
                        cause=f"`{key}` names {name}, and there is no old table {name}{nearest(name, sources)}",
                        remedy="correct the name, or take it out",
                        where=spec.place(key, i),
                    )
                )
    listed = [(name, spec.place("drop", i)) for i, name in enumerate(spec.drop)]
    listed += [(f"{e.from_}.{n}" if e.from_ is not None else n, e.place) for e in entries for n in e.drop]
    for name, place in listed:
        table, _, column = name.rpartition(".")
        if not table:
            cause, near = f"`drop` names {name}: of which table?", ""
        elif table not in sources:
            cause, near = f"`drop` names {name}, and there is no old table {table}", nearest(table, sources)
        elif column not in sources[table].column_names:
            cause, near = (
                f"`drop` names {name}, and {table} has no such column",
                nearest(column, sources[table].column_names),
            )
        else:
            continue
        problems.append(Problem(cause=cause + near, remedy="write table.column, as old has them", where=place))
    return problems
