"""What the rows of both sides were found to be: `slackwater.verification`, one row per target table, on the target.

Invariants: a table that was found mismatched stays so until a later, complete, clean pass over it (a repair only turns
it into `repaired`); a verdict speaks of the file and of the turn that it was given under, and of no other; once
anything happened that can have moved rows unseen (`void`) it says nothing; what was never compared is pending, never
clean.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from connectors.postgres import void as voiding
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from stream.monitoring.clock import rfc3339
from stream.verify.verdict_sql import BEGIN, CONCLUDE, PROVEN, READ, VOIDED

void = voiding.void  # whoever writes a verdict down, or reads one, finds here what ends it
LISTED = 1000  # mismatches that are kept by name, per table; all of them are counted


class Verdict(StrEnum):
    """Of a table, and of a direction as a whole."""

    PENDING = "pending"  # not compared under this file, or not since its verdict was voided
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

    def __str__(self) -> str:
        key = ", ".join(f"{k}={'NULL' if v is None else v}" for k, v in self.key.items()) or f"{self.rows} rows"
        return f"{key} ({', '.join(self.columns) or self.kind})"

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
class Void:
    """Since when, and why, a verdict says nothing. `cause` is a clause in the past tense; `at` None: not known."""

    cause: str
    at: datetime | None = None

    def __str__(self) -> str:
        return self.cause if self.at is None else f"{self.cause} ({rfc3339(self.at)})"

    def document(self) -> dict[str, str | None]:
        return {"cause": self.cause, "at": None if self.at is None else rfc3339(self.at)}


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
    void: Void | None = None
    uncompared: int = 0  # parts of it that the last turn had no time to compare, and nobody since

    @property
    def objection(self) -> str | None:
        """Why it cannot be said that every row of the table is right; None when it can."""
        match self.state:
            case Verdict.CLEAN:
                return None
            case Verdict.MISMATCHED:
                rows = f"{self.mismatched:,} {'row differs' if self.mismatched == 1 else 'rows differ'}"
                return f"{self.lost:,} rows have no counterpart" if self.lost and not self.mismatched else rows
            case Verdict.REPAIRED:
                return "repaired, and not compared since"
        return "not compared under this file" if self.void is None else f"not verified since {self.void}"

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
    def objections(self) -> list[str]:
        """Why it cannot be said that every row is right, by table."""
        found = [(name, table.objection) for name, table in self.tables.items()]
        return [f"{name}: {objection}" for name, objection in found if objection is not None]

    @property
    def problems(self) -> dict[str, Mapping[str, Any]]:
        """Why tables could not be compared when that was last tried."""
        return {name: table.problem for name, table in self.tables.items() if table.problem is not None}


def latest(
    conn: Connection,
    migration: str,
    direction: Direction,
    *,
    fingerprint: str | None = None,
    targets: Collection[str] | None = None,
) -> Verification:
    """The verdicts of a direction, read on its target.

    `fingerprint` is what they have to be given under (Prepared.judged_under): a clean verdict under another file, or
    another path of users' code, is pending, as is one that is void.
    `targets` are the tables that there have to be verdicts on: one that has none is pending. Without either, what is
    recorded is taken as it is.
    """
    with translated("reading the verification"):
        wanted = {"m": migration, "d": direction.value, "side": direction.target.value}
        rows = conn.execute(READ.encode(), wanted).fetchall()
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
    state, of, at, age_s, compared, mismatched, missing, extra, differing, listed, alone = row[1:12]
    running, so_far, problem = row[12:15]
    verdict, voided = Verdict(state), None if at is None else _voided(*row[15:20])
    stale = fingerprint is not None and of != fingerprint
    if verdict is Verdict.CLEAN and (stale or voided is not None):
        verdict, at, age_s, compared = Verdict.PENDING, None, None, None
        voided = None if stale else voided
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
        void=voided,
        uncompared=row[20],
    )


def _voided(
    at: datetime | None,
    cause: str | None,
    then: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    turned_at: datetime | None,
) -> Void | None:
    """What has made a complete pass void, by the newest cause; `then` and `now` are GROUNDs."""
    if at is not None and (turned_at is None or at >= turned_at):
        return Void(cause=str(cause), at=at)
    if then is None:
        return Void(cause="slackwater was upgraded")
    if then["turn"] != now["turn"]:
        side = Side.NEW if now["turn"] % 2 else Side.OLD
        return Void(cause=f"turn {now['turn']} moved the writes to {side}", at=turned_at)
    if at is not None:
        return Void(cause=str(cause), at=at)
    if then["server"] != now["server"]:
        return Void(cause="its server was promoted, or restored from a backup")
    if then["fence"] != now["fence"]:
        return Void(cause="its fence was taken off, or put on anew")
    return None


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
        self._names = {"m": migration, "d": direction.value, "side": direction.target.value}

    def begin(self, load: str, fingerprint: str, *, resume: bool) -> tuple[datetime, list[Mismatch], int]:
        """Begin a pass over a table, or go on with the one that was left; what that one had found already."""
        with translated("recording a verification"), self.conn.transaction():
            row = self.conn.execute(
                BEGIN.encode(), {**self._names, "load": load, "file": fingerprint, "resume": resume}
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
        counts = {kind.value: sum(m.rows for m in mismatches if m.kind is kind) for kind in Kind}
        said = {"load": load, "began": began, "file": fingerprint, "state": verdict.value, "rows": rows, "total": total}
        listed = json.dumps([m.document() for m in mismatches[:LISTED]])
        alone = json.dumps({name: u.document() for name, u in unrepresented.items()})
        with translated("recording a verification"):
            done = self.conn.execute(
                CONCLUDE.encode(), {**self._names, **said, **counts, "listed": listed, "alone": alone}
            )
        return verdict if done.rowcount == 1 else Verdict.PENDING  # voided meanwhile, or begun anew by somebody else

    def stands(self, load: str, began: datetime) -> bool:
        """Whether the pass that began then is still the one under way."""
        with translated("reading the verification"):
            row = self.conn.execute(
                "select from slackwater.verification where migration = %s and direction = %s and load = %s"
                " and pass_began_at = %s",
                (*self._id, load, began),
            ).fetchone()
        return row is not None

    def voided(self, load: str) -> str | None:
        """Why the pass over a table was taken away; None where it was not, or where somebody else began another."""
        with translated("reading the verification"):
            row = self.conn.execute(VOIDED.encode(), {**self._names, "load": load}).fetchone()
        return None if row is None else str(row[0])

    def proven(self, load: str, fingerprint: str, mismatches: Sequence[Mismatch]) -> None:
        """Rows of it differ, and that needs no pass: it is mismatched from now on, and a pass under way begins anew."""
        counts = {kind.value: sum(m.rows for m in mismatches if m.kind is kind) for kind in Kind}
        listed = json.dumps([m.document() for m in mismatches[:LISTED]])
        said = {"load": load, "file": fingerprint, "total": sum(counts.values()), "listed": listed}
        with translated("recording rows that differ"):
            self.conn.execute(PROVEN.encode(), {**self._names, **said, **counts})

    def compared(self, load: str) -> None:
        """What a turn had no time for is done, with the rest of the table."""
        with translated("recording a verification"):
            self.conn.execute(
                "delete from slackwater.uncompared where migration = %s and direction = %s and load = %s",
                (*self._id, load),
            )

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
