"""What gates are judged by: one look at everything. None stands for unknown, everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from connectors.postgres.orphans import Orphans
from schemas.direction import Direction
from schemas.sequence_check import Examined
from stream.migration.phases import Phase
from stream.monitoring.lag import Lag, Stuck
from stream.monitoring.views import SourceView, TargetView
from stream.verify.roundtrip import Kept
from stream.verify.verdicts import Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One direction: how far behind, what its two sides say, what its target has set aside."""

    lag: Lag | None = None
    stuck: Stuck | None = None
    source: SourceView | None = None
    target: TargetView | None = None
    quarantined: int | None = None
    rereads: int | None = None
    unfenced: tuple[str, ...] | None = None  # relations of its target without their fence
    canary_at: datetime | None = None  # when the newest canary that came through was written, by the source's clock
    verification: Verification | None = None  # the verdicts on its target's tables

    @property
    def canary_age_s(self) -> float | None:
        """Both times are the source's."""
        if self.source is None or self.canary_at is None:
            return None
        return max(0.0, self.source.at - self.canary_at.timestamp())


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The last look for orphans. `age_s` is by that side's clock; `current`: of the keys as they are now; it took
    `seconds`."""

    orphans: tuple[Orphans, ...]
    at: datetime
    age_s: float
    current: bool
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything, read within one look."""

    at: datetime
    phase: Phase | None
    turn: int | None
    same_file: bool | None  # whether the file is the one that was prepared
    streams: Mapping[Direction, Stream] = field(default_factory=dict)  # those that were prepared
    loads: Mapping[str, str] | None = None  # load -> state
    strangers: tuple[str, ...] | None = None  # old tables and columns that prepare did not see
    new_strangers: tuple[str, ...] | None = None  # the same of new, once the way back stands
    foreign_writes: int | None = None  # rows written to a closed side, of both sides
    roundtrip: Kept | None = None  # the newest verdict on old -> new -> old; None: there is none
    roundtrip_counts: bool = False  # it is of this file, under the paths that are in force
    foreign_keys: int | None = None  # of new's tables
    orphans: Look | None = None  # None: not looked yet
    old_foreign_keys: int | None = None  # of the tables of old that the way back writes
    old_orphans: Look | None = None
    unanalysed: tuple[str, ...] | None = None  # tables of new without statistics of what was loaded
    lacking: tuple[str, ...] | None = None  # GRANTs that would give the roles on new what they have on old
    strange_roles: tuple[str, ...] | None = None  # roles that write on old and are not there on new
    silent: tuple[str, ...] | None = None  # what changed tables without an event, and is not done with
    prepare_mends: bool = False  # of those, one that only `prepare` or undoing it makes an end of
    blind: str | None = None  # why some of the last five are not known
    sequences: Mapping[Direction, Examined] | None = None  # of the directions that were prepared
    sequences_blind: str | None = None  # why they are not known
    unidentified: tuple[str, ...] | None = None  # tables of new without the replica identity that the way back needs
