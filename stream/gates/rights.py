"""The gate `grants`: each role that can write an old table can write the new ones that it feeds. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from connectors.postgres.privileges import Rights, Verbs
from schemas.names import qualified, readable
from schemas.plan import Plan

ORDER = ("INSERT", "UPDATE", "DELETE")


def wanted(plan: Plan, writers: Mapping[str, Mapping[str, Verbs]]) -> dict[str, dict[str, Verbs]]:
    """Role -> new table -> what it needs there.

    A row-local mapping asks for what the role may do on old; through a join or an aggregate any write can become any
    other, so that one asks for all three.
    """
    found: dict[str, dict[str, Verbs]] = {}
    for role, tables in writers.items():
        for table, verbs in tables.items():
            for mapping in plan.reading(table):
                needs = verbs if mapping.row_local else frozenset(ORDER)
                mine = found.setdefault(role, {})
                mine[mapping.target] = mine.get(mapping.target, frozenset()) | needs
    return found


def lacking(
    plan: Plan,
    wants: Mapping[str, Mapping[str, Verbs]],
    rights: Mapping[str, Mapping[str, Rights]],
    excepted: Collection[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the GRANTs that are missing on new, the roles that are not there at all), without what is excepted."""
    strange: list[str] = []
    grants: dict[str, None] = {}
    for role, tables in sorted(wants.items()):
        there = {t: verbs for t, verbs in tables.items() if not {role, f"{role} on {t}"} & set(excepted)}
        if not there:
            continue
        if role not in rights:
            strange.append(role)
            continue
        for table, verbs in sorted(there.items()):
            grants |= dict.fromkeys(_missing(plan, role, table, verbs, rights[role].get(table)))
    return tuple(grants), tuple(strange)


def _missing(plan: Plan, role: str, table: str, verbs: Verbs, has: Rights | None) -> list[str]:
    if has is None:  # the table is gone: other gates say so
        return []
    to = readable(role)
    made = [] if has.schema else [f"grant usage on schema {readable(plan.target_schema)} to {to}"]
    if missing := [v.lower() for v in ORDER if v in verbs - has.verbs]:
        made.append(f"grant {', '.join(missing)} on {qualified(plan.target_schema, table)} to {to}")
    if "INSERT" in verbs:
        made += [f"grant usage on sequence {name} to {to}" for name in has.sequences]
    return made
