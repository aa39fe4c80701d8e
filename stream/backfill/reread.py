"""Rows that have to be read again from the source, one by one: chunks of named keys, under the rule of every chunk.

Invariants: a row leaves the queue in the transaction that wrote what the source has for its key (or deleted what the
target has of a row that is gone), that put it into quarantine with the reason, or that opened the target to the
application; and none is asked for while the target is open, for nothing of ours may write it then. What a repair asked
for is deleted only where the repair says so, and kept (`stream.engine.repairs`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from connectors.failpoint import failpoint
from connectors.postgres import control
from connectors.postgres.control import Checkpoint
from connectors.postgres.ranges import KeySpace, Kind, relation
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction
from schemas.errors import Halt, Refused, RowRejected, StatementRefused
from schemas.plan import Plan
from schemas.position import ZERO, Lsn, format_lsn
from schemas.repair import Repair
from schemas.table import Table
from stream.backfill.chunk_loader import CHUNK_TIMEOUT_S, MAX_COLLISIONS, Session, of_row, set_aside
from stream.backfill.load_table import MIRROR, LoadRow
from stream.engine import Lock
from stream.engine.mapping_sql import Load, columns

log = logging.getLogger("slackwater.backfill")

BATCH = 500

Key = Mapping[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A key to be read again. `attempts` counts the unique violations that the stream could have resolved; `carried`
    are the target's unmapped columns, under the new key, of a row that took it while values were not sent. `repair`:
    what it was asked for with; a batch is of one kind.
    """

    key: Key
    attempts: int
    carried: Sequence[Key] = ()
    repair: Repair | None = None


def assert_closed(conn: Connection, migration: str, direction: Direction) -> None:
    """In the caller's transaction, for as long as it lasts. Errors: Refused while the direction's target is open."""
    turn = control.turn(conn, migration, direction.target, lock=True)
    if turn is None or turn.open:
        raise Refused(
            f"{direction.target} takes the application's writes: nothing that comes {direction} may write its rows",
            hint=f"what is wrong on {direction.target} is for the application to put right there;"
            f" while {direction.source} takes the writes, its rows can be read again",
        )


class Queue:
    """The rows of `slackwater.reread` of one direction."""

    def __init__(self, conn: Connection, migration: str, direction: str) -> None:
        self._conn = conn
        self._id = (migration, direction)

    def loads(self) -> list[str]:
        """The loads that wait for rows, longest first."""
        with translated("reading the reread queue"):
            rows = self._conn.execute(
                "select load from slackwater.reread where migration = %s and direction = %s and source <> ''"
                " group by load order by min(asked_at)",
                self._id,
            ).fetchall()
        return [str(row[0]) for row in rows]

    def asked(self, load: str, keys: Sequence[Key] | None) -> list[Asked]:
        """Up to a batch of the load's keys, or those of `keys` that are still asked for; fewest attempts first."""
        with translated("reading the reread queue"):
            rows = self._conn.execute(
                "select key, attempts, carried, repair from slackwater.reread"
                " where migration = %s and direction = %s and load = %s and (%s::jsonb is null"
                " or key in (select jsonb_array_elements(%s::jsonb))) order by attempts, asked_at, key limit %s",
                (*self._id, load, *(2 * (None if keys is None else _json(keys),)), BATCH),
            ).fetchall()
        return [
            Asked(
                key=cast("Key", key),
                attempts=int(str(attempts)),
                carried=cast("list[Key]", carried or []),
                repair=Repair.of(cast("dict[str, Any] | None", repair)),
            )
            for key, attempts, carried, repair in rows
        ]

    def read(self, load: str, keys: Sequence[Key]) -> None:
        """They are read: out of the queue, and out of the quarantine those that an operator sent here."""
        found = [json.dumps(dict(k)) for k in keys]
        with translated("emptying the reread queue"):
            self._conn.execute(  # planned with the keys in sight: as a hash, not row by row
                "with gone as (delete from slackwater.reread"
                " where migration = %s and direction = %s and load = %s and key = any(%s::jsonb[]))"
                " delete from slackwater.quarantine"
                " where migration = %s and direction = %s and load = %s and key = any(%s::jsonb[])"
                " and state = 'retrying'",
                (*self._id, load, found, *self._id, load, found),
                prepare=False,
            )

    def refused(self, load: str, asked: Asked, lsn: Lsn, error: RowRejected) -> bool:
        """Out of the queue; an older quarantine row of the key is open again, with this error. False: there is none."""
        key, carried = json.dumps(dict(asked.key)), _json(asked.carried) if asked.carried else None
        with translated("setting a row aside"):
            self._conn.execute(
                "delete from slackwater.reread"
                " where migration = %s and direction = %s and load = %s and key = %s::jsonb",
                (*self._id, load, key),
            )
            again = self._conn.execute(
                "update slackwater.quarantine set state = 'open', error = %s, sqlstate = %s, commit_lsn = %s,"
                " changes = changes + 1, carried = coalesce(%s::jsonb, carried)"
                " where migration = %s and direction = %s and load = %s and key = %s::jsonb",
                (error.cause, error.sqlstate, format_lsn(lsn), carried, *self._id, load, key),
            )
        return again.rowcount > 0

    def again(self, load: str, keys: Sequence[Key]) -> None:
        """Count one more attempt."""
        with translated("writing the reread queue"):
            self._conn.execute(
                "update slackwater.reread set attempts = attempts + 1 where migration = %s and direction = %s"
                " and load = %s and key in (select jsonb_array_elements(%s::jsonb))",
                (*self._id, load, _json(keys)),
            )


class Rereader:
    """Empties the queue over one session. `limit` is the quarantine's."""

    def __init__(self, session: Session, plan: Plan, *, limit: Callable[[], int]) -> None:
        self._s = session
        self._plan = plan
        self._limit = session.engine.owners.limit = limit
        self._queue = Queue(session.target, plan.migration, str(plan.direction))
        self._not_before: dict[str, Lsn] = {}  # loads whose rows collide, until the stream has passed this

    def step(self, rows: Mapping[str, LoadRow]) -> int:
        """Read one batch of each load that waits; returns how many rows were read. `rows` are the loads by name.

        Errors: TooEarly, Contended: to be tried again; RowRejected when the quarantine is full.
        """
        done = 0
        for load in self._queue.loads():
            row = rows.get(load)
            if row is None or row.barrier is None or load not in self._s.engine.loads:
                raise Halt(
                    f"rows of {load} wait to be read again, but it is no load of this direction",
                    hint="`slackwater prepare` after an edit of the file",
                )
            waits = self._not_before.get(load, ZERO)
            if not waits or self._s.loads.applied() >= waits:
                try:
                    done += self._batch(row, None)
                except Halt as error:
                    if load in self._queue.loads():
                        raise
                    log.info("rereads of %s were let go of meanwhile: %s", load, error.cause)
        return done

    def _batch(self, row: LoadRow, keys: Sequence[Key] | None) -> int:
        """One batch, halved until the rows that are refused stand alone."""
        taken: list[Asked] = []
        try:
            return self._read(row, keys, taken)
        except RowRejected as error:
            if len(taken) <= 1:
                raise
            if error.collides and self._s.engine.replica:  # a value may have moved between them
                with suppress(RowRejected):
                    return self._read(row, [a.key for a in taken], [], swap=True)
            log.info("a batch of rereads of %s is halved: %s", row.name, error.cause)
        half = len(taken) // 2
        return sum(self._batch(row, [a.key for a in part]) for part in (taken[:half], taken[half:]))

    def _read(self, row: LoadRow, keys: Sequence[Key] | None, taken: list[Asked], *, swap: bool = False) -> int:
        load, engine = row.name, self._s.engine
        # A mirror's new rows recompute the mappings that read it, as the applier does: alone.
        lock: Lock = "exclusive" if load.startswith(MIRROR) else "shared"
        with self._s.transaction(load, lock, timeout_s=CHUNK_TIMEOUT_S) as at:
            taken.extend(self._queue.asked(load, keys))
            if not taken:
                return 0
            names, repair = taken[0].key.keys(), taken[0].repair
            # A repair names rows by other columns, and has rules of its own.
            taken[:] = [a for a in taken if a.key.keys() == names and a.repair == repair]
            wanted = [a.key for a in taken]
            engine.repairs.asked = repair
            engine.savepoint("lone")
            lsn = [ZERO]
            try:
                carried = [document for a in taken for document in a.carried]
                owners = repair is not None and repair.owners
                self._write(row, wanted, at, lsn, carried=carried, owners=owners, swap=swap)
            except (RowRejected, StatementRefused) as refused:
                engine.back_to("lone")
                error = of_row(engine, load, refused)
                if len(taken) > 1:
                    raise error from refused
                self._refused(row, taken[0], lsn[0], error)
            else:
                self._queue.read(load, wanted)
            assert row.barrier is not None  # looked at before
            self._s.loads.newest(load, row.barrier, lsn[0])
        return len(taken)

    def ask(self, load: str, keys: Sequence[Key], reason: str) -> None:
        """Have rows of an open source read again for its closed target. Errors: Refused when that one is open."""
        source = self._s.engine.loads[load].mapping.sources[0]
        with translated("asking for rows to be read again"), self._s.target.transaction():
            assert_closed(self._s.target, self._plan.migration, self._plan.direction)
            self._s.engine.target.ask_reread(load, source, keys, reason)

    def take_over(self, row: LoadRow, keys: Sequence[Key]) -> None:
        """Read rows of a closed source again for its open target: written unmarked, as the application's own."""
        lsn = [ZERO]
        with self._s.transaction(row.name, "exclusive", timeout_s=CHUNK_TIMEOUT_S, as_application=True) as at:
            self._write(row, keys, at, lsn)
            assert row.barrier is not None
            self._s.loads.newest(row.name, row.barrier, lsn[0])

    def _write(
        self,
        row: LoadRow,
        keys: Sequence[Key],
        at: Checkpoint,
        lsn: list[Lsn],
        *,
        carried: Sequence[Key] = (),
        owners: bool = False,
        swap: bool = False,
    ) -> None:
        """`owners`: the keys are those of target rows' owners, and the source's rows are those that feed them."""
        assert row.barrier is not None
        load, engine, reader = row.name, self._s.engine, self._s.reader
        source = engine.loads[load].mapping.sources[0]
        table = self._plan.sources[source]
        if owners:
            engine.chunk.stage_owners(load, keys)
        else:
            engine.chunk.stage_keys(load, keys)
        with reader.snapshot(table, row.barrier, at.end_lsn, timeout_s=CHUNK_TIMEOUT_S) as shown:
            lsn[0] = shown.lsn
            if owners:
                query = feeding(engine.loads[load], table, keys, engine.chunk.columns(load))
            else:
                space = KeySpace(table=table, key=tuple(keys[0]), kind=Kind.RANGE, integer=False)
                query = space.matching(reader.rows, keys, engine.chunk.columns(load))
            with engine.chunk.stage(load) as staging:
                reader.copy(query, staging.write)
        failpoint("backfill.mid_reread")
        if carried:
            engine.chunk.keep(load, carried)
        engine.chunk.apply(load, carried=bool(carried), owners=owners, swap=swap)

    def _refused(self, row: LoadRow, asked: Asked, lsn: Lsn, error: RowRejected) -> None:
        """A row alone that the target refuses: left for the stream to resolve a few times, then set aside."""
        if error.collides and asked.attempts < MAX_COLLISIONS:
            self._queue.again(row.name, [asked.key])
            self._not_before[row.name] = lsn
        elif asked.repair is not None and asked.repair.owners:  # no source row's key, by which it could be set aside
            self._queue.read(row.name, [asked.key])
            log.error("what a repair asked for in %s is left as it is: %s", row.name, error.cause)
        elif not self._queue.refused(row.name, asked, lsn, error):
            source = self._s.engine.loads[row.name].mapping.sources[0]
            set_aside(self._s.engine, self._limit(), row.name, source, asked.key, lsn, error, asked.carried)


def feeding(load: Load, table: Table, owners: Sequence[Key], names: Sequence[str]) -> str:
    """A SELECT of the rows of a row-local mapping's source that feed some owners, given as the target spells them."""
    mapping = load.mapping
    restrict = mapping.feeds[table.name].restrict
    assert restrict is not None  # a row-local mapping with a key computes it from the row alone
    casts = ["" if "." in t else f"::{t}" for t in (load.table.column(o).type for o in mapping.owner)]
    texts = ", ".join(f'(({e}){cast})::text collate "C"' for e, cast in zip(restrict, casts, strict=True))
    wanted = ", ".join("(" + ", ".join(_literal(o[n]) for n in mapping.owner) + ")" for o in owners)
    return f"select {columns(names)} from {relation(table)} where ({texts}) in (values {wanted})"


def _literal(value: str | None) -> str:
    """A string constant (standard_conforming_strings is pinned)."""
    return "null::text" if value is None else "'" + value.replace("'", "''") + "'"


def _json(keys: Sequence[Key]) -> str:
    return json.dumps([dict(k) for k in keys])
