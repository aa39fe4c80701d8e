"""What the rows of both sides were found to be: `slackwater.verification`, one row per target table, on the target.

Invariants: a table that was found mismatched stays so until a later, complete, clean pass over it (a repair only turns
it into `repaired`); a verdict speaks of the file that it was given under, and of no other; what was never compared is
pending, never clean.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from connectors.postgres.session import Connection, translated
from schemas.direction import Direction

LISTED = 1000  # mismatches that are kept by name, per table; all of them are counted


class Verdict(StrEnum):
    """Of a table, and of a direction as a whole."""

    PENDING = "pending"  # never compared under this file
    RUNNING = "running"  # the first pass under this file is under way
    CLEAN = "clean"
    MISMATCHED = "mismatched"
    REPAIRED = "repaired"  # rows were read again since: a later clean pass says whether that was all


class Kind(StrEnum):
    MISSING = "missing"  # the target lacks the row
    EXTRA = "extra"  # the target has a row that nothing makes
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One row, by its key in the target (`{}` in a table without one) and the columns that differ. Never a value."""

    kind: Kind
    key: Mapping[str, str | None]
    columns: tuple[str, ...] = ()
    rows: int = 1

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": self.kind.value, "key": dict(self.key), "columns": list(self.columns)}
        return found if self.rows == 1 else {**found, "rows": self.rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrepresented:
    """Rows of one source table that have no counterpart on the target. `keys` name some of them.

    `fault`: they count against the verdict, as they do on the way back unless the file accepts it.
    """

    rows: int
    keys: tuple[Mapping[str, str | None], ...] = ()
    fault: bool = False

    def document(self) -> dict[str, Any]:
        return {"rows": self.rows, "fault": self.fault, "keys": [dict(k) for k in self.keys]}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableVerdict:
    """One target table. `at`: when its last complete pass began: what it says is as old as its oldest chunk.

    `running`: whether a pass is under way. `mismatched`: rows that the last complete pass found; where there was none,
    what the one under way has found so far, and None while that is nothing. `unrepresented`: by source table, of those
    that are counted with this one.
    """

    state: Verdict
    at: datetime | None = None
    age_s: float | None = None
    rows: int | None = None
    mismatched: int | None = None
    missing: int = 0
    extra: int = 0
    differing: int = 0
    listed: tuple[Mismatch, ...] = ()
    unrepresented: Mapping[str, Unrepresented] = field(default_factory=dict)
    running: bool = False
    problem: Mapping[str, Any] | None = None

    @property
    def lost(self) -> int:
        """Rows that should have a counterpart, and have none."""
        return sum(u.rows for u in self.unrepresented.values() if u.fault)


NEVER = TableVerdict(state=Verdict.PENDING)
NOTHING: Mapping[str, Unrepresented] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A direction as a whole. `at` and `age_s` are those of the table whose verdict is the oldest."""

    state: Verdict
    tables: Mapping[str, TableVerdict] = field(default_factory=dict)

    def over(self, targets: Collection[str]) -> Verification:
        """The verdict on these tables: one that has none is pending, and those of other tables do not count."""
        tables = {name: self.tables.get(name, NEVER) for name in sorted(targets)}
        return Verification(state=together(tables.values()), tables=tables)

    @property
    def mismatched(self) -> int | None:
        """Rows that are known to differ, or to be lost; None where none is, and a table was never compared."""
        counts = [table.mismatched for table in self.tables.values()]
        lost = sum(table.lost for table in self.tables.values())
        return sum(n or 0 for n in counts) + lost or (None if not counts or None in counts else 0)

    @property
    def age_s(self) -> float | None:
        """Of the oldest verdict; None while a table has none."""
        ages = [table.age_s for table in self.tables.values()]
        return None if not ages or None in ages else max(cast("list[float]", ages))

    @property
    def at(self) -> datetime | None:
        times = [table.at for table in self.tables.values()]
        return None if not times or None in times else min(cast("list[datetime]", times))

    @property
    def problems(self) -> dict[str, Mapping[str, Any]]:
        """Why tables could not be compared when that was last tried."""
        return {name: table.problem for name, table in self.tables.items() if table.problem is not None}


READ = """
select load, state, fingerprint, at, extract(epoch from clock_timestamp() - at)::float8, rows, mismatched, missing,
       extra, differing, listed, unrepresented, pass_began_at is not null, pass_mismatched, problem
  from slackwater.verification where migration = %s and direction = %s order by load
"""


def latest(
    conn: Connection,
    migration: str,
    direction: Direction,
    *,
    fingerprint: str | None = None,
    targets: Collection[str] | None = None,
) -> Verification:
    """The verdicts of a direction, read on its target.

    `fingerprint` is that of the file as it is prepared (Spec.fingerprint): a clean verdict of another file is pending.
    `targets` are the tables that there have to be verdicts on: one that has none is pending. Without either, what is
    recorded is taken as it is.
    """
    with translated("reading the verification"):
        rows = conn.execute(READ, (migration, direction.value)).fetchall()
    tables = {str(row[0]): _table(row, fingerprint) for row in rows}
    found = Verification(state=together(tables.values()), tables=tables)
    return found if targets is None else found.over(targets)


def together(tables: Collection[TableVerdict]) -> Verdict:
    """The worst that there is."""
    states = {table.state for table in tables}
    for state in (Verdict.MISMATCHED, Verdict.REPAIRED, Verdict.RUNNING):
        if state in states:
            return state
    if not states or Verdict.PENDING in states:
        return Verdict.PENDING if not any(t.running for t in tables) else Verdict.RUNNING
    return Verdict.CLEAN


def _table(row: Sequence[Any], fingerprint: str | None) -> TableVerdict:
    (
        _,
        state,
        of,
        at,
        age_s,
        compared,
        mismatched,
        missing,
        extra,
        differing,
        listed,
        alone,
        running,
        so_far,
        problem,
    ) = row
    verdict = Verdict(state)
    if fingerprint is not None and of != fingerprint and verdict is Verdict.CLEAN:
        verdict, at, age_s, compared = Verdict.PENDING, None, None, None
    if verdict is Verdict.PENDING and running:
        verdict = Verdict.RUNNING
    return TableVerdict(
        state=verdict,
        at=at,
        age_s=age_s,
        rows=compared,
        mismatched=so_far or None if at is None else mismatched,
        missing=missing,
        extra=extra,
        differing=differing,
        listed=tuple(_mismatch(found) for found in listed),
        unrepresented={
            name: Unrepresented(rows=u["rows"], fault=u["fault"], keys=tuple(u["keys"])) for name, u in alone.items()
        },
        running=running,
        problem=problem,
    )


def _mismatch(found: Mapping[str, Any]) -> Mismatch:
    return Mismatch(
        kind=Kind(found["kind"]), key=found["key"], columns=tuple(found["columns"]), rows=found.get("rows", 1)
    )


class Store:
    """The rows of one direction, written by its verification. Transactions are the caller's, or one per call."""

    def __init__(self, conn: Connection, migration: str, direction: Direction) -> None:
        self.conn = conn
        self.migration = migration
        self.direction = direction
        self._id = (migration, direction.value)

    def begin(self, load: str, fingerprint: str, *, resume: bool) -> tuple[datetime, list[Mismatch], int]:
        """Begin a pass over a table, or go on with the one that was left; what that one had found already."""
        with translated("recording a verification"), self.conn.transaction():
            row = self.conn.execute(
                "insert into slackwater.verification as v (migration, direction, load, pass_began_at,"
                " pass_fingerprint) values (%s, %s, %s, clock_timestamp(), %s)"
                " on conflict (migration, direction, load) do update set"
                " pass_listed = case when %s and v.pass_began_at is not null and v.pass_fingerprint = %s"
                " then v.pass_listed else '[]' end,"
                " pass_mismatched = case when %s and v.pass_began_at is not null and v.pass_fingerprint = %s"
                " then v.pass_mismatched else 0 end,"
                " pass_began_at = case when %s and v.pass_began_at is not null and v.pass_fingerprint = %s"
                " then v.pass_began_at else clock_timestamp() end, pass_fingerprint = excluded.pass_fingerprint"
                " returning pass_began_at, pass_listed, pass_mismatched",
                (*self._id, load, fingerprint, *((resume, fingerprint) * 3)),
            ).fetchone()
        began, listed, mismatched = cast("tuple[datetime, list[dict[str, Any]], int]", row)
        return began, [_mismatch(found) for found in listed], mismatched

    def found(self, load: str, began: datetime, mismatches: Sequence[Mismatch], total: int) -> None:
        """What a chunk brought, in the caller's transaction."""
        self.conn.execute(
            "update slackwater.verification set pass_listed = %s::jsonb, pass_mismatched = %s"
            " where migration = %s and direction = %s and load = %s and pass_began_at = %s",
            (json.dumps([m.document() for m in mismatches[:LISTED]]), total, *self._id, load, began),
        )

    def conclude(
        self,
        load: str,
        began: datetime,
        fingerprint: str,
        *,
        rows: int,
        mismatches: Sequence[Mismatch],
        total: int,
        unrepresented: Mapping[str, Unrepresented] = NOTHING,
    ) -> Verdict:
        """A complete pass has ended: its verdict replaces the one before."""
        lost = any(u.fault for u in unrepresented.values())
        verdict = Verdict.MISMATCHED if total or lost else Verdict.CLEAN
        counts = [sum(m.rows for m in mismatches if m.kind is kind) for kind in Kind]
        with translated("recording a verification"):
            done = self.conn.execute(
                "update slackwater.verification set state = %s, fingerprint = %s, at = pass_began_at, rows = %s,"
                " mismatched = %s, missing = %s, extra = %s, differing = %s, listed = %s::jsonb,"
                " unrepresented = %s::jsonb, pass_began_at = null,"
                " pass_listed = '[]', pass_mismatched = 0, problem = null"
                " where migration = %s and direction = %s and load = %s and pass_began_at = %s",
                (
                    *(verdict.value, fingerprint, rows, total, *counts),
                    json.dumps([m.document() for m in mismatches[:LISTED]]),
                    json.dumps({name: u.document() for name, u in unrepresented.items()}),
                    *(*self._id, load, began),
                ),
            )
        return verdict if done.rowcount == 1 else Verdict.PENDING  # begun anew by somebody else meanwhile

    def failed(self, load: str, cause: str, remedy: str) -> None:
        """The table could not be compared: whatever was its verdict stays, and this beside it."""
        with translated("recording a verification"):
            self.conn.execute(
                "insert into slackwater.verification (migration, direction, load, problem) values (%s, %s, %s,"
                " jsonb_build_object('cause', %s::text, 'remedy', %s::text, 'at', clock_timestamp()))"
                " on conflict (migration, direction, load) do update set problem = excluded.problem",
                (*self._id, load, cause, remedy),
            )

    def repaired(self, load: str) -> None:
        """Rows of it were asked for again: only a later clean pass makes it clean."""
        with translated("recording a repair"):
            self.conn.execute(
                "update slackwater.verification set state = 'repaired'"
                " where migration = %s and direction = %s and load = %s and state = 'mismatched'",
                (*self._id, load),
            )
