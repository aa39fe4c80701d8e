"""Command lines in a remedy, called on the file that it is about.

Whoever raises an error says `slackwater verify`; only who tells it knows how that is called from where it is read.
"""

from __future__ import annotations

import re
from typing import Any

VERBS = (
    "arm", "cancel", "check", "cutover", "failover", "finalize", "foreign-writes", "gates", "grants", "journal",
    "pause", "plan", "prepare", "quarantine", "repaired", "resume", "rollback", "roundtrip", "route", "run", "show",
    "status", "trace", "upgrade", "verify", "wait",
)  # fmt: skip
"""Those that are called on a file."""

_CALLED = re.compile(rf"\bslackwater (?=(?:{'|'.join(VERBS)})\b)")


def on_file(remedy: str, command: str) -> str:
    """The remedy with its command lines on the file of `command`, which is `slackwater -c shop.yaml`."""
    return _CALLED.sub(lambda _: f"{command} ", remedy)


def throughout(document: Any, command: str) -> Any:
    """The document with each `remedy` in it on the file of `command`."""
    if isinstance(document, list):
        return [throughout(item, command) for item in document]
    if not isinstance(document, dict):
        return document
    return {
        key: on_file(value, command) if key == "remedy" and isinstance(value, str) else throughout(value, command)
        for key, value in document.items()
    }
