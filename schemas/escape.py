"""PostgreSQL's names, which may hold anything, in what Avro and Kafka allow. Injective: no two names ever meet."""

from __future__ import annotations

import hashlib
import re

TOPIC_CHARACTERS = 249
_ESCAPED = re.compile(r"(?:_x[0-9a-f]{2})+")
_LOOKS_ESCAPED = re.compile(r"x[0-9a-f]{2}")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def escape(name: str, *, also: str = "") -> str:
    """`name` in letters, digits, underscores and the characters of `also`; never starts with a digit.

    Every other byte of its UTF-8 form becomes `_x` and two hex digits. An underscore stays, except where it would look
    like the start of such an escape. So `unescape` always finds the way back.
    """
    parts: list[str] = []
    for i, c in enumerate(name):
        legal = c in _PLAIN and (i or not c.isdigit())
        if legal or c in also or (c == "_" and not _LOOKS_ESCAPED.match(name, i + 1)):
            parts.append(c)
        else:
            parts += (f"_x{byte:02x}" for byte in c.encode())
    return "".join(parts)


def unescape(name: str) -> str:
    """The name that `escape` was given."""
    return _ESCAPED.sub(lambda m: bytes.fromhex(m[0].replace("_x", "")).decode(), name)


def topic(*parts: str) -> str:
    """Parts joined by dots, within Kafka's 249 characters: a longer name keeps its head and ends in a digest of all."""
    name = ".".join(parts)
    if len(name) <= TOPIC_CHARACTERS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:40]
    return f"{name[: TOPIC_CHARACTERS - 41]}.{digest}"
