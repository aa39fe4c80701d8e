"""The epoch record: a run of whole source transactions, published, read and applied as one unit.

Invariant: each record names its predecessor, its end LSN and, per topic-partition, where its rows end and how many
there are; so a reader can prove that it holds all of them before it applies any.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from schemas import wire_version
from schemas.position import Lsn, Position, format_lsn, parse_lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where one partition's rows of an epoch lie. `end_offset` is the offset after the newest of them."""

    start_offset: int
    end_offset: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A logical decoding message of ours that was committed inside the epoch (tokens, `closed n`, `open n`)."""

    prefix: str
    content: str
    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One record of the `epochs` topic.

    `end_lsn` is where the last transaction ends (or, for an empty epoch, up to where nothing of ours was found).
    `last` is the newest change's position. `complete` is False while a transaction continues in the next record.
    `extents` is keyed by topic, then partition. `echo`: its rows are the opposite direction's work, for mirrors alone.
    `closed`: the source is closed to the application from its end on.
    `turn` is the one with which the source had opened last when its rows were written; None where nothing tells.
    Times are seconds since 1970, UTC.
    """

    epoch: int
    previous: int
    end_lsn: Lsn
    last: Position
    committed_at: float  # source commit time of the newest transaction; for an empty epoch, the source's clock
    first_committed_at: float  # source commit time of the oldest transaction in it
    published_at: float
    rows: dict[str, int] = field(default_factory=dict)
    extents: dict[str, dict[int, Extent]] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    complete: bool = True
    system_id: str = ""
    timeline: int = 0
    slot: str = ""
    echo: bool = False
    closed: bool = False
    turn: int | None = None

    def to_json(self) -> bytes:
        return json.dumps(
            {
                "version": wire_version.VERSION,
                "epoch": self.epoch,
                "previous": self.previous,
                "complete": self.complete,
                "end_lsn": format_lsn(self.end_lsn),
                "last": [format_lsn(self.last.commit_lsn), self.last.seq],
                "committed_at": self.committed_at,
                "first_committed_at": self.first_committed_at,
                "published_at": self.published_at,
                "rows": self.rows,
                "extents": {
                    topic: {str(p): [x.start_offset, x.end_offset, x.count] for p, x in sorted(parts.items())}
                    for topic, parts in self.extents.items()
                },
                "messages": [
                    {
                        "prefix": m.prefix,
                        "content": m.content,
                        "at": [format_lsn(m.position.commit_lsn), m.position.seq],
                    }
                    for m in self.messages
                ],
                "system_id": self.system_id,
                "timeline": self.timeline,
                "slot": self.slot,
                "echo": self.echo,
                "closed": self.closed,
                "turn": self.turn,
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Epoch:
        """ValueError (or KeyError, TypeError) on anything that `to_json` did not write; Halt on another version's."""
        doc = json.loads(data)
        wire_version.assert_readable(doc["version"], "an epoch record")
        return cls(
            epoch=doc["epoch"],
            previous=doc["previous"],
            complete=doc["complete"],
            end_lsn=parse_lsn(doc["end_lsn"]),
            last=Position(parse_lsn(doc["last"][0]), doc["last"][1]),
            committed_at=doc["committed_at"],
            first_committed_at=doc["first_committed_at"],
            published_at=doc["published_at"],
            rows=doc["rows"],
            extents={
                topic: {int(p): Extent(start_offset=x[0], end_offset=x[1], count=x[2]) for p, x in parts.items()}
                for topic, parts in doc["extents"].items()
            },
            messages=tuple(
                Message(prefix=m["prefix"], content=m["content"], position=Position(parse_lsn(m["at"][0]), m["at"][1]))
                for m in doc["messages"]
            ),
            system_id=doc["system_id"],
            timeline=doc["timeline"],
            slot=doc["slot"],
            echo=doc.get("echo", False),
            closed=doc.get("closed", False),
            turn=doc.get("turn"),
        )
