"""Rows of the source that nothing on the target stands for, counted in one snapshot of the source.

Forward, that is what the author of the mapping wrote: rows that a filter leaves in old. On the way back it is loss:
rows of new that never reach old, and that a rollback leaves behind. So it is a fault there, unless the file accepts it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from connectors.postgres.sight import Sight
from schemas import counterparts
from schemas.direction import Direction
from schemas.errors import Halt, SlackwaterError
from schemas.plan import Plan
from stream.verify.verdicts import Unrepresented

SCAN_S = 3600.0  # the age that the snapshot may reach
NAMED = 20  # rows that are named by their keys


def counted_with(plan: Plan, target: str) -> list[str]:
    """The source tables that are counted when a target table is compared: each with the first that is made from it."""
    homes: dict[str, str] = {}
    for mapping in plan.mappings:
        for source in mapping.sources:
            homes.setdefault(source, mapping.target)
    return [source for source, home in homes.items() if home == target]


def count(
    source: Sight, plan: Plan, names: Collection[str], bases: Mapping[str, str], accepted: Collection[str]
) -> dict[str, Unrepresented]:
    """Of each source table that has such rows: how many. `accepted`: tables of which they are accepted.

    Errors: Halt where the source cannot compute a mapping that is asked for; Contended; Unavailable.
    """
    found = {}
    for name in names:
        alone = counterparts.alone(plan, name, bases)
        if alone is None:
            continue
        doing = f"counting the rows of {name} that nothing on {plan.direction.target} stands for"
        read = [plan.sources[s] for s in _read(plan, name)]
        with source.look(read, timeout_s=SCAN_S, path=plan.source_path):
            ((rows,),) = source.all(alone.count(), doing)
            keys = source.all(alone.some(NAMED), doing) if rows and alone.keys else []
        if rows:
            fault = plan.direction is Direction.REVERSE and name not in accepted
            named = tuple(dict(zip(counterparts.named_by(plan.sources[name]), key, strict=True)) for key in keys)
            found[name] = Unrepresented(rows=int(rows), keys=named, fault=fault)
    return found


def _read(plan: Plan, name: str) -> list[str]:
    """Every table that the question reads."""
    return list(dict.fromkeys([name, *(s for m in plan.reading(name) for s in m.sources)]))


def uncountable(plan: Plan, names: Collection[str], error: SlackwaterError) -> SlackwaterError:
    """What keeps a table on the way back from being judged, when its rows could not be counted."""
    return Halt(
        f"whether each row of {', '.join(names)} has a counterpart on {plan.direction.target} cannot be told:"
        f" {error.cause}",
        hint=error.hint,
    )
