"""The comparison at the last moment: under the hold, when nobody writes and everything written was applied.

Invariant: it may only be called when the source stands still and the target has all of it; then a digest that differs
is a mismatch, and nothing has to be judged. What there was no time for is said, never passed over.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from connectors.postgres import catalog
from connectors.postgres.ranges import Chunk, Kind
from connectors.postgres.session import Connection, translated
from connectors.postgres.sight import bases
from schemas import digest
from schemas.digest import Hash
from schemas.errors import SlackwaterError
from schemas.plan import Plan
from stream.verify.coverage import covers, gaps
from stream.verify.queries import View, views


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A chunk to compare, of a table by its name."""

    load: str
    chunk: Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """What was compared, what differs, and what was left for lack of time or could not be asked, with the cause."""

    compared: int
    rows: int
    differing: tuple[Piece, ...]
    left: tuple[Piece, ...]
    causes: tuple[str, ...] = ()


TOUCHED = """
select c.load, c.chunk, c.lower, c.upper
  from slackwater.verify_chunk c
 where c.migration = %s and c.direction = %s
 order by c.youngest nulls last, c.chunk desc
"""


def pieces(target: Connection, plan: Plan) -> list[Piece]:
    """Every table in chunks as the last pass cut them, those that were written last first.

    A table that was never compared is one piece.
    """
    with translated("reading the chunks"):
        rows: list[Any] = target.execute(TOUCHED, (plan.migration, plan.direction.value)).fetchall()
    found = [
        Piece(load=load, chunk=Chunk(number=number, kind=Kind.RANGE, lower=lower, upper=upper))
        for load, number, lower, upper in rows
    ]
    known = {name: [p.chunk for p in found if p.load == name] for name in plan.targets}
    for name, chunks in known.items():
        if not chunks:
            found.append(Piece(load=name, chunk=Chunk(number=0)))
        elif not covers(chunks) and any(c.lower or c.upper for c in chunks):
            found += [Piece(load=name, chunk=gap) for gap in gaps(chunks)]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is asked, worked out before the hold: the pieces in their order, and each table's view."""

    pieces: tuple[Piece, ...]
    views: Mapping[str, View]


def ready(source: Connection, target: Connection, plan: Plan, accepted: Collection[str] = ()) -> Ready:
    """`accepted`: target columns (`table.column`) whose loss was accepted.

    A table with rows that an operator has waived differs by them, and a digest cannot leave them out: it rests on its
    last pass.
    """
    found = _views(source, target, plan, accepted)
    spared = _waived(target, plan)
    wanted = tuple(p for p in pieces(target, plan) if p.load not in spared)
    return Ready(pieces=wanted, views={v.name: v for v in found})


def _waived(target: Connection, plan: Plan) -> set[str]:
    with translated("reading the quarantine"):
        rows = target.execute(
            "select distinct load from slackwater.quarantine where migration = %s and direction = %s"
            " and state = 'waived'",
            (plan.migration, plan.direction.value),
        ).fetchall()
    return {str(load) for (load,) in rows}


def compare_now(source: Connection, target: Connection, what: Ready, *, deadline_s: float) -> Final:
    """Compare pieces over the sessions given, each in one statement a side, until `time.monotonic()` is `deadline_s`.

    The sessions are in autocommit, and not the one that holds the locks: a statement that would outlast the deadline is
    cancelled. A cause is recorded instead of raised, and what it kept from being compared stands under `left`.
    """
    todo = list(what.pieces)
    differing: list[Piece] = []
    causes: list[str] = []
    compared = rows = 0
    late: list[Piece] = []
    while todo and (left_s := deadline_s - time.monotonic()) > 0:
        piece = todo.pop(0)
        for conn in (source, target):
            _limit(conn, left_s)
        view = what.views[piece.load]
        chunk = piece.chunk if view.space is not None else Chunk(number=0, kind=Kind.WHOLE)
        try:
            mine = _digest(source, digest.whole(view.source(source, chunk), view.how), view.name)
            theirs = _digest(target, digest.whole(view.target(target, chunk), view.how), view.name)
        except SlackwaterError as error:
            causes.append(f"{view.name}: {error.cause}")
            late.append(piece)
            continue
        compared += 1
        rows += max(int(mine[0]), int(theirs[0]))
        if mine != theirs:
            differing.append(piece)
    for conn in (source, target):
        _limit(conn, 0)
    todo = late + todo
    return Final(compared=compared, rows=rows, differing=tuple(differing), left=tuple(todo), causes=tuple(causes))


def _limit(conn: Connection, seconds: float) -> None:
    with translated("setting a time limit"):
        conn.execute(f"set statement_timeout = {int(seconds * 1000)}".encode())


def _views(source: Connection, target: Connection, plan: Plan, accepted: Collection[str]) -> list[View]:
    sources, targets = catalog.tables(source, plan.source_schema), catalog.tables(target, plan.target_schema)
    return views(
        plan,
        source,
        bases=bases(target, list(plan.targets.values())),
        how=_hash(source, target),
        sources={n: sources.get(n, t) for n, t in plan.sources.items()},
        targets={n: targets.get(n, t) for n, t in plan.targets.items()},
        accepted=accepted,
    )


def _hash(source: Connection, target: Connection) -> Hash:
    """MD5, unless the servers spell its halves differently; a server that refuses it fails the caller's transaction."""
    agreed = _digest(source, Hash.MD5.probe(), "a hash") == _digest(target, Hash.MD5.probe(), "a hash")
    return Hash.MD5 if agreed else Hash.MD5_CUT


def _digest(conn: Connection, query: str, name: str) -> tuple[Any, ...]:
    with translated(f"comparing {name}"):
        row = conn.execute(query.encode()).fetchone()
    return cast("tuple[Any, ...]", row)[:3]
