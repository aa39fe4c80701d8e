"""What a role says of itself, written to `slackwater.role` once a second over a connection of its own.

Invariant: a heartbeat never claims more than its role said. Whoever reads the row judges `seen_at` by the clock of
the server that holds it, so a process that was stopped looks stopped, and a server that is down makes the row old.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from connectors.postgres.session import Connection, connect, translated
from schemas.errors import SlackwaterError

log = logging.getLogger("slackwater.heartbeat")

BEAT_S = 1.0
QUIET_S = 5.0  # at most one line on a change of state in this time
DEAD_S = 8.0  # a heartbeat older than this: the process is gone, stopped, or cut off from its database

WRITE = """
insert into slackwater.role as r (migration, direction, role, pid, host, state, reason, last_error, figures, seen_at)
values (%s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s::jsonb, clock_timestamp())
on conflict (migration, direction, role) do update
   set pid = excluded.pid, host = excluded.host, state = excluded.state, reason = excluded.reason,
       last_error = excluded.last_error, figures = excluded.figures, seen_at = excluded.seen_at
"""


READ = """
select direction, role, pid, host, state, reason, last_error, figures, seen_at,
       extract(epoch from clock_timestamp() - seen_at)::float8
  from slackwater.role where migration = %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A heartbeat as it was read. `age_s` is by the clock of the server that holds the row."""

    direction: str
    role: str
    pid: int
    host: str
    state: str
    reason: str | None
    last_error: Mapping[str, Any] | None
    figures: Mapping[str, Any]
    seen_at: datetime
    age_s: float

    @property
    def alive(self) -> bool:
        return self.state != "stopped" and self.age_s <= DEAD_S

    @property
    def seen_state(self) -> str:
        """Its state as an onlooker should take it: `dead` when it was last heard of too long ago."""
        return self.state if self.alive or self.state == "stopped" else "dead"


def beats(conn: Connection, migration: str) -> dict[tuple[str, str], Beat]:
    """Every heartbeat in this database, by (direction, role)."""
    with translated("reading the heartbeats"):
        rows = conn.execute(READ, (migration,)).fetchall()
    names = ("direction", "role", "pid", "host", "state", "reason", "last_error", "figures", "seen_at", "age_s")
    found = (Beat(**cast("dict[str, Any]", dict(zip(names, row, strict=True)))) for row in rows)
    return {(b.direction, b.role): b for b in found}


class Heartbeat:
    """The state of one role of one direction.

    `dsn` is where the role writes: capture its source, apply and backfill their target. The role calls `running`,
    `waiting` and `paused`, and puts what it knows of its progress into `figures` (JSON values). Figures that belong
    together are set by replacing `figures` whole, or in one `update`, so that no beat tears them. The worker alone
    calls `start`, `failed`, `halted` and `stop`.
    """

    def __init__(self, *, dsn: str, migration: str, direction: str, role: str) -> None:
        self.migration = migration
        self.direction = direction
        self.role = role
        self.pid = os.getpid()
        self.host = socket.gethostname()
        self.figures: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}  # what the process around the role adds to its figures
        self.last_error: dict[str, Any] | None = None
        self.unwritten: str | None = None  # why the last beat could not be written; None when it was
        self._dsn = dsn
        self._said: tuple[str, str | None] = ("starting", None)  # one tuple: state and reason never tear
        self._told_at = -QUIET_S
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> str:
        """starting, running, waiting, paused, halted or stopped."""
        return self._said[0]

    @property
    def reason(self) -> str | None:
        """Why it waits, is paused or has halted; None while it runs."""
        return self._said[1]

    @property
    def ready(self) -> bool:
        """Doing its work, or waiting its turn: what /readyz answers."""
        return self.state in ("running", "waiting", "paused")

    def running(self) -> None:
        """It does its work (a cheap call: say so after every unit of work). An error it recovered from stays listed."""
        self._say("running", None)

    def waiting(self, reason: str) -> None:
        """It could work, but something else has to happen first; `reason` is a clause: "kafka:9092 does not answer"."""
        self._say("waiting", reason)

    def paused(self, reason: str) -> None:
        """It holds back on purpose: a pause, a rate, a window, lag."""
        self._say("paused", reason)

    def starting(self, reason: str | None = None) -> None:
        """It is being built, or built anew after `reason`; not ready."""
        self._say("starting", reason)

    def failed(self, error: SlackwaterError, at: str) -> None:
        """Records `last_error` (cause, remedy, class, time) beside the state."""
        self.last_error = {"cause": error.cause, "remedy": error.hint, "class": type(error).__name__, "at": at}

    def halted(self, reason: str) -> None:
        """It stands still until an operator acts."""
        self._say("halted", reason)

    def _say(self, state: str, reason: str | None) -> None:
        before = self._said
        if before == (state, reason):
            return
        self._said = (state, reason)
        self._wake.set()  # a change of state is written at once, progress once a second
        # A role that flaps between two states is not to fill the log.
        quiet = before[0] == state or time.monotonic() - self._told_at < QUIET_S
        if not quiet:
            self._told_at = time.monotonic()
        log.log(logging.DEBUG if quiet else logging.INFO, "%s", f"{state}: {reason}" if reason else state)

    def start(self) -> None:
        """Starts the thread that writes."""
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Writes `stopped` (once; not when the server is away) and ends the thread."""
        self._said = ("stopped", self.reason if self.state == "halted" else None)
        self._ended.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=15)

    def _beat(self) -> None:
        conn: Connection | None = None
        while True:
            last = self._ended.is_set()
            self._wake.clear()
            try:
                if conn is None:
                    conn = connect(self._dsn, application=f"slackwater heartbeat {self.role}")
                self._write(conn)
                self._note(None)
            except SlackwaterError as error:
                self._note(error.cause)
                if conn is not None:
                    conn.close()
                conn = None
            if last:
                break
            # Changes of state come at most every 50 ms: a role that flaps must not flood the server.
            self._ended.wait(0.05)
            self._wake.wait(BEAT_S)
        if conn is not None:
            conn.close()

    def _write(self, conn: Connection) -> None:
        state, reason = self._said
        row = (self.migration, self.direction, self.role, self.pid, self.host, state, reason)
        documents = (
            None if self.last_error is None else json.dumps(self.last_error),
            json.dumps({**self.figures, **self.measured}),
        )
        with translated("the heartbeat"):
            conn.execute(WRITE, (*row, *documents))

    def _note(self, problem: str | None) -> None:
        if problem == self.unwritten:
            return
        if problem is not None:
            log.warning("the heartbeat could not be written: %s", problem)
        else:
            log.info("the heartbeat is written again")
        self.unwritten = problem
