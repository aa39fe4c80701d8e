"""The publishing half of capture: one Kafka transaction per draft, in order, in a thread of its own.

Invariants: nothing is published before a snapshot of the source shows every transaction in it; a position is confirmed
only after the Kafka transaction that holds it has committed; the first failure is the last thing this thread does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from connectors.failpoint import failpoint
from connectors.postgres.observer import Observer
from schemas.epoch import Epoch, Extent
from schemas.errors import StreamGap
from schemas.position import Lsn
from stream.capture.epoch_builder import Draft
from stream.capture.relations import Rows
from stream.monitoring.metrics import Metrics

POLL_S: Final = (0.001, 0.05)
"""How often an invisible transaction is looked at again: at first, and at most."""
PATIENCE_S: Final = 1.0
"""A wait shorter than this is nobody's business."""
JOIN_S: Final = 15.0
PARTITIONS_S: Final = 60.0
KAFKA: Final = "waits for Kafka"


class Writer(Protocol):
    """What capture asks of the epochs' writer; connectors.kafka.writer is it."""

    @property
    def problem(self) -> str | None: ...
    def start(self) -> None: ...
    def close(self) -> None: ...
    def publish(
        self,
        batches: dict[tuple[str, int], Rows],
        seal: Callable[[dict[str, dict[int, Extent]]], bytes],
    ) -> None: ...


class Publisher:
    """Takes one draft beside the one it publishes, so that publishing overlaps with reading and encoding the next."""

    def __init__(
        self,
        writer: Writer,
        observer: Observer,
        *,
        last_epoch: Callable[[], Epoch | None],
        partitions: Callable[[], dict[str, int]],
        metrics: Metrics,
        confirm: Callable[[Lsn], None],
        wake: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._last_epoch = last_epoch
        self._ask_partitions = partitions
        self._asked_at = 0.0
        self.partitions: dict[str, int] = {}  # of each topic; partitions may be added at any time
        self._observer = observer
        self._metrics = metrics
        self._confirm = confirm
        self._wake = wake
        self._changed = threading.Condition()
        self._next: Draft | None = None
        self._busy = True
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._doing: tuple[str, float] | None = None
        self.newest: Epoch | None = None  # the newest epoch that Kafka committed; None until it is known
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Fences the last process of this migration and direction, and reads the newest epoch into `newest`."""
        self._thread.start()

    @property
    def free(self) -> bool:
        """Nothing is being published and nothing waits."""
        return not self._busy and self._next is None

    @property
    def waits_for(self) -> str | None:
        """What the draft in hand has been waiting for, if that has taken long."""
        doing = self._doing
        if doing is None or time.monotonic() - doing[1] <= PATIENCE_S:
            return None
        problem = self._writer.problem if doing[0] == KAFKA else None
        return f"{doing[0]} ({problem})" if problem else doing[0]

    def check(self) -> None:
        """Raises what ended the thread."""
        if self._failure is not None:
            raise self._failure

    def offer(self, draft: Draft, timeout_s: float) -> bool:
        """False when there was no place for it in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._next is None or self._failure is not None, timeout_s):
                return False
            self.check()
            self._next = draft
            self._changed.notify_all()
            return True

    def stop(self) -> None:
        """Lets the transaction in hand end, and takes no other. What was not published is delivered again."""
        self._ending.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            self._doing = (KAFKA, time.monotonic())
            self._writer.start()
            self._count_partitions()
            newest = self._last_epoch()
            if newest is None:
                raise StreamGap(
                    "the epochs topic holds no epoch, not even the first",
                    hint="it was emptied or recreated: `slackwater cancel`, then prepare anew",
                )
            self.newest = newest
            while (draft := self._take()) is not None:
                self._publish(draft)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asks
            self._failure = error
        finally:
            with self._changed:
                self._changed.notify_all()
            self._wake()
            self._writer.close()  # aborts what is open, so that it holds back no reader

    def _count_partitions(self) -> None:
        self._asked_at = time.monotonic()
        self.partitions = self._ask_partitions()

    def _take(self) -> Draft | None:
        with self._changed:
            self._busy = False
            self._doing = None
            if self._next is None:
                self._wake()
            self._changed.wait_for(lambda: self._next is not None or self._ending.is_set())
            if self._ending.is_set():
                return None
            draft, self._next = self._next, None
            self._busy = True
            self._changed.notify_all()
            return draft

    def _publish(self, draft: Draft) -> None:
        if not self._visible(draft.xids):
            return  # stopped while it waited
        failpoint("capture.before_publish")
        self._doing = (KAFKA, time.monotonic())
        if time.monotonic() - self._asked_at > PARTITIONS_S:
            self._count_partitions()
        sealed: list[Epoch] = []

        def seal(extents: dict[str, dict[int, Extent]]) -> bytes:
            failpoint("capture.after_flush")
            sealed.append(replace(draft.epoch, extents=extents, published_at=time.time()))
            return sealed[0].to_json()

        self._writer.publish(draft.batches, seal)
        failpoint("capture.after_commit")
        if not draft.epoch.complete:
            failpoint("capture.mid_run")
        self._confirm(draft.epoch.end_lsn)
        self.newest = sealed[0]
        for (op, table), n in draft.changes.items():
            self._metrics.rows("capture", op, table, n)
        self._metrics.epoch("capture", time.monotonic() - draft.begun)

    def _visible(self, xids: frozenset[int]) -> bool:
        """Waits until a snapshot shows all of them: a commit is in the WAL before it is visible. False: stopped."""
        hidden = list(xids)
        since = asked = time.monotonic()
        pause_s = POLL_S[0]
        while hidden:
            snapshot = self._observer.snapshot()
            hidden = [xid for xid in hidden if not snapshot.shows(xid)]
            if not hidden:
                break
            now = time.monotonic()
            if now - asked > PATIENCE_S:
                asked = now
                self._doing = (self._observer.why_invisible(hidden), since)
            if self._ending.wait(pause_s):
                return False
            pause_s = min(2 * pause_s, POLL_S[1])
        return True
