"""Log lines on stderr: text for people, one JSON object per line for collectors. Never a secret, never a row value."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from typing import TextIO

from connectors.postgres.session import secrets
from schemas.spec import Spec
from stream.monitoring.clock import from_epoch_seconds, rfc3339

# What a secret looks like wherever it comes from: a library's message, a DSN inside an error.
PATTERNS = (
    (
        re.compile(
            r"(\b(?:password|passwd|pwd|sslpassword|sasl\.password|secret|token)\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,;&)]+)",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s@/]+@", re.IGNORECASE), r"\1***@"),
)


class Redaction:
    """Takes secrets out of a text: the ones it was told, and whatever is written as one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first, so that one which contains another goes whole. Very short ones would blank common words.
        self._secrets = sorted({s for s in secrets if len(s) >= 4}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        for pattern, instead in PATTERNS:
            text = pattern.sub(instead, text)
        return text


def hidden(spec: Spec) -> list[str]:
    """Every secret of the file and its environment, for a redaction."""
    dsns = [spec.old.dsn, spec.new.dsn, spec.backfill.read_from, spec.verify.read_from]
    found = [s for d in dsns if d is not None for s in secrets(str(d))]
    for options in (spec.kafka.options, spec.kafka.registry.options):
        shown = options.shown()
        found += [value for name, value in options.items() if shown[name] != value]
    return [*found, os.environ.get("PGPASSWORD", "")]


class TextFormat(logging.Formatter):
    """`12:00:01.123 info    capture  connected`; the prefix tells roles apart on one terminal."""

    def __init__(self, redact: Redaction, prefix: str = "") -> None:
        super().__init__()
        self._redact = redact
        self._prefix = f"{prefix:<8} " if prefix else ""

    def format(self, record: logging.LogRecord) -> str:
        clock = rfc3339(from_epoch_seconds(record.created))[11:]
        line = f"{clock} {record.levelname.lower():<8}{self._prefix}{record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return self._redact(line)


class JsonFormat(logging.Formatter):
    """One object per line: at, level, role, logger, message; error where there is a traceback."""

    def __init__(self, redact: Redaction, role: str = "") -> None:
        super().__init__()
        self._redact = redact
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "at": rfc3339(from_epoch_seconds(record.created)),
            "level": record.levelname.lower(),
            "role": self._role or None,
            "logger": record.name,
            "message": self._redact(record.getMessage()),
        }
        if record.exc_info:
            document["error"] = self._redact(self.formatException(record.exc_info))
        return json.dumps(document, ensure_ascii=False)


def configure(
    *, style: str = "text", level: str = "info", role: str = "", secrets: Iterable[str] = (), out: TextIO | None = None
) -> None:
    """Sets up the process's logging, once; again replaces it. `role` marks the lines."""
    redact = Redaction(secrets)
    handler = logging.StreamHandler(out or sys.stderr)
    handler.setFormatter(JsonFormat(redact, role) if style == "json" else TextFormat(redact, role))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
