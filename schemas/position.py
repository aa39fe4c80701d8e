"""Where a change stands in the source's history. Invariant R1: order is (commit LSN, ordinal), never anything else."""

from __future__ import annotations

from typing import NamedTuple, NewType

Lsn = NewType("Lsn", int)
"""A WAL byte position."""

ZERO = Lsn(0)


class Position(NamedTuple):
    """The total order of changes: the commit record's LSN, then the change's ordinal in its transaction (from 0)."""

    commit_lsn: Lsn
    seq: int


def parse_lsn(text: str) -> Lsn:
    """`X/Y`, as PostgreSQL prints it, to bytes. ValueError on anything else."""
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not an LSN: {text!r}")
    return Lsn((int(high, 16) << 32) | int(low, 16))


def format_lsn(lsn: int) -> str:
    """Bytes to `X/Y`, as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
