"""What one partition has given: held against what an epoch says of it.

Invariant: an extent is all of its offsets, each of them once; anything less is a StreamGap.
"""

from __future__ import annotations

from schemas.epoch import Extent
from schemas.errors import StreamGap

Part = tuple[str, int]

ROW_OVERHEAD_BYTES = 100
REMEDY = "`slackwater cancel`, then prepare anew; the source and its slot are untouched"
_COMPACT = 4096


class Rows:
    """What one partition has given and no epoch has taken yet."""

    __slots__ = ("head", "next", "offsets", "seen", "size", "values")

    def __init__(self, start: int) -> None:
        self.next = start  # the offset after the rows handed over
        self.seen = start  # every visible row below is here or handed over
        self.offsets: list[int] = []
        self.values: list[bytes] = []
        self.head = 0
        self.size = 0

    def take(self, part: Part, extent: Extent) -> list[bytes]:
        """The rows of an extent that `ready` has said is there."""
        start, stop = self.head, self.head + extent.count
        rows = self.values[start:stop]
        if (
            extent.count != extent.end_offset - extent.start_offset
            or len(rows) != extent.count
            or (rows and (self.offsets[start], self.offsets[stop - 1] + 1) != (extent.start_offset, extent.end_offset))
        ):
            raise hole(part, extent, self.offsets[start:stop])
        self.head = stop
        self.next = extent.end_offset
        self.size -= sum(map(len, rows)) + ROW_OVERHEAD_BYTES * len(rows)
        if self.head == len(self.values):
            self.offsets, self.values, self.head = [], [], 0
        elif self.head > _COMPACT:
            del self.offsets[: self.head], self.values[: self.head]
            self.head = 0
        return rows


def hole(part: Part, extent: Extent, offsets: list[int]) -> StreamGap:
    inside = [o for o in offsets if extent.start_offset <= o < extent.end_offset]
    strange = [o for o in offsets if o < extent.start_offset]
    cause = (
        f"{part[0]}, partition {part[1]}: an epoch has {extent.count:,} records from offset {extent.start_offset:,} on"
    )
    if strange:
        return StreamGap(
            f"{cause}, but offset {strange[0]:,} before them holds a record that belongs to no epoch",
            hint=f"something other than slackwater writes to this topic: find it and stop it. Then {REMEDY}",
        )
    return StreamGap(f"{cause}, but Kafka holds {len(inside):,} of them", hint=REMEDY)
