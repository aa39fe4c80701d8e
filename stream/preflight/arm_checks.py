"""What would stop the way back: new as a source, old as a target. `arm` refuses what this finds.

Nothing of old may change before the turn, so a target that the forward stream must find empty is full here, and right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from connectors.postgres import catalog, mirror, slots
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side, slot_name
from schemas.resolve import Resolution, resolve
from schemas.roundtrip import one_way
from schemas.spec import Spec
from schemas.table import Table
from stream.migration.paths import in_force
from stream.migration.prepared import Prepared
from stream.preflight import (
    bindings,
    collations,
    constraints,
    identity,
    name_conflicts,
    reverse_checks,
    server,
    tables,
    users_code,
)
from stream.preflight.bindings import Outputs
from stream.preflight.finding import Findings, listed

REVERSE = Direction.REVERSE


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way back as things stand: `sources` are new's tables, `targets` old's."""

    sources: Mapping[str, Table]
    targets: Mapping[str, Table]
    resolution: Resolution
    outputs: Outputs
    found: Findings


def examine(spec: Spec, old: Connection, new: Connection, prepared: Prepared, *, set_identity: bool = False) -> Way:
    """Both servers, their tables and the reverse mappings. Errors: of a connection that fails.

    `set_identity`: take replica identities as `arm --set-replica-identity` will have made them.
    """
    found = Findings(spec.command)
    server.examine(new, Side.NEW, found)
    server.examine(old, Side.OLD, found)
    slot = slots.slot(new, slot_name(spec.migration, REVERSE))
    server.source(new, str(spec.new.dsn), Side.NEW, 0 if slot is not None else 1, found)
    for problem in name_conflicts.foreign(spec, old, new):
        found.problem("name_taken", problem.cause, problem.remedy, problem.where)
    paths = in_force(spec, prepared.paths)
    for side, conn in ((Side.OLD, old), (Side.NEW, new)):
        users_code.path(conn, spec, side, paths.of(side), found)
    sources = catalog.tables(new, spec.new.schema_)
    targets = catalog.tables(old, spec.old.schema_)
    _drifted(prepared, sources, targets, found)
    needing = identity.needing_full(spec, REVERSE, sources, targets)
    full = needing if set_identity else []
    if needing and not set_identity:
        found.problem(
            "replica_identity",
            f"updates and deletes of {listed(needing)} do not send all of the row that the way back needs",
            "`slackwater arm --set-replica-identity` sets REPLICA IDENTITY FULL there; the migration's end undoes it",
            Side.NEW,
        )
    assumed = {name: identity.as_full(table) if name in full else table for name, table in sources.items()}
    resolution = resolve(spec, REVERSE, assumed, targets)
    for problem in resolution.problems:
        found.problem("mapping", problem.cause, problem.remedy, problem.where)
    if not resolution.problems:
        for table in one_way(spec, prepared.forward.mappings, resolution):
            if not table.accepted:
                found.problem("one_way", table.why, reverse_checks.named(table.name), spec.place("reverse"))
    streamed = {name: sources[name] for name in resolution.streamed if name in sources}
    tables.source(new, Side.NEW, streamed, full, found)
    written = {m.target: targets[m.target] for m in resolution.mappings if m.target in targets}
    tables.target(old, Side.OLD, written, written, (), spec.migration, found)
    constraints.identities(old, Side.OLD, resolution.mappings, written, found)
    wanted = mirror.user_types(new, [c.type_oid for table in streamed.values() for c in table.columns])
    for name in mirror.stand_ins(old, wanted).impossible:
        found.problem(
            "type", f"old lacks the type {name}", "make it there too: usually by the same extension", Side.OLD
        )
    collations.examine(new, old, REVERSE, streamed, resolution.mappings, found)
    outputs, refused = bindings.examine(spec, new, old, sources, targets, resolution, REVERSE, paths=paths)
    for problem in refused:
        found.problem("mapping", problem.cause, problem.remedy, problem.where)
    to = users_code.Target(
        spec=spec,
        direction=REVERSE,
        source=new,
        conn=old,
        sources=sources,
        mappings=resolution.mappings,
        tables=written,
        paths=paths,
        writing=not found.problems,
    )
    if not resolution.problems and not refused:
        users_code.examine(to, found)
    return Way(sources=sources, targets=targets, resolution=resolution, outputs=outputs, found=found)


def _drifted(prepared: Prepared, sources: Mapping[str, Table], targets: Mapping[str, Table], found: Findings) -> None:
    """Tables that are no longer what `prepare` saw: both directions go by one document."""
    kept = {
        Side.OLD: (prepared.old, targets, {*prepared.forward.streamed}),
        Side.NEW: (prepared.new, sources, {*prepared.forward.mappings}),
    }
    for side, (before, now, names) in kept.items():
        for name in sorted(names & before.keys()):
            table = now.get(name)
            if table is None or (table.oid, table.columns, table.key) != (
                before[name].oid,
                before[name].columns,
                before[name].key,
            ):
                found.problem(
                    "changed",
                    "it is gone" if table is None else "it has changed since `prepare`",
                    "stop the roles, `slackwater prepare`, and start them again",
                    f"{side}.{name}",
                )
