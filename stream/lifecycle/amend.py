"""`prepare` once the way back stands: both directions change together, whichever side is open.

Invariants: no target is emptied, for either side may hold rows that the application wrote; what is written differently
from now on is compared, and read again in place (`stream.verify.recheck`), and no turn goes over it before (gate
`silent_changes`). Mirrors are ours, and are made anew. What old keeps of it, the document for the day on which new is
gone included, is written before new's document says so, old's catalogs are accepted after: whoever is killed in between
is completed by the next run, and if new dies there, old knows the tables as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from connectors.failpoint import failpoint
from connectors.postgres import catalog, chunks, control, mirror, silent_changes, slots
from connectors.postgres.session import Connection
from schemas.collated import collated
from schemas.direction import Direction, Side
from schemas.errors import Halt, Refused
from schemas.fingerprint import Change, Kind
from schemas.plan import Plan
from schemas.resolve import resolve
from stream import preflight
from stream.lifecycle import build, direction
from stream.lifecycle.build import Work
from stream.lifecycle.difference import Difference, Wanted, difference, wanted_loads
from stream.migration.journal import append
from stream.migration.paths import Paths, in_force
from stream.migration.prepared import Flow, Prepared, keep_strides, plan_of
from stream.migration.replaced import replaced
from stream.migration.silent_changes import Standing, Watched, settle, standing, watched
from stream.migration.topics import FlowTopics
from stream.preflight import arm_checks, bindings, identity
from stream.preflight.finding import Severity
from stream.verify.preconditions import link_of

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One direction as it is to be. `carries`: the open side's writes, so that its target's rows are ours to write."""

    plan: Plan
    outputs: dict[str, dict[str, str]]
    carries: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Amended:
    """What was done. `result`: changed, already."""

    result: str
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    prepared: Prepared


def amend(work: Work, before: Prepared) -> Amended:
    """Bring both directions to the file and to the tables as they are now.

    Errors: Refused with every reason that `check` and `arm` find, while roles run, or while no side is open; Contended;
    Halt.
    """
    spec = work.spec
    link = link_of({side: control.turn(work.side(side), spec.migration, side) for side in Side}, FORWARD)
    warnings = _examined(work, before)
    if work.set_identity:
        for way in Direction:
            build.set_identities(work, way)
    paths = in_force(spec, before.paths)
    ways = {way: _way(work, before, way, paths, carries=way is link) for way in Direction}
    stand = {side: standing(work.side(side), _watched(ways, side)) for side in Side}
    found = {way: _difference(work, before, ways[way], stand) for way in Direction}
    flows = {way: before.flow(way) for way in Direction}
    anew = _copied_anew(ways[link].plan, found[link])
    same = _shape(before, ways) == _shape(_document(work, before, flows), ways)
    settled = not any(s.differing or any(c.kind.stays for c in s.open) for s in stand.values())
    if same and settled and not any(found.values()) and _spare(work, before):
        return Amended(result="already", differences=tuple(found.values()), warnings=warnings, prepared=before)
    _announce(work, found)
    build.make_fences(work, ways[REVERSE].plan.targets)
    with FlowTopics(spec, REVERSE) as topics:
        back = replace(work, topics=topics)
        for way, hands in ((REVERSE, back), (FORWARD, work)):
            build.make_types(hands, ways[way].plan)
            flows[way] = _stand(hands, ways[way], before)
        prepared = _document(work, before, flows)
        for one in ways.values():
            build.assert_unmoved(one.plan, prepared)
        barriers = {way: chunks.record_barrier(work.side(way.source)) for way in Direction}
        with control.transaction(work.old, "cannot record the way back on old"):
            _loads(back, ways[REVERSE], before, found[REVERSE], barriers[REVERSE])
            if control.spare(work.old, spec.migration) is not None:
                control.keep_spare(work.old, spec.migration, prepared.to_json())
    failpoint("prepare.before_recorded")
    with control.transaction(work.new, "cannot record what was prepared"):
        _loads(work, ways[FORWARD], before, found[FORWARD], barriers[FORWARD])
        settle(work.new, stand[Side.NEW], anew if link is REVERSE else ())
        _record(work, prepared, found)
    failpoint("prepare.before_accepted")
    with control.transaction(work.old, "cannot record what old's catalogs say"):
        settle(work.old, stand[Side.OLD], anew if link is FORWARD else ())
    keep_strides(spec, prepared, work.old, work.new)
    work.done("both directions go by the file and the tables as they are now")
    return Amended(result="changed", differences=tuple(found.values()), warnings=warnings, prepared=prepared)


def _examined(work: Work, before: Prepared) -> tuple[str, ...]:
    """The warnings. Errors: Refused, with everything that `check` and `arm` would refuse."""
    spec = work.spec
    found = preflight.examine(
        spec, work.old, work.new, work.topics, before, set_identity=work.set_identity, writing=True
    )
    if not found.problems:
        old, new = work.tables(FORWARD)
        mappings = {m.target: m.fingerprint for m in resolve(spec, FORWARD, old, new).mappings}
        now = replace(before, old=old, new=new, forward=replace(before.forward, mappings=mappings))
        found += arm_checks.examine(spec, work.old, work.new, now, set_identity=work.set_identity).found
    if found.problems:
        raise Refused(
            "this migration cannot be changed as things stand",
            reasons=tuple(dict.fromkeys(str(problem) for problem in found.problems)),
            hint="put each of these right, then run `slackwater prepare` again",
        )
    return tuple(dict.fromkeys(str(finding) for finding in found.of(Severity.WARNING)))


def _way(work: Work, before: Prepared, way: Direction, paths: Paths, *, carries: bool) -> Way:
    spec = work.spec
    sources, targets = work.tables(way)
    resolution = resolve(spec, way, sources, targets)
    source, target = work.side(way.source), work.side(way.target)
    outputs = bindings.outputs(spec, source, target, sources, targets, resolution, way, paths=paths)
    topics = direction.streamed_topics(spec, way, resolution.streamed, before.flow(way), sources)
    plan = plan_of(spec, way, resolution, sources, targets, topics, outputs, paths)
    flow = before.flow(way)
    return Way(plan=replace(plan, canary=flow.canary, canary_topic=flow.canary_topic), outputs=outputs, carries=carries)


def _watched(ways: Mapping[Direction, Way], side: Side) -> Watched:
    """All that either direction has on a side."""
    base = watched(next(way.plan for d, way in ways.items() if d.source is side), side)
    used = {name: set(columns) for name, columns in base.used.items()}
    for way in ways.values():
        for name, columns in watched(way.plan, side).used.items():
            used.setdefault(name, set()).update(columns)
    return replace(base, used=used)


def _difference(work: Work, before: Prepared, way: Way, stand: Mapping[Side, Standing]) -> Difference:
    plan, flow = way.plan, before.flow(way.plan.direction)
    side = plan.direction.source
    publication = slots.publication(work.side(side), flow.publication)
    if publication is None:
        raise Halt(
            f"publication {flow.publication} is gone: rows are missing from the stream",
            hint="`slackwater finalize` (before a first cutover: `cancel`), then prepare anew",
        )
    present = control.loads(work.side(plan.direction.target), plan.migration, plan.direction)
    return difference(
        wanted_loads(plan),
        {name: fingerprint for name, (fingerprint, _) in present.items()},
        reads={source for mapping in plan.mappings for source in mapping.sources},
        streamed=flow.streamed,
        published={name for schema, name in publication.tables if schema == plan.source_schema},
        missed=stand[side].lost,
        changed=stand[side.other].lost if way.carries else {},
        direction=plan.direction,
        in_place=True,
    )


def _announce(work: Work, found: Mapping[Direction, Difference]) -> None:
    """Print what changes. Errors: Refused while roles run."""
    for line in [line for diff in found.values() for line in diff.lines()]:
        work.say(line)
    build.assert_at_rest(work)


def _stand(work: Work, way: Way, before: Prepared) -> Flow:
    plan, flow = way.plan, before.flow(way.plan.direction)
    prepared, _ = before.tables(plan.direction)
    now, _ = work.tables(plan.direction)
    gone = replaced(flow.replaced, flow.streamed, prepared, now, chunks.written(work.side(plan.direction.source)))
    return direction.stand(work, plan, way.outputs, flow, canary=flow.canary, replaced=gone)


def _loads(work: Work, way: Way, before: Prepared, diff: Difference, barrier: chunks.Barrier) -> None:
    """What the way's target keeps of it, in the caller's transaction there."""
    plan, conn = way.plan, work.side(way.plan.direction.target)
    migration, d = plan.migration, plan.direction
    conn.execute(
        "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%s, 0))", (f"slackwater.{migration}.{d}",)
    )
    for source in (n.removeprefix("mirror:") for n in (*diff.changed, *diff.removed) if n.startswith("mirror:")):
        mirror.drop_mirror(conn, migration, d, source)
    for source in plan.mirrors:
        mirror.create_mirror(conn, migration, d, plan.sources[source], collated(plan.mappings, source))
    for source, columns in build.owner_columns(plan):
        mirror.index_mirror(conn, migration, d, plan.sources[source], columns)
    for name in diff.removed:
        control.drop_load(conn, migration, d, name)
    wanted, states = wanted_loads(plan), control.loads(conn, migration, d)
    for name in diff.loads_anew:
        state = states[name][1] if name in states else None
        _load(conn, way, wanted[name], barrier, state)
    added = [plan.topics[name] for name in plan.sources if name not in before.flow(d).streamed]
    control.add_offsets(conn, migration, d, work.topics.next_offsets(added))
    if way.carries:
        silent_changes.lock(conn, migration, d.target)
        silent_changes.record(conn, migration, d.target, _told(diff, plan))


def _load(conn: Connection, way: Way, wanted: Wanted, barrier: chunks.Barrier, state: str | None) -> None:
    """Rows that are there stay. A table that is new to the stream is loaded, where its rows are ours to write."""
    plan = way.plan
    row = direction.load_row(wanted, barrier)
    if wanted.mirror or (state is None and (way.carries or wanted.asleep)) or state in ("pending", "running"):
        control.reset_load(conn, plan.migration, plan.direction, row)
    elif state is None:
        done = replace(row, state="done", snapshot=direction.NOTHING_SEEN)
        control.reset_load(conn, plan.migration, plan.direction, done)
    else:
        kept = replace(row, state="asleep" if wanted.asleep else state)
        control.keep_load(conn, plan.migration, plan.direction, kept)


def _told(diff: Difference, plan: Plan) -> list[Change]:
    """What has to be compared before a turn goes over it, as `stream.verify.recheck` takes it up."""
    why = dict(diff.reasons)
    return [
        Change(
            table=name,
            kind=Kind.VALUES,
            cause=f"{name} was prepared anew: {why[name]}" if name in why else f"{name} has joined the migration",
        )
        for name in diff.loads_anew
        if name in plan.targets
    ]


def _copied_anew(plan: Plan, diff: Difference) -> list[str]:
    """Source tables of which nothing is left to be compared by what has changed there: their mirror is filled anew, and
    all that reads it is computed from that, and compared then."""
    loads = {*diff.loads_anew}
    return [
        name for name in plan.mirrors if f"mirror:{name}" in loads and {m.target for m in plan.reading(name)} <= loads
    ]


def _document(work: Work, before: Prepared, flows: Mapping[Direction, Flow]) -> Prepared:
    """Both sides as they are now, around the two flows."""
    spec = work.spec
    return replace(
        before,
        fingerprint=spec.fingerprint,
        old=catalog.tables(work.old, spec.old.schema_),
        new=catalog.tables(work.new, spec.new.schema_),
        forward=flows[FORWARD],
        reverse=flows[REVERSE],
        identity_full=identity.restores(work.new, spec.migration, Side.OLD),
    )


def _shape(prepared: Prepared, ways: Mapping[Direction, Way]) -> dict[str, Any]:
    """What roles go by of a document: the file, and the tables that either direction reads or writes."""
    names: dict[Side, set[str]] = {side: set() for side in Side}
    for way in ways.values():
        names[way.plan.direction.source] |= set(way.plan.sources)
        names[way.plan.direction.target] |= set(way.plan.targets)
    tables = {Side.OLD: prepared.old, Side.NEW: prepared.new}
    return {
        "file": prepared.fingerprint,
        **{str(side): {n: tables[side][n].shape for n in sorted(names[side]) if n in tables[side]} for side in Side},
    }


def _spare(work: Work, before: Prepared) -> bool:
    """Whether what old keeps of the document, where it keeps it, is that document."""
    kept = control.spare(work.old, work.spec.migration)
    return kept is None or Prepared.from_json(kept) == before


def _record(work: Work, prepared: Prepared, found: Mapping[Direction, Difference]) -> None:
    """From this transaction on the roles work from the new document."""
    lines = [line for diff in found.values() for line in diff.lines()]
    control.put_migration(
        work.new,
        prepared.migration,
        phase="prepared",
        fingerprint=prepared.fingerprint,
        prepared=prepared.to_json(),
    )
    detail = {"fingerprint": prepared.fingerprint, "difference": lines}
    append(work.new, prepared.migration, actor=work.actor, step="prepare", detail=detail)
    failpoint("prepare.before_commit")
