"""`show`: old rows beside the new rows they become, and what new holds of them now.

Invariant: the new rows are computed by the mapping's own text over the source as it is now, never by the engine; so
what is shown beside them is a test of the engine that anybody can read.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.postgres import peek
from connectors.postgres.peek import Rows
from connectors.postgres.session import Connection
from schemas.bind import bound
from schemas.errors import ConfigError, Halt
from schemas.mapping import Mapping
from schemas.names import quote
from schemas.plan import Plan
from schemas.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One table's rows. `what`: old, becomes (computed now), or holds (what new has). `note`: why none."""

    what: str
    table: str
    rows: Rows
    note: str = ""


EMPTY = Rows(columns=(), rows=())


def show(
    plan: Plan, old: Connection, new: Connection, table: str, *, key: str | None = None, limit: int = 5
) -> list[Part]:
    """Rows of `table` (old or new; an old one where both have it), those they come from or become, and those there.

    `key`: the primary key's value; several as `1,2` or a JSON array. Errors: ConfigError for an unknown table or key.
    """
    if table in plan.sources:
        return _from_old(plan, old, new, plan.sources[table], key, limit)
    mapping = next((m for m in plan.mappings if m.target == table), None)
    if mapping is None:
        names = sorted({*plan.sources, *(m.target for m in plan.mappings)})
        near = difflib.get_close_matches(table, names, n=1)
        raise ConfigError(
            f"no table {table} in this migration",
            hint=f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}",
        )
    return _from_new(plan, old, new, mapping, key, limit)


def _from_old(plan: Plan, old: Connection, new: Connection, table: Table, key: str | None, limit: int) -> list[Part]:
    """The table's rows, and for each mapping that reads it, the new rows that they feed."""
    query = peek.relation(table)
    if key is not None:
        query = peek.where_key(query, table, table.key, key_values(key, table.key, table.name))
    elif table.key:
        query += " order by " + ", ".join(map(quote, table.key))
    with peek.reading(old, f"cannot read {table.schema}.{table.name}", plan.source_path):
        picked = peek.rows(old, query, limit)
        parts = [Part(what="old", table=table.name, rows=picked, note="" if picked.rows else "no such row")]
        computed = [(m, *becomes(plan, old, m, table, query, limit)) for m in plan.reading(table.name)]
    for mapping, rows, owners in computed:
        parts += _pair(plan, new, mapping, rows, owners, limit)
    return parts


def becomes(
    plan: Plan, old: Connection, mapping: Mapping, table: Table, query: str, limit: int
) -> tuple[Rows, Rows | None]:
    """(the new rows that the rows of `query` feed, the owners they have); no owners for a table without a key."""
    binding = peek.bindings(plan.sources, mapping.sources)
    whole = bound(mapping.text, binding)
    if not mapping.owner:
        own = {**binding, table.name: f"select * from (\n{query}\n) q limit {limit}"}
        return peek.rows(old, bound(mapping.text, own), limit * 4), None
    feed = bound(mapping.feeds[table.name].query, {**_others(plan, mapping, table), table.name: _few(query, limit)})
    owners = peek.rows(old, feed, limit * 4)
    types = _owner_types(old, whole, mapping)
    rows = peek.rows(old, peek.where_in(whole, [f"q.{quote(o)}" for o in mapping.owner], types, owners), limit * 4)
    return rows, owners


def _few(query: str, limit: int) -> str:
    return f"select * from (\n{query}\n) q limit {limit}"


def _others(plan: Plan, mapping: Mapping, table: Table) -> dict[str, str]:
    """Bindings of what a feed may read beside its own table."""
    return peek.bindings(plan.sources, [name for name in mapping.sources if name != table.name])


def _owner_types(old: Connection, whole: str, mapping: Mapping) -> list[str]:
    types = {column.name: column.type for column in peek.describe(old, whole)}
    return [types[name] for name in mapping.owner]


def _from_new(
    plan: Plan, old: Connection, new: Connection, mapping: Mapping, key: str | None, limit: int
) -> list[Part]:
    """The rows that the mapping makes, the old rows that feed them, and what new holds under the same keys."""
    target = plan.targets[mapping.target]
    whole = bound(mapping.text, peek.bindings(plan.sources, mapping.sources))
    with peek.reading(old, f"cannot run the mapping of {mapping.target}", plan.source_path):
        query = whole
        if key is not None:
            types = {column.name: column.type for column in peek.describe(old, whole)}
            values = key_values(key, mapping.key, mapping.target)
            picked = Rows(columns=mapping.key, rows=(tuple(values),))
            query = peek.where_in(
                whole, [f"q.{quote(k)}" for k in mapping.key], [types[k] for k in mapping.key], picked
            )
        elif mapping.key:
            query = f"select * from (\n{whole}\n) q order by " + ", ".join(f"q.{quote(k)}" for k in mapping.key)
        made = peek.rows(old, query, limit)
        owners = project(made, mapping.owner) if mapping.owner else None
        parts = [fed_by(plan, old, mapping, source, owners, whole, limit) for source in mapping.sources]
    return [*parts, *_pair(plan, new, mapping, made, owners, limit, target)]


def fed_by(
    plan: Plan, old: Connection, mapping: Mapping, source: str, owners: Rows | None, whole: str, limit: int
) -> Part:
    """The old rows behind owners, where the feed says how to find them."""
    feed = mapping.feeds.get(source)
    if owners is None or feed is None or feed.restrict is None:
        return Part(what="old", table=source, rows=EMPTY, note="its rows cannot be found from the new ones")
    types = _owner_types(old, whole, mapping)
    inner = f"select {quote(source)}.* from ({peek.relation(plan.sources[source])}) {quote(source)}"
    expressions = ", ".join(f"{e} as o{i}" for i, e in enumerate(feed.restrict))
    query = f"select {expressions}, {quote(source)} as r from ({inner}) {quote(source)}"
    found = peek.where_in(query, [f"q.o{i}" for i in range(len(types))], types, owners)
    rows = peek.rows(old, f"select (w.r).* from (\n{found}\n) w", limit * 4)
    return Part(what="old", table=source, rows=rows)


def _pair(
    plan: Plan,
    new: Connection,
    mapping: Mapping,
    made: Rows,
    owners: Rows | None,
    limit: int,
    target: Table | None = None,
) -> list[Part]:
    """What the mapping makes, and what new holds."""
    table = target or plan.targets[mapping.target]
    made_ = Part(what="becomes", table=mapping.target, rows=made, note="" if made.rows else "no new row")
    if owners is None:
        return [made_, Part(what="holds", table=mapping.target, rows=EMPTY, note="it has no key to look them up by")]
    names = [name for name in made.columns if name in table.column_names] or list(mapping.columns)
    query = f"select {', '.join(map(quote, names))} from ({peek.relation(table)}) t"
    types = [table.column(name).type for name in mapping.owner]
    try:
        with peek.reading(new, f"cannot read {table.schema}.{table.name}"):
            there = peek.rows(
                new, peek.where_in(query, [f"q.{quote(o)}" for o in mapping.owner], types, owners), limit * 4
            )
    except Halt as error:
        return [made_, Part(what="holds", table=mapping.target, rows=EMPTY, note=error.cause)]
    return [made_, Part(what="holds", table=mapping.target, rows=there, note="" if there.rows else "nothing yet")]


def project(rows: Rows, columns: Sequence[str]) -> Rows:
    at = [rows.columns.index(name) for name in columns]
    return Rows(columns=tuple(columns), rows=tuple({tuple(row[i] for i in at): None for row in rows.rows}))


def key_values(key: str, columns: Sequence[str], table: str) -> list[str]:
    """`--key` as one text per key column. Errors: ConfigError."""
    if not columns:
        raise ConfigError(f"{table} has no key", hint="leave --key away; --limit says how many rows are shown")
    if len(columns) == 1 and not key.startswith("["):
        return [key]
    if key.startswith("["):
        try:
            values = [v if isinstance(v, str) else json.dumps(v) for v in json.loads(key)]
        except ValueError as error:
            raise ConfigError(f"--key {key} is not a JSON array", hint="--key '[\"a\", 1]'") from error
    else:
        values = [part.strip() for part in key.split(",")]
    if len(values) != len(columns):
        raise ConfigError(
            f"the key of {table} is ({', '.join(columns)}); --key gives {len(values)} of {len(columns)} values",
            hint="--key " + ",".join(f"<{c}>" for c in columns),
        )
    return values
