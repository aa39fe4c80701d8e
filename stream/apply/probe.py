"""Which staged rows the target refuses: found by leaving others out, behind a savepoint of the caller's.

Invariant: nothing of what is tried here stays; the caller decides what becomes of the rows. An error that comes without
any row as well is no row's fault: whoever asks for the rows has asked about none of them first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from schemas.errors import RowRejected, StatementRefused
from schemas.position import Lsn
from stream.engine import Engine
from stream.engine.fold import Folded
from stream.engine.staging import Laid, Staged

SAVEPOINT = "probe"

Refused = list[tuple[int, RowRejected]]
"""Staged rows, by number, each with the error that it meets."""


class Trial(ABC):
    """Tries rows of one source. `every` are the numbers of all that there are."""

    def __init__(self, engine: Engine, every: Collection[int]) -> None:
        self._engine = engine
        self._every = set(every)

    @abstractmethod
    def _take(self, left_out: Collection[int]) -> None:
        """Do it without these. Errors: RowRejected, StatementRefused."""

    def error(self, rows: Collection[int]) -> RowRejected | None:
        """What the target has against these rows alone."""
        try:
            self._take(self._every - set(rows))
        except (RowRejected, StatementRefused) as error:
            self._engine.back_to(SAVEPOINT)
            return error if isinstance(error, RowRejected) else error.rejected()
        self._engine.back_to(SAVEPOINT)
        return None

    def refused(self, rows: Sequence[int], *, blamed: bool) -> Refused:
        """Each row that is refused on its own, with the error.

        `blamed`: one that collides with another row as well. Otherwise it may want, alone, a value that this one is
        about to give up.
        """
        if not rows:
            return []
        error = self.error(rows)
        if error is None:
            return []
        if len(rows) == 1:
            return [] if error.collides and not blamed else [(rows[0], error)]
        halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        return [found for half in halves for found in self.refused(half, blamed=blamed)]

    def colliding(self, rows: Sequence[int], error: RowRejected) -> Refused:
        """Few rows without which the others collide with none, where all of them do with the error given."""
        alone = [n for n, _ in self.refused(rows, blamed=True)]
        others = set(rows) - set(alone)
        if not alone or self.error(others) is not None:
            alone, others = list(rows), set()
        return [(n, error) for n in self.least(alone, others)]

    def least(self, rows: Sequence[int], beside: Collection[int]) -> list[int]:
        """Few of these rows, and the last ones first, without which the target takes the others and those `beside`.

        It takes those `beside` alone, and not all of them together.
        """
        if len(rows) == 1:
            return list(rows)
        earlier, later = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        for out, others in ((later, earlier), (earlier, later)):
            if self.error({*beside, *others}) is None:
                return self.least(out, {*beside, *others})
        # Some of either half, then.
        found: list[int] = []
        taken = set(beside)
        for half in (earlier, later):
            if self.error({*taken, *half}) is not None:
                found += self.least(half, taken)
            taken |= set(half) - set(found)
        return found


class Probe(Trial):
    """Writes rows of what is staged of a load's source."""

    def __init__(
        self,
        engine: Engine,
        load: str,
        staged: Mapping[str, Staged],
        every: Collection[int],
        applied_lsn: Lsn,
        *,
        swap: Collection[str],
    ) -> None:
        super().__init__(engine, every)
        self._load = load
        self._source = engine.loads[load].mapping.sources[0]
        self._staged = staged[self._source]
        self._applied_lsn = applied_lsn
        self._swap = swap

    def _take(self, left_out: Collection[int]) -> None:
        self._engine.settle(
            {self._source: self._staged},
            swap=self._swap,
            skip={self._load: sorted(left_out)},
            applied_lsn=self._applied_lsn,
            only={self._load},
        )


class Unstaged(Trial):
    """Stages rows of a source, which is where the target meets their values first."""

    def __init__(self, engine: Engine, source: str, folded: Folded, laid: Laid) -> None:
        super().__init__(engine, range(len(laid.staged.keys)))
        self._tables, self._laid, self._source = {source: folded}, {source: laid}, source

    def _take(self, left_out: Collection[int]) -> None:
        self._engine.stage(self._tables, laid=self._laid, straight=False, omit={self._source: left_out})
