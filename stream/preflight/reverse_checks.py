"""The way back, before it is needed: what `arm` would refuse, what would be lost, and which of new's values old lacks.

What the rows themselves lose is `roundtrip`'s to say; here speak the file, the types and the servers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from connectors.postgres.session import Connection
from schemas.direction import Direction
from schemas.resolve import Resolution, resolve
from schemas.reversal import Loss, Reversal
from schemas.roundtrip import accepted, one_way
from schemas.spec import Spec
from schemas.table import Table
from stream.migration.paths import Paths
from stream.preflight import bindings, identity, users_code
from stream.preflight.finding import Findings, listed

WRITE = (
    "write under `reverse` how it is computed from new: `reverse: [{{to: {table}, set: {{{column}: <expression>}}}}]`"
)
ACCEPT = "or, once you have read it, `roundtrip: {{accept: [{names}]}}`"


def examine(
    spec: Spec,
    old: Connection,
    new: Connection,
    sources: Mapping[str, Table],
    targets: Mapping[str, Table],
    paths: Paths,
    found: Findings,
) -> None:
    """The reverse direction of a file whose forward direction is in order. `sources` are old's tables.

    Replica identities of new are taken as `arm` will have made them.
    """
    assumed = _assumed(spec, sources, targets)
    back = resolve(spec, Direction.REVERSE, assumed, sources)
    for problem in back.problems:
        found.problem("way_back", problem.cause, problem.remedy, problem.where)
    if back.problems:
        return
    if not found.problems:  # old may not even take a temporary table: what is wrong with it is said by now
        _servers(spec, old, new, sources, assumed, back, paths, found)
        to = users_code.Target(
            spec=spec,
            direction=Direction.REVERSE,
            source=new,
            conn=old,
            sources=targets,
            mappings=back.mappings,
            tables=sources,
            paths=paths,
            writing=False,
        )
        users_code.examine(to, found)
    forward = resolve(spec, Direction.FORWARD, sources, targets)
    for table in one_way(spec, [m.target for m in forward.mappings], back):
        if not table.accepted:
            cause = f"{table.why}; `arm` refuses that until it is accepted by name"
            found.warning("one_way", cause, named(table.name), table.name)
    _lost(spec, back, found)
    _narrower(back.reversals, found)


def resolved(spec: Spec, sources: Mapping[str, Table], targets: Mapping[str, Table]) -> Resolution:
    """The reverse direction, with the replica identities of new as `arm` will have made them."""
    return resolve(spec, Direction.REVERSE, _assumed(spec, sources, targets), sources)


def _assumed(spec: Spec, sources: Mapping[str, Table], targets: Mapping[str, Table]) -> dict[str, Table]:
    full = identity.needing_full(spec, Direction.REVERSE, targets, sources)
    return {name: identity.as_full(t) if name in full else t for name, t in targets.items()}


def _servers(
    spec: Spec,
    old: Connection,
    new: Connection,
    sources: Mapping[str, Table],
    targets: Mapping[str, Table],
    back: Resolution,
    paths: Paths,
    found: Findings,
) -> None:
    """Each reverse SELECT, in every place where it will run. What was derived is not the file's mistake: a warning."""
    written = {entry.to for entry in spec.reverse}
    _, refused = bindings.examine(spec, new, old, targets, sources, back, Direction.REVERSE, paths=paths)
    places = {entry.to: entry.place for entry in spec.reverse}
    for problem in refused:
        if any(problem.where == places[name] for name in written):
            found.problem("way_back", problem.cause, problem.remedy, problem.where)
        else:
            remedy = f"{problem.remedy}; or write its SELECT under `reverse`"
            found.warning("way_back", f"{problem.cause} (derived: nothing is armed with it)", remedy, problem.where)


def named(name: str) -> str:
    """What to do about a table without a way back. `name` is as `roundtrip.accept` has it."""
    table = name if "." not in name else "<old table>"
    remedy = f"write its SELECT over new tables: `reverse: [{{to: {table}, select: ...}}]`"
    if "." in name:
        remedy = f"let an old table's SELECT read it: `reverse: [{{to: {table}, select: ...}}]`"
    return f"{remedy}; {ACCEPT.format(names=name)}"


def _lost(spec: Spec, back: Resolution, found: Findings) -> None:
    """Columns that do not come back, table by table; tables that have no way back at all are named as such."""
    returned = {m.target for m in back.mappings}
    lost: dict[tuple[str, str], list[Reversal]] = defaultdict(list)
    for reversal in back.reversals:
        if reversal.table not in returned or reversal.loss is not Loss.LOST:
            continue
        if not accepted(spec, reversal.table, reversal.column):
            lost[reversal.table, reversal.why].append(reversal)
    for (table, why), columns in lost.items():
        names = [f"{table}.{r.column}" for r in columns]
        cause = f"{listed(names)} {'have' if len(names) > 1 else 'has'} no way back: {why}; a row of new does not"
        cause += " change it, and one inserted there takes old's default"
        remedy = f"{WRITE.format(table=table, column=columns[0].column)}; {ACCEPT.format(names=', '.join(names))}"
        found.warning("way_back_lost", cause, remedy, table)


def _narrower(reversals: Iterable[Reversal], found: Findings) -> None:
    """Values that new takes and old does not."""
    by_table: dict[str, list[str]] = defaultdict(list)
    for reversal in reversals:
        if reversal.cuts:
            by_table[reversal.table].append(f"{reversal.column}: {reversal.cuts}")
    for table, said in by_table.items():
        found.note(
            "way_back_values",
            f"new can hold what old's {table} cannot ({'; '.join(said)}): written there, it does not come back",
            "a CHECK on new while the way back is open keeps such values out",
            table,
        )
