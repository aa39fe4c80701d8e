"""What a turn writes into the WAL for capture to read: a side was closed, or opened, in the transaction that did it.

JSON, like every logical message of ours that is carried along (`schemas.epoch.Message`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from schemas import wire_version
from schemas.direction import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnMessage:
    """`side` was closed to the application, or opened to it, with turn `turn`: what a `TURN_PREFIX` message says."""

    migration: str
    side: Side
    closed: bool
    turn: int

    def to_json(self) -> str:
        doc = {"migration": self.migration, "side": self.side.value, "turn": self.turn, "version": wire_version.VERSION}
        return json.dumps({**doc, "what": "closed" if self.closed else "open"})

    @classmethod
    def from_json(cls, text: str) -> TurnMessage | None:
        """None for anything that `to_json` did not write. Whoever calls has looked at the version."""
        try:
            doc = json.loads(text)
            what = doc["what"]
            if what not in ("closed", "open"):
                return None
            return cls(
                migration=str(doc["migration"]), side=Side(doc["side"]), closed=what == "closed", turn=int(doc["turn"])
            )
        except (ValueError, KeyError, TypeError):
            return None
