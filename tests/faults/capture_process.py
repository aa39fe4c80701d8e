"""A capture as a process of its own, for tests that kill it: `capture_process.py RIG_JSON MAX_ROWS`.

Runs until SIGTERM and tries again on what may be tried again, as a worker does; prints its peak memory at the end.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading

from schemas.errors import Retry, SlackwaterError
from stream.capture.role import Capture
from tests.fixtures.capturing import Rig


def main() -> None:
    document = json.loads(sys.argv[1])
    rig = Rig(**{**document, "tables": tuple(document["tables"])}).load()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    restarts = 0
    while not stop.is_set():
        try:
            Capture(rig.task(max_rows=int(sys.argv[2]))).run(stop)
        except SlackwaterError as error:
            if error.retry is not Retry.BACKOFF:
                raise
            restarts += 1
            print(f"again: {error.cause}", file=sys.stderr, flush=True)
            stop.wait(0.2)
    print(json.dumps({"restarts": restarts, "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    main()
