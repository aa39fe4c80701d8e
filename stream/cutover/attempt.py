"""What one run of a turn has in its hands: what was asked for, its sessions, its clock."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from connectors.postgres import catalog, control
from connectors.postgres.control import Turn
from connectors.postgres.lease import Lease
from connectors.postgres.session import Connection, connect, sever, translated
from schemas.direction import Direction, Side
from schemas.errors import Aborted, Refused, SlackwaterError, Superseded
from schemas.spec import Spec
from schemas.table import Table
from stream.cutover.outcome import Steps
from stream.cutover.progress import Standing, standing, verb
from stream.migration.journal import Actor
from stream.migration.prepared import Prepared
from stream.verify.final_check import Standstill

Gates = Callable[[Direction], list[dict[str, Any]]]
"""The gates of a direction as `status` shows them: gate, state, detail, remedy."""

# The session that opens a side dies before the one that keeps the other side closed: a process that is stopped
# between the two, and wakes late, has lost the first.
OPENING_MS = 4_000
KEEPING_MS = 12_000
# A server that does not hear from us for some seconds ends the session, and lets the writers go.
ALIVE = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "3"}
PACE_S = 0.004
GRACE_S = 5.0  # how long after its time an answer is still waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked for: who is to take the writes, and what may be done for it."""

    to: Side
    dry_run: bool = False
    max_pause_s: float
    attempts: int
    terminate_blockers: bool = False
    waive: tuple[str, ...] = ()
    reason: str | None = None
    forced: bool = False  # failover

    @property
    def verb(self) -> str:
        return "failover" if self.forced else verb(self.to)


@dataclass(slots=True, kw_only=True)
class Turning:
    """One run. `source` is the side that takes the writes until now; `closed` is past the point of no return."""

    spec: Spec
    order: Order
    actor: Callable[[Connection], Actor]
    gates: Gates
    say: Callable[[str], None]
    stop: threading.Event
    conns: dict[Side, Connection] = field(default_factory=dict)
    prepared: Prepared | None = None
    lease: Lease | None = None
    holder: Connection | None = None
    turn: int = 0
    attempt: str = field(default_factory=lambda: secrets.token_hex(8))
    steps: Steps = field(default_factory=Steps)
    pause_began: float | None = None
    pause_s: float | None = None
    intended: bool = False
    closed: bool = False
    notes: list[str] = field(default_factory=list)
    standstill: Standstill | None = None  # both sides as they are compared; None: that gate is off
    next_: str | None = None  # what to run after it, where that is not told by how it ended

    @property
    def to(self) -> Side:
        return self.order.to

    @property
    def source(self) -> Side:
        return self.order.to.other

    @property
    def migration(self) -> str:
        return self.spec.migration

    @property
    def direction(self) -> Direction:
        """The stream that has to be drained: from the side that closes to the side that opens."""
        return Direction.FORWARD if self.to is Side.NEW else Direction.REVERSE

    def dsn(self, side: Side) -> str:
        return str((self.spec.old if side is Side.OLD else self.spec.new).dsn)

    @property
    def application(self) -> str:
        """How others are told who is at work."""
        return f"slackwater {self.order.verb} by {_account()}@{socket.gethostname()} pid {os.getpid()}"

    def open_sessions(self) -> None:
        """A session on each side. Errors: Refused when one does not answer: nothing has begun."""
        for side in Side:
            try:
                self.conns[side] = self.connect(side)
            except SlackwaterError as error:
                raise Refused(
                    f"{side} cannot be reached",
                    reasons=(f"{side}: {error.cause}",),
                    hint=error.hint or f"{self.command} status",
                ) from error

    def connect(self, side: Side, **settings: str) -> Connection:
        idle = OPENING_MS if side is self.to else KEEPING_MS
        wanted = {
            **ALIVE,
            "synchronous_commit": "on",
            "statement_timeout": "30s",
            "lock_timeout": "5s",
            "idle_in_transaction_session_timeout": str(idle),
            **settings,
        }
        return connect(self.dsn(side), application=f"slackwater {self.order.verb} {self.migration}", settings=wanted)

    def close_sessions(self) -> None:
        for conn in (*self.conns.values(), *([self.holder] if self.holder is not None else [])):
            conn.close()
        if self.standstill is not None:
            self.standstill.close()
        if self.lease is not None:
            self.lease.close()

    def rows(self) -> dict[Side, Turn]:
        """Both turn rows. Errors: Refused where there is none."""
        found: dict[Side, Turn] = {}
        for side in Side:
            row = control.turn(self.conns[side], self.migration, side)
            if row is None:
                raise Refused(
                    f"migration {self.migration} is not prepared: {side} holds no turn row",
                    hint=f"{self.command} prepare",
                )
            found[side] = row
        return found

    def standing(self) -> Standing:
        return standing(self.rows(), self.to)

    def still(self) -> None:
        """Errors: Superseded unless `to` is open with this turn: its own row says so until a later turn closes it."""
        row = control.turn(self.conns[self.to], self.migration, self.to)
        if row is None or not row.open or row.open_turn != self.turn:
            raise Superseded(
                f"{self.to} is not open with turn {self.turn} any more: the writes have moved on",
                hint=f"{self.command} status",
            )

    def tables(self, side: Side) -> list[Table]:
        """What carries the side's fence, and is held: all of new; of old, what this migration streams.

        Errors: Refused when a table that was prepared is gone.
        """
        schema = self.spec.old.schema_ if side is Side.OLD else self.spec.new.schema_
        present = catalog.tables(self.conns[side], schema)
        if side is Side.NEW:
            return list(present.values())
        assert self.prepared is not None
        wanted = self.prepared.forward.streamed
        if gone := [name for name in wanted if name not in present]:
            raise Refused(f"old lacks {', '.join(gone)}, which was prepared", hint=f"{self.command} status")
        return [present[name] for name in wanted]

    # The clock.

    def left_s(self) -> float:
        """What is left of the pause that is allowed; all of it before it has begun."""
        if self.pause_began is None:
            return self.order.max_pause_s
        return self.order.max_pause_s - (time.monotonic() - self.pause_began)

    def may_go_on(self) -> None:
        """Asked before the point of no return. Errors: Aborted when stopped, overtaken, or out of time."""
        if self.stop.is_set():
            raise Aborted("stopped before the point of no return", hint=self.again)
        if self.lease is not None and self.lease.lost is not None:
            raise Aborted(f"the migration's lock was lost: {self.lease.lost.cause}", hint=self.again)
        if self.left_s() <= 0:
            raise Aborted(
                f"the pause would be longer than {self.order.max_pause_s:g} s",
                reasons=tuple(f"{name} took {seconds:.2f} s" for name, seconds in self.steps.taken),
                hint=f"{self.again}, with a longer --max-pause, or when the lag is lower",
            )

    @contextmanager
    def answered(self, within_s: float, *besides: Connection) -> Iterator[None]:
        """A server that is frozen, or behind a dead line, says nothing: all sessions are cut after `within_s`.

        What was asked fails then as if the server had gone away, and is dealt with in the same manner.
        """

        def cut() -> None:
            self.say(f"no answer within {within_s:.0f} s: the sessions are cut")
            for conn in (*self.conns.values(), *([self.holder] if self.holder is not None else []), *besides):
                sever(conn)

        timer = threading.Timer(within_s, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    # What is said.

    @property
    def command(self) -> str:
        return self.spec.command

    @property
    def again(self) -> str:
        if self.order.forced:
            return f"{self.command} failover --to {self.to} --accept-loss --source-isolated"
        return f"{self.command} {self.order.verb}"

    def note(self, line: str) -> None:
        """Something that went wrong and does not undo what was done."""
        self.notes.append(line)
        self.say(line)


def ping(conn: Connection) -> None:
    with translated("the session is gone"):
        conn.execute("select 1")


def _account() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return str(os.getuid())
