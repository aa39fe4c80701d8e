"""Sessions on both sides for whoever watches: a server that is down, or frozen, holds up nobody who asks.

Invariant: a question that was not answered in time raises Unavailable; it is never answered from an earlier look.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

from connectors.postgres.session import Connection, connect
from schemas.direction import Side
from schemas.errors import SlackwaterError, Unavailable

T = TypeVar("T")

PATIENCE_S = 8.0


class _Question(Generic[T]):
    def __init__(self, ask: Callable[[Connection], T]) -> None:
        self.ask = ask
        self.asked_at = time.monotonic()
        self.answered = threading.Event()
        self.answer: T | None = None
        self.error: BaseException | None = None


class Line:
    """One side's session behind a thread of its own. A frozen server leaves the thread waiting, not its caller."""

    def __init__(self, dsn: str, name: str, application: str) -> None:
        self._dsn = dsn
        self._name = name
        self._application = application
        self._questions: queue.SimpleQueue[_Question[Any] | None] = queue.SimpleQueue()
        self._pending: _Question[Any] | None = None
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()

    def ask(self, question: Callable[[Connection], T], *, patience_s: float = PATIENCE_S) -> T:
        """Runs `question` on the session (made anew where it broke) and returns its answer.

        Errors: what `question` raises; Unavailable when there is no answer within `patience_s`.
        """
        if not self._turn.acquire(timeout=patience_s):
            raise self._silent(patience_s)
        try:
            return self._ask(question, patience_s)
        finally:
            self._turn.release()

    def _ask(self, question: Callable[[Connection], T], patience_s: float) -> T:
        if self._pending is not None and not self._pending.answered.is_set():
            raise self._silent(time.monotonic() - self._pending.asked_at)
        if self._thread is None:
            self._thread = threading.Thread(target=self._answer, name=f"line to {self._name}", daemon=True)
            self._thread.start()
        asked = _Question(question)
        self._pending = asked
        self._questions.put(asked)
        if not asked.answered.wait(patience_s):
            raise self._silent(patience_s)
        if asked.error is not None:
            raise asked.error
        return cast("T", asked.answer)

    def close(self) -> None:
        """Ends the session once it has answered what was asked."""
        self._questions.put(None)

    def _silent(self, seconds: float) -> Unavailable:
        return Unavailable(
            f"{self._name} has not answered for {seconds:.0f} s",
            hint="check that the server is up and not overloaded; it is asked again by itself",
        )

    def _answer(self) -> None:
        conn: Connection | None = None
        while (asked := self._questions.get()) is not None:
            try:
                if conn is None:
                    settings = {"statement_timeout": "30s", "lock_timeout": "5s"}
                    conn = connect(self._dsn, application=self._application, settings=settings)
                asked.answer = asked.ask(conn)
            except BaseException as error:  # noqa: BLE001 handed to whoever asked
                asked.error = error
                if conn is not None:
                    conn.close()
                conn = None
            asked.answered.set()
        if conn is not None:
            conn.close()


class Sides:
    """A line to old and a line to new."""

    def __init__(self, dsns: Mapping[Side, str], *, application: str) -> None:
        self._lines = {side: Line(dsn, side.value, application) for side, dsn in dsns.items()}

    def ask(self, side: Side, question: Callable[[Connection], T], *, patience_s: float = PATIENCE_S) -> T:
        return self._lines[side].ask(question, patience_s=patience_s)

    def attempt(self, side: Side, question: Callable[[Connection], T]) -> T | SlackwaterError:
        """The answer, or the error that says why there is none."""
        try:
            return self.ask(side, question)
        except SlackwaterError as error:
            return error

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
