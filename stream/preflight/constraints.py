"""Rows of the source that the target will refuse: counted before they stand in quarantine.

Invariant: a constraint that the source holds as well, validated, over the same columns, is believed; any other is tried
on every row that is there now. What cannot be counted is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from connectors.postgres import constraints
from connectors.postgres.constraints import LONG_BYTES, Check, Counted
from connectors.postgres.session import Connection
from connectors.postgres.user_path import Path
from schemas.direction import Direction, Side
from schemas.mapping import Mapping as TableMapping
from schemas.names import qualified, quote
from schemas.table import Table
from stream.preflight.finding import Findings, listed

STATEMENT_S = 20.0
ALL_S = 60.0


def examine(
    source: Connection,
    target: Connection,
    direction: Direction,
    mappings: Iterable[TableMapping],
    sources: Mapping[str, Table],
    tables: Mapping[str, Table],
    path: Path,
    limit: int,
    found: Findings,
) -> None:
    """Counts rows by constraint of the target's tables. `limit` is the quarantine's; `path` the source's."""
    side, other = direction.target, direction.source
    mapped = [m for m in mappings if m.target in tables]
    theirs = constraints.checks(target, [tables[m.target] for m in mapped])
    held = _held(source, sources)
    long = constraints.indexed(target, [tables[m.target] for m in mapped])
    fits = {(oid, c) for oid, _, c in constraints.indexed(source, sources.values())}
    until = time.monotonic() + ALL_S
    for mapping in mapped:
        table = tables[mapping.target]
        checks = [c for c in theirs if c.table == table.oid and not _believed(mapping, c, held)]
        conditions = {f"the CHECK {c.name}{'' if c.valid else ' (NOT VALID)'}": c.expression for c in checks}
        conditions |= _filled(mapping, table, sources)
        indexes = {
            f"the index {index}, which takes {LONG_BYTES:,} bytes": f"pg_catalog.octet_length({quote(c)}::text)"
            f" operator(pg_catalog.<=) {LONG_BYTES}"
            for oid, index, c in long
            if oid == table.oid and c in mapping.columns and not _fits(mapping, c, sources, fits)
        }
        conditions |= indexes
        if not conditions:
            continue
        left = until - time.monotonic()
        counted = (
            [Counted(rows=None, why="there was no time left for it")] * len(conditions)
            if left <= 0
            else constraints.breaking(
                source, mapping, dict(sources), table, [*conditions.values()], path, timeout_s=min(STATEMENT_S, left)
            )
        )
        where = f"{side}.{mapping.target}"
        blind: dict[str, list[str]] = {}
        for what, result in zip(conditions, counted, strict=True):
            if result.rows is None and what not in indexes:
                blind.setdefault(result.why, []).append(what)
            elif result.rows:
                _tell(found, what, result.rows, limit, where, qualified(table.schema, table.name), what in indexes)
        for why, names in blind.items():
            found.note(
                "constraints",
                f"rows of {other} that break {listed(names)} could not be counted: {why}. Each of them will stand in"
                " quarantine",
                where=where,
            )


def _tell(found: Findings, what: str, rows: int, limit: int, where: str, name: str, index: bool) -> None:
    side = where.partition(".")[0]
    other = Side(side).other
    does = "may be too long for" if index else "break"
    cause = f"{rows:,} rows that come from {other} {does} {what}"
    remedy = f"mend them on {other}, change what the mapping makes of them or leave them out by its `where`;" + (
        f" or index less of them on {side}, say an expression like left(..., 500) or a hash"
        if index
        else f" or drop the constraint of {name} until they are mended (NOT VALID spares only rows that were there"
        " before it: each row that is copied is checked)"
    )
    if rows > limit and not index:
        found.problem(
            "constraints", f"{cause}: more than the quarantine takes (quarantine.limit is {limit})", remedy, where
        )
    else:
        found.warning(
            "constraints", f"{cause}: each that is refused will stand in quarantine, and block", remedy, where
        )


def _held(source: Connection, sources: Mapping[str, Table]) -> dict[str, set[str]]:
    """By source table, the expressions of its validated CHECKs."""
    names = {t.oid: n for n, t in sources.items()}
    held: dict[str, set[str]] = {}
    for check in constraints.checks(source, sources.values()):
        if check.valid:
            held.setdefault(names[check.table], set()).add(check.expression)
    return held


def _believed(mapping: TableMapping, check: Check, held: Mapping[str, set[str]]) -> bool:
    """Whether the source's own constraint says the same of the same columns, or the mapping fills none of them."""
    outputs = {o.name: o for o in mapping.outputs}
    read = [outputs[c] for c in check.columns if c in outputs]
    if len(read) < len(check.columns):
        return True  # of a column that only the target has, the source cannot say anything
    if not (mapping.row_local and check.valid and check.expression in held.get(mapping.sources[0], ())):
        return False
    return all(o.plain == (mapping.sources[0], o.name) for o in read)


def _fits(mapping: TableMapping, column: str, sources: Mapping[str, Table], fits: set[tuple[int, str]]) -> bool:
    """Whether it is a bare copy of a column that an index of the source holds as well."""
    plain = mapping.output(column).plain
    return plain is not None and (sources[plain[0]].oid, plain[1]) in fits


def _filled(mapping: TableMapping, table: Table, sources: Mapping[str, Table]) -> dict[str, str]:
    """NOT NULL columns that may be given a NULL, beside the key."""
    wanted = {}
    for output in mapping.outputs:
        column = table.column(output.name)
        if not column.not_null or column.name in mapping.key or not mapping.row_local:
            continue
        if output.plain is not None and sources[output.plain[0]].column(output.plain[1]).not_null:
            continue
        wanted[f"NOT NULL of {output.name}"] = f"{quote(output.name)} is not null"
    return wanted
