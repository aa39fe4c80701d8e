"""Runs one role as one process: its retries, its heartbeat, its health, its end.

Invariant: only an error that says BACKOFF is tried again by the process itself; anything unknown waits for an operator.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from schemas.errors import ConfigError, Halt, Retry, SlackwaterError
from schemas.remedy import on_file
from stream.monitoring.clock import now, rfc3339
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics

log = logging.getLogger("slackwater.worker")

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
SETTLED_S = 15.0  # a role that ran for so long has got over its last error: what ends it next is another one
IDLE_S = 5.0  # how often a role that had nothing left to do is asked again
RESUME_POLL_S = 2.0

DONE, FAILED, ABORTED = 0, 1, 4

COLLECT_AFTER = 100_000  # containers made and not yet freed


class Role(Protocol):
    """One loop of the data plane: capture, apply or backfill of one direction."""

    def run(self, stop: threading.Event) -> None:
        """Blocks until `stop` is set (it ends at the next safe point) or there is nothing left to do.

        Errors: SlackwaterError, whose `retry` says who acts next. A role is never run twice: it is built anew.
        """


class NotYet(SlackwaterError):
    """The role's turn has not come: it waits, is ready, and says so. Raised by whoever builds it."""

    retry = Retry.BACKOFF


def _collect_rarely() -> None:
    """Spare the garbage collector the program itself, and most of its rounds.

    Changes are many small containers that hold no cycles: reference counts free them. With Python's own thresholds the
    collector went over every module, model and batch again and again, for half of an applier's time.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 50, 100)


class Worker:
    """Builds and runs a role until it is stopped. `resumed` tells whether an operator has asked to go on since it
    was built; it is asked only while the role is halted. `command` is how a verb is called on its file.
    """

    def __init__(
        self,
        *,
        build: Callable[[], Role],
        heartbeat: Heartbeat,
        metrics: Metrics,
        resumed: Callable[[], Callable[[], bool]],
        command: str,
    ) -> None:
        self._build = build
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._resumed = resumed
        self._command = command

    def run(self, stop: threading.Event) -> int:
        """The exit status: 0 stopped as asked, 1 another process took over, 2 the file is not usable."""
        attempt = 0
        while not stop.is_set():
            started = time.monotonic()
            error = self._once(stop)
            if stop.is_set():
                break
            if time.monotonic() - started > SETTLED_S:
                attempt = 0
            if error is None or isinstance(error, NotYet):
                self._heartbeat.waiting(error.cause if error else "nothing is left to do")
                stop.wait(IDLE_S if error is None else RESUME_POLL_S)
                attempt = 0
            elif isinstance(error, ConfigError):
                log.error("%s", self._told(error))
                return error.exit_code
            elif error.retry is Retry.BACKOFF:
                self._back_off(error, attempt, stop)
                attempt += 1
            elif error.retry is Retry.NEVER:
                log.error("%s", self._told(error))
                self._heartbeat.halted(error.cause)
                return FAILED
            else:
                self._halt(error, stop)
                attempt = 0
        return DONE

    def _once(self, stop: threading.Event) -> SlackwaterError | None:
        """One life of the role; what ended it, if it was an error."""
        try:
            role = self._build()
            _collect_rarely()
            role.run(stop)
        except NotYet as error:
            return error
        except SlackwaterError as error:
            self._count(error)
            return error
        except Exception as error:  # noqa: BLE001 unknown means: stand still, and wait for an operator
            # The message may hold a row's values, the stack does not.
            log.error("unexpected %s\n%s", type(error).__name__, stack(error))
            halt = Halt(
                f"unexpected {type(error).__name__} at {where(error)}",
                hint="a defect of slackwater; nothing was skipped. Report the stack in the log; a restart tries again",
            )
            self._count(error, halt)
            return halt
        return None

    def _told(self, error: SlackwaterError) -> str:
        return f"{error.cause}\n  remedy: {on_file(error.hint, self._command)}" if error.hint else error.cause

    def _count(self, error: BaseException, shown: SlackwaterError | None = None) -> None:
        self._metrics.error(error)
        if shown is not None or isinstance(error, SlackwaterError):
            self._heartbeat.failed(shown or _ours(error), rfc3339(now()))

    def _back_off(self, error: SlackwaterError, attempt: int, stop: threading.Event) -> None:
        pause_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
        self._heartbeat.starting(error.cause)
        log.warning("%s; tried again in %.1f s", error.cause, pause_s)
        stop.wait(pause_s)

    def _halt(self, error: SlackwaterError, stop: threading.Event) -> None:
        """Stands still, alive but not ready, until somebody says `resume` or restarts the process."""
        resumed: Callable[[], bool] | None = None
        with suppress(SlackwaterError):  # asked again below
            resumed = self._resumed()  # before anybody can see that it has halted, and say so at once
        self._heartbeat.halted(error.cause)
        log.error("halted: %s", self._told(error))
        while not stop.wait(RESUME_POLL_S):
            try:
                if resumed is None:
                    resumed = self._resumed()
                if resumed():
                    log.info("resumed by an operator")
                    return
            except SlackwaterError as problem:
                log.warning("cannot ask whether to resume: %s", problem.cause)
                resumed = None


def _ours(error: BaseException) -> SlackwaterError:
    assert isinstance(error, SlackwaterError)
    return error


def stack(error: BaseException) -> str:
    """Where an error came from, without its message."""
    return "".join(traceback.format_tb(error.__traceback__)).rstrip()


def where(error: BaseException) -> str:
    """The innermost frame, as `file.py:12 in function`."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "?"


def stop_on_signals(stop: threading.Event, reload: Callable[[], None]) -> None:
    """SIGTERM and SIGINT stop at the next safe point; a second one ends the process at once. SIGHUP calls `reload`."""

    def end(_signum: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(ABORTED)
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, lambda *_: reload())


def attend(run: Callable[[], int], stop: threading.Event, parent: int | None) -> int:
    """Runs `run` in a thread while this one stays free for signals; stops it when `parent` is no longer our parent."""
    outcome: list[int] = []
    thread = threading.Thread(target=lambda: outcome.append(run()), name="role")
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        if parent is not None and os.getppid() != parent and not stop.is_set():
            log.warning("the process that started this one is gone; stopping")
            stop.set()
    return outcome[0] if outcome else FAILED
