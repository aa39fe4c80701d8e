"""`slackwater` verbs in forked children of one warm process, each killed around a failpoint: `lives.py`.

One JSON document a line: {"arguments": [...], "place": "apply.before_commit", "delay_s": 0.0013}: the child is sent
SIGKILL so long after it first reaches that place, wherever it is by then. Answers with the child's status, a line each;
-1 where it never came there. Starting an interpreter for each would take a second of processor two hundred times.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from connectors import failpoint

PATIENCE_S = 60.0


class Place:
    """Stands for the failpoint of every module that is imported after this one."""

    name = ""
    delay_s = 0.0

    def __call__(self, name: str) -> None:
        if name == self.name:
            self.name = ""
            threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self) -> None:
        time.sleep(self.delay_s)
        os.kill(os.getpid(), signal.SIGKILL)


place = Place()
failpoint.failpoint = place


def live(arguments: list[str]) -> None:
    from stream.cli import main

    sys.argv = ["slackwater", *arguments]
    main()


def wait(pid: int) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


def main() -> None:
    import stream.apply.role
    import stream.runtime.process  # noqa: F401 - everything that a child needs

    for line in sys.stdin:
        life = json.loads(line)
        pid = os.fork()
        if pid == 0:
            place.name, place.delay_s = life["place"], life["delay_s"]
            live(life["arguments"])
            os._exit(99)
        print(wait(pid), flush=True)


if __name__ == "__main__":
    main()
