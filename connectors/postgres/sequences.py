"""The sequences of a side that is about to open, set past the other side's.

No logical stream carries sequences, and what the applier writes does not move them. `pairs` looks up, before anybody
waits, which one goes on from which; `standing` and `advance` read them live, and `advance` sets them, under the hold.
Invariants: they are set for good at once (`setval` is outside transactions): an aborted turn leaves a gap, never a
repetition. They are read and set while the side's turn row is locked and says that it is yet to open: a process that
wakes late moves nothing that is in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from connectors.failpoint import failpoint
from connectors.postgres import catalog, sequence_survey
from connectors.postgres import turn as turns
from connectors.postgres.session import Connection, translated
from schemas.direction import Side
from schemas.mapping import Mapping as TableMapping
from schemas.names import qualified
from schemas.plan import Plan
from schemas.sequence_check import Column, Judged, judged
from schemas.sequence_links import Fed, Known, Link, Links, carried, links, named
from schemas.spec import Spec

KNOWN = "sequences"  # among the strides, whose other keys are table.column


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What is set from what, with the columns that count. `strides` is by the name of the sequence that is set."""

    links: Links
    there: Mapping[Fed, Column]
    here: Mapping[Fed, Column]
    strides: Mapping[str, int] = field(default_factory=dict)

    @property
    def untold(self) -> list[Link]:
        """Those of which no row on this side tells what the other one has given."""
        return [link for link in self.links.links if not any(self.here[c].tells for c in link.here if c in self.here)]


def pairs(
    source: Connection | None, target: Connection, spec: Spec, plan: Plan, forward: Iterable[TableMapping]
) -> Pairs:
    """Every sequence of the target that goes on from the source's. Reads catalogs, and columns that have no index.

    `forward` are the forward mappings, whichever way `plan` goes. Without the source, what is known on the target
    stands for it: `advance` is given the target for both; what is paired, and the strides, are as they were kept there.
    """
    direction = plan.direction
    here = sequence_survey.known(target, plan.target_schema, named(spec, direction.target))
    kept = {} if source is not None else _kept(target, plan.migration, direction.source)
    there = (
        _remembered(kept, plan.source_schema, here)
        if source is None
        else sequence_survey.known(source, plan.source_schema, named(spec, direction.source))
    )
    sides = {direction.source: there, direction.target: here}
    found = links(
        spec,
        direction,
        plan.mappings,
        sides[Side.OLD],
        sides[Side.NEW],
        columns=carried(forward),
        same_database=source is not None and catalog.same_database(source, target),
    )
    mine = sequence_survey.columns(target, [c for link in found.links for c in link.here], scan=True)
    if source is None:
        strides = {link.own.label: _stride(kept, link.there, link.others) for link in found.links}
        alone = tuple(replace(link, others=(link.own,), there=link.here) for link in found.links)
        return Pairs(links=replace(found, links=alone), there=mine, here=mine, strides=strides)
    theirs = sequence_survey.columns(source, [c for link in found.links for c in link.there], scan=True)
    return Pairs(links=found, there=theirs, here=mine)


def standing(source: Connection, target: Connection, found: Pairs, *, margins: int = 1, spare: int = 0) -> list[Judged]:
    """Each link, by what both sides hold at this moment. `margins`, `spare` as for `schemas.sequences.place`."""
    direction = found.links.direction
    alone = source is target
    others = [s for link in found.links.links for s in link.others]
    own = [link.own for link in found.links.links]
    there = sequence_survey.standing(source, dict.fromkeys(others), found.there)
    here = there if alone else sequence_survey.standing(target, own, found.here)
    return judged(direction, found.links.links, there, here, margins=margins, spare=spare, strides=found.strides)


def advance(
    source: Connection,
    target: Connection,
    found: Pairs,
    *,
    migration: str,
    side: Side,
    turn: int,
    margins: int = 1,
    accept: Callable[[list[Judged]], None] = lambda _: None,
) -> list[Judged]:
    """Set each of the target's sequences past the source's, by what both hold at this moment. Under the hold.

    The target is `side`, which is yet to be opened for `turn`, and stays closed meanwhile. `accept` hears how each is
    judged before any is set, and raises to say no.
    Errors: Superseded when it is not; PrivilegeMissing, Unavailable; what was set before stays set, which does no harm.
    """
    if not found.links.links:
        return []
    with translated("setting the sequences"), target.transaction():
        turns.keep_closed(target, migration, side, turn)
        now = standing(source, target, found, margins=margins)
        accept(now)
        failpoint("turn.before_setval")
        _set(target, [(j.link.own, j.place.value) for j in now if j.place is not None and j.place.value is not None])
    return now


def _set(conn: Connection, values: list[tuple[Known, int]]) -> None:
    if values:
        calls = ", ".join("pg_catalog.setval(%s::pg_catalog.regclass, %s::bigint, true)" for _ in values)
        wanted = [x for one, value in values for x in (qualified(one.schema, one.name), value)]
        conn.execute(f"select {calls}".encode(), wanted)


# -- what one side keeps of the other's, for when that one is gone ----------------------------------------------------


def keep_strides(
    conn: Connection, migration: str, side: Side, schema: str, other: Connection, also: Collection[str] = ()
) -> None:
    """Have the other side keep what sequences `side`, which `conn` reaches, has, and how far apart their values lie.

    A session takes as many at a time as the sequence caches.
    """
    found = sequence_survey.known(conn, schema, also)
    states = sequence_survey.standing(conn, found, {}).sequences
    strides: dict[str, Any] = {}
    by_name = []
    for one in found:
        state = states.get(one.oid)
        stride = 0 if state is None else abs(state.increment) * state.cache
        by_name.append([one.schema, one.name, one.type, one.owned, [list(fed) for fed in one.feeds], stride])
        for of, table, column in one.feeds:
            if of == schema:
                strides[f"{table}.{column}"] = max(stride, strides.get(f"{table}.{column}", 0))
    with translated(f"keeping the strides of {side}'s sequences"):
        other.execute(
            "insert into slackwater.stride (migration, side, strides) values (%s, %s, %s::jsonb)"
            " on conflict (migration, side) do update set strides = excluded.strides, kept_at = clock_timestamp()",
            (migration, side.value, json.dumps({**strides, KNOWN: by_name})),
        )


def _kept(conn: Connection, migration: str, side: Side) -> dict[str, Any]:
    with translated("reading what is kept of the other side's sequences"):
        row: Any = conn.execute(
            "select strides from slackwater.stride where migration = %s and side = %s", (migration, side.value)
        ).fetchone()
    return {} if row is None else dict(row[0])


def _remembered(kept: Mapping[str, Any], schema: str, here: Iterable[Known]) -> list[Known]:
    """The sequences of a side that is gone, as they were kept; where none were, it had what this one has."""
    if KNOWN not in kept:
        return [replace(s, oid=-n, schema=schema, owned=False, feeds=()) for n, s in enumerate(here, 1)]
    return [
        Known(
            oid=-n,
            schema=of,
            name=name,
            type=type_,
            owned=owned,
            feeds=tuple((s, t, c) for s, t, c in feeds),
            outside=of != schema and not feeds,
        )
        for n, (of, name, type_, owned, feeds, _) in enumerate(kept[KNOWN], 1)
    ]


def _stride(kept: Mapping[str, Any], there: Iterable[Fed], others: Iterable[Known]) -> int:
    by_name = {(of, name): stride for of, name, _, _, _, stride in kept.get(KNOWN, ())}
    return max(
        [
            *(int(kept.get(f"{table}.{column}", 0)) for _, table, column in there),
            *(int(by_name.get((s.schema, s.name), 0)) for s in others),
            0,
        ]
    )
