"""A row of the target traced to its source rows, or a source row to what it became.

Invariant: no value is read into the answer but those of keys, unless values were asked for; nothing is changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from connectors.postgres import peek
from connectors.postgres.peek import Rows
from connectors.postgres.session import Connection
from schemas.bind import bound
from schemas.direction import Side
from schemas.errors import ConfigError
from schemas.mapping import Mapping
from schemas.names import quote
from schemas.plan import Plan
from schemas.table import Table
from stream.backfill.load_table import MIRROR
from stream.planning import show
from stream.trace.last_write import Document, Key, Writers

ROWS = 20  # of one table that are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Where a trace asks: one direction's plan, sessions on its sides, and who knows about writers."""

    plan: Plan
    source: Connection
    target: Connection
    writers: Writers
    values: bool = False


def trace(at: Tracing, table: str, key: str, *, side: Side | None = None) -> Document:
    """The row as a document: `came_from` for a row of the target, `became` for one of the source.

    A name that both sides have is the target's unless `side` says otherwise.
    Errors: ConfigError for a table or a key that does not exist.
    """
    plan = at.plan
    mapping = next((m for m in plan.mappings if m.target == table), None)
    if mapping is not None and side is not plan.direction.source:
        return _target_row(at, mapping, key)
    if table in plan.sources and side is not plan.direction.target:
        return _source_row(at, plan.sources[table], key)
    names = sorted({*plan.sources, *(m.target for m in plan.mappings)})
    near = difflib.get_close_matches(table, names, n=1)
    raise ConfigError(
        f"no table {table} in this migration" + (f" on {side}" if side else ""),
        hint=f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}",
    )


def _target_row(at: Tracing, mapping: Mapping, text: str) -> Document:
    plan, target = at.plan, at.plan.targets[mapping.target]
    with peek.reading(at.target, f"cannot look for the row of {target.schema}.{target.name}"):
        key = _key(at.target, target, mapping.key, text)
        there = _there(at, at.target, target, key)
    owners = Rows(columns=mapping.owner, rows=(tuple(key[c] for c in mapping.owner),))
    whole = bound(mapping.text, peek.bindings(plan.sources, mapping.sources))
    with peek.reading(at.source, f"cannot look for the rows that feed {mapping.target}"):
        fed = {s: show.fed_by(plan, at.source, mapping, s, owners, whole, ROWS) for s in mapping.sources}
        found = {s: _origins(at, mapping, plan.sources[s], part.rows, key) for s, part in fed.items()}
    came_from: list[Document] = []
    for source, rows in found.items():
        table = plan.sources[source]
        loads = [mapping.target if mapping.row_local else MIRROR + source]
        # A chunk holds a range of keys: it has loaded a row only where there is one, or a change would tell of its end.
        came_from += [{**row, **_history(at, table, row["key"], loads if row["there"] else [])} for row in rows]
        if not rows:
            note = fed[source].note or "no row of it feeds this one now"
            came_from.append({"table": source, "key": None, "there": None, "note": note})
    columns = [
        {
            "column": o.name,
            "expression": o.expression,
            "from": sorted(f"{t}.{c}" for t, c in o.deps),
        }
        for o in mapping.outputs
    ]
    side = plan.direction.target
    return {**_head(at, side, target.name, key), **there, "columns": columns, "came_from": came_from}


def _origins(at: Tracing, mapping: Mapping, table: Table, rows: Rows, key: Key) -> list[Document]:
    """The source's rows that feed the row now; where there is none, the one that its key tells of."""
    if not table.key:
        return []
    origins: list[Document] = []
    for row in dict.fromkeys(rows.rows):
        whole = dict(zip(rows.columns, row, strict=True))
        origin: Document = {"table": table.name, "key": {c: whole[c] for c in table.key}, "there": True}
        origins.append({**origin, "values": whole} if at.values else origin)
    if origins:
        return origins
    copies = [
        (o.plain[1], key[o.name]) for o in mapping.outputs if o.plain and o.name in key and o.plain[0] == table.name
    ]
    told = dict(copies)
    if set(table.key) <= told.keys():
        return [{"table": table.name, "key": {c: told[c] for c in table.key}, "there": False}]
    return []


def _source_row(at: Tracing, table: Table, text: str) -> Document:
    plan = at.plan
    with peek.reading(at.source, f"cannot look for the row of {table.schema}.{table.name}"):
        key = _key(at.source, table, table.key, text)
        there = _there(at, at.source, table, key)
        query = peek.where_key(peek.relation(table), table, table.key, [key[c] for c in table.key])
        made = [(m, show.becomes(plan, at.source, m, table, query, ROWS)[0]) for m in plan.reading(table.name)]
    became: list[Document] = []
    for mapping, rows in made:
        target = plan.targets[mapping.target]
        if not mapping.key:
            became.append({"table": target.name, "key": None, "there": None, "note": "it has no key to look it up by"})
            continue
        with peek.reading(at.target, f"cannot look for rows of {target.schema}.{target.name}"):
            for values in show.project(rows, mapping.key).rows:
                one = {c: str(v) for c, v in zip(mapping.key, values, strict=True)}
                became.append({"table": target.name, "key": one, **_there(at, at.target, target, one)})
        if not rows.rows:
            became.append({"table": target.name, "key": None, "there": None, "note": "no row, by its mapping"})
    loads = [m.target if m.row_local else MIRROR + table.name for m in plan.reading(table.name)]
    history = _history(at, table, key, list(dict.fromkeys(loads)) if there["there"] else [])
    return {**_head(at, plan.direction.source, table.name, key), **there, **history, "became": became}


def _head(at: Tracing, side: Side, table: str, key: Key) -> Document:
    return {
        "migration": at.plan.migration,
        "direction": at.plan.direction.value,
        "side": side.value,
        "table": table,
        "key": dict(key),
    }


def _history(at: Tracing, table: Table, key: Key, loads: Sequence[str]) -> Document:
    """What wrote the target's copy of a source row last, and whether it waits somewhere."""
    return {"written_by": at.writers.last(table, key, loads), "waits_in": at.writers.waits(table.name, key)}


def _there(at: Tracing, conn: Connection, table: Table, key: Key) -> Document:
    """Whether the side holds the row, and its values where they were asked for."""
    query = peek.where_key(peek.relation(table), table, list(key), list(key.values()))
    rows = peek.rows(conn, query, 1)
    found: Document = {"there": bool(rows.rows)}
    if at.values and rows.rows:
        found["values"] = dict(zip(rows.columns, rows.rows[0], strict=True))
    return found


def _key(conn: Connection, table: Table, columns: Sequence[str], text: str) -> dict[str, str]:
    """The key's values as PostgreSQL prints them: 007 and 7 are one row. Errors: ConfigError."""
    values = show.key_values(text, columns, table.name)
    casts = ", ".join(f"(%s::{table.column(c).type})::text as {quote(c)}" for c in columns)
    row: Any = conn.execute(f"select {casts}".encode(), values).fetchone()
    return dict(zip(columns, row, strict=True))
