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
from schemas.roundtrip import accepted
from schemas.spec import Spec
from schemas.table import Table
from stream.preflight import bindings, identity
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
    found: Findings,
) -> None:
    """The reverse direction of a file whose forward direction is in order. `sources` are old's tables.

    Replica identities of new are taken as `arm` will have made them.
    """
    full = identity.needing_full(spec, Direction.REVERSE, targets, sources)
    assumed = {name: identity.as_full(t) if name in full else t for name, t in targets.items()}
    back = resolve(spec, Direction.REVERSE, assumed, sources)
    for problem in back.problems:
        found.problem("way_back", problem.cause, problem.remedy, problem.where)
    if back.problems:
        return
    if not found.problems:  # old may not even take a temporary table: what is wrong with it is said by now
        _servers(spec, old, new, sources, assumed, back, found)
    _lost(spec, back.reversals, found)
    _narrower(back.reversals, found)


def _servers(
    spec: Spec,
    old: Connection,
    new: Connection,
    sources: Mapping[str, Table],
    targets: Mapping[str, Table],
    back: Resolution,
    found: Findings,
) -> None:
    """Each reverse SELECT, in every place where it will run. What was derived is not the file's mistake: a warning."""
    written = {entry.to for entry in spec.reverse}
    _, refused = bindings.examine(spec, new, old, targets, sources, back, Direction.REVERSE)
    places = {entry.to: entry.place for entry in spec.reverse}
    for problem in refused:
        if any(problem.where == places[name] for name in written):
            found.problem("way_back", problem.cause, problem.remedy, problem.where)
        else:
            remedy = f"{problem.remedy}; or write its SELECT under `reverse`"
            found.warning("way_back", f"{problem.cause} (derived: nothing is armed with it)", remedy, problem.where)


def _lost(spec: Spec, reversals: Iterable[Reversal], found: Findings) -> None:
    """What does not come back at all, table by table."""
    lost: dict[tuple[str, str], list[Reversal]] = defaultdict(list)
    whole: dict[str, bool] = defaultdict(lambda: True)
    for reversal in reversals:
        whole[reversal.table] &= reversal.loss is Loss.LOST
        if reversal.loss is Loss.LOST and not accepted(spec, reversal.table, reversal.column):
            lost[reversal.table, reversal.why].append(reversal)
    for (table, why), columns in lost.items():
        names = [f"{table}.{r.column}" for r in columns]
        if whole[table]:
            cause = f"old table {table} has no way back: {why}"
            remedy = f"write its SELECT over new tables: `reverse: [{{to: {table}, select: ...}}]`"
            remedy += f"; {ACCEPT.format(names=table)}"
        else:
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
