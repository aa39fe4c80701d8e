"""What one direction does: its tables, its mappings, its mirrors. Pure data, the same for every role."""

from __future__ import annotations

from collections.abc import Mapping as Map
from dataclasses import dataclass, field

from schemas.control import CANARY
from schemas.direction import Direction
from schemas.mapping import Mapping
from schemas.position import Lsn
from schemas.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """The relations that had a table's name before the one that has it now, by their oids.

    What committed at or below `until` under that name is theirs, or is shown by the load that was begun since.
    """

    oids: tuple[int, ...]
    until: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One direction, resolved. Tables are keyed by their unqualified names.

    `sources` are the streamed tables as they were prepared (the published ones); `targets` the tables written.
    `mirrors` names the sources that are copied whole into `slackwater_mirror` on the target. `canary`, where the stream
    has one, is `slackwater.canary` on the source: published, and no source of any mapping. `source_path` and
    `target_path` are the schemas in which users' code finds what it names bare. `replaced` names streamed tables, of
    now or of once, whose name another relation had.
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
    canary: Table | None = None
    canary_topic: str = ""
    source_path: tuple[str, ...] = ()
    target_path: tuple[str, ...] = ()
    replaced: Map[str, Replaced] = field(default_factory=dict)

    @property
    def published(self) -> dict[str, Table]:
        """Every table of the publication: the sources, and the canary under its name with its schema."""
        return self.sources if self.canary is None else {**self.sources, CANARY: self.canary}

    @property
    def every_topic(self) -> list[str]:
        """The topics of all that is published."""
        return [*self.topics.values(), *([self.canary_topic] if self.canary_topic else [])]

    def reading(self, source: str) -> tuple[Mapping, ...]:
        """The mappings that read `source`."""
        return tuple(m for m in self.mappings if source in m.sources)
