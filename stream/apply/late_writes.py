"""Rows that a side committed before a failover opened the other one without them: they reach a target that is open, or
was in between.

Invariant: the application's rows are left as they are, and none of these is passed by: before the checkpoint moves past
them they are foreign writes of their own side, by table and key, which block the next turn until somebody decides.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import closing

from connectors.postgres import control, foreign
from connectors.postgres.foreign import ForeignRow
from connectors.postgres.session import connect
from connectors.postgres.target import key_text
from schemas.change import Change, Op
from schemas.errors import Halt, Unavailable
from stream.apply.work import Work
from stream.engine import Engine

log = logging.getLogger("slackwater.apply")


def record(source_dsn: str, engine: Engine, keys: Mapping[str, tuple[str, ...]], work: Work) -> None:
    """Keep the rows of `work` on their source, while the engine's transaction holds the target's turn row.

    Rows that come again after a kill are kept once. `keys` is each table's key. Errors: Unavailable while it is the
    target that was superseded, and is open still.
    """
    migration, side, target = engine.plan.migration, engine.plan.direction.source, engine.plan.direction.target
    rows = foreign_rows(work, keys)
    opened = control.turn(engine.conn, migration, target)
    session = connect(
        source_dsn, application=f"slackwater apply {migration} overtaken", settings={"synchronous_commit": "on"}
    )
    with closing(session) as conn:
        own = control.turn(conn, migration, side)
        if own is None or opened is None:
            raise Halt(f"{side} or {target} holds no turn row for {migration}", hint="`slackwater status`")
        if opened.open_turn < (own.open_turn if work.turn is None else work.turn):
            raise Unavailable(
                f"rows of {side} wait until {target} is closed, which takes writes although {side} was opened after it",
                hint=f"`slackwater failover --to {side}` closes {target}, and they are applied; `--to {target}` closes"
                f" {side}, and they are foreign writes",
            )
        foreign.record(conn, migration, side, rows)
    tables = ", ".join(sorted({row.source for row in rows}))
    log.error("%d rows of %s were not on %s when a failover opened it: foreign writes", len(rows), tables, target)


def foreign_rows(work: Work, keys: Mapping[str, tuple[str, ...]]) -> list[ForeignRow]:
    """What is kept of them; the time is that of their epoch's newest commit."""
    ends = [epoch.last for epoch in work.epochs]
    return [
        ForeignRow(
            source=change.table,
            key=key,
            op=change.op,
            position=change.position,
            committed_at=work.epochs[bisect_left(ends, change.position)].committed_at,
        )
        for change in work.changes
        for key in _keys(change, keys[change.table])
    ]


def _keys(change: Change, key: tuple[str, ...]) -> list[dict[str, str | None]]:
    """An update that changes the key is two: the row that came, and the one that went."""
    if change.op == Op.TRUNCATE or not key:
        return [{}]
    images = [image for image in (change.after, change.before) if image is not None]
    found = [{name: key_text(image[name]) for name in key} for image in images]
    return [found[0], *(k for k in found[1:] if k != found[0])]
