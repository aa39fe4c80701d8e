"""The backfill as a process of its own, to be killed. The argument is a file with a pickle of what it needs."""

from __future__ import annotations

import logging
import pickle
import signal
import sys
import threading
from pathlib import Path

from schemas.errors import SlackwaterError
from stream.backfill import chunk_loader
from stream.backfill.role import Backfill
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics


def main() -> int:
    """0: told to stop; 1: the role's error, on stderr."""
    logging.basicConfig(level=logging.INFO)
    given = pickle.loads(Path(sys.argv[1]).read_bytes())
    chunk_loader.TARGET_SESSION = {**chunk_loader.TARGET_SESSION, "idle_in_transaction_session_timeout": given["idle"]}
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    plan = given["plan"]
    heartbeat = Heartbeat(dsn=given["new"], migration=plan.migration, direction="forward", role="backfill")
    role = Backfill(
        source_dsn=given["old"],
        target_dsn=given["new"],
        plan=plan,
        options=given["options"],
        quarantine_limit=lambda: 100,
        heartbeat=heartbeat,
        metrics=Metrics(plan.migration, "forward"),
        lag_s=lambda: 0.0,
    )
    try:
        role.run(stop)
    except SlackwaterError as error:
        sys.stderr.write(f"{type(error).__name__} {error.retry}: {error.cause}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
