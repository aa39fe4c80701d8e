"""What only the target holds of rows that one part of a transaction deletes, kept for the parts that follow.

Invariant: a transaction that is too large for one epoch has the outcome of a small one. There a DELETE and an INSERT of
one key are one change (`fold`); here they may lie in two parts, each of which is folded and written by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stream.engine.mapping_sql import Load, columns
from stream.engine.staging import Staged

if TYPE_CHECKING:
    from stream.engine.engine import Engine


class Graves:
    """The engine's steps for it. `dug`: the transaction is written in parts, of which this may not be the last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.dug = False

    def begin(self) -> None:
        """A transaction has begun."""
        self.dug = False

    def bury(self, load: Load, staged: Staged, skip: Sequence[int]) -> None:
        """Delete the target rows of source rows that are gone, and keep what no mapping writes of them."""
        if not (self.dug and load.unmapped):
            return
        e = self._engine
        coming = {n for part in staged.parts for n in part.rows}
        if gone := [n for n in staged.left if n not in coming and n not in skip]:
            e.make(f"graves {load.name}", [load.like(self._name(load), load.table.column_names)])
            source = load.mapping.sources[0]
            names = [*load.mapping.key, *load.unmapped]
            e.post(
                f"with g as ({load.delete_left(source, e.stages[source].reading_old(rows=gone))}\n"
                f"returning {columns(names, 't')})\n"
                f"insert into {self._name(load)} ({columns(names)}) select {columns(names)} from g",
                writes=True,
            )

    def exhume(self, load: Load) -> bool:
        """Set aside, under their keys, what is kept of rows that come back with `rows`. Whether there may be any."""
        e = self._engine
        if not (self.dug and load.unmapped and load.mapping.row_local) or f"graves {load.name}" not in e.made:
            return False
        e.keep(load)
        graves, key = self._name(load), load.mapping.key
        names = columns([*key, *load.unmapped])
        with e.plans.hashing():
            e.post(
                f"insert into {load.kept} ({names}) select {names} from {graves} g\n"
                f"where exists (select from {load.rows} s where {load.matches(key, 'g', 's')})\n"
                f"and not exists (select from {load.into} t where {load.matches(key, 't', 'g')})\n"
                f"and not exists (select from {load.kept} k where {load.matches(key, 'k', 'g')})"
            )
            e.post(f"delete from {graves} g using {load.kept} k where {load.matches(key, 'k', 'g')}")
        return True

    def _name(self, load: Load) -> str:
        return f"pg_temp.slackwater_graves_{load.number}"
