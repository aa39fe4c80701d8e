"""What an engine runs: the loads and the staging tables of a plan, built from the plan and the target's catalog."""

from __future__ import annotations

import dataclasses

from connectors.postgres import column_types
from connectors.postgres.mirror import mirror_key, spelled
from connectors.postgres.session import Connection, translated
from schemas.collated import collated
from schemas.control import MIRROR_SCHEMA, mirror_name
from schemas.equality import ColumnType
from schemas.mapping import Feed, Mapping, Output
from schemas.names import qualified, quote
from schemas.plan import Plan
from schemas.table import Table
from stream.engine.mapping_sql import Load, columns
from stream.engine.staging import Stage


def mirror_mapping(source: Table) -> Mapping:
    """A mirror, written as what it is: a mapping that copies every streamed column."""
    names = tuple(c.name for c in source.columns if not c.generated)
    key = mirror_key(source)
    return Mapping(
        target=source.name,
        text=f"select {columns(names)} from {quote(source.name)}",
        origin="copy",
        sources=(source.name,),
        row_local=True,
        key=key,
        owner=key,
        feeds={
            source.name: Feed(
                source=source.name,
                query=f"select {columns(key)} from {quote(source.name)}",
                columns=frozenset(key),
                restrict=tuple(quote(k) for k in key),
            )
        },
        outputs=tuple(
            Output(name=n, expression=quote(n), deps=frozenset({(source.name, n)}), plain=(source.name, n))
            for n in names
        ),
        row_deps=frozenset(),
        reads={source.name: names},
        fingerprint="",
    )


def loads(conn: Connection, plan: Plan) -> dict[str, Load]:
    """Every load of the plan by name, mirrors first."""
    made: dict[str, Load] = {}
    for source in plan.mirrors:
        mapping = mirror_mapping(plan.sources[source])
        table = plan.sources[source]
        types = {c.name: spelled(conn, c.type) for c in table.columns}
        typed = dataclasses.replace(
            table,
            schema=MIRROR_SCHEMA,
            name=mirror_name(plan.migration, plan.direction, source),
            columns=tuple(
                dataclasses.replace(c, type=types[c.name], identity="", generated="")
                for c in table.columns
                if not c.generated
            ),
        )
        name = f"mirror:{source}"
        made[name] = Load(name=name, number=len(made), mapping=mapping, schema=MIRROR_SCHEMA, table=typed)
    for mapping in plan.mappings:
        made[mapping.target] = Load(
            name=mapping.target,
            number=len(made),
            mapping=mapping,
            schema=plan.target_schema,
            table=plan.targets[mapping.target],
        )
    held = column_types.of_columns(conn, [x.into for x in made.values()])
    return {name: dataclasses.replace(x, types=held[x.into]) for name, x in made.items()}


def stages(conn: Connection, plan: Plan) -> dict[str, Stage]:
    """One stage per source table, with the columns that any load reads."""
    made = {}
    names = {c.type: spelled(conn, c.type) for table in plan.sources.values() for c in table.columns}
    held = column_types.of_types(conn, list(names.values()))
    for number, (name, table) in enumerate(plan.sources.items()):
        key = mirror_key(table)
        read = set(key)
        watched = set(key)
        naming: set[str] = set()
        for mapping in plan.reading(name):
            read.update(mapping.reads.get(name, ()))
            if name in mapping.feeds:
                watched |= mapping.feeds[name].columns
                naming |= mapping.feeds[name].columns - set(key) if mapping.row_local else set()
        if name in plan.mirrors:
            read.update(c.name for c in table.columns if not c.generated)
        kept = [c for c in table.columns if c.name in read]
        lasting, at_once = _lasting(plan, table, key)
        ordered = collated(plan.mappings, name)
        made[name] = Stage(
            number=number,
            source=table,
            key=key,
            names=tuple(c.name for c in kept),
            types={
                c.name: dataclasses.replace(
                    held.get(names[c.type]) or ColumnType(base=names[c.type]),
                    collation=c.collation if c.name in ordered else "",
                )
                for c in kept
            },
            domains={c.name: names[c.type] for c in kept if c.type_kind == "d"},
            watched=frozenset(watched),
            naming=frozenset(naming),
            mirrored=name in plan.mirrors,
            moves_alone=any(set(plan.targets[m.target].column_names) - set(m.columns) for m in plan.reading(name)),
            lasting=lasting,
            at_once=at_once,
        )
    return made


def _lasting(plan: Plan, table: Table, key: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """`Folded.lasting` and `at_once` of a source: by what a row is known that comes back under another key.

    By what names its target rows, where that is not the whole key. Else by what of the key does not say which
    partition a row is in: PostgreSQL sends one that moves as a DELETE and the INSERT that follows it.
    """
    named = [m.feeds[table.name].columns for m in plan.reading(table.name) if m.row_local and m.key]
    parts = frozenset[str]().union(*named)
    if parts and parts < set(key):
        return tuple(k for k in key if k in parts), False
    return tuple(k for k in key if k not in table.split_by) if table.split_by else (), True


def parents_first(conn: Connection, loads: dict[str, Load]) -> tuple[str, ...]:
    """Load names so that a table referred to by a foreign key comes before the tables that refer to it.

    Cycles are broken anywhere: they need deferrable keys, or a role that may skip the checks.
    """
    places = {x.into: name for name, x in loads.items()}
    with translated("reading the target's foreign keys"):
        rows = conn.execute(
            "select distinct n.nspname, c.relname, fn.nspname, fc.relname from pg_constraint k "
            "join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace "
            "join pg_class fc on fc.oid = k.confrelid join pg_namespace fn on fn.oid = fc.relnamespace "
            "where k.contype = 'f' and c.oid <> fc.oid"
        ).fetchall()
    parents: dict[str, set[str]] = {name: set() for name in loads}
    for schema, table, parent_schema, parent in rows:
        child, above = places.get(qualified(schema, table)), places.get(qualified(parent_schema, parent))
        if child is not None and above is not None:
            parents[child].add(above)
    order: list[str] = []
    left = list(loads)
    while left:
        free = [n for n in left if not parents[n] - set(order)] or left[:1]
        order += free
        left = [n for n in left if n not in order]
    return tuple(order)


def direct_sources(plan: Plan, stages: dict[str, Stage], loads: dict[str, Load]) -> frozenset[str]:
    """The sources whose small batches need no temporary table: all their loads are row by row and leave no gaps."""

    def straight(source: str) -> bool:
        reading = [x for x in loads.values() if source in x.mapping.sources]
        ok = all(x.mapping.row_local and x.mapping.key and not (x.leaves_gaps or x.fixed) for x in reading)
        return ok and source not in plan.mirrors and not stages[source].feeding

    return frozenset(s for s in plan.sources if straight(s))
