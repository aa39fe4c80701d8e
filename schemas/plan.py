"""What one direction does: its tables, its mappings, its mirrors. Pure data, the same for every role."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.direction import Direction
from schemas.mapping import Mapping
from schemas.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One direction, resolved. Tables are keyed by their unqualified names.

    `sources` are the streamed tables as they were prepared (the published ones); `targets` the tables written.
    `mirrors` names the sources that are copied whole into `slackwater_mirror` on the target.
    """

    migration: str
    direction: Direction
    source_schema: str
    target_schema: str
    sources: dict[str, Table]
    targets: dict[str, Table]
    mappings: tuple[Mapping, ...]
    mirrors: tuple[str, ...]
    topics: dict[str, str]  # source table -> topic

    def reading(self, source: str) -> tuple[Mapping, ...]:
        """The mappings that read `source`."""
        return tuple(m for m in self.mappings if source in m.sources)
