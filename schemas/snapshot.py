"""What a PostgreSQL snapshot shows, judged from its text.

A commit reaches the WAL before it is visible, so a change that was streamed is published only once a snapshot of the
source shows its transaction. pgoutput sends 32 bits of a transaction id, `pg_current_snapshot()` prints 64.
"""

from __future__ import annotations

from typing import NamedTuple

_WRAP = 1 << 32
_HALF = 1 << 31


class Snapshot(NamedTuple):
    """`xmin:xmax:xip_list`, 64 bits each: below xmin all have ended, at or above xmax none, and `xip` run still."""

    xmin: int
    xmax: int
    xip: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """ValueError on anything that `pg_current_snapshot()` does not print."""
        xmin, xmax, running = text.split(":")
        snapshot = cls(int(xmin), int(xmax), frozenset(map(int, running.split(",") if running else ())))
        if not 0 < snapshot.xmin <= snapshot.xmax or any(not snapshot.xmin <= x < snapshot.xmax for x in snapshot.xip):
            raise ValueError(f"not a snapshot: {text!r}")
        return snapshot

    def full(self, xid: int) -> int:
        """The 64 bits of a 32-bit id: of all that end in these bits, the one nearest to xmax.

        Right while it is within two thousand million transactions of xmax: PostgreSQL keeps those of a stream so, back
        from a snapshot that is taken now. Of what comes after a snapshot that is kept, the caller has to know better.
        """
        behind = (self.xmax - xid) % _WRAP
        return self.xmax - behind if behind < _HALF else self.xmax + _WRAP - behind

    def shows(self, xid: int) -> bool:
        """Whether a transaction that is known to have committed is visible. `xid` is the top-level id, 32 bits."""
        full = self.full(xid)
        return full < self.xmin or (full < self.xmax and full not in self.xip)
