"""Identifiers as PostgreSQL spells them. Every name that reaches SQL goes through `quote`; none is pasted in bare."""

from __future__ import annotations


def quote(name: str) -> str:
    """Always quoted, inner quotes doubled. ValueError for what PostgreSQL cannot hold: an empty name, a zero byte."""
    if not name or "\0" in name:
        raise ValueError(f"not an identifier: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """Schema and name, each quoted."""
    return f"{quote(schema)}.{quote(name)}"


def fold(name: str) -> str:
    """An identifier written without quotes, as PostgreSQL reads it: ASCII letters in lower case, the rest as it is.

    (PostgreSQL folds other letters in single-byte encodings only; every database here is read as UTF-8.)
    """
    return "".join(c.lower() if c.isascii() else c for c in name)
