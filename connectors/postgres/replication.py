"""The walsender's end of a logical replication slot, driven over psycopg's own libpq connection.

Invariants: the position reported to the server is what `confirm` was given and nothing else, never a keepalive's (rule
R4); a thread of its own reports it, so that a reader that is busy or blocked is never taken for dead (hazard A9); what
the server says of trouble, warnings too, ends the stream (hazard A1: 18 only warns where it skips a publication).

Source: PostgreSQL documentation, "Streaming Replication Protocol".
"""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from psycopg import conninfo, errors, pq

from connectors.postgres import pgoutput, session
from connectors.postgres.session import translated
from schemas.errors import Halt, SchemaChanged, SlackwaterError, SlotLost, Unavailable
from schemas.position import ZERO, Lsn, format_lsn, parse_lsn

FRAMES: Final = 1000
"""At most so many frames a read: one read's work stays well below any timeout."""
READ_BYTES: Final = 1 << 20
FEEDBACK_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """IDENTIFY_SYSTEM. `flushed_lsn`: the end of the WAL that is on disk, which nothing that was sent lies past."""

    system_id: str
    timeline: int
    flushed_lsn: Lsn
    database: str


class Replication:
    """One slot's stream of pgoutput frames; the only thread that reads is the caller's.

    `start` makes this process the slot's only owner. `read` and the properties belong to the reading thread; `confirm`,
    `ping` and `wake` may be called from any.
    """

    def __init__(self, dsn: str, *, slot: str, publication: str, application: str = "slackwater capture") -> None:
        self.slot = slot
        self._publication = publication
        self._lock = threading.Lock()  # libpq connections are not thread-safe
        self._closed = threading.Event()
        self._confirmed: Lsn = ZERO
        self._failure: SlackwaterError | None = None
        self._dry = False
        self._quiet = False
        self.keepalive: pgoutput.Keepalive | None = None
        self.asked = False
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        try:
            with translated(f"cannot open a replication connection to {session.redact(dsn)}"):
                pinned = session.pinned(dsn, application=application)
                self._conn = psycopg.connect(conninfo.make_conninfo(pinned, replication="database"), autocommit=True)
                try:
                    session.pin_newer(self._conn)
                    self._conn.add_notice_handler(self._noticed)
                    row: Any = self._conn.execute("IDENTIFY_SYSTEM").fetchone()
                    self.system = System(
                        system_id=str(row[0]),
                        timeline=int(row[1]),
                        flushed_lsn=parse_lsn(row[2]),
                        database=str(row[3]),
                    )
                    timeout: Any = self._conn.execute(
                        "select setting::bigint from pg_catalog.pg_settings where name = 'wal_sender_timeout'"
                    ).fetchone()
                except BaseException:
                    self._conn.close()
                    raise
        except BaseException:
            os.close(self._wake_r)
            os.close(self._wake_w)
            raise
        self._interval_s = min(FEEDBACK_S, int(timeout[0]) / 3000) if int(timeout[0]) else FEEDBACK_S
        self._pgconn = self._conn.pgconn
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)
        self._poll.register(self._wake_r, select.POLLIN)
        self._feedback = threading.Thread(target=self._report, name="feedback", daemon=True)

    @property
    def pid(self) -> int:
        """The walsender's process id."""
        return self._pgconn.backend_pid

    @property
    def confirmed(self) -> Lsn:
        return self._confirmed

    @property
    def at_rest(self) -> bool:
        """The server has sent all that it has: nothing waits in the socket, and its last word was a keepalive.

        A walsender whose client has not confirmed all that was sent says so with a keepalive whenever it goes to sleep.
        """
        return self._dry and self._quiet

    def start(self) -> None:
        """START_REPLICATION from the slot's own confirmed position, and feedback from then on.

        Errors: SlotLost (missing, invalidated, another database's), Unavailable (another process streams from it).
        """
        slot = self.slot.replace('"', '""')
        publication = self._publication.replace('"', '""').replace("'", "''")
        command = (
            f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0'
            f" (proto_version '1', publication_names '\"{publication}\"', messages 'true')"
        )
        with self._lock:
            result = self._pgconn.exec_(command.encode())
            if result.status != pq.ExecStatus.COPY_BOTH:
                raise self._refused(result)
            self._pgconn.nonblocking = 1
            self._send(reply=False)
        self._feedback.start()

    def read(self, timeout_s: float) -> list[bytes]:
        """XLogData frames in the order sent, at most FRAMES; waits up to `timeout_s` for the first, or until `wake`.

        Shape:  whole frames, as `connectors.postgres.pgoutput` reads them; keepalives go to `keepalive`.
        Errors: Unavailable (connection lost, server stopping), SlotLost, Halt.
        """
        frames = self._take()
        if not frames and timeout_s > 0 and not self._failure:
            for fd, _ in self._poll.poll(timeout_s * 1000):
                if fd == self._wake_r:
                    os.read(self._wake_r, 4096)
            frames = self._take()
        if self._failure is not None:
            raise self._failure
        return frames

    def _take(self) -> list[bytes]:
        frames: list[bytes] = []
        size = 0
        self._dry = False
        with self._lock, translated(f"reading replication slot {self.slot}"):
            get = self._pgconn.get_copy_data
            consumed = False
            while len(frames) < FRAMES and size < READ_BYTES:
                n, view = get(1)
                if n > 0:
                    consumed = False
                    frame = bytes(view)
                    if frame[0] == pgoutput.XLOG_DATA:
                        frames.append(frame)
                        size += n
                        self._quiet = False
                    else:
                        self._control(frame)
                elif n < 0:
                    self._end()
                elif consumed:
                    self._dry = True
                    break
                else:
                    self._pgconn.consume_input()
                    consumed = True
        return frames

    def _control(self, frame: bytes) -> None:
        if frame[0] != pgoutput.KEEPALIVE:
            raise Halt(
                f"the server sent a replication message {chr(frame[0])!r} that this version does not know",
                hint="report this with the server's version",
            )
        self.keepalive = pgoutput.keepalive(frame)
        self._quiet = True
        if self.keepalive.reply_requested:
            self.asked = True
            self._send(reply=False)

    def confirm(self, lsn: Lsn) -> None:
        """Everything that ends at or below `lsn` is durable in Kafka: reported at once, and from then on."""
        with self._lock:
            if lsn < self._confirmed:
                raise Halt(
                    f"asked to confirm {format_lsn(lsn)} after {format_lsn(self._confirmed)}",
                    hint="report this: a confirmed position never goes back",
                )
            self._confirmed = lsn
            with translated(f"confirming a position of replication slot {self.slot}"):
                self._send(reply=False)

    def ping(self) -> None:
        """Asks the server how far it is; the answer arrives as a keepalive."""
        with self._lock, translated(f"asking about replication slot {self.slot}"):
            self._send(reply=True)

    def wake(self) -> None:
        """Ends a `read` that waits, now or the next one."""
        with self._lock:  # a number of a closed pipe may be somebody else's by now
            if self._closed.is_set():
                return
            try:
                os.write(self._wake_w, b"!")
            except BlockingIOError:
                return  # as awake as can be

    def close(self) -> None:
        """Gives the slot up; safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._feedback.ident is not None:
            self._feedback.join()
        with self._lock:
            self._conn.close()
            os.close(self._wake_r)
            os.close(self._wake_w)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _report(self) -> None:
        """The feedback thread."""
        while not self._closed.wait(self._interval_s):
            with self._lock:
                try:
                    with translated(f"reporting to replication slot {self.slot}"):
                        self._send(reply=False)
                except SlackwaterError as error:  # the reader's to raise
                    self._failure = self._failure or error
                    return

    def _send(self, *, reply: bool) -> None:
        now_us = time.time_ns() // 1000
        self._pgconn.put_copy_data(pgoutput.status(self._confirmed, now_us=now_us, reply_requested=reply))
        self._pgconn.flush()

    def _noticed(self, diagnostic: errors.Diagnostic) -> None:
        """Called by libpq, inside a call of ours that holds the lock; raising here would be lost."""
        if diagnostic.severity_nonlocalized == "WARNING" and diagnostic.sqlstate == "55000":
            self._failure = SchemaChanged(
                f"the server does not stream all of publication {self._publication}: {diagnostic.message_primary}",
                hint="rows may be missing from the stream: `slackwater cancel`, then prepare anew",
            )

    def _end(self) -> None:
        """The server ended the copy: say why."""
        result = self._pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.FATAL_ERROR:
            raise Unavailable(
                f"the server ended the stream of replication slot {self.slot}",
                hint="it is probably stopping; it is tried again by itself",
            )
        raise self._refused(result)

    def _refused(self, result: pq.abc.PGresult) -> SlackwaterError:
        error = errors.error_from_result(result, encoding="utf-8")
        message = error.diag.message_primary or "unknown error"
        cause = f"replication slot {self.slot}: {message} (SQLSTATE {error.sqlstate})"
        match error.sqlstate:
            case "55006":
                return Unavailable(cause, hint="another capture streams from it; it is tried again until that one ends")
            case "42704" if "publication" in message:
                return SchemaChanged(cause, hint="the publication was dropped: `slackwater cancel`, then prepare anew")
            case "42704" | "55000" | "58P01" | "0A000":
                return SlotLost(cause, hint=REBUILD)
        return session.translate(error, f"replication slot {self.slot}")


REBUILD: Final = (
    "changes may be missing from the stream for good: `slackwater cancel`, then prepare anew: every row is copied again"
)
