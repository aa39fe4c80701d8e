"""What one look at a side finds: its turn, its positions, its queues, its tables.

Invariant: each look is read from the database it speaks of, at that moment; what cannot be read raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from connectors.postgres import canary, catalog, control, fence
from connectors.postgres.session import Connection, translated
from schemas.direction import Direction, Side
from schemas.spec import Spec
from stream.gates import gate_table
from stream.gates.gate_table import Since
from stream.migration import phase_store, prepared, turn_journal
from stream.migration.pauses import Pause, pauses
from stream.migration.phases import Phase
from stream.migration.prepared import Prepared
from stream.migration.turn_journal import Past
from stream.monitoring import views
from stream.monitoring.clock import rfc3339
from stream.monitoring.views import SourceView, TargetView
from stream.verify.verdicts import NEVER, Verification, Void, latest, together

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideLook:
    """One side, in one look. Everything is None or empty where the control schema is not there."""

    turn: control.Turn | None = None
    sources: Mapping[Direction, SourceView]
    targets: Mapping[Direction, TargetView | None]
    tables: Mapping[str, frozenset[str]]  # the side's tables and columns as they are now
    rereads: int = 0
    quarantined: int = 0
    unfenced: tuple[str, ...] | None = None  # relations without their fence; None: this side has none yet
    canary_at: datetime | None = None  # when the newest canary that came here was written, by its source's clock
    foreign_writes: int = 0  # rows written here while this side was closed, and not decided upon
    verification: Verification | None = None  # of the direction that writes here; None: it is not prepared
    installed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLook:
    """What only new knows, being the home of what is migration-wide."""

    phase: Phase
    prepared: Prepared | None
    pauses: Mapping[str, Pause]
    loads: Mapping[str, Document]
    since: Since
    turned: Past | None = None  # the last turn that came to its end
    begun: Past | None = None  # the newest word on any turn


def look(conn: Connection, spec: Spec, side: Side, document: Prepared | None) -> SideLook:
    """One side, as it is now. `document` is what was prepared, where new could say."""
    migration = spec.migration
    schema = spec.old.schema_ if side is Side.OLD else spec.new.schema_
    installed = control.installed(conn)
    if not installed:
        return SideLook(sources={}, targets={}, tables={})
    writer = next(d for d in Direction if d.target is side)
    with translated("counting what waits"):
        waits = conn.execute(
            "select (select count(*) from slackwater.reread r where r.migration = %s and r.direction = %s), "
            "(select count(*) from slackwater.quarantine q where q.migration = %s and q.direction = %s "
            "and q.state <> 'waived'), (select count(*) from slackwater.foreign_write w where w.migration = %s "
            "and w.side = %s and w.state = 'open')",
            (migration, writer.value, migration, writer.value, migration, side.value),
        ).fetchone()
    rereads, quarantined, foreign = cast("tuple[int, int, int]", waits)
    sung = canary.seen(conn, migration, writer.value)
    turn = control.turn(conn, migration, side)
    return SideLook(
        turn=turn,
        sources={d: views.source(conn, migration, d) for d in Direction if d.source is side},
        targets={d: views.target(conn, migration, d) for d in Direction if d.target is side},
        tables=catalog.column_names(conn, schema),
        rereads=rereads,
        quarantined=quarantined,
        canary_at=None if sung is None else sung.written_at,
        foreign_writes=foreign,
        unfenced=None if turn is None or document is None else _unfenced(conn, document, turn),
        verification=None if document is None else _verification(conn, spec, document, writer),
        installed=True,
    )


LOADS = """
select l.name, l.state, l.rows, l.bytes, l.rows_estimate, l.bytes_estimate, l.started_at, l.done_at,
       extract(epoch from clock_timestamp() - l.started_at)::float8, count(c.chunk),
       count(c.chunk) filter (where c.state = 'done')
  from slackwater.load l
  left join slackwater.backfill_chunk c
    on (c.migration, c.direction, c.load) = (l.migration, l.direction, l.name)
 where l.migration = %s and l.direction = 'forward'
 group by l.migration, l.direction, l.name order by l.name
"""


def look_at_new(conn: Connection, migration: str) -> NewLook:
    """What new knows of the migration as a whole."""
    if not control.installed(conn):
        return NewLook(phase=Phase.PLANNED, prepared=None, pauses={}, loads={}, since={})
    document = prepared.load(conn, migration)
    with translated("reading the loads"):
        rows = conn.execute(LOADS, (migration,)).fetchall()
    return NewLook(
        phase=phase_store.phase(conn, migration),
        prepared=document,
        pauses=pauses(conn, migration),
        loads={str(row[0]): _load(row) for row in rows},
        since=gate_table.since(conn, migration),
        turned=turn_journal.latest(conn, migration, "done"),
        begun=turn_journal.latest(conn, migration),
    )


def _load(row: tuple[Any, ...]) -> Document:
    _, how, rows, bytes_, rows_estimate, bytes_estimate, started, done, running_s, chunks, chunks_done = row
    left: float | None = 0.0 if how == "done" else None
    if how != "done" and started is not None and rows and rows_estimate:
        left = round(max(0, rows_estimate - rows) * running_s / rows, 1)
    return {
        "state": how,
        "rows": rows,
        "chunks": chunks,
        "chunks_done": chunks_done,
        "bytes": bytes_,
        "rows_estimate": rows_estimate,
        "bytes_estimate": bytes_estimate,
        "seconds_left": left,
        "started_at": _time(started),
        "done_at": _time(done),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)


def _unfenced(conn: Connection, document: Prepared, turn: control.Turn) -> tuple[str, ...] | None:
    """Relations of the side, as it is now, that do not carry the fence of its turn; None where it has none yet."""
    if turn.fence_turn is None:
        return None
    writer = next(d for d in Direction if d.target is turn.side)
    flow = document.forward if writer is Direction.FORWARD else document.reverse
    prepared_tables = document.new if turn.side is Side.NEW else document.old
    targets = [prepared_tables[name] for name in (flow.mappings if flow else ()) if name in prepared_tables]
    carried = {
        relation
        for relation, f in fence.fences(conn).items()
        if f.migration == document.migration and f.side == turn.side.value and f.turn >= turn.fence_turn and f.always
    }
    return tuple(f"{schema}.{name}" for schema, name in fence.relations(conn, targets) if (schema, name) not in carried)


def _verification(conn: Connection, spec: Spec, document: Prepared, direction: Direction) -> Verification | None:
    """The verdicts on the tables that the direction writes, of the file as it is prepared; None: it was not armed."""
    flow = document.forward if direction is Direction.FORWARD else document.reverse
    if flow is None:
        return None
    under = document.judged_under(spec)
    found = latest(conn, document.migration, direction, fingerprint=under, targets=tuple(flow.mappings))
    # What was compared before it was loaded anew says nothing: two edits of a file can end in the first one.
    loaded = gate_table.loaded(conn, document.migration, direction)
    tables = {
        name: replace(NEVER, void=Void(cause="it was loaded anew", at=loaded[name][1]))
        if verdict.at is not None and name in loaded and verdict.at < loaded[name][1]
        else verdict
        for name, verdict in found.tables.items()
    }
    return Verification(state=together(tables.values()), tables=tables)
