"""What a migration stands on, outside the one transaction that says so: each step looks before it makes.

Invariants: the control schema comes first, so that whatever is changed later is journalled before; the slot is never
made again once a checkpoint stands on it; nothing of a user's is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from connectors.failpoint import failpoint
from connectors.postgres import catalog, control, fence, lease, mirror, session, slots, truncation
from connectors.postgres.session import Connection, translated
from connectors.postgres.void import void
from schemas.collated import collated
from schemas.direction import Direction, Side
from schemas.errors import Contended, Halt, Refused, SlotLost
from schemas.plan import Plan
from schemas.position import Lsn, format_lsn
from schemas.spec import Spec
from schemas.table import Table
from stream.migration.journal import Actor, append
from stream.migration.prepared import Flow, Prepared
from stream.migration.topics import FlowTopics
from stream.preflight import counted, ddl, identity

REBUILD = "`slackwater cancel`, then prepare anew: what the slot held is gone"


@dataclass(slots=True, kw_only=True)
class Work:
    """What one run of `prepare` or `arm` has in its hands."""

    spec: Spec
    old: Connection
    new: Connection
    topics: FlowTopics
    actor: Actor
    say: Callable[[str], None]
    set_identity: bool = False
    slot_timeout_s: float | None = None
    stop: threading.Event | None = None
    steps: list[str] = field(default_factory=list)

    def side(self, side: Side) -> Connection:
        return self.old if side is Side.OLD else self.new

    def dsn(self, side: Side) -> str:
        return str(self.spec.old.dsn if side is Side.OLD else self.spec.new.dsn)

    def tables(self, direction: Direction) -> tuple[dict[str, Table], dict[str, Table]]:
        """(the source's, the target's) tables as they are now."""
        old = catalog.tables(self.old, self.spec.old.schema_)
        new = catalog.tables(self.new, self.spec.new.schema_)
        return (old, new) if direction is Direction.FORWARD else (new, old)

    def done(self, step: str) -> None:
        """Tell of something that was made just now."""
        self.steps.append(step)
        self.say(step)


@contextmanager
def at_work(
    spec: Spec,
    verb: str,
    direction: Direction = Direction.FORWARD,
    *,
    actor: Callable[[Connection], Actor],
    say: Callable[[str], None],
    set_identity: bool,
    slot_timeout_s: float | None,
    stop: threading.Event | None,
) -> Iterator[Work]:
    """Sessions on both sides, the direction's topics, and nobody else at this migration until it is over."""
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(session.connect(str(side.dsn), application=f"slackwater {verb}"))
            for side in (spec.old, spec.new)
        )
        topics = stack.enter_context(FlowTopics(spec, direction))
        stack.enter_context(alone(new, spec.migration))
        yield Work(
            spec=spec,
            old=old,
            new=new,
            topics=topics,
            actor=actor(new),
            say=say,
            set_identity=set_identity,
            slot_timeout_s=slot_timeout_s,
            stop=stop,
        )


def control_schema(work: Work) -> None:
    """The control schema and the first turn and route rows, on both sides. Old is open; new waits for turn 1."""
    name = work.spec.migration
    with control.transaction(work.old, "cannot make the control schema on old"):
        fresh = control.turn(work.old, name, Side.OLD) is None
        control.install(work.old)
        control.put_turn(work.old, name, Side.OLD, open_turn=0, fence_turn=None)
        control.put_route(work.old, name, writes=Side.OLD, turn=0)
    with control.transaction(work.new, "cannot make the control schema on new"):
        control.install(work.new)
        control.put_turn(work.new, name, Side.NEW, open_turn=-1, fence_turn=1)
        control.put_route(work.new, name, writes=Side.OLD, turn=0)
    if fresh:
        work.done("control schema on both sides")
    failpoint("prepare.after_control")


def apply_ddl(work: Work, before: Prepared | None) -> None:
    """`new.ddl`, in one transaction with the journal entry that keeps it from being applied twice."""
    spec = work.spec
    if spec.new.ddl_text is None:
        return
    applied = ddl.applied(work.new, spec)
    if applied is not None or before is not None:
        if applied is not None and applied != ddl.fingerprint(spec):
            work.say(f"note: {spec.new.ddl} has changed since it was applied; changes of new are yours to make")
        return
    # a session of its own: what the file sets must not outlive it
    with (
        session.connect(str(spec.new.dsn), application="slackwater prepare") as conn,
        control.transaction(conn, f"cannot apply {spec.new.ddl}"),
    ):
        fresh = ddl.apply(conn, spec)
        detail = {"file": spec.new.ddl, "sha256": ddl.fingerprint(spec)}
        outcome = "done" if fresh else "already"
        append(conn, spec.migration, actor=work.actor, step="ddl", outcome=outcome, detail=detail)
    work.done(f"{spec.new.ddl} applied to new" if fresh else f"what {spec.new.ddl} makes is on new already")
    failpoint("prepare.after_ddl")


def set_identities(work: Work, direction: Direction) -> None:
    """REPLICA IDENTITY FULL where an UPDATE or DELETE would not say which row it means, or a mapping needs more of it.

    How it was is journalled first: `cancel` puts it back.
    """
    conn = work.side(direction.source)
    for change in identity.changes(conn, work.spec, direction, *work.tables(direction)):
        append(
            work.new,
            work.spec.migration,
            actor=work.actor,
            step="replica_identity",
            outcome="intent",
            detail={"side": str(direction.source), "table": change.table, "restore": list(change.restore)},
        )
        for statement in change.statements:

            def alter(statement: str = statement) -> None:
                conn.execute(statement.encode())

            fence.patiently(conn, alter, f"cannot run {statement}")
        work.done(f"replica identity of {change.table} set to full")


def make_types(work: Work, plan: Plan) -> None:
    """Stand-ins for types that the target cannot hold, and the mirrors. A changed mirror is made anew with its load."""
    direction = plan.direction
    source, target = work.side(direction.source), work.side(direction.target)
    oids = [column.type_oid for table in plan.sources.values() for column in table.columns]
    wanted = mirror.user_types(source, oids)
    with control.transaction(target, "cannot make the mirrors"):
        made = mirror.stand_ins(target, wanted)
        mirror.create_types(target, plan.migration, made)
        mirrors = [
            name
            for name in plan.mirrors
            if mirror.create_mirror(
                target, plan.migration, direction, plan.sources[name], collated(plan.mappings, name)
            )
        ]
        for name, columns in ((n, c) for n, c in owner_columns(plan) if n in mirrors):
            mirror.index_mirror(target, plan.migration, direction, plan.sources[name], columns)
    if made.statements or mirrors:
        work.done(f"mirrors: {counted(len(mirrors), 'table')}, {counted(len(made.statements), 'type')}")
    failpoint("prepare.after_mirrors")


def owner_columns(plan: Plan) -> Iterator[tuple[str, tuple[str, ...]]]:
    """By which expressions over which mirrors the rows of an owner are looked for."""
    for mapping in plan.mappings:
        for source, feed in mapping.feeds.items() if not mapping.row_local else ():
            if feed.restrict:
                yield source, feed.restrict


def make_fences(work: Work, written: Collection[str] = ()) -> None:
    """Every table of new refuses the application until its turn; the applier shows its pass.

    `written`: tables of old that the way back writes. They are fenced once old has been closed.
    """
    spec = work.spec
    for side, schema in ((Side.NEW, spec.new.schema_), (Side.OLD, spec.old.schema_)):
        conn, turn = work.side(side), control.turn(work.side(side), spec.migration, side)
        if turn is None or (turn.fence_turn is None and side is Side.NEW):
            raise Halt(
                f"{side} holds no turn row for {spec.migration}", hint="restore slackwater.turn, or `slackwater cancel`"
            )
        if turn.fence_turn is None:
            continue
        tables = [t for t in catalog.tables(conn, schema).values() if side is Side.NEW or t.name in written]
        if fenced := fence.ensure(conn, spec.migration, side, turn.fence_turn, tables):
            work.done(f"fence on {counted(len(fenced), 'table')} of {side}")
    failpoint("prepare.after_fence")


def assert_at_rest(work: Work) -> None:
    """Errors: Refused while roles of the migration run, by name."""
    migration = work.spec.migration
    if alive := sorted({*control.alive(work.old, migration), *control.alive(work.new, migration)}):
        raise Refused(
            "roles of this migration are running: " + "; ".join(alive),
            hint="stop them (Ctrl-C or SIGTERM ends them at an epoch's end), prepare again, then start them",
        )


def assert_unmoved(plan: Plan, prepared: Prepared) -> None:
    """What the plan was made of is what the document says, and so what the catalogs were held against in between.

    Errors: Contended when somebody altered a table meanwhile.
    """
    sources, targets = prepared.tables(plan.direction)
    sides = ((plan.direction.source, plan.sources, sources), (plan.direction.target, plan.targets, targets))
    for side, read, now in sides:
        for name, table in read.items():
            if name not in now or now[name].shape != table.shape:
                raise Contended(
                    f"{side} table {name} was altered while it was being prepared",
                    hint="run `slackwater prepare` again: it takes the tables as they are then",
                )


def watch_partitions(work: Work, plan: Plan) -> None:
    """The trigger that tells of a TRUNCATE of one partition, before the slot or the publication can miss one."""
    side = plan.direction.source
    watched = truncation.ensure(work.side(side), plan.migration, plan.direction, plan.sources.values())
    if watched:
        work.done(f"{counted(len(watched), 'partition')} of {side} watched for a TRUNCATE")


def make_slot(work: Work, direction: Direction, name: str, epochs: str, before: Flow | None, *, first_run: bool) -> Lsn:
    """The slot's consistent point. It is made now unless it was, and never again once a checkpoint stands on it.

    `first_run`: the epochs topic was made just now, so nobody can have left a Kafka transaction open on it.
    """
    conn = work.side(direction.source)
    present = slots.slot(conn, name)
    if before is not None:
        if present is None or present.wal_status == "lost":
            state = "is gone" if present is None else "was invalidated by the server"
            raise SlotLost(f"replication slot {name} {state}", hint=REBUILD)
        return before.consistent_point
    if not first_run:
        work.topics.settle(epochs)
    first = work.topics.last_epoch(epochs)
    if first is not None:
        # A run that was killed after epoch 0: only the very same slot, untouched, may stand on it.
        system = catalog.server(conn).system_id
        untouched = first.epoch == 0 and first.slot == name and first.system_id == system
        if not (untouched and present is not None and present.confirmed_flush == first.end_lsn):
            raise Refused(
                f"topic {epochs} holds epochs of another life of migration {work.spec.migration}",
                hint="`slackwater cancel` removes its topics; or choose another name, or another topic_prefix",
            )
        return first.end_lsn
    if present is not None:
        slots.drop_slot(conn, name)  # from a killed run: nothing stands on it yet, and a fresh one holds back less
    told: set[str] = set()

    def waiting(blockers: Sequence[slots.Blocker]) -> None:
        for blocker in blockers:
            key = f"{blocker.pid} {blocker.who}"
            if key not in told:
                told.add(key)
                work.say(f"waiting for {blocker}: the slot begins when the transactions open now have ended")

    point = slots.create_slot(
        work.dsn(direction.source), name, waiting=waiting, timeout_s=work.slot_timeout_s, stop=work.stop
    )
    target = work.side(direction.target)
    void(target, work.spec.migration, direction, tables=None, cause=f"replication slot {name} was made anew")
    work.done(f"replication slot {name} at {format_lsn(point)}")
    return point


@contextmanager
def alone(conn: Connection, migration: str, *, patience_s: float = 3.0) -> Iterator[None]:
    """One verb that sets up, turns or ends a migration at a time. Errors: Refused after `patience_s`, naming the other.

    The patience is for a process that was killed: its server takes a moment to notice.
    """
    key = lease.key(migration)
    give_up = time.monotonic() + patience_s
    with translated("cannot take the migration's lock"):
        while conn.execute("select pg_catalog.pg_try_advisory_lock(hashtextextended(%s, 0))", (key,)).fetchone() != (
            True,
        ):
            if time.monotonic() > give_up:
                raise Refused(lease.busy(conn, migration), hint="wait until it has ended, then see: slackwater status")
            time.sleep(0.1)
    try:
        yield
    finally:
        if not conn.closed and not conn.broken:
            conn.execute("select pg_catalog.pg_advisory_unlock(hashtextextended(%s, 0))", (key,))
