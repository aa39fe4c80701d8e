"""Rows in quarantine whose cause somebody may have removed: they are tried again without being asked for.

Invariant: a row leaves the quarantine only once it was read again and written; here it is only asked for.
"""

from __future__ import annotations

import logging

from connectors.postgres import catalog
from connectors.postgres.session import translated
from connectors.postgres.target import Target
from schemas.plan import Plan

log = logging.getLogger("slackwater.apply")

CHECK_VIOLATION = "23514"  # what PostgreSQL says, too, of a row that no partition takes


class Partitions:
    """Rows that no partition of the target took, once there is another one."""

    def __init__(self, plan: Plan, target: Target) -> None:
        self._side = plan.direction.target
        self._target = target
        self._tables = {m.target: plan.targets[m.target] for m in plan.mappings if plan.targets[m.target].partitioned}
        self._known: dict[str, list[tuple[str, str]]] = {}

    def look(self, open_rows: int) -> bool:
        """Called about once a second; `open_rows` are those in quarantine. A start counts as another partition.

        Whether there may be another one, of a table that had none for some row.
        """
        found = False
        if not (open_rows and self._tables):
            return found
        with translated("looking for new partitions"):
            for load in self._target.refused_for(CHECK_VIOLATION) & self._tables.keys():
                now = catalog.leaves(self._target.conn, self._tables[load])
                if now != self._known.get(load):
                    found = True
                    self._known[load] = now
                    if asked := self._target.try_again(load, CHECK_VIOLATION, self._side):
                        log.info("%d rows of %s that no partition took are tried again", asked, load)
        return found
