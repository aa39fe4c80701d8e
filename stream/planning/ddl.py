"""`plan --ddl`: CREATE TABLEs for new tables that the file names and new does not have; a proposal to edit.

Types come from PostgreSQL itself, which describes each mapping's SELECT over the old tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from connectors.postgres import peek
from connectors.postgres.session import Connection
from schemas.bind import bound
from schemas.draft import matching
from schemas.errors import SlackwaterError
from schemas.names import readable
from schemas.spec import Spec, TableEntry
from schemas.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One missing table. `sql` is None where its SELECT cannot be described; `reason` then says why."""

    table: str
    sql: str | None
    reason: str = ""
    foreign_keys: str = ""  # to be added once every table is there


def proposals(
    spec: Spec, old: Connection, sources: Mapping[str, Table], targets: Mapping[str, Table]
) -> list[Proposal]:
    """In the order of the file: copied tables, then entries."""
    named = {entry.from_ for entry in spec.tables if entry.from_ is not None}
    copied = matching(spec.copy_, sources) - matching(spec.exclude, sources) - named
    there = {*targets, *copied}
    made = [_copy(spec, old, sources[name], there) for name in sorted(copied) if name not in targets]
    made += [_entry(spec, entry, old, sources) for entry in spec.tables if entry.to not in targets]
    return made


def script(found: Iterable[Proposal]) -> str:
    """All of them as one SQL file."""
    found = list(found)
    parts = [p.sql if p.sql is not None else f"-- {p.table}: {p.reason}\n" for p in found]
    return "\n".join([*parts, "".join(p.foreign_keys for p in found)])


def _copy(spec: Spec, old: Connection, table: Table, there: Collection[str]) -> Proposal:
    from connectors.postgres import reflection  # SQLAlchemy: a fifth of every program's start, for two verbs

    made, keys = reflection.create_like(old, table.schema, table.name, spec.new.schema_, there)
    return Proposal(table=table.name, sql=_noted(made, table.key), foreign_keys=keys)


def _entry(spec: Spec, entry: TableEntry, old: Connection, sources: Mapping[str, Table]) -> Proposal:
    source = sources.get(entry.from_) if entry.from_ is not None else None
    if entry.from_ is not None and source is None:
        return Proposal(table=entry.to, sql=None, reason=f"there is no old table {entry.from_}")
    text = entry.text if source is None else _shorthand(spec, entry, source)
    binding = {name: peek.relation(table) for name, table in sources.items()}
    try:
        with peek.reading(old, f"cannot describe the mapping of {entry.to}"):
            outputs = peek.describe(old, bound(text or "", binding))
    except SlackwaterError as error:
        return Proposal(table=entry.to, sql=None, reason=error.cause)
    required: set[str] = set()
    sorts: dict[str, str] = {}
    key = tuple(entry.key or ())
    if source is not None:
        renamed = {c.name: entry.rename.get(c.name, c.name) for c in source.columns}
        required = {renamed[c.name] for c in source.columns if c.not_null} - set(entry.set_)
        key = key or tuple(renamed[name] for name in source.key)
        sorts = {renamed[c.name]: f" COLLATE {c.collation}" for c in source.columns if c.collation}
    names = {o.name for o in outputs}
    columns = [
        (o.name, o.type + ("" if o.name in entry.set_ else sorts.get(o.name, "")), o.name in required or o.name in key)
        for o in outputs
    ]
    return Proposal(table=entry.to, sql=_create(spec.new.schema_, entry.to, columns, [k for k in key if k in names]))


def _shorthand(spec: Spec, entry: TableEntry, source: Table) -> str:
    """What `from`, `rename`, `set` and `drop` say, as a SELECT."""
    dropped = {*entry.drop, *(name.rpartition(".")[2] for name in spec.drop if name.rpartition(".")[0] == source.name)}
    items = [
        f"{readable(c.name)} as {readable(entry.rename.get(c.name, c.name))}"
        for c in source.columns
        if c.name not in dropped and not c.generated and entry.rename.get(c.name, c.name) not in entry.set_
    ]
    items += [f"{expression} as {readable(name)}" for name, expression in entry.set_.items()]
    return f"select {', '.join(items)} from {readable(source.name)}"


def _create(schema: str, name: str, columns: Iterable[tuple[str, str, bool]], key: Collection[str]) -> str:
    from connectors.postgres.reflection import NewColumn, create_table

    made = [NewColumn(name=n, type=type_, not_null=required) for n, type_, required in columns]
    return _noted(create_table(schema, name, made, key), key)


def _noted(made: str, key: Collection[str]) -> str:
    return made if key else "-- no key is known: give it a primary key\n" + made
