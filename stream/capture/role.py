"""Capture: the source's WAL becomes epochs in Kafka, each change exactly once.

Invariants: confirmed LSN <= end LSN of the newest epoch that Kafka committed; the slot's owner fences its predecessor
before it reads where that one stopped; a slot or a publication that is not what was prepared stops it.

    read, encode, assemble (this thread) -> one draft at a time -> publish, confirm (`publisher`)
    feedback to the server (connectors.postgres.replication, a third thread)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from connectors.postgres.observer import Observer, check_slot
from connectors.postgres.pgoutput import Keepalive
from connectors.postgres.replication import REBUILD, Replication
from schemas.epoch import Epoch
from schemas.errors import SlackwaterError, SlotLost, StreamGap
from schemas.plan import Plan
from schemas.position import Lsn, format_lsn
from schemas.spec import EpochPart
from stream.capture.assembler import Assembly
from stream.capture.catalog_watch import CatalogWatch
from stream.capture.epoch_builder import Draft
from stream.capture.foreign_writes import Strays
from stream.capture.publisher import Publisher, Writer
from stream.capture.relations import Relations, Subjects
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics

log = logging.getLogger("slackwater.capture")

TICK_S: Final = 0.25
PING_S: Final = 0.5
RETAINED_S: Final = 5.0
CANARY_S: Final = 60.0
EMPTY_S: Final = 10.0
EMPTY_BYTES: Final = 16 << 20
"""An advance without rows of ours is an epoch of its own after so much time, or so much WAL."""
ASKED_S: Final = 1.0
"""At most one empty epoch in this time because the server asks for progress, as it does when it shuts down."""


class Stopped(Exception):
    """Asked to stop while a draft waited for its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one direction's capture is given.

    `last_epoch` reads the newest committed record of the epochs topic; `partitions` counts the partitions of topics and
    leaves out those that do not exist. The writer is this run's own. `limits` are asked for while it runs.
    """

    dsn: str
    plan: Plan
    slot: str
    publication: str
    limits: Callable[[], EpochPart]
    writer: Writer
    last_epoch: Callable[[], Epoch | None]
    partitions: Callable[[Sequence[str]], dict[str, int]]
    registry: Subjects
    heartbeat: Heartbeat
    metrics: Metrics


class Capture:
    """One direction's capture. Built anew after every error; `run` is called once."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def run(self, stop: threading.Event) -> None:
        """Blocks until `stop`. Errors: Unavailable, SlotLost, SchemaChanged, StreamGap, Halt."""
        task = self._task
        task.heartbeat.starting()
        with (
            Observer(task.dsn) as observer,
            Replication(task.dsn, slot=task.slot, publication=task.publication) as stream,
            CatalogWatch(task.dsn, task.plan, task.publication, observer, task.heartbeat) as catalogs,
        ):
            observer.slot(task.slot)
            catalogs.look(announced=0, reached=Lsn(0))
            stream.start()  # from here on nobody else has the slot
            publisher = Publisher(
                task.writer,
                observer,
                last_epoch=task.last_epoch,
                partitions=self._partitions,
                metrics=task.metrics,
                confirm=stream.confirm,
                wake=stream.wake,
            )
            publisher.start()
            try:
                resume = self._newest(publisher, stop)
                if resume is not None:
                    confirmed = self._assert(observer, stream, resume)
                    stream.confirm(resume.end_lsn)
                    task.heartbeat.running()
                    Reader(
                        task,
                        observer=observer,
                        catalogs=catalogs,
                        stream=stream,
                        publisher=publisher,
                        resume=resume,
                        confirmed=confirmed,
                        stop=stop,
                    ).run()
            finally:
                publisher.stop()

    def _partitions(self) -> dict[str, int]:
        topics = self._task.plan.every_topic
        found = self._task.partitions(topics)
        if missing := sorted(set(topics) - found.keys()):
            raise StreamGap(
                f"topic {', '.join(missing)} does not exist",
                hint="what it held is gone: `slackwater cancel`, then prepare anew",
            )
        return found

    def _newest(self, publisher: Publisher, stop: threading.Event) -> Epoch | None:
        """The newest epoch in Kafka; None when asked to stop first."""
        while not stop.wait(0.01):
            publisher.check()
            if publisher.newest is not None:
                return publisher.newest
            if publisher.waits_for is not None:
                self._task.heartbeat.starting(publisher.waits_for)
        return None

    def _assert(self, observer: Observer, stream: Replication, resume: Epoch) -> Lsn:
        """Where the slot begins to send. Errors: SlotLost, SchemaChanged, Unavailable."""
        system = stream.system
        if (resume.system_id, resume.timeline) != (system.system_id, system.timeline):
            raise SlotLost(
                f"the source is another cluster or timeline than the newest epoch came from: {system.system_id}"
                f" timeline {system.timeline}, not {resume.system_id} timeline {resume.timeline}",
                hint=REBUILD,
            )
        if system.flushed_lsn < resume.end_lsn:
            raise SlotLost(
                f"the source's WAL ends at {format_lsn(system.flushed_lsn)}, before the newest epoch's end at"
                f" {format_lsn(resume.end_lsn)}: it was restored from a copy of itself, and lacks what Kafka holds",
                hint=REBUILD,
            )
        slot = self._task.slot
        if resume.slot != slot:
            raise SlotLost(f"the newest epoch came from slot {resume.slot}, not from {slot}", hint=REBUILD)
        facts = observer.slot(slot)
        if facts.active_pid != stream.pid:
            while stream.read(1.0):  # what ended the walsender is its last word
                continue
        check_slot(facts, slot=slot, owner_pid=stream.pid, durable=resume.end_lsn)
        return facts.confirmed


class Reader:
    """The reading loop of a capture that has its slot, its producer and its place."""

    def __init__(
        self,
        task: Task,
        *,
        observer: Observer,
        catalogs: CatalogWatch,
        stream: Replication,
        publisher: Publisher,
        resume: Epoch,
        confirmed: Lsn,
        stop: threading.Event,
    ) -> None:
        self._task = task
        self._observer = observer
        self._stream = stream
        self._publisher = publisher
        self._stop = stop
        self._catalogs = catalogs
        side = task.plan.direction.source
        self._relations = Relations(
            task.plan, database=stream.system.database, registry=task.registry, type_names=observer.type_names
        )
        self._assembly = Assembly(
            task.plan,
            self._relations,
            resume=resume,
            confirmed=confirmed,
            limits=task.limits,
            partitions=lambda topic: publisher.partitions[topic],
            free=lambda: publisher.free,
            emit=self._emit,
            strays=Strays(side, lambda lsn: observer.decided(task.plan.migration, side, lsn)),
            truncated=catalogs.truncated,
        )
        self._keepalive: Keepalive | None = None
        now = time.monotonic()
        self._emitted_at = now
        self._ticked_at = self._pinged_at = self._retained_at = now - RETAINED_S
        self._sung_at = now - CANARY_S

    def run(self) -> None:
        """Until `stop`."""
        try:
            while not self._stop.is_set():
                self._publisher.check()
                frames = self._stream.read(self._patience_s())
                if frames:
                    self._assembly.take(frames)
                if self._assembly.strays.ripe(whole=self._assembly.whole, at_rest=self._stream.at_rest):
                    self._stray()
                self._note()
                self._close()
                self._tick()
        except Stopped:
            return
        finally:
            self._relations.left_out.say(last=True)

    def _patience_s(self) -> float:
        """How long a read may wait. The publisher ends it when it has nothing more to do."""
        if not (self._assembly.closable and self._publisher.free):
            return TICK_S
        return min(TICK_S, max(0.001, self._task.limits().max_ms / 1000 - self._assembly.age_s))

    def _note(self) -> None:
        """The server's word on how far it is. Every frame that came before it has been taken."""
        said = self._stream.keepalive
        if said is not None and said is not self._keepalive:
            self._keepalive = said
            self._assembly.idle(said.wal_end, said.sent_us / 1e6)

    def _close(self) -> None:
        """Closes an epoch, at a commit, when the server has no more for us or the epoch's time has come."""
        assembly, stream = self._assembly, self._stream
        if not self._publisher.free:
            return
        if assembly.closable:
            if stream.at_rest or assembly.age_s * 1000 >= self._task.limits().max_ms:
                assembly.close()
        elif assembly.bare and assembly.reached > assembly.newest.end_lsn:
            quiet_s = time.monotonic() - self._emitted_at
            if (
                quiet_s >= EMPTY_S
                or assembly.reached - assembly.newest.end_lsn >= EMPTY_BYTES
                or (stream.asked and quiet_s >= ASKED_S)
            ):
                stream.asked = False
                assembly.close()

    def _emit(self, draft: Draft) -> None:
        while not self._publisher.offer(draft, TICK_S):
            if self._stop.is_set():
                raise Stopped
            self._tick()
        self._emitted_at = time.monotonic()

    def _tick(self) -> None:
        """What is done by the clock, whether the loop reads or waits for the publisher."""
        now = time.monotonic()
        if now - self._ticked_at < TICK_S:
            return
        self._ticked_at = now
        self._publisher.check()
        self._relations.left_out.say()
        self._report()
        if now - self._pinged_at >= PING_S:
            self._pinged_at = now
            self._stream.ping()
        if now - self._retained_at >= RETAINED_S:
            self._retained_at = now
            self._task.metrics.slot_retained(self._observer.retained_bytes(self._task.slot))
        if self._task.plan.canary is not None and now - self._sung_at >= CANARY_S:
            self._sung_at = now
            self._sing()
        self._catalogs.look(announced=self._relations.announced, reached=self._assembly.reached)

    def _stray(self) -> None:
        """Errors: Halt. Rows that nobody of ours wrote to a closed side are kept by their keys, and stop the stream."""
        plan, strays = self._task.plan, self._assembly.strays
        self._observer.record_strays(plan.migration, plan.direction.source, strays.rows)
        raise strays.halt()

    def _sing(self) -> None:
        """The canary's age, on the target, tells of one that could not be written: the stream goes on without it."""
        try:
            self._observer.sing(self._task.plan.migration)
        except SlackwaterError as error:
            log.warning("%s", error.cause)

    def _report(self) -> None:
        """`captured_lsn`: all that ends at or below it is in Kafka, or is not ours."""
        newest = self._publisher.newest
        if newest is None:
            return
        assembly = self._assembly
        everything = assembly.bare and assembly.newest.epoch == newest.epoch
        waits_for = self._publisher.waits_for
        self._task.heartbeat.figures.update(
            captured_lsn=format_lsn(assembly.reached if everything else newest.end_lsn),
            captured_epoch=newest.epoch,
            waits_for=waits_for,
        )
        if waits_for is None:
            self._task.heartbeat.running()
        else:
            self._task.heartbeat.waiting(waits_for)
