"""Which concrete class does what: the one place that names them together.

Invariant: no role starts on a file that is not the one that was prepared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from connectors.kafka.epochs import last_epoch
from connectors.kafka.reader import EpochReader
from connectors.kafka.registry import Registry, open_registry
from connectors.kafka.scan import Scan
from connectors.kafka.topics import Topics
from connectors.kafka.writer import EpochWriter
from connectors.postgres import control
from connectors.postgres.session import Connection, connect, translated
from schemas.direction import Direction, Side
from schemas.errors import ConfigError, Outdated, SlackwaterError, Unavailable
from schemas.plan import Plan
from schemas.roundtrip import staying
from schemas.spec import Spec, load_spec
from stream.apply.role import Apply
from stream.backfill.role import Backfill
from stream.capture.role import Capture, Task
from stream.gates.orphan_scan import Lookout
from stream.migration import phase_store, prepared
from stream.migration.journal import role_actor
from stream.migration.pauses import Pause, paused
from stream.migration.prepared import Flow, Prepared, plan_for
from stream.monitoring import logs
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics
from stream.monitoring.sessions import Sides
from stream.runtime.supervisor import RoleName
from stream.runtime.worker import NotYet, Role, Worker
from stream.status.document import Watch
from stream.status.monitor import Monitor
from stream.trace import Tracing
from stream.trace.last_write import Writers
from stream.verify.preconditions import link_of
from stream.verify.recheck import Recheck, Way
from stream.verify.role import Continuous
from stream.verify.task import Task as VerifyTask

ROLES = ("capture", "apply", "backfill")


def dsn(spec: Spec, side: Side) -> str:
    return str(spec.old.dsn if side is Side.OLD else spec.new.dsn)


def sides(spec: Spec, application: str) -> Sides:
    return Sides({side: dsn(spec, side) for side in Side}, application=application)


def log_as(spec: Spec, role: str) -> None:
    """Sets up the process's log as the file wants it."""
    logs.configure(style=spec.log.format, level=spec.log.level, role=role, secrets=logs.hidden(spec))


class Process:
    """One role as one process: what the worker, the monitor and the HTTP server of it share."""

    def __init__(self, spec: Spec, name: RoleName) -> None:
        direction = name.direction
        self.name = name
        self.spec = spec
        self.metrics = Metrics(spec.migration, direction.value, name.role)
        home = direction.source if name.role == "capture" else direction.target
        self.heartbeat = Heartbeat(
            dsn=dsn(spec, home), migration=spec.migration, direction=direction.value, role=name.role
        )
        self.sides = sides(spec, f"slackwater {name.role} {spec.migration}.{direction} watch")
        self.watch = Watch(spec, self.sides)
        self.monitor = Monitor(
            migration=spec.migration,
            direction=direction,
            sides=self.sides,
            watch=self.watch,
            heartbeat=self.heartbeat,
            metrics=self.metrics,
            speaks=name.role == "apply",
        )
        self.worker = Worker(
            build=self._build,
            heartbeat=self.heartbeat,
            metrics=self.metrics,
            resumed=partial(resumed, spec, name.role),
            command=spec.command,
        )
        dsns = {side: dsn(spec, side) for side in Side}
        self._lookout = Lookout(dsns, name.direction, lambda: self.spec) if name.role == "apply" else None
        self._recheck = Recheck() if name.role == "backfill" else None
        self._role: Role | None = None
        self._beating = False

    def start(self) -> None:
        if self.name.role != "capture":
            self.monitor.start()
        if self._lookout is not None:
            self._lookout.start()
        if self._recheck is not None:
            self._recheck.start()

    def stop(self) -> None:
        if self._lookout is not None:
            self._lookout.stop()
        if self._recheck is not None:
            self._recheck.stop()
        self.monitor.stop()
        if self._beating:
            self.heartbeat.stop()
        self.sides.close()

    def reload(self) -> str:
        """Rates, limits and windows from the file as it is now. ConfigError when it cannot be used."""
        assert self.spec.path is not None
        fresh = load_spec(self.spec.path, os.environ)
        if fresh.fingerprint != self.spec.fingerprint:
            raise ConfigError(
                "the mappings in the file have changed: only rates, limits and windows are taken over while running",
                hint="stop `slackwater run`, `slackwater prepare`, and start it again",
            )
        self.spec = fresh
        self.watch.reconfigure(fresh)
        if isinstance(self._role, Backfill):
            self._role.reconfigure(fresh.backfill)
        if isinstance(self._role, Continuous):
            self._role.reconfigure(fresh.verify, fresh.backfill.max_lag_s)
        return f"took over rates, limits and windows from {self.spec.path}"

    def _build(self) -> Role:
        try:
            document = _document(self.spec, self.name.direction)
        except Outdated as error:  # an operator's next step: the role goes on by itself after it
            raise NotYet(f"{error.cause}; waits for: {self.spec.command} upgrade", hint=error.hint) from error
        if not self._beating:  # only now is there a table to write heartbeats to
            self._beating = True
            self.heartbeat.start()
        plan = plan_for(self.spec, document, self.name.direction)
        flow = document.flow(self.name.direction)
        builder = {
            "capture": self._capture,
            "apply": self._apply,
            "backfill": self._backfill,
            "verify": self._verify,
        }[self.name.role]
        self._role = builder(plan, flow, document)
        return self._role

    def _capture(self, plan: Plan, flow: Flow, document: Prepared) -> Role:
        kafka = self.spec.kafka
        topics = Topics(kafka.bootstrap, kafka.options)
        return Capture(
            Task(
                dsn=dsn(self.spec, plan.direction.source),
                plan=plan,
                slot=flow.slot,
                publication=flow.publication,
                limits=lambda: self.spec.epoch,
                writer=EpochWriter(
                    kafka.bootstrap,
                    kafka.options,
                    transactional_id=f"{kafka.topic_prefix}.{plan.migration}.{plan.direction}",
                    epochs_topic=flow.epochs_topic,
                ),
                last_epoch=lambda: last_epoch(kafka.bootstrap, kafka.options, flow.epochs_topic),
                partitions=topics.partitions,
                registry=registry(self.spec, document),
                heartbeat=self.heartbeat,
                metrics=self.metrics,
            )
        )

    def _apply(self, plan: Plan, flow: Flow, document: Prepared) -> Role:
        kafka = self.spec.kafka
        forward = plan.direction is Direction.FORWARD

        def tend(conn: Connection) -> None:
            # Looked at without a lock, as a rule in vain.
            if forward and phase_store.due(conn, plan.migration) is not None:
                phase_store.settle(conn, plan.migration, actor=role_actor(conn, "apply"))

        return Apply(
            source_dsn=dsn(self.spec, plan.direction.source),
            target_dsn=dsn(self.spec, plan.direction.target),
            plan=plan,
            reader=lambda offsets, epoch: EpochReader(
                kafka.bootstrap,
                kafka.options,
                epochs_topic=flow.epochs_topic,
                topics=sorted(plan.every_topic),
                offsets=offsets,
                after_epoch=epoch,
                topic_ids=flow.topic_ids,
            ),
            schema_of=registry(self.spec, document).get,
            quarantine_limit=lambda: self.spec.quarantine.limit,
            heartbeat=self.heartbeat,
            metrics=self.metrics,
            paused=self._paused("apply", plan.direction),
            housekeeping=tend,
        )

    def _backfill(self, plan: Plan, _flow: Flow, document: Prepared) -> Role:
        assert self._recheck is not None
        self._recheck.way = Way(
            plan=plan,
            task=lambda: verify_task(self.spec, document, plan, self.sides),
            options=lambda: self.spec.verify,
            max_lag_s=lambda: self.spec.backfill.max_lag_s,
            lag_s=self.monitor.lag_s,
            paused=self._paused("verify", plan.direction),
        )
        return Backfill(
            source_dsn=dsn(self.spec, plan.direction.source),
            target_dsn=dsn(self.spec, plan.direction.target),
            plan=plan,
            options=self.spec.backfill,
            quarantine_limit=lambda: self.spec.quarantine.limit,
            heartbeat=self.heartbeat,
            metrics=self.metrics,
            lag_s=self.monitor.lag_s,
            paused=self._paused("backfill", plan.direction),
        )

    def _verify(self, plan: Plan, _flow: Flow, document: Prepared) -> Role:
        return Continuous(
            task=lambda: verify_task(self.spec, document, plan, self.sides),
            options=self.spec.verify,
            max_lag_s=self.spec.backfill.max_lag_s,
            heartbeat=self.heartbeat,
            metrics=self.metrics,
            lag_s=self.monitor.lag_s,
            paused=self._paused("verify", plan.direction),
        )

    def _paused(self, what: str, direction: Direction) -> Callable[[Connection], str | None]:
        """The operator's pause as a clause. Pauses are kept on new: the session of the role reaches it, or a line."""
        migration = self.spec.migration
        known: Pause | None = None

        def clause(conn: Connection) -> str | None:
            nonlocal known
            if direction.target is Side.NEW:
                known = paused(conn, migration, what)
            else:
                found = self.sides.attempt(Side.NEW, lambda new: paused(new, migration, what))
                # Where new is down, the way back goes on as it was told last: nobody can say otherwise.
                if not isinstance(found, SlackwaterError):
                    known = found
            return None if known is None else known.clause

        return clause


def verify_task(spec: Spec, document: Prepared, plan: Plan, ask: Sides) -> VerifyTask:
    """What a direction's verification compares now. Errors: NotReady while no side, or each, is open."""
    turns = {side: ask.ask(side, partial(control.turn, name=spec.migration, side=side)) for side in Side}
    link = link_of(turns, plan.direction)
    leads = turns[link.source]
    assert leads is not None
    flow = document.flow(plan.direction)
    replica = spec.verify.read_from if plan.direction.source is Side.OLD else None
    return VerifyTask(
        source_dsn=dsn(spec, plan.direction.source),
        target_dsn=dsn(spec, plan.direction.target),
        replica_dsn=None if replica is None else str(replica),
        plan=plan,
        link=link,
        turn=leads.open_turn,
        fingerprint=document.judged_under(spec),
        system_id=flow.system_id,
        timeline=flow.timeline,
        workers=spec.verify.workers,
        accepted=tuple(spec.roundtrip.accept) if plan.direction.target is Side.OLD else (),
        alone=staying(spec, plan.sources) if plan.direction.target is Side.OLD else (),
    )


def lag_monitor(spec: Spec, direction: Direction, ask: Sides) -> Monitor:
    """One that knows a direction's lag, for a verb."""
    return Monitor(
        migration=spec.migration,
        direction=direction,
        sides=ask,
        watch=Watch(spec, ask),
        heartbeat=Heartbeat(
            dsn=dsn(spec, direction.target), migration=spec.migration, direction=direction.value, role="verify"
        ),
        metrics=Metrics(spec.migration, direction.value),
        speaks=False,
    )


def registry(spec: Spec, document: Prepared) -> Registry:
    """Where the migration's schemas are, as it was prepared."""
    kafka = spec.kafka
    url = kafka.registry.url if document.schemas_topic is None else None
    return open_registry(url, kafka.registry.options, kafka.bootstrap, kafka.options, document.schemas_topic or "")


def tracing(
    spec: Spec, document: Prepared, direction: Direction, *, source: Connection, target: Connection, values: bool
) -> Tracing:
    """What `trace` asks, over sessions of the caller's."""
    plan, flow = plan_for(spec, document, direction), document.flow(direction)
    scan = Scan(spec.kafka.bootstrap, spec.kafka.options)
    writers = Writers(plan, flow.epochs_topic, source, target, scan, registry(spec, document))
    return Tracing(plan=plan, source=source, target=target, writers=writers, values=values)


def wanted(spec: Spec, known: list[RoleName], ask: Sides) -> list[RoleName]:
    """The roles this migration needs now: the forward ones always, the reverse ones once it is armed."""
    names = [RoleName(role, Direction.FORWARD) for role in ROLES]
    document = ask.attempt(Side.NEW, lambda conn: prepared.load(conn, spec.migration))
    if isinstance(document, SlackwaterError):
        return known or names
    if document is not None and document.reverse is not None:
        # Old has its rows: backfill fills mirrors of new there, and reads again what the stream could not carry.
        names += [RoleName(role, Direction.REVERSE) for role in ROLES]
    return names


def resumed(spec: Spec, role: str) -> Callable[[], bool]:
    """A question: has anybody said `resume <role>` since this call? It is asked of new's journal."""
    query = (
        "select coalesce(max(seq), 0) from slackwater.journal "
        "where migration = %s and step = 'resume' and detail ->> 'what' = %s"
    )

    def newest() -> object:
        with (
            connect(dsn(spec, Side.NEW), application=f"slackwater {role} halted") as conn,
            translated("asking to go on"),
        ):
            return conn.execute(query, (spec.migration, role)).fetchone()

    before = newest()
    return lambda: newest() != before


def _document(spec: Spec, direction: Direction) -> Prepared:
    """What was prepared. NotYet before that; ConfigError when the file is another one.

    The way back reads what old keeps of it where new does not answer: it has to be gone to its end without new.
    """
    try:
        with connect(dsn(spec, Side.NEW), application="slackwater run") as conn:
            document = prepared.load(conn, spec.migration)
    except Unavailable:
        if direction is not Direction.REVERSE:
            raise
        with connect(dsn(spec, Side.OLD), application="slackwater run") as conn:
            kept = control.spare(conn, spec.migration)
        if kept is None:
            raise
        document = Prepared.from_json(kept)
    if document is None:
        raise NotYet("the migration is not prepared yet", hint="slackwater prepare")
    if direction is Direction.REVERSE and document.reverse is None:
        raise NotYet("the reverse direction is not armed yet", hint="slackwater arm")
    if spec.fingerprint != document.fingerprint:
        raise ConfigError(
            f"{spec.path or 'the file'} is not the file that migration {spec.migration} was prepared with",
            hint="`slackwater prepare` prints the difference and prepares what changed; or bring the old file back",
        )
    return document
