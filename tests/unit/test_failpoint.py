from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from connectors import failpoint as module
from connectors.failpoint import FailpointReached, armed, parse
from schemas.errors import ConfigError


def run(faults: str, script: str) -> subprocess.CompletedProcess[str]:
    program = f"from connectors.failpoint import failpoint\n{script}"
    environment = {**os.environ, module.VARIABLE: faults}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30)


def test_unset_it_is_a_function_that_does_nothing() -> None:
    assert module._reach is module._disarmed
    module.failpoint("anything")


def test_kills_at_the_nth_hit_and_runs_no_handler() -> None:
    done = run(
        "here=kill@3", "try:\n for n in range(9):\n  print(n, flush=True)\n  failpoint('here')\nfinally: print('x')"
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0", "1", "2"]


def test_stops_itself_until_it_is_continued() -> None:
    program = "from connectors.failpoint import failpoint\nfailpoint('here')\nprint('on')"
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, module.VARIABLE: "here=stop"}, stdout=subprocess.PIPE
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=10)
    assert out == b"on\n"


def test_a_thread_stops_at_the_very_place() -> None:
    program = (
        "import threading; from connectors.failpoint import failpoint\n"
        "def work(): failpoint('here'); print('on', flush=True)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    )
    for _ in range(3):  # each of them went past it nine times out of ten
        process = subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, module.VARIABLE: "here=stop"}, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert select.select([process.stdout], [], [], 0)[0] == []
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=10)[0] == b"on\n"


def test_raises_and_sleeps_where_it_is_told_and_nowhere_else() -> None:
    reach = armed(parse("a=raise@2; b=sleep:0.05 ;"))
    reach("a")
    reach("elsewhere")
    with pytest.raises(FailpointReached):
        reach("a")
    reach("a")
    began = time.monotonic()
    reach("b")
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    "text", ["a", "a=", "=kill", "a=die", "a=kill@0", "a=kill@x", "a=sleep", "a=sleep:x", "a=kill:3"]
)
def test_what_cannot_be_read_is_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        parse(f"fine=raise;{text}")
