"""The target's control rows that move with the data: checkpoint, epochs, tokens, loads, quarantine, rereads.

Invariant 2: all of these are written in the transaction that writes the rows, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from connectors.postgres import control
from connectors.postgres.control import Checkpoint
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from schemas.epoch import Epoch
from schemas.errors import Halt, Superseded
from schemas.position import Lsn, Position, format_lsn, parse_lsn
from schemas.repair import Repair

Key = Mapping[str, str | None]
Carried = list[dict[str, str | None]]
"""Columns that no mapping writes, of a row's target rows, as documents with the target's key."""

CARRYING = "select distinct load from slackwater.reread where migration = %s and direction = %s and carried is not null"


# A row that is asked for twice is read once. Who may delete has the last word, and a repair that may keeps the rows.
ASK = """
insert into slackwater.reread as q (migration, direction, load, source, key, reason, carried, repair)
select %s, %s, %s, %s, k::jsonb, %s, %s::jsonb, %s::jsonb from pg_catalog.json_array_elements(%s::json) k
    on conflict (migration, direction, load, source, key) do update
   set carried = coalesce(excluded.carried, q.carried),
       repair = case when coalesce((excluded.repair->>'deletes')::boolean, false) then excluded.repair
                     when coalesce((q.repair->>'deletes')::boolean, false) then q.repair
                     when excluded.repair is null then null
                     else q.repair end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """One row of `slackwater.load`. `newest_lsn`: the source LSN of its newest chunk or reread; 0 before one."""

    name: str
    state: str
    newest_lsn: Lsn
    snapshot: str | None
    barrier_lsn: Lsn


P = ParamSpec("P")
T = TypeVar("T")


def _own(method: Callable[Concatenate[Target, P], T]) -> Callable[Concatenate[Target, P], T]:
    """For what is called amid statements that fire users' code: it runs apart from the path that they have."""

    @wraps(method)
    def apart(self: Target, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.apart():
            return method(self, *args, **kwargs)

    return apart


class Target:
    """The control rows of one direction, over a session whose transactions the caller holds.

    `apart` takes the user's `search_path` off, where the caller has put it on, for as long as it lasts.
    """

    def __init__(
        self,
        conn: Connection,
        migration: str,
        direction: Direction,
        *,
        apart: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.conn = conn
        self._id = (migration, direction)
        self.apart = apart

    def checkpoint(self) -> Checkpoint:
        """Halt when there is none: `prepare` writes the first, so a missing one was deleted."""
        found = control.checkpoint(self.conn, *self._id)
        if found is None:
            raise Halt(
                f"the target holds no checkpoint for {self._id[0]}.{self._id[1]}",
                hint="`slackwater prepare` writes it; if it was there before, find out first why it went",
            )
        return found

    def advance(self, previous: int, epochs: Iterable[Epoch], offsets: Mapping[str, Mapping[int, int]]) -> None:
        """Move the checkpoint from `previous` past `epochs`, and record them and their tokens.

        Errors: Superseded when the checkpoint is not at `previous`: another applier is ahead.
        """
        applied = list(epochs)
        last = applied[-1]
        moved = self.conn.execute(
            "update slackwater.checkpoint set epoch = %s, end_lsn = %s, last_commit_lsn = %s, last_seq = %s, "
            "committed_at = to_timestamp(%s), applied_at = clock_timestamp(), offsets = %s "
            "where migration = %s and direction = %s and epoch = %s",
            (
                last.epoch,
                format_lsn(last.end_lsn),
                format_lsn(last.last.commit_lsn),
                last.last.seq,
                last.committed_at,
                json.dumps(offsets),
                *self._id,
                previous,
            ),
            prepare=True,
        )
        if moved.rowcount != 1:
            raise Superseded(
                f"the checkpoint is no longer at epoch {previous}: another applier has gone ahead",
                hint="stop one of the two; nothing was applied twice",
            )
        self.conn.execute(
            "insert into slackwater.epoch (migration, direction, epoch, end_lsn, committed_at, rows, extents) "
            "select %s, %s, (e->>0)::bigint, (e->>1)::pg_lsn, to_timestamp((e->>2)::float8), (e->>3)::bigint, e->4 "
            "from json_array_elements(%s::json) e",
            (
                *self._id,
                json.dumps(
                    [
                        [
                            e.epoch,
                            format_lsn(e.end_lsn),
                            e.committed_at,
                            sum(e.rows.values()),
                            {
                                t: {p: [x.start_offset, x.end_offset] for p, x in ps.items()}
                                for t, ps in e.extents.items()
                            },
                        ]
                        for e in applied
                    ]
                ),
            ),
            prepare=True,
        )
        for epoch in applied:
            for message in epoch.messages:
                token = json.loads(message.content).get("token")
                if token is not None:
                    self.conn.execute(
                        "insert into slackwater.token (migration, direction, token, epoch) values (%s, %s, %s, %s) "
                        "on conflict do nothing",
                        (*self._id, token, epoch.epoch),
                    )

    def prune(self, keep_epochs: int) -> None:
        """Forget epochs and tokens older than the newest `keep_epochs`."""
        with translated("pruning"):
            for table in ("epoch", "token"):
                self.conn.execute(
                    f"delete from slackwater.{table} where migration = %s and direction = %s and epoch < "
                    "(select epoch - %s from slackwater.checkpoint where migration = %s and direction = %s)",
                    (*self._id, keep_epochs, *self._id),
                )

    def loads(self) -> dict[str, LoadState]:
        rows = self.conn.execute(
            "select name, state, newest_lsn::text, snapshot, barrier_lsn::text from slackwater.load "
            "where migration = %s and direction = %s",
            self._id,
            prepare=True,
        ).fetchall()
        return {
            r[0]: LoadState(
                name=r[0],
                state=r[1],
                newest_lsn=parse_lsn(r[2]) if r[2] else Lsn(0),
                snapshot=r[3],
                barrier_lsn=parse_lsn(r[4]) if r[4] else Lsn(0),
            )
            for r in rows
        }

    @_own
    def woken(self, load: str, rows: int) -> None:
        self.conn.execute(
            "update slackwater.load set state = 'done', done_at = clock_timestamp(), rows = %s "
            "where migration = %s and direction = %s and name = %s",
            (rows, *self._id, load),
        )

    @_own
    def ask_reread(
        self,
        load: str,
        source: str,
        keys: Iterable[Key],
        reason: str,
        carried: Sequence[Key] = (),
        repair: Repair | None = None,
    ) -> None:
        """Queue rows of `source` to be read again for `load`.

        `carried`: the unmapped columns of target rows that took another key, with that key. `repair`: what may be
        deleted then, and who is told of it; None: what the stream itself would delete, and nothing is kept.
        """
        self.conn.execute(
            ASK,
            (
                *self._id,
                load,
                source,
                reason,
                json.dumps([dict(k) for k in carried]) if carried else None,
                json.dumps(repair.document()) if repair is not None else None,
                json.dumps([dict(k) for k in keys]),
            ),
        )

    @_own
    def carried(self, load: str, keys: Sequence[Key], *, apart: bool = False) -> dict[str, Carried]:
        """What rows that took these keys brought along, and wait with to be read again, by canonical key.

        `apart`: rows in quarantine as well.
        """
        rows = self.conn.execute(
            "select key, carried from slackwater.quarantine where migration = %s and direction = %s and load = %s"
            " and key = any(%s::jsonb[]) and carried is not null and %s union all"
            " select key, carried from slackwater.reread where migration = %s and direction = %s and load = %s"
            " and key = any(%s::jsonb[]) and carried is not null",
            (*self._id, load, _documents(keys), apart, *self._id, load, _documents(keys)),
        ).fetchall()
        return {canonical(key): list(found) for key, found in rows}

    @_own
    def drop_carried(self, load: str, keys: Sequence[Key] | None) -> None:
        """Rows that wait to be read again under these keys (None: any) are other rows from now on."""
        self.conn.execute(
            "update slackwater.reread set carried = null where migration = %s and direction = %s and load = %s"
            " and carried is not null and (%s::jsonb[] is null or key = any(%s::jsonb[]))",
            (*self._id, load, *(2 * (None if keys is None else _documents(keys),))),
        )

    @_own
    def carry(self, load: str, source: str, rows: Iterable[tuple[Key, Carried]]) -> None:
        """Keep what rows in quarantine carry: they have nothing else."""
        self.conn.execute(
            "update slackwater.quarantine q set carried = nullif(x.row->'carried', '[]')"
            " from jsonb_array_elements(%s::jsonb) x(row) where q.migration = %s and q.direction = %s"
            " and q.load = %s and q.source = %s and q.key = x.row->'key'",
            (json.dumps([{"key": dict(k), "carried": c} for k, c in rows]), *self._id, load, source),
        )

    @_own
    def rereads(self) -> set[tuple[str, str]]:
        """(load, canonical key) of everything that waits to be read again."""
        rows = self.conn.execute(
            "select load, key from slackwater.reread where migration = %s and direction = %s", self._id
        ).fetchall()
        return {(r[0], canonical(r[1])) for r in rows}

    def quarantined(self) -> dict[str, set[str]]:
        """Canonical keys in quarantine (waived ones too), by load."""
        found: dict[str, set[str]] = {}
        for load, key in self.conn.execute(
            "select load, key from slackwater.quarantine where migration = %s and direction = %s and source <> ''",
            self._id,
            prepare=True,
        ).fetchall():
            found.setdefault(load, set()).add(canonical(key))
        return found

    def owners_apart(self) -> dict[str, list[Key]]:
        """Owners of mappings over mirrors that are in quarantine (waived ones too), by load."""
        found: dict[str, list[Key]] = {}
        for load, key in self.conn.execute(
            "select load, key from slackwater.quarantine where migration = %s and direction = %s and source = ''",
            self._id,
        ).fetchall():
            found.setdefault(load, []).append(key)
        return found

    def owners_asked(self) -> dict[tuple[str, Repair | None], list[Key]]:
        """Owners of mappings over mirrors that are to be computed again, by load and by the repair that asked."""
        found: dict[tuple[str, Repair | None], list[Key]] = {}
        for load, key, repair in self.conn.execute(
            "select load, key, repair from slackwater.reread where migration = %s and direction = %s and source = ''",
            self._id,
        ).fetchall():
            found.setdefault((load, Repair.of(repair)), []).append(key)
        return found

    @_own
    def owners_read(self, load: str, asked: Sequence[Key], keys: Iterable[Key]) -> None:
        """Those are not asked for any more; of them, `keys` leave the quarantine, what stays there is open again."""
        self.conn.execute(
            "delete from slackwater.reread where migration = %s and direction = %s and load = %s and source = ''"
            " and key = any(%s::jsonb[])",
            (*self._id, load, _documents(asked)),
        )
        self.conn.execute(
            "delete from slackwater.quarantine where migration = %s and direction = %s and load = %s and source = ''"
            " and state = 'retrying' and key = any(%s::jsonb[])",
            (*self._id, load, _documents(keys)),
        )
        self.conn.execute(
            "update slackwater.quarantine set state = 'open' where migration = %s and direction = %s and load = %s"
            " and source = '' and state = 'retrying' and key = any(%s::jsonb[])",
            (*self._id, load, _documents(asked)),
        )

    @_own
    def quarantine(self, load: str, source: str, key: Key, at: Position | None, sqlstate: str, error: str) -> None:
        """Set a row aside; a later change of a key that is there already is counted on it."""
        lsn = None if at is None else format_lsn(at.commit_lsn)
        seq = None if at is None else at.seq
        self.conn.execute(
            "insert into slackwater.quarantine as q "
            "(migration, direction, load, source, key, commit_lsn, seq, sqlstate, error) "
            "values (%s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict (migration, direction, load, source, key) "
            "do update set changes = q.changes + 1, state = case q.state when 'waived' then 'open' else q.state end",
            (*self._id, load, source, json.dumps(dict(key)), lsn, seq, sqlstate, error),
        )

    def refused_for(self, sqlstate: str) -> set[str]:
        """The loads of which rows stand open in quarantine for this reason."""
        rows = self.conn.execute(
            "select distinct load from slackwater.quarantine where migration = %s and direction = %s"
            " and state = 'open' and sqlstate = %s",
            (*self._id, sqlstate),
        ).fetchall()
        return {str(load) for (load,) in rows}

    def try_again(self, load: str, sqlstate: str, side: Side) -> int:
        """Ask for those rows of a load to be read again, unless `side`, the target, is open; how many."""
        return self.conn.execute(
            "with closed as (select from slackwater.turn where migration = %s and side = %s and open_turn < fence_turn"
            " for share), q as (update slackwater.quarantine set state = 'retrying' where migration = %s"
            " and direction = %s and load = %s and state = 'open' and sqlstate = %s and exists (select from closed)"
            " returning migration, direction, load, source, key, carried)"
            " insert into slackwater.reread as r (migration, direction, load, source, key, reason, carried)"
            " select migration, direction, load, source, key, 'quarantine retry', carried from q"
            " on conflict (migration, direction, load, source, key) do update set carried = excluded.carried"
            " where excluded.carried is not null",
            (self._id[0], str(side), *self._id, load, sqlstate),
        ).rowcount

    def open_quarantine(self) -> int:
        """Rows in quarantine that nobody has waived."""
        row = self.conn.execute(
            "select count(*) from slackwater.quarantine where migration = %s and direction = %s and state <> 'waived'",
            self._id,
        ).fetchone()
        assert row is not None
        return int(row[0])

    @_own
    def quarantine_size(self) -> int:
        """Counted one after another until the transaction ends: chunks that are loaded side by side share one limit."""
        self.conn.execute(
            "select pg_advisory_xact_lock(hashtextextended('slackwater.quarantine.' || %s || '.' || %s, 0))", self._id
        )
        row = self.conn.execute(
            "select count(*) from slackwater.quarantine where migration = %s and direction = %s", self._id
        ).fetchone()
        assert row is not None
        return int(row[0])


def _documents(keys: Iterable[Key]) -> list[str]:
    return [json.dumps(dict(k)) for k in keys]


def canonical(key: Mapping[str, Any]) -> str:
    """One spelling for a key document."""
    return json.dumps({k: None if v is None else str(v) for k, v in key.items()}, sort_keys=True)


def key_text(value: object) -> str | None:
    """A key column's value as PostgreSQL writes it."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
