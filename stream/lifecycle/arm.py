"""`arm`: the way back, built and proven before any application write reaches new.

Invariants: the reverse slot exists before the phase says `armed`, so the first write of a side that opens is in its
stream; `armed` is said only after a row went the whole way, unmarked, from new through Kafka to old; nothing of old's
rows is written here. Every step looks before it makes, so a run that was killed anywhere is completed by the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from connectors.failpoint import failpoint
from connectors.postgres import catalog, chunks, control
from connectors.postgres.session import Connection
from schemas.control import CANARY_TABLE, SCHEMA
from schemas.direction import Direction, Side
from schemas.errors import Halt, Refused
from schemas.plan import Plan
from schemas.position import format_lsn
from schemas.resolve import resolve
from schemas.spec import Spec
from stream.lifecycle import build, direction
from stream.lifecycle.build import Work
from stream.lifecycle.canary_proof import Proof
from stream.lifecycle.difference import Wanted, wanted_loads
from stream.migration.journal import Actor, append
from stream.migration.paths import in_force
from stream.migration.phase_store import advance, phase
from stream.migration.phases import Phase
from stream.migration.prepared import Flow, Prepared, keep_strides, plan_for, plan_of
from stream.migration.silent_changes import begin, watched
from stream.preflight import arm_checks, bindings, counted
from stream.preflight.finding import Severity

REVERSE = Direction.REVERSE


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`result`: done, or already (it was armed, and is proven again). `steps` are (what, seconds)."""

    result: str
    steps: tuple[tuple[str, float], ...]
    warnings: tuple[str, ...]


def arm(
    spec: Spec,
    *,
    actor: Callable[[Connection], Actor],
    say: Callable[[str], None],
    set_identity: bool = False,
    slot_timeout_s: float | None = None,
    timeout_s: float | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Build the reverse direction, or complete it, and wait until it is proven.

    `timeout_s` bounds the wait for the roles and the canary, `slot_timeout_s` that for open transactions.
    Errors: Refused with every reason; Aborted when the slot or the proof has to wait for too long, or when told to
    stop, and what was built stays; Contended while others hold a table.
    """
    began = time.monotonic()
    with build.at_work(
        spec,
        "arm",
        REVERSE,
        actor=actor,
        say=say,
        set_identity=set_identity,
        slot_timeout_s=slot_timeout_s,
        stop=stop,
    ) as work:
        prepared, now = _may(spec, work.new)
        if now in (Phase.SWITCHING, Phase.SWITCHED):
            return Outcome(result="already", steps=(), warnings=())
        warnings = _build(work, prepared)
        keep_strides(work.spec, prepared, work.old, work.new)
        built_s = time.monotonic() - began
        proof = Proof(spec, work.old, work.new, say=say, stop=stop)
        proof.wait(timeout_s)
        failpoint("arm.before_armed")
        already = not advance(work.new, spec.migration, Phase.ARMED, actor=work.actor, detail={"verb": "arm"})
    steps = (("build", built_s), *proof.steps)
    return Outcome(result="already" if already else "done", steps=steps, warnings=warnings)


def _may(spec: Spec, new: Connection) -> tuple[Prepared, Phase]:
    """Refused before every row is there, and with another file than the prepared one."""
    row = control.migration(new, spec.migration)
    if row is None:
        raise Refused(f"migration {spec.migration} is not prepared", hint=f"{spec.command} prepare")
    prepared = Prepared.from_json(row.prepared)
    now = phase(new, spec.migration)
    if now not in (Phase.STREAMING, Phase.ARMED, Phase.SWITCHING, Phase.SWITCHED):
        hint = f"{spec.command} wait --for phase=streaming"
        raise Refused(
            f"migration {spec.migration} is {now}: the way back is built once every row is there",
            hint=hint if now in (Phase.PREPARED, Phase.BACKFILLING) else f"{spec.command} status",
        )
    if spec.fingerprint != prepared.fingerprint:
        raise Refused(
            f"{spec.path or 'the file'} is not the file that migration {spec.migration} was prepared with",
            hint="`slackwater prepare` prints the difference and prepares what changed; or bring the old file back",
        )
    return prepared, now


def _build(work: Work, prepared: Prepared) -> tuple[str, ...]:
    """Everything that the reverse roles stand on; returns the warnings."""
    if prepared.reverse is not None:
        _stands(work, prepared, prepared.reverse)
        return ()
    spec = work.spec
    way = arm_checks.examine(spec, work.old, work.new, prepared, set_identity=work.set_identity)
    if way.found.problems:
        raise Refused(
            "the way back cannot be built as things stand",
            reasons=tuple(str(problem) for problem in way.found.problems),
            hint="put each of these right, then run `slackwater arm` again",
        )
    build.control_schema(work)
    if work.set_identity:
        build.set_identities(work, REVERSE)
    sources, targets = work.tables(REVERSE)
    resolution = resolve(spec, REVERSE, sources, targets)
    paths = in_force(spec, prepared.paths)
    outputs = bindings.outputs(spec, work.new, work.old, sources, targets, resolution, REVERSE, paths=paths)
    topics = direction.streamed_topics(spec, REVERSE, resolution.streamed, None, sources)
    plan = plan_of(spec, REVERSE, resolution, sources, targets, topics, outputs, paths)
    build.make_types(work, plan)
    table = catalog.tables(work.new, SCHEMA)[CANARY_TABLE]
    flow = direction.stand(work, plan, outputs, None, canary=replace(table, rows_estimate=0, bytes_estimate=0))
    direction.first_epoch(work, flow, closed=True)
    failpoint("arm.after_epoch_0")
    _begin(work, plan, flow)
    failpoint("arm.after_checkpoint")
    _record(work, plan, replace(prepared, reverse=flow, new=sources))
    return tuple(str(finding) for finding in way.found.of(Severity.WARNING))


def _stands(work: Work, prepared: Prepared, flow: Flow) -> None:
    """What was built is still there, unchanged; what is missing and can be made again is."""
    plan = plan_for(work.spec, prepared, REVERSE)
    if control.checkpoint(work.old, work.spec.migration, REVERSE) is None:
        raise Halt(
            "old holds no checkpoint of the reverse direction, though it was armed",
            hint="old was restored, or its control schema emptied: `slackwater cancel`, then prepare anew",
        )
    build.make_types(work, plan)
    direction.stand(work, plan, flow.outputs, flow, canary=flow.canary)


def _begin(work: Work, plan: Plan, flow: Flow) -> None:
    """The reverse checkpoint and loads, on old. Nobody applies before new's document says so, so they may be remade."""
    migration = plan.migration
    before = control.checkpoint(work.old, migration, REVERSE)
    if before is not None and before.epoch > 0:
        raise Halt(
            f"old holds a reverse checkpoint of migration {migration} at epoch {before.epoch}, from another life of it",
            hint="`slackwater cancel` removes it, then prepare anew",
        )
    barrier = chunks.record_barrier(work.new)
    checkpoint = direction.first_checkpoint(work, flow)
    with control.transaction(work.old, "cannot record the reverse direction on old"):
        control.forget_direction(work.old, migration, REVERSE)
        begin(work.old, watched(plan, Side.OLD))
        control.put_checkpoint(work.old, migration, REVERSE, checkpoint)
        for wanted in wanted_loads(plan).values():
            control.reset_load(work.old, migration, REVERSE, _load(wanted, barrier))


def _load(wanted: Wanted, barrier: chunks.Barrier) -> control.Load:
    """Mirrors are filled, what is computed from them sleeps until then; everything else is there already."""
    row = direction.load_row(wanted, barrier)
    if wanted.mirror or wanted.asleep:
        return row
    return replace(row, state="done", snapshot=direction.NOTHING_SEEN)


def _record(work: Work, plan: Plan, prepared: Prepared) -> None:
    """From this transaction on the reverse roles may work."""
    flow = prepared.reverse
    assert flow is not None
    with control.transaction(work.new, "cannot record the reverse direction"):
        begin(work.new, watched(plan, Side.NEW))
        control.put_migration(
            work.new,
            prepared.migration,
            phase=Phase.STREAMING,
            fingerprint=prepared.fingerprint,
            prepared=prepared.to_json(),
        )
        detail = {
            "slot": flow.slot,
            "consistent_point": format_lsn(flow.consistent_point),
            "streamed": list(flow.streamed),
            "mirrors": list(flow.mirrors),
        }
        append(work.new, prepared.migration, actor=work.actor, step="arm", detail=detail)
        failpoint("arm.before_commit")
    work.done(
        f"the way back stands: {counted(len(flow.streamed), 'new table')} streamed,"
        f" {counted(len(flow.mappings), 'old table')} kept exact"
    )
