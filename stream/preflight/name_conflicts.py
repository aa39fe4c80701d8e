"""Whose slot and publication these are: a migration's name may be in use already, for another database.

Invariant: nothing of another migration is ever dropped, recreated or added to because it has the same name.
"""

from __future__ import annotations

from connectors.postgres import catalog, slots
from connectors.postgres.session import Connection
from schemas.direction import Direction, slot_name
from schemas.problem import Problem
from schemas.spec import Spec


def foreign(spec: Spec, old: Connection, new: Connection) -> list[Problem]:
    """Slots (server-wide) and publications (of this database) under our names that are not ours."""
    problems: list[Problem] = []
    sides = ((Direction.FORWARD, old, new), (Direction.REVERSE, new, old))
    for direction, source, target in sides:
        name = slot_name(spec.migration, direction)
        here, there = catalog.server(source), catalog.server(target)
        slot = slots.slot(source, name)
        if slot is not None and slot.database != here.database:
            problems.append(
                Problem(
                    cause=f"replication slot {name} is a migration's of the same name in database {slot.database}",
                    remedy="give this migration another name; or `cancel` that one, with its own file",
                    where=str(direction.source),
                )
            )
        feeds = slots.feeds(source, name)
        if feeds is not None and feeds != there.identity:
            problems.append(
                Problem(
                    cause=f"migration {spec.migration} of this database already feeds another"
                    f" {direction.target} database ({feeds}, not {there.identity})",
                    remedy=f"check {direction.target}.dsn; for a second migration, choose another name; if"
                    f" {direction.target} was restored elsewhere, what the slot holds no longer fits it:"
                    f" drop publication {name} and the slot of that name by hand, and prepare anew",
                    where=str(direction.source),
                )
            )
    return problems
