"""What an edit changes: the backfills that a mapping asks for, held against those that were prepared. Pure.

Invariant: a load whose meaning changed is loaded anew, and with it every mapping that reads it; nothing else is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from schemas.direction import Direction
from schemas.plan import Plan
from schemas.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One load: a mapping's target (`name` is the table) or a mirror (`mirror:<source table>`).

    `reads` are the source tables whose rows it is made of. A mapping over mirrors has no source of its own: it sleeps.
    """

    name: str
    source: str
    reads: tuple[str, ...]
    fingerprint: str
    rows_estimate: int
    bytes_estimate: int

    @property
    def mirror(self) -> bool:
        return self.name.startswith("mirror:")

    @property
    def asleep(self) -> bool:
        return not self.source


def wanted_loads(plan: Plan) -> dict[str, Wanted]:
    """Every load of the plan, mirrors first."""
    loads: dict[str, Wanted] = {}
    for source in plan.mirrors:
        table = plan.sources[source]
        loads[f"mirror:{source}"] = Wanted(
            name=f"mirror:{source}",
            source=source,
            reads=(source,),
            fingerprint=_mirror_fingerprint(table),
            rows_estimate=table.rows_estimate,
            bytes_estimate=table.bytes_estimate,
        )
    for mapping in plan.mappings:
        read = [plan.sources[s] for s in mapping.sources] if mapping.row_local else []
        loads[mapping.target] = Wanted(
            name=mapping.target,
            source=mapping.sources[0] if mapping.row_local else "",
            reads=mapping.sources,
            fingerprint=mapping.fingerprint,
            rows_estimate=sum(t.rows_estimate for t in read),
            bytes_estimate=sum(t.bytes_estimate for t in read),
        )
    return loads


def _mirror_fingerprint(table: Table) -> str:
    """A mirror is its columns: one more, or another type, and it has to be made and filled anew."""
    shape = [[c.name, c.type] for c in table.columns if not c.generated]
    return hashlib.sha256(json.dumps([shape, table.key, table.identity_columns]).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What `prepare` has to do to a migration that is prepared already. Load names, and source tables.

    `in_place`: no target is emptied; what `changed` names is compared, and read again where it differs.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()  # loaded anew, what they hold now is thrown away
    removed: tuple[str, ...] = ()
    streamed: tuple[str, ...] = ()  # tables to be added to the publication
    unread: tuple[str, ...] = ()  # tables that stay in the stream though nothing reads them any more
    reasons: tuple[tuple[str, str], ...] = ()  # (changed load, why)
    direction: Direction = Direction.FORWARD
    in_place: bool = False

    @property
    def loads_anew(self) -> tuple[str, ...]:
        return (*self.added, *self.changed)

    def __bool__(self) -> bool:
        """Whether anything has to be done to the stream or to the data."""
        return bool(self.added or self.changed or self.removed or self.streamed)

    def lines(self) -> list[str]:
        """The difference as an operator reads it."""
        why = dict(self.reasons)
        source = self.direction.source
        return [
            *(f"+ {self.label(name)}: new, to be backfilled" for name in self.added),
            *(f"~ {self.label(name)}: {why[name]}; {self._follows(name)}" for name in self.changed),
            *(f"- {self.label(name)}: no longer written; its rows stay as they are" for name in self.removed),
            *(f"+ {source} table {name}: joins the stream" for name in self.streamed),
            *(
                f"  {source} table {name}: nothing reads it any more; it leaves the stream with the migration"
                for name in self.unread
            ),
        ]

    def label(self, load: str) -> str:
        """A load as an operator calls it."""
        if load.startswith("mirror:"):
            return f"mirror of {load.removeprefix('mirror:')}"
        return f"{self.direction.target} table {load}"

    def _follows(self, load: str) -> str:
        if self.in_place and not load.startswith("mirror:"):
            return "compared, and read again where it differs"
        return "emptied and backfilled anew"


def difference(
    wanted: Mapping[str, Wanted],
    present: Mapping[str, str],
    *,
    reads: Collection[str],
    streamed: Collection[str],
    published: Collection[str],
    missed: Mapping[str, str],
    changed: Mapping[str, str],
    direction: Direction = Direction.FORWARD,
    in_place: bool = False,
) -> Difference:
    """`present`: load -> fingerprint as prepared. `reads`: source tables that mappings read now; `streamed`: those of
    the prepared stream; `published`: those that are in the publication now; `missed`: source tables with rows that are
    in no stream, and `changed`: targets that hold other rows than were written, each with its cause.
    """
    to_publish = sorted(set(reads) - set(published))
    broken = {s for s in to_publish if s in streamed} | set(missed)  # changes of these were missed
    why: dict[str, str] = {}
    for name, load in wanted.items():
        if name not in present:
            continue
        if present[name] != load.fingerprint:
            why[name] = f"its {direction.source} table has changed" if load.mirror else "its mapping has changed"
        elif lost := sorted(set(load.reads) & broken):
            why[name] = "; ".join(missed.get(s, f"changes of {s} were missed (it left the publication)") for s in lost)
        elif name in changed:
            why[name] = changed[name]
    added = [name for name in wanted if name not in present]
    anew = {wanted[name].source for name in (*added, *why) if wanted[name].mirror}
    for name, load in wanted.items():
        if load.asleep and name in present and name not in why and (mirrors := sorted(anew & set(load.reads))):
            why[name] = f"it reads {', '.join(mirrors)}, which is copied anew"
    return Difference(
        added=tuple(added),
        changed=tuple(name for name in wanted if name in why),
        removed=tuple(sorted(set(present) - set(wanted))),
        streamed=tuple(to_publish),
        unread=tuple(sorted(set(streamed) - set(reads))),
        reasons=tuple(why.items()),
        direction=direction,
        in_place=in_place,
    )
