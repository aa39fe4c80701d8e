"""`prepare`: everything that a migration stands on, made in the one order in which nothing can be lost.

Invariants: every step looks before it makes, so a run that was killed anywhere is completed by the next; the
publication exists before the slot, the slot before the barrier, and all of them before the one transaction on new that
says "prepared" and lets the roles begin. Nothing of a user's is dropped; only a target that this migration itself has
filled is ever emptied, and once the way back stands none is (`amend`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from connectors.failpoint import failpoint
from connectors.postgres import catalog, chunks, control, slots
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side, schemas_topic
from schemas.errors import Halt, Refused
from schemas.plan import Plan
from schemas.position import format_lsn
from schemas.resolve import Resolution, resolve
from schemas.spec import Spec
from schemas.table import Table
from stream import preflight
from stream.lifecycle import build, direction
from stream.lifecycle.amend import amend
from stream.lifecycle.build import Work
from stream.lifecycle.difference import Difference, difference, wanted_loads
from stream.lifecycle.reset import reload
from stream.migration.journal import Actor, append
from stream.migration.paths import Paths, found, in_force
from stream.migration.phases import Phase
from stream.migration.prepared import Flow, Prepared, plan_of
from stream.migration.replaced import replaced
from stream.migration.silent_changes import Standing, settle, standing, watched
from stream.preflight import bindings, counted, ddl, identity

FORWARD = Direction.FORWARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`result`: prepared (the first time), changed (after an edit), already. `steps` are what was made now."""

    result: str
    steps: tuple[str, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    prepared: Prepared

    @property
    def difference(self) -> Difference:
        """The forward direction's."""
        return self.differences[0]

    @property
    def lines(self) -> list[str]:
        """Every difference as an operator reads it."""
        return [line for one in self.differences for line in one.lines()]


def prepare(
    spec: Spec,
    *,
    actor: Callable[[Connection], Actor],
    say: Callable[[str], None],
    confirm: Callable[[str], None],
    set_identity: bool = False,
    slot_timeout_s: float | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Prepare the migration, or complete, or change what was prepared.

    `say` hears each step as it is done; `confirm` is asked before a target is emptied, and raises to say no.
    Errors: Refused with every reason that `check` finds; Contended while others hold a table; Aborted when the slot has
    to wait for longer than `slot_timeout_s`; SlotLost and Halt when what was prepared is no longer what it was.
    """
    with build.at_work(
        spec,
        "prepare",
        actor=actor,
        say=say,
        set_identity=set_identity,
        slot_timeout_s=slot_timeout_s,
        stop=stop,
    ) as work:
        return _prepare(work, confirm)


def _prepare(work: Work, confirm: Callable[[str], None]) -> Outcome:
    spec = work.spec
    row = control.migration(work.new, spec.migration)
    before = None if row is None else Prepared.from_json(row.prepared)
    if row is not None:
        _may_change(work, row.phase)
    if before is not None and before.reverse is not None:
        done = amend(work, before)
        return Outcome(
            result=done.result,
            steps=tuple(work.steps),
            differences=done.differences,
            warnings=done.warnings,
            prepared=done.prepared,
        )
    findings = preflight.examine(
        spec, work.old, work.new, work.topics, before, set_identity=work.set_identity, writing=True
    )
    if findings.problems:
        raise Refused(
            "this migration cannot be prepared as things stand",
            reasons=tuple(str(problem) for problem in findings.problems),
            hint="put each of these right, then run `slackwater prepare` again",
        )
    warnings = tuple(str(finding) for finding in findings.of(preflight.Severity.WARNING))
    build.control_schema(work)
    build.apply_ddl(work, before)
    if work.set_identity:
        build.set_identities(work, FORWARD)
    sources = catalog.tables(work.old, spec.old.schema_)
    targets = catalog.tables(work.new, spec.new.schema_)
    resolution = resolve(spec, FORWARD, sources, targets)
    kept = before.paths if before is not None else found(spec, work.old, work.new)
    paths = in_force(spec, kept)
    outputs = bindings.outputs(spec, work.old, work.new, sources, targets, resolution, paths=paths)
    topics = direction.streamed_topics(spec, FORWARD, resolution.streamed, before.forward if before else None, sources)
    plan = plan_of(spec, FORWARD, resolution, sources, targets, topics, outputs, paths)
    stand = {side: standing(work.side(side), watched(plan, side)) for side in Side}
    diff = _difference(work, before, plan, resolution, stand)
    if before is not None and (diff or _shape(before) != _shape(_document(work, plan, before, before.forward, kept))):
        _announce(work, diff, confirm)
    prepared = _document(work, plan, before, _stand(work, plan, outputs, before, sources), kept)
    build.assert_unmoved(plan, prepared)
    if before is None:
        _begin(work, plan, prepared, stand)
        result = "prepared"
    elif not diff and _shape(before) == _shape(prepared):
        result = "already"
    else:
        _change(work, plan, before, prepared, diff, stand)
        result = "changed"
    return Outcome(result=result, steps=tuple(work.steps), differences=(diff,), warnings=warnings, prepared=prepared)


def _may_change(work: Work, phase: str) -> None:
    """`prepare` again is for as long as the migration lasts, and one side is open."""
    if phase == Phase.CANCELLED:
        raise Refused(
            f"migration {work.spec.migration} was cancelled, and the cancel has not come to its end",
            hint="run `slackwater cancel` again: it removes what is left; then prepare anew",
        )
    if phase == Phase.SWITCHING:
        raise Refused(
            f"migration {work.spec.migration} is {phase}: a turn has not come to its end",
            hint="`slackwater status` says which verb finishes it; then prepare again",
        )
    if phase == Phase.FINALIZED:
        raise Refused(
            f"migration {work.spec.migration} is {phase}: there is nothing left to change",
            hint="give a migration that is to begin another name",
        )


def _difference(
    work: Work, before: Prepared | None, plan: Plan, resolution: Resolution, stand: Mapping[Side, Standing]
) -> Difference:
    if before is None:
        return Difference()
    present = control.loads(work.new, work.spec.migration, FORWARD)
    publication = slots.publication(work.old, before.forward.publication)
    if publication is None:
        raise Halt(
            f"publication {before.forward.publication} is gone: rows are missing from the stream",
            hint=build.REBUILD,
        )
    published = {name for schema, name in publication.tables if schema == plan.source_schema}
    return difference(
        wanted_loads(plan),
        {name: fingerprint for name, (fingerprint, _) in present.items()},
        reads=resolution.streamed,
        streamed=before.forward.streamed,
        published=published,
        missed={
            **{
                name: f"{name} was dropped and created anew"
                for name, table in plan.sources.items()
                if name in before.old and before.old[name].oid != table.oid
            },
            **stand[Side.OLD].lost,
        },
        changed=stand[Side.NEW].lost,
    )


def _announce(work: Work, diff: Difference, confirm: Callable[[str], None]) -> None:
    """Print the difference; refuse while roles run; ask before anything is emptied."""
    for line in diff.lines() or ["the file has changed; no table is written differently"]:
        work.say(line)
    build.assert_at_rest(work)
    emptied = [name for name in diff.changed if not name.startswith("mirror:")]
    if emptied:
        confirm(f"Empty {', '.join(emptied)} on new, and backfill anew?")


def _stand(
    work: Work,
    plan: Plan,
    outputs: dict[str, dict[str, str]],
    before: Prepared | None,
    sources: Mapping[str, Table],
) -> Flow:
    """Everything outside the last transaction: types, mirrors, fences, topics, publication, slot."""
    build.make_types(work, plan)
    build.make_fences(work)
    if before is None:
        return direction.stand(work, plan, outputs, None)
    flow = before.forward
    gone = replaced(flow.replaced, flow.streamed, before.old, sources, chunks.written(work.old))
    return direction.stand(work, plan, outputs, flow, replaced=gone)


def _document(work: Work, plan: Plan, before: Prepared | None, flow: Flow, paths: Paths) -> Prepared:
    """Both sides as they are now, around `flow`."""
    spec = work.spec
    return Prepared(
        migration=spec.migration,
        fingerprint=spec.fingerprint,
        old_schema=plan.source_schema,
        new_schema=plan.target_schema,
        old=catalog.tables(work.old, plan.source_schema),
        new=catalog.tables(work.new, plan.target_schema),
        forward=flow,
        reverse=None if before is None else before.reverse,
        schemas_topic=None if spec.kafka.registry.url else schemas_topic(spec.kafka.topic_prefix, spec.migration),
        ddl_fingerprint=ddl.applied(work.new, spec),
        identity_full=identity.restores(work.new, spec.migration, Side.OLD),
        paths=paths,
    )


def _shape(prepared: Prepared) -> Prepared:
    """The document without what roles do not go by: tables outside the migration, and the planner's estimates."""

    def still(tables: dict[str, Table], names: Iterable[str]) -> dict[str, Table]:
        return {n: tables[n].shape for n in sorted(names) if n in tables}

    flow = prepared.forward
    return replace(prepared, old=still(prepared.old, flow.streamed), new=still(prepared.new, flow.mappings))


# -- the transaction that says so -------------------------------------------------------------------------------------


def _begin(work: Work, plan: Plan, prepared: Prepared, stand: Mapping[Side, Standing]) -> None:
    """The barrier, epoch 0, and the one transaction on new from which on the roles may work."""
    flow = prepared.forward
    barrier = chunks.record_barrier(work.old)
    loads = [direction.load_row(load, barrier) for load in wanted_loads(plan).values()]
    direction.first_epoch(work, flow, closed=False)
    failpoint("prepare.after_epoch_0")
    checkpoint = direction.first_checkpoint(work, flow)
    with control.transaction(work.old, "cannot record what old's catalogs say"):
        settle(work.old, stand[Side.OLD], plan.sources)
    with control.transaction(work.new, "cannot record what was prepared"):
        settle(work.new, stand[Side.NEW], plan.targets)
        control.put_checkpoint(work.new, plan.migration, FORWARD, checkpoint)
        for load in loads:
            control.reset_load(work.new, plan.migration, FORWARD, load)
        control.put_migration(
            work.new,
            plan.migration,
            phase=Phase.PREPARED,
            fingerprint=prepared.fingerprint,
            prepared=prepared.to_json(),
        )
        detail = {
            "fingerprint": prepared.fingerprint,
            "slot": flow.slot,
            "consistent_point": format_lsn(flow.consistent_point),
            "streamed": list(flow.streamed),
            "loads": [load.name for load in loads],
        }
        append(work.new, plan.migration, actor=work.actor, step="prepare", detail=detail)
        failpoint("prepare.before_commit")
    streamed, filled = counted(len(plan.sources), "old table"), counted(len(plan.mappings), "new table")
    work.done(f"prepared: {streamed} streamed, {filled} to fill")


def _change(
    work: Work, plan: Plan, before: Prepared, prepared: Prepared, diff: Difference, stand: Mapping[Side, Standing]
) -> None:
    """After an edit: a new barrier for what is loaded anew, and the one transaction that empties and resets it.

    Old's catalogs are accepted, as they were read before the barrier, only when new has it: whoever is killed in
    between finds them differing again.
    """
    wanted = wanted_loads(plan)
    barrier = chunks.record_barrier(work.old)
    loads = [direction.load_row(wanted[name], barrier) for name in diff.loads_anew]
    added = [plan.topics[name] for name in plan.sources if name not in before.forward.streamed]
    reload(work.new, plan, prepared, diff, loads, work.topics.next_offsets(added), stand[Side.NEW], actor=work.actor)
    failpoint("prepare.before_accepted")
    anew = set(diff.loads_anew)
    reloaded = [s for s in plan.sources if {name for name, load in wanted.items() if s in load.reads} <= anew]
    with control.transaction(work.old, "cannot record what old's catalogs say"):
        settle(work.old, stand[Side.OLD], reloaded)
    work.done(f"{counted(len(loads), 'backfill')} to do" if loads else "the new file is recorded")
