"""Roles as real child processes: started again when they die, unless another process owns them; stopped together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas.direction import Direction
from stream.runtime import supervisor
from stream.runtime.supervisor import RoleName, Supervisor

CAPTURE = RoleName("capture", Direction.FORWARD)
APPLY = RoleName("apply", Direction.FORWARD)

# Notes its pid, waits for SIGTERM, and notes SIGHUP.
ROLE = """
import os, signal, sys, threading
log = open(sys.argv[1], "a", buffering=1)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
signal.signal(signal.SIGHUP, lambda *_: print("hup", file=log))
print(os.getpid(), file=log)
stop.wait()
print("ended", file=log)
"""


class Running:
    def __init__(self, folder: Path, commands: dict[RoleName, list[str]]) -> None:
        self.folder = folder
        self.stop = threading.Event()
        self.outcome: list[int] = []
        self.supervisor = Supervisor(command=commands.__getitem__, wanted=lambda: list(commands))
        self.thread = threading.Thread(target=lambda: self.outcome.append(self.supervisor.run(self.stop)))
        self.thread.start()

    def lines(self, name: RoleName) -> list[str]:
        path = self.folder / name.role
        return path.read_text().split() if path.exists() else []

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> int:
        self.stop.set()
        self.thread.join(15)
        assert not self.thread.is_alive()
        return self.outcome[0]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[RoleName, str]], Running]]:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.05)
    started: list[Running] = []

    def start(programs: dict[RoleName, str]) -> Running:
        commands = {n: [sys.executable, "-c", text, str(tmp_path / n.role)] for n, text in programs.items()}
        started.append(Running(tmp_path, commands))
        return started[-1]

    yield start
    for one in started:
        one.stop.set()
        one.thread.join(15)


def test_a_killed_role_is_started_again_and_the_others_are_left_alone(
    run: Callable[[dict[RoleName, str]], Running], caplog: pytest.LogCaptureFixture
) -> None:
    running = run({CAPTURE: ROLE, APPLY: ROLE})
    running.until(lambda: len(running.lines(CAPTURE)) == 1 and len(running.lines(APPLY)) == 1)
    os.kill(int(running.lines(CAPTURE)[0]), signal.SIGKILL)
    running.until(lambda: len(running.lines(CAPTURE)) == 2)
    assert "capture was killed by SIGKILL" in caplog.text
    assert len(running.lines(APPLY)) == 1
    assert running.end() == 0
    assert running.lines(CAPTURE)[-1] == running.lines(APPLY)[-1] == "ended"


def test_hang_up_reaches_every_role(run: Callable[[dict[RoleName, str]], Running]) -> None:
    running = run({CAPTURE: ROLE, APPLY: ROLE})
    running.until(lambda: len(running.lines(CAPTURE)) == 1 and len(running.lines(APPLY)) == 1)
    running.supervisor.hang_up()
    running.until(lambda: "hup" in running.lines(CAPTURE) and "hup" in running.lines(APPLY))
    assert running.end() == 0


def test_a_role_that_another_process_owns_is_not_started_again(run: Callable[[dict[RoleName, str]], Running]) -> None:
    superseded = "import os, sys; print(os.getpid(), file=open(sys.argv[1], 'a')); sys.exit(1)"
    running = run({CAPTURE: superseded, APPLY: ROLE})
    running.until(lambda: len(running.lines(CAPTURE)) == 1 and len(running.lines(APPLY)) == 1)
    time.sleep(0.8)
    assert len(running.lines(CAPTURE)) == 1
    assert running.thread.is_alive()
    assert running.end() == 1


def test_a_file_that_cannot_be_used_ends_it_all(run: Callable[[dict[RoleName, str]], Running]) -> None:
    running = run({CAPTURE: "import sys; sys.exit(2)", APPLY: ROLE})
    running.thread.join(15)
    assert running.outcome == [2]
    assert running.lines(APPLY)[-1:] in ([], ["ended"])
