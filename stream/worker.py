"""Runs one role as one process: its retries, its heartbeat, its health, its end.

Invariant: only an error that says BACKOFF is tried again by the process itself; anything unknown waits for an operator.
"""

from __future__ import annotations

import threading
from typing import Protocol


class Role(Protocol):
    """One loop of the data plane: capture, apply or backfill of one direction."""

    def run(self, stop: threading.Event) -> None:
        """Blocks until `stop` is set (it ends at the next safe point) or its work is done for good.

        Errors: SlackwaterError, whose `retry` says who acts next. The role is never run twice: it is built anew.
        """
