"""Rows that are read again because `verify --repair` asked for it: what may be deleted for it, and what is kept.

Invariants: a target row goes only where deleting was asked for by name; it, and every row that is written over, is kept
in `slackwater.repaired` in the transaction that changes it. Mirrors are ours: their rows are not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.repair import Action, Repair, keep
from stream.engine.mapping_sql import Load

if TYPE_CHECKING:
    from stream.engine.engine import Engine

COLUMNS = """
select attname from pg_catalog.pg_attribute
 where attrelid operator(pg_catalog.=) %s::pg_catalog.regclass and attnum operator(pg_catalog.>) 0
   and not attisdropped and attgenerated operator(pg_catalog.=) '' order by attnum
"""


class Repairs:
    """The engine's steps where a repair has a say. `asked`: what this transaction's rows were asked for with."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.asked: Repair | None = None

    def begin(self) -> None:
        """A transaction has begun."""
        self.asked = None

    def delete_stale(self, load: Load) -> None:
        """Delete the target rows of `owners` that `rows` does not hold, where that may be."""
        if self.asked is None or load.is_mirror:
            self._engine.post(load.delete_stale(), prepare=True, writes=True)
        elif self.asked.deletes:
            gone = f"with g as (\n{load.delete_stale()}\nreturning t.*)\n"
            self._engine.post(gone + self._keep(load, Action.DELETED) + " g", writes=True)

    def keep_overwritten(self, load: Load) -> None:
        """Keep the target rows that `rows` is about to change, as they are."""
        if self.asked is None or load.is_mirror or (changed := load.changed()) is None:
            return
        self._engine.post(f"{self._keep(load, Action.OVERWRITTEN)} (\n{changed}\n) g")

    def _keep(self, load: Load, action: Action) -> str:
        assert self.asked is not None
        e = self._engine
        columns = [str(name) for (name,) in e.conn.execute(COLUMNS, (load.into,)).fetchall()]
        plan = e.plan
        key = load.mapping.key
        return keep(plan.migration, str(plan.direction), load.name, action, self.asked, key, columns)
