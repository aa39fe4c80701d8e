"""What a pass is told, and what it has found of each table so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from schemas.direction import Direction
from schemas.errors import SlackwaterError
from schemas.plan import Plan
from stream.verify.coverage import Course
from stream.verify.judge import Found
from stream.verify.queries import View
from stream.verify.verdicts import Unrepresented, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is compared, and between whom. `link` carries the open side's writes to the other one, during `turn`.

    `standing` says why the stream cannot be going on, None when it can; None itself: ask its roles' heartbeats.
    """

    source_dsn: str
    target_dsn: str
    replica_dsn: str | None
    plan: Plan
    link: Direction
    turn: int
    fingerprint: str
    system_id: str
    timeline: int
    workers: int
    standing: Callable[[], str | None] | None = None
    accepted: tuple[str, ...] = ()  # target columns (table.column) whose loss was accepted
    alone: tuple[str, ...] = ()  # source tables of which rows may have no counterpart on the target


@dataclass(slots=True, kw_only=True)
class Tally:
    """One table in this pass."""

    view: View
    course: Course
    began: datetime
    source_rows: int = 0
    target_rows: int = 0
    total: int = 0  # mismatched rows
    found: list[Found] = field(default_factory=list)
    verdict: Verdict = Verdict.RUNNING
    by_rows: bool = False  # the source could not compute it: each of its rows was judged
    more: bool = False  # so many rows differ that counting stopped
    problem: SlackwaterError | None = None
    concluded: bool = False
    counts: tuple[str, ...] = ()  # source tables of which the rows without a counterpart are counted beside it
    counting: bool = False
    unrepresented: dict[str, Unrepresented | None] | None = None  # None: not counted yet, or it could not be

    @property
    def to_count(self) -> bool:
        """Whether its source tables are still to be looked at, and nobody does."""
        return bool(self.counts) and self.unrepresented is None and not self.counting and self.problem is None

    @property
    def lost(self) -> int:
        """Rows of its source tables that have no counterpart, and should have one."""
        return sum(u.rows for u in (self.unrepresented or {}).values() if u is not None and u.fault)

    @property
    def rows(self) -> int:
        return max(self.source_rows, self.target_rows)
