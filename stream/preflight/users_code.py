"""Users' code that rows fire, and the path under which it finds what it names: tried before anything depends on it.

Invariant: `check` evaluates and changes nothing; `prepare` (on new) and `arm` (on old) write one row of each table too,
and undo it. What fails so would halt the stream at the first row, on old after the turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from connectors.postgres import catalog, fired, survey, trial, user_path
from connectors.postgres.fired import Row, Unnamed
from connectors.postgres.session import Connection
from connectors.postgres.user_path import Path
from schemas.direction import Direction, Side
from schemas.errors import Contended
from schemas.mapping import Mapping as TableMapping
from schemas.names import readable
from schemas.spec import Spec
from schemas.table import Table
from stream.migration.paths import Paths
from stream.preflight.finding import Findings, listed

EVALUATES_ITSELF = 17  # the major version from which the server evaluates indexes under a path of its own


def path(conn: Connection, spec: Spec, side: Side, path: Path, found: Findings) -> bool:
    """Whether the path may be used: its schemas are there, and nobody else may create in them."""
    schema = spec.old.schema_ if side is Side.OLD else spec.new.schema_
    fine = True
    for name in user_path.missing(conn, path):
        fine = False
        found.problem(
            "search_path",
            f"search_path names the schema {name}, which is not there, or which the role may not use",
            f"correct {side}.search_path in the file; or: grant usage on schema {readable(name)} to <role>",
            side,
        )
    if makers := user_path.makers(conn, path, schema):
        fine = False
        said = "; ".join(f"{listed(roles)} in {name}" for name, roles in makers.items())
        found.problem(
            "search_path",
            f"search_path holds schemas in which others may create objects ({said}): a function or an operator that"
            " they make there would run with slackwater's rights",
            f"{user_path.revoked(makers)}; or take the schema out of {side}.search_path",
            side,
        )
    return fine


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One direction's way into its target. `writing`: rows are tried, not only evaluated."""

    spec: Spec
    direction: Direction
    source: Connection
    conn: Connection
    sources: Mapping[str, Table]
    mappings: Sequence[TableMapping]
    tables: Mapping[str, Table]
    paths: Paths
    writing: bool

    @property
    def side(self) -> Side:
        return self.direction.target

    def rows(self, mapping: TableMapping, table: Table) -> list[Row]:
        """Rows such as will come into it, then one made from its types."""
        made = fired.made(self.conn, table)
        unmapped = {c.name: made[c.name] if c.not_null else None for c in fired.given(table)}
        coming = fired.computed(self.source, mapping, self.sources, self.paths.of(self.direction.source))
        return [*({**unmapped, **row} for row in coming), made]


def examine(to: Target, found: Findings) -> None:
    """Every table of the target that a mapping writes. Defaults are evaluated of columns that no mapping gives."""
    conn, side, path = to.conn, to.side, to.paths.of(to.side)
    written = {m.target: m for m in to.mappings if m.target in to.tables}
    tables = {name: to.tables[name] for name in written}
    expressions: dict[str, list[fired.Expression]] = {}
    for expression in fired.expressions(conn, tables.values()):
        expressions.setdefault(expression.table, []).append(expression)
    replica = survey.role(conn).replica if to.writing else False
    for name, table in tables.items():
        wanted = [
            e
            for e in expressions.get(name, ())
            if e.kind != "statistics" and not (e.kind == "default" and e.name in written[name].columns)
        ]
        if not (wanted or to.writing):
            continue
        coming = to.rows(written[name], table)
        faults = fired.unnamed(conn, table, wanted, [*(fired.stored(conn, table) if wanted else ()), *coming], path)
        if not faults and to.writing:
            try:
                fault = trial.tried(
                    conn, table, coming, migration=to.spec.migration, side=side, replica=replica, path=path
                )
            except Contended as error:
                found.problem("users_code", error.cause, error.hint, f"{side}.{name}")
                continue
            faults = [fault] if fault is not None else []
        for fault in faults:
            _refuse(conn, to.spec, side, path, fault, found)


def _refuse(conn: Connection, spec: Spec, side: Side, path: Path, fault: Unnamed, found: Findings) -> None:
    within = f", in {fault.within}" if fault.within else ""
    found.problem(
        "users_code",
        f"{fault.what} cannot be evaluated as rows are written{within}: {fault.message}"
        f" (search_path: {', '.join(path) or 'empty'})",
        _remedy(conn, spec, side, path, fault),
        f"{side}.{fault.table}",
    )


def _remedy(conn: Connection, spec: Spec, side: Side, path: Path, fault: Unnamed) -> str:
    wider = (*path, *(s for s in fault.there if s not in path))
    if not fault.there:
        return "put right what it names, or grant the role what it lacks: `slackwater grants`"
    if set(fault.there) <= set(path):
        return "grant the role what it lacks on it: `slackwater grants`"
    said = f"{side}.search_path: [{', '.join(wider)}] in the file"
    schema = spec.old.schema_ if side is Side.OLD else spec.new.schema_
    if makers := user_path.makers(conn, wider, schema):
        said = f"{user_path.revoked(makers)}; then {said}"
    if fault.functions:
        said += f"; or: {fired.pinned(fault.functions, wider)}"
    return said


def evaluated_by_server(conn: Connection, side: Side, tables: Iterable[Table], path: Path, found: Findings) -> None:
    """Functions of indexes and statistics that the server itself calls, whatever path a session has."""
    if catalog.server(conn).major < EVALUATES_ITSELF:
        return
    by_name = {t.name: t for t in tables}
    wanted: dict[str, list[fired.Expression]] = {}
    for expression in fired.expressions(conn, by_name.values()):
        if expression.kind in ("index", "statistics"):
            wanted.setdefault(expression.table, []).append(expression)
    for name, expressions in wanted.items():
        table = by_name[name]
        rows = [*fired.stored(conn, table), fired.made(conn, table)]
        for fault in fired.unnamed(conn, table, expressions, rows, fired.SERVERS_OWN):
            homes = fault.there or path or (table.schema,)
            wider = (*(s for s in path if s not in homes), *homes)
            found.warning(
                "server_path",
                f"{fault.what}: {fault.message} where PostgreSQL evaluates it itself, as it does since version 17 for"
                " CREATE INDEX, ANALYZE (autovacuum's, too), REINDEX and VACUUM FULL: these fail",
                fired.pinned(fault.functions, wider),
                f"{side}.{name}",
            )


def needed(conn: Connection, dsn: str, tables: Iterable[Table], schema: str) -> Path:
    """The path that `init` proposes: more than the side's own schema, where a function does not find what it names.

    The order is that of the application's own path, as far as this login has it.
    """
    by_name = {t.name: t for t in tables}
    wanted: dict[str, list[fired.Expression]] = {}
    for expression in fired.expressions(conn, by_name.values()):
        wanted.setdefault(expression.table, []).append(expression)
    homes: set[str] = set()
    for name, expressions in wanted.items():
        rows = [*fired.stored(conn, by_name[name]), fired.made(conn, by_name[name])]
        for fault in fired.unnamed(conn, by_name[name], expressions, rows, (schema,)):
            homes.update(fault.there)
    if not homes - {schema}:
        return ()
    usual = user_path.usual(dsn)
    homes.add(schema)
    return (*(s for s in usual if s in homes), *sorted(homes - set(usual)))
