"""Who acts after an error: the process itself only when the error says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from schemas.errors import ConfigError, Halt, SlackwaterError, Superseded, Unavailable
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics
from stream.runtime import worker
from stream.runtime.worker import NotYet, Role, Worker


class Lives:
    """A role with several lives: each ends in an error, in None (nothing left to do), or runs until it is stopped."""

    def __init__(self, *ends: BaseException | None) -> None:
        self.ends = list(ends)
        self.built = 0
        self.working = threading.Event()

    def build(self) -> Role:
        self.built += 1
        return self

    def run(self, stop: threading.Event) -> None:
        if self.ends:
            end = self.ends.pop(0)
            if end is not None:
                raise end
            return
        self.working.set()
        stop.wait(20)


class Setting:
    def __init__(
        self,
        lives: Lives,
        *,
        heartbeat: type[Heartbeat] = Heartbeat,
        resumed: Callable[[], Callable[[], bool]] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.heartbeat = heartbeat(dsn="", migration="m", direction="forward", role="apply")  # never started
        self.metrics = Metrics("m", "forward")
        self.resume = threading.Event()
        self.stop = stop or threading.Event()
        self.outcome: list[int] = []
        self.lives = lives
        self.worker = Worker(
            build=lives.build,
            heartbeat=self.heartbeat,
            metrics=self.metrics,
            resumed=resumed or (lambda: self.resume.is_set),
            command="slackwater",
        )
        self.thread = threading.Thread(target=lambda: self.outcome.append(self.worker.run(self.stop)))
        self.thread.start()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, (self.heartbeat.state, self.heartbeat.reason)
            time.sleep(0.01)

    def end(self) -> int:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.outcome[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(worker, "RESUME_POLL_S", 0.02)
    monkeypatch.setattr(worker, "IDLE_S", 0.02)


def test_backoff_builds_the_role_anew() -> None:
    setting = Setting(Lives(Unavailable("down"), Unavailable("down")))
    setting.until(setting.lives.working.is_set)
    assert setting.lives.built == 3
    assert setting.heartbeat.last_error is not None
    assert setting.heartbeat.last_error["cause"] == "down"
    assert setting.end() == worker.DONE


class Pauses(threading.Event):
    """How long was asked to be waited, each time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.asked.append(timeout)
        return super().wait(timeout)


@pytest.mark.parametrize(("settled_s", "grows"), [(60.0, True), (0.0, False)])
def test_pauses_grow_while_a_role_fails_at_once(settled_s: float, grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that had run for a while has got over its last error: the next one is answered as the first was."""
    monkeypatch.setattr(worker, "SETTLED_S", settled_s)
    pauses = Pauses()
    setting = Setting(Lives(*(Unavailable("down") for _ in range(5))), stop=pauses)
    setting.until(setting.lives.working.is_set)
    assert setting.end() == worker.DONE
    for n, pause in enumerate(pauses.asked[:5]):
        longest = worker.FIRST_BACKOFF_S * (2**n if grows else 1)
        assert longest / 2 <= pause <= longest


@pytest.mark.parametrize("error", [Halt("a hole", hint="fill it"), SlackwaterError("unknown")])
def test_an_operators_error_stands_still_until_resume(error: SlackwaterError) -> None:
    setting = Setting(Lives(error))
    setting.until(lambda: setting.heartbeat.state == "halted")
    time.sleep(0.2)
    assert setting.lives.built == 1
    assert setting.heartbeat.reason == error.cause
    assert not setting.heartbeat.ready
    setting.resume.set()
    setting.until(setting.lives.working.is_set)
    assert setting.lives.built == 2
    assert setting.end() == worker.DONE


def test_a_resume_in_the_moment_of_the_halt_counts() -> None:
    """Whoever sees that a role has halted may say `resume` at once: before it has looked again for the first time."""
    said: list[str] = []

    class Seen(Heartbeat):
        def halted(self, reason: str) -> None:
            super().halted(reason)
            said.append("resume")

    def resumed() -> Callable[[], bool]:
        before = len(said)
        return lambda: len(said) != before

    setting = Setting(Lives(Halt("a hole", hint="fill it")), heartbeat=Seen, resumed=resumed)
    setting.until(setting.lives.working.is_set)
    assert setting.lives.built == 2
    assert setting.end() == worker.DONE


def test_an_unexpected_error_halts_and_shows_no_values(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting(Lives(ValueError("card 4111-1111")))
    setting.until(lambda: setting.heartbeat.state == "halted")
    assert setting.heartbeat.reason is not None
    assert setting.heartbeat.reason.startswith("unexpected ValueError at test_worker.py:")
    assert "4111" not in str(setting.heartbeat.last_error) + caplog.text
    assert "in run" in caplog.text  # the stack is there
    assert setting.end() == worker.DONE


def test_superseded_ends_the_process() -> None:
    setting = Setting(Lives(Superseded("another applier is ahead")))
    setting.thread.join(10)
    assert setting.outcome == [worker.FAILED]


def test_another_file_ends_the_process() -> None:
    setting = Setting(Lives(ConfigError("not the prepared one")))
    setting.thread.join(10)
    assert setting.outcome == [2]


def test_a_role_whose_turn_has_not_come_waits_and_is_ready() -> None:
    setting = Setting(Lives(*[NotYet("not prepared yet") for _ in range(3)]))
    setting.until(lambda: setting.heartbeat.state == "waiting")
    assert setting.heartbeat.ready
    assert setting.heartbeat.last_error is None
    setting.until(setting.lives.working.is_set)
    assert setting.end() == worker.DONE


def test_nothing_left_to_do_is_asked_again() -> None:
    setting = Setting(Lives(None))
    setting.until(setting.lives.working.is_set)
    assert setting.lives.built == 2
    assert setting.end() == worker.DONE
