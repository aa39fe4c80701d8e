"""What one target transaction of the stream takes: epochs, their changes folded, and where to read on after them.

Invariant: changes are folded in the order of their positions, by the keys that the engine's tables have.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.change import Change
from schemas.control import CANARY
from schemas.epoch import Epoch
from schemas.position import Lsn
from stream.engine import Engine
from stream.engine.fold import Folded
from stream.engine.staging import Laid

Offsets = dict[str, dict[int, int]]


@dataclass(slots=True)
class Work:
    """Epochs that share a target transaction: their records, their changes in position order, and those folded.

    `offsets` is what to read next after them. Only the last record may be incomplete, and then it is the only one.
    """

    epochs: list[Epoch]
    changes: list[Change]
    tables: dict[str, Folded]
    keyless: dict[str, list[Change]]
    offsets: Offsets
    canaries: list[Change] = field(default_factory=list)
    laid: dict[str, Laid] = field(default_factory=dict)  # of `tables`, as far as they are laid out

    @property
    def echo(self) -> bool:
        """Its rows are the opposite direction's work: they reach the mirrors alone."""
        return self.epochs[0].echo

    @property
    def turn(self) -> int | None:
        """The source's turn that its rows are of."""
        return self.epochs[0].turn

    def takes(self, epoch: Epoch) -> bool:
        """Whether the epoch is of its kind, and can go with it."""
        return (epoch.echo, epoch.turn) == (self.echo, self.turn)

    @property
    def complete(self) -> bool:
        return self.epochs[-1].complete

    @property
    def end_lsn(self) -> Lsn:
        return self.epochs[-1].end_lsn


class Folding:
    """How changes are folded for an engine: by the keys its tables have, those without one left as they are."""

    def __init__(self, engine: Engine) -> None:
        self._stages = engine.stages
        self.keys = {name: stage.key for name, stage in engine.stages.items()}
        self._keyless = {x.mapping.sources[0] for x in engine.loads.values() if not x.mapping.key}
        self._keyed = {s for x in engine.loads.values() if x.mapping.key for s in x.mapping.sources}

    def work(self) -> Work:
        return Work(epochs=[], changes=[], tables={}, keyless={}, offsets={})

    def add(self, work: Work, epoch: Epoch, changes: list[Change], offsets: Offsets) -> None:
        """Continue `work` with the next epoch."""
        work.laid.clear()
        work.epochs.append(epoch)
        work.canaries += [change for change in changes if change.table == CANARY]
        if work.canaries:
            changes = [change for change in changes if change.table != CANARY]
        work.changes += changes
        work.offsets = merged(work.offsets, offsets)
        for change in changes:
            table = change.table
            if table in self._keyless and not epoch.echo:
                work.keyless.setdefault(table, []).append(change)
                if table not in self._keyed:
                    continue
            folded = work.tables.get(table)
            if folded is None:
                folded = work.tables[table] = self._stages[table].folded()
            folded.add(change)

    def lay(self, work: Work) -> None:
        """Lay out what is folded, so that the thread that writes need not."""
        work.laid = {name: self._stages[name].lay(folded) for name, folded in work.tables.items()}


def merged(offsets: Offsets, newer: Offsets) -> Offsets:
    """`offsets` moved on by `newer`."""
    return {t: {**offsets.get(t, {}), **newer.get(t, {})} for t in {*offsets, *newer}}
