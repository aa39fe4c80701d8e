"""What a pass writes down on the target: its chunks, what they brought, and each table's verdict.

Invariants: a chunk is recorded with what was found in it, in one transaction; a table is concluded only when its chunks
cover all of it, and one of which no row was seen only when both sides say that there is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from connectors.postgres.ranges import Chunk, Kind
from connectors.postgres.session import Connection, connect, translated
from connectors.postgres.target import canonical
from schemas.errors import Contended, SlackwaterError
from schemas.plan import Plan
from stream.verify.coverage import Course
from stream.verify.digests import Compared, assert_empty
from stream.verify.judge import Found
from stream.verify.queries import View, bare, owners, restricts
from stream.verify.task import Tally, Task
from stream.verify.verdicts import Store, Verdict

APPLICATION = "slackwater verify"

RECORD = """
insert into slackwater.verify_chunk
       (migration, direction, load, chunk, lower, upper, source_rows, target_rows, youngest, began_at)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict (migration, direction, load, chunk) do update
   set lower = excluded.lower, upper = excluded.upper, source_rows = excluded.source_rows,
       target_rows = excluded.target_rows, youngest = excluded.youngest, began_at = excluded.began_at,
       done_at = clock_timestamp()
"""


class Voided(Exception):
    """The pass over a table was taken away while it was under way: it has to begin anew. The text is the cause."""


class Ledger:
    """One pass's. Not thread-safe: the caller holds a lock."""

    def __init__(self, conn: Connection, task: Task) -> None:
        self._task = task
        self._store = Store(conn, task.plan.migration, task.plan.direction)
        self._id = (task.plan.migration, task.plan.direction.value)

    def open(self, view: View, *, resume: bool) -> Tally:
        """Begin a table's pass, or go on with the one that was left."""
        began, listed, total = self._store.begin(view.name, self._task.fingerprint, resume=resume)
        done, before = self._chunks(view, began)
        tally = Tally(view=view, course=Course(view, [c for c, _, _ in done], before), began=began, total=total)
        tally.found = [Found(mismatch=m, key=(), source=(), target=()) for m in listed]
        tally.source_rows = sum(s for _, s, _ in done)
        tally.target_rows = sum(t for _, _, t in done)
        return tally

    def _chunks(self, view: View, began: datetime) -> tuple[list[tuple[Chunk, int, int]], list[Chunk]]:
        """What this pass has done of a table, and the chunks of the one before it, the newest written first."""
        with translated("reading the chunks"):
            rows = self._store.conn.execute(
                "select chunk, lower, upper, source_rows, target_rows, began_at = %s from slackwater.verify_chunk"
                " where migration = %s and direction = %s and load = %s order by youngest nulls last, chunk desc",
                (began, *self._id, view.name),
            ).fetchall()
        done, before = [], []
        for number, lower, upper, source, target, mine in cast("list[Any]", rows):
            kind = Kind.RANGE if view.space is not None else Kind.WHOLE
            chunk = Chunk(number=number, kind=kind, lower=lower, upper=upper)
            if mine:
                done.append((chunk, source, target))
            else:
                before.append(chunk)
        return done, [] if done else before

    def not_waived(self, view: View, found: list[Found]) -> list[Found]:
        return not_waived(self._store.conn, self._task.plan, view, found)

    def record(self, tally: Tally, chunk: Chunk, compared: Compared, found: Sequence[Found], *, more: bool) -> None:
        """A chunk that was compared and judged. `more`: so much differs that the rest of the table is let be.

        Errors: Voided.
        """
        conn = self._store.conn
        self._assert_stands(tally)
        tally.found += found
        tally.total += sum(f.mismatch.rows for f in found)
        with translated("recording a chunk"), conn.transaction():
            conn.execute(
                RECORD,
                (
                    *(*self._id, tally.view.name, chunk.number, chunk.lower, chunk.upper),
                    *(compared.source_rows, compared.target_rows, compared.youngest, tally.began),
                ),
            )
            if found:
                self._store.found(tally.view.name, tally.began, [f.mismatch for f in tally.found], tally.total)
        tally.source_rows += compared.source_rows
        tally.target_rows += compared.target_rows
        tally.course.finish(chunk)
        if more:
            tally.more = tally.course.ended = True

    def _assert_stands(self, tally: Tally) -> None:
        name = tally.view.name
        if not self._store.stands(name, tally.began) and (cause := self._store.voided(name)) is not None:
            raise Voided(cause)

    def conclude(self, tally: Tally, source: Connection) -> None:
        """The table's verdict, once nothing of it is left; or what kept it from being compared. Errors: Voided."""
        if tally.concluded:
            return
        tally.concluded = True
        name = tally.view.name
        try:
            if tally.problem is None and not tally.more:
                tally.course.assert_covered()
                if not tally.rows and not tally.by_rows:  # row by row, each side was asked for all of its keys
                    with contextlib.closing(connect(self._task.target_dsn, application=APPLICATION)) as target:
                        assert_empty(tally.view, source, target)
        except SlackwaterError as error:
            tally.problem = error
        if tally.problem is not None:
            self._store.failed(name, tally.problem.cause, tally.problem.hint)
            return
        tally.verdict = self._store.conclude(
            name,
            tally.began,
            self._task.fingerprint,
            rows=tally.rows,
            mismatches=[f.mismatch for f in tally.found],
            total=tally.total,
            unrepresented={n: u for n, u in (tally.unrepresented or {}).items() if u is not None},
        )
        if tally.verdict is Verdict.PENDING:
            self._assert_stands(tally)
            tally.problem = Contended(
                f"{name} was prepared anew, or compared by somebody else, meanwhile", hint="slackwater verify"
            )
            return
        self._store.compared(name)
        with translated("forgetting the chunks of earlier passes"):
            self._store.conn.execute(
                "delete from slackwater.verify_chunk where migration = %s and direction = %s and load = %s"
                " and began_at <> %s",
                (*self._id, name, tally.began),
            )


def not_waived(conn: Connection, plan: Plan, view: View, found: list[Found]) -> list[Found]:
    """Without rows that the target refused and an operator gave up: those stay listed in quarantine."""
    by = restricts(view)
    if not found or by is None or not view.mapping.row_local:
        return found
    with translated("reading the quarantine"):
        rows = conn.execute(
            "select key from slackwater.quarantine where migration = %s and direction = %s and load = %s"
            " and state = 'waived'",
            (plan.migration, plan.direction.value, view.name),
        ).fetchall()
    waived = {canonical(row[0]) for row in rows}
    table = view.sources[0]
    names = [bare(e, table) or "" for e in by[table.name]]
    return [f for f in found if canonical(dict(zip(names, owners(view, [f.key])[0], strict=True))) not in waived]
