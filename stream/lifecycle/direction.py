"""What one direction stands on: topics, publication, slot, epoch 0, the first checkpoint. `prepare` makes the forward
one, `arm` the reverse one.

Invariant: the publication exists before the slot, the slot before epoch 0, and epoch 0 before the checkpoint; each is
looked for before it is made.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from connectors.failpoint import failpoint
from connectors.postgres import catalog, chunks, control, slots
from schemas.control import CANARY, CANARY_TABLE, SCHEMA
from schemas.direction import Direction, epochs_topic, schemas_topic, slot_name, topic_name
from schemas.epoch import Epoch
from schemas.plan import Plan, Replaced
from schemas.position import ZERO, Position
from schemas.spec import Spec
from schemas.table import Table
from stream import preflight
from stream.lifecycle import build
from stream.lifecycle.build import Work
from stream.lifecycle.difference import Wanted
from stream.migration.prepared import Flow

NOTHING_SEEN = "3:3:"
"""A load's snapshot, where nothing was loaded: rows of a table without a key are right up to the slot's beginning."""


def row_topic(spec: Spec, direction: Direction, schema: str, table: str) -> str:
    """Where a table's rows go in a direction."""
    return topic_name(spec.kafka.topic_prefix, spec.migration, direction, schema, table)


def canary_topic(spec: Spec, direction: Direction) -> str:
    return row_topic(spec, direction, SCHEMA, CANARY_TABLE)


def stand(
    work: Work,
    plan: Plan,
    outputs: dict[str, dict[str, str]],
    before: Flow | None,
    *,
    canary: Table | None = None,
    replaced: Mapping[str, Replaced] | None = None,
) -> Flow:
    """Topics, publication and slot of the plan's direction; what is there already is left as it is.

    `before`: the flow as it was prepared. `canary`: the table that is published beside the sources. `replaced`: tables
    whose name another one had, which is in the publication still where it was renamed.
    Errors: StreamGap, SlotLost, Halt when what was prepared is no longer what it was; Contended; Refused.
    """
    spec, direction = work.spec, plan.direction
    source, verb = work.side(direction.source), "prepare" if direction is Direction.FORWARD else "arm"
    epochs = epochs_topic(spec.kafka.topic_prefix, spec.migration, direction)
    schemas = None if spec.kafka.registry.url else schemas_topic(spec.kafka.topic_prefix, spec.migration)
    own = "" if canary is None else canary_topic(spec, direction)
    known = {} if before is None else before.topic_ids
    made, ids = work.topics.ensure([*plan.topics.values(), *([own] if own else [])], epochs, schemas, known=known)
    if made:
        work.done(f"{preflight.counted(len(made), 'topic')}: {preflight.listed(made)}")
    failpoint(f"{verb}.after_topics")
    build.watch_partitions(work, plan)
    failpoint(f"{verb}.after_watch")
    name = slot_name(spec.migration, direction)
    published = [(plan.source_schema, table) for table in plan.sources]
    listed = [*plan.sources, *([CANARY] if canary else [])]
    published += [(SCHEMA, CANARY_TABLE)] if canary else []
    feeding = catalog.server(work.side(direction.target)).identity
    if slots.ensure_publication(source, name, published, feeding=feeding):
        work.done(f"publication {name}: {preflight.listed(listed)}")
    gone = [oid for found in (replaced or {}).values() for oid in found.oids]
    if left := slots.leave_out(source, name, gone, published):
        work.done(f"publication {name}: without {preflight.listed(left)}, whose place another table has taken")
    failpoint(f"{verb}.after_publication")
    server = catalog.server(source)
    point = build.make_slot(work, direction, name, epochs, before, first_run=epochs in made)
    failpoint(f"{verb}.after_slot")
    return Flow(
        streamed=tuple(plan.sources),
        mirrors=plan.mirrors,
        mappings={mapping.target: mapping.fingerprint for mapping in plan.mappings},
        outputs=outputs,
        topics=plan.topics,
        topic_ids=ids,
        epochs_topic=epochs,
        slot=name,
        publication=name,
        system_id=server.system_id if before is None else before.system_id,
        timeline=server.timeline if before is None else before.timeline,
        consistent_point=point,
        canary=canary,
        canary_topic=own,
        replaced=dict(replaced or {}),
    )


def first_epoch(work: Work, flow: Flow, *, closed: bool) -> None:
    """Epoch 0, unless it is there: the stream's beginning. It holds nothing, and ends where the slot begins.

    `closed`: the source is closed to the application there.
    """
    if work.topics.last_epoch(flow.epochs_topic) is not None:
        return
    now = time.time()
    epoch = Epoch(
        epoch=0,
        previous=-1,
        end_lsn=flow.consistent_point,
        last=Position(ZERO, 0),
        committed_at=now,
        first_committed_at=now,
        published_at=now,
        system_id=flow.system_id,
        timeline=flow.timeline,
        slot=flow.slot,
        closed=closed,
        turn=None if closed else 0,  # one that is closed says with which turn it opens
    )
    work.topics.publish_first(flow.epochs_topic, epoch)
    work.done("epoch 0")


def first_checkpoint(work: Work, flow: Flow) -> control.Checkpoint:
    """Where the applier begins: past epoch 0."""
    names = [*flow.topics.values(), flow.epochs_topic, *([flow.canary_topic] if flow.canary_topic else [])]
    return control.Checkpoint(
        epoch=0,
        end_lsn=flow.consistent_point,
        last=Position(ZERO, 0),
        offsets=work.topics.next_offsets(names),
        system_id=flow.system_id,
        timeline=flow.timeline,
        slot=flow.slot,
    )


def load_row(wanted: Wanted, barrier: chunks.Barrier) -> control.Load:
    """A backfill to come, or a mapping that sleeps until its mirrors are there."""
    return control.Load(
        name=wanted.name,
        source=wanted.source,
        fingerprint=wanted.fingerprint,
        state="asleep" if wanted.asleep else "pending",
        barrier_xid=barrier.xid,
        barrier_lsn=barrier.lsn,
        rows_estimate=wanted.rows_estimate,
        bytes_estimate=wanted.bytes_estimate,
    )


def streamed_topics(
    spec: Spec, direction: Direction, streamed: tuple[str, ...], before: Flow | None, sources: Mapping[str, Table]
) -> dict[str, str]:
    """Source table -> topic, of everything that is streamed: what mappings read, and what was in the stream already."""
    schema = spec.old.schema_ if direction is Direction.FORWARD else spec.new.schema_
    stays = [] if before is None else [name for name in before.streamed if name in sources]
    return {name: row_topic(spec, direction, schema, name) for name in sorted({*streamed, *stays})}
