"""`check`: everything that would stop this migration, all at once, each with its remedy. It changes nothing.

`prepare` runs the same examination first and refuses what it refuses, so the two never disagree.

server           each server: version, encoding, settings, a direct way there
name_conflicts   whether slot and publication of this name are another database's
ddl              `new.ddl`, tried in a transaction that is rolled back
identity         which source tables need REPLICA IDENTITY FULL
tables           the tables of each side
collations       the collations under which mappings compute, on the target as on the source
bindings         every mapping's text, held up to both servers in each place it will run
users_code       functions of users that rows fire: evaluated, and one row of each table tried by `prepare` and `arm`
constraints      rows of old that a constraint or an index of new will refuse, counted
unfilled         tables and columns of new that nothing fills, triggers that will not fire
sequences        which sequence goes on from which after a turn, and whether it can
reverse_checks   the way back, before it is needed: what `arm` would refuse and what would be lost
arm_checks       the same once it is due: what `arm` does refuse
kafka            the brokers, and topics of these names
finding          what all of them return: a cause, a remedy, and how bad it is
"""

from __future__ import annotations

from collections.abc import Mapping

from connectors.postgres import catalog, control, mirror, slots, survey
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side, slot_name
from schemas.plan import Plan
from schemas.resolve import resolve
from schemas.spec import Spec
from schemas.table import Table
from stream.migration import paths
from stream.migration.prepared import Prepared, paths_now, plan_of
from stream.migration.topics import FlowTopics
from stream.preflight import (
    bindings,
    collations,
    constraints,
    ddl,
    identity,
    kafka,
    name_conflicts,
    reverse_checks,
    sequences,
    server,
    tables,
    unfilled,
    users_code,
)
from stream.preflight.finding import Finding, Findings, Severity, counted, listed

__all__ = ["Finding", "Findings", "Severity", "check", "counted", "examine", "listed", "planned"]


def check(spec: Spec) -> Findings:
    """The whole examination over sessions of its own; a side that cannot be reached is one of the findings."""
    found = Findings(spec.command)
    old = server.reach(str(spec.old.dsn), Side.OLD, found)
    new = server.reach(str(spec.new.dsn), Side.NEW, found)
    try:
        with FlowTopics(spec) as topics:
            if old is not None and new is not None:
                row = control.migration(new, spec.migration)
                before = None if row is None else Prepared.from_json(row.prepared)
                found += examine(spec, old, new, topics, before)
            else:
                for conn, side in ((old, Side.OLD), (new, Side.NEW)):
                    if conn is not None:
                        server.examine(conn, side, found)
                kafka.examine(spec, topics, (), found)
    finally:
        for conn in (old, new):
            if conn is not None:
                conn.close()
    return found


def examine(
    spec: Spec,
    old: Connection,
    new: Connection,
    topics: FlowTopics,
    before: Prepared | None,
    *,
    set_identity: bool = False,
    writing: bool = False,
) -> Findings:
    """Both servers, their tables, the mappings and Kafka. `before`: what was prepared already.

    `set_identity`: take replica identities as `prepare --set-replica-identity` will have made them. `writing`: one row
    of each table of new is tried, and undone, while new is closed.
    """
    found = Findings(spec.command)
    server.examine(old, Side.OLD, found)
    server.examine(new, Side.NEW, found)
    _apart(spec, old, new, found)
    _creates(old, Side.OLD, found)
    _creates(new, Side.NEW, found)
    for problem in name_conflicts.foreign(spec, old, new):
        found.problem("name_taken", problem.cause, problem.remedy, problem.where)
    slot = slots.slot(old, slot_name(spec.migration, Direction.FORWARD))
    server.source(old, str(spec.old.dsn), Side.OLD, 0 if slot is not None else 1, found)
    if before is not None and (slot is None or slot.wal_status == "lost"):
        found.problem(
            "slot",
            f"replication slot {before.forward.slot} is gone: the changes it held are in no stream",
            "`slackwater cancel`, then prepare anew",
            Side.OLD,
        )
    sources = catalog.tables(old, spec.old.schema_)
    if not sources:
        found.problem(
            "schema",
            f"schema {spec.old.schema_} of the old database holds no tables",
            "set old.schema to the schema of the tables to be migrated",
            Side.OLD,
        )
    with ddl.tried(new, spec, found):
        targets = catalog.tables(new, spec.new.schema_)
        full = identity.needing_full(spec, Direction.FORWARD, sources, targets) if set_identity else []
        assumed = {name: identity.as_full(table) if name in full else table for name, table in sources.items()}
        resolution = resolve(spec, Direction.FORWARD, assumed, targets)
        ways = paths.in_force(spec, before.paths if before is not None else paths.found(spec, old, new))
        for side, conn in ((Side.OLD, old), (Side.NEW, new)):
            users_code.path(conn, spec, side, ways.of(side), found)
        for problem in resolution.problems:
            found.problem("mapping", problem.cause, problem.remedy, problem.where)
        streamed = {name: sources[name] for name in resolution.streamed if name in sources}
        tables.source(old, Side.OLD, streamed, full, found)
        written = {m.target: targets[m.target] for m in resolution.mappings if m.target in targets}
        loaded = control.loads(new, spec.migration, Direction.FORWARD)
        turn = control.turn(new, spec.migration, Side.NEW)
        closed = turn is None or not turn.open  # the rows of a side that is open are the application's
        fresh = written.keys() - loaded.keys() if closed else ()
        tables.target(new, Side.NEW, written, targets, fresh, spec.migration, found)
        constraints.identities(new, Side.NEW, resolution.mappings, written, found)
        _types(old, new, streamed, found)
        collations.examine(old, new, Direction.FORWARD, streamed, resolution.mappings, found)
        users_code.evaluated_by_server(old, Side.OLD, streamed.values(), ways.old, found)
        users_code.evaluated_by_server(new, Side.NEW, written.values(), ways.new, found)
        _, refused = bindings.examine(spec, old, new, sources, targets, resolution, paths=ways)
        for problem in refused:
            found.problem("mapping", problem.cause, problem.remedy, problem.where)
        back = reverse_checks.resolved(spec, sources, targets)
        sequences.examine(found, sequences.look(spec, old, new, resolution, back))
        if not resolution.problems and not refused:
            to = users_code.Target(
                spec=spec,
                direction=Direction.FORWARD,
                source=old,
                conn=new,
                sources=sources,
                mappings=resolution.mappings,
                tables=written,
                paths=ways,
                writing=writing and closed and not found.problems,
            )
            users_code.examine(to, found)
            constraints.examine(
                old,
                new,
                Direction.FORWARD,
                resolution.mappings,
                sources,
                written,
                ways.old,
                spec.quarantine.limit,
                found,
            )
            unfilled.examine(new, Side.NEW, resolution.mappings, targets, found)
            reverse_checks.examine(spec, old, new, sources, targets, ways, found)
    kafka.examine(spec, topics, streamed, found)
    return found


def _apart(spec: Spec, old: Connection, new: Connection, found: Findings) -> None:
    """Old and new may share a database, but not a schema."""
    if catalog.same_database(old, new) and spec.old.schema_ == spec.new.schema_:
        found.problem(
            "same_schema",
            f"old and new are the same schema, {spec.old.schema_}, of the same database",
            "make the new tables in a schema of their own, and name it under new.schema",
        )


def _creates(conn: Connection, side: Side, found: Findings) -> None:
    role = survey.role(conn)
    if not role.create:
        found.problem(
            "privileges",
            f"role {role.name} lacks CREATE on the database: the control schema lives in it",
            f"grant create on database {catalog.server(conn).database} to {role.name}; `slackwater grants` prints it",
            side,
        )


def _types(old: Connection, new: Connection, streamed: Mapping[str, Table], found: Findings) -> None:
    """Types of old that new cannot hold, not even through a stand-in."""
    wanted = mirror.user_types(old, [c.type_oid for table in streamed.values() for c in table.columns])
    for name in mirror.stand_ins(new, wanted).impossible:
        found.problem(
            "type",
            f"new lacks the type {name}",
            "make it there too: usually by the same extension (create extension ...)",
            Side.NEW,
        )


def planned(spec: Spec, old: Connection, new: Connection) -> Plan:
    """The forward plan over the tables as they are now, and as new.ddl will make them; nothing has to be prepared.

    Errors: Refused when the file does not resolve; the server's, for a text that it does not take.
    """
    sources = catalog.tables(old, spec.old.schema_)
    with ddl.tried(new, spec, Findings(spec.command)):
        targets = catalog.tables(new, spec.new.schema_)
        resolution = resolve(spec, Direction.FORWARD, sources, targets)
        ways = paths_now(spec, old, new)
        outputs = (
            {} if resolution.problems else bindings.outputs(spec, old, new, sources, targets, resolution, paths=ways)
        )
    rows, _, _ = kafka.topic_names(spec, resolution.streamed)
    topics = dict(zip(resolution.streamed, rows, strict=True))
    return plan_of(spec, Direction.FORWARD, resolution, sources, targets, topics, outputs, ways)
