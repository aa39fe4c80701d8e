"""Who wrote a row last: the change in the stream, with its epoch and offsets, or the chunk that loaded it.

Invariant: only what the target has applied is looked at (below its checkpoint's offsets); a change at or below the LSN
that a chunk was read at was in that chunk already, and wrote nothing; what cannot be told is None, never a guess.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping as Map
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fastavro

from connectors.kafka.registry import Registry
from connectors.kafka.scan import Record, Scan
from connectors.postgres import control
from connectors.postgres.ranges import Chunk, KeySpace, Kind
from connectors.postgres.session import Connection, translated
from schemas.control import SCHEMA
from schemas.envelope import HEADER_BYTES, framed_id, key_schema
from schemas.names import quote
from schemas.partition import partition_for
from schemas.plan import Plan
from schemas.position import Lsn, format_lsn, parse_lsn
from schemas.table import Table
from schemas.wire import Wire, WireColumn
from stream.monitoring.clock import rfc3339

AT_ONCE = 200  # chunks whose conditions are asked in one statement

OPS = {"c": "insert", "u": "update", "d": "delete", "t": "truncate"}

Key = Map[str, str]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The chunk of a load that a key lies in, where it is done."""

    load: str
    chunk: int
    lower: str | None
    upper: str | None
    lsn: Lsn
    epoch: int | None
    at: datetime

    def document(self) -> Document:
        return {
            "what": "chunk",
            "load": self.load,
            "chunk": self.chunk,
            "lower": self.lower,
            "upper": self.upper,
            "lsn": format_lsn(self.lsn),
            "epoch": self.epoch,
            "at": rfc3339(self.at),
        }


class Writers:
    """Asks the topics and the control tables of one direction. `source` and `target` are sessions on its sides."""

    def __init__(
        self, plan: Plan, epochs_topic: str, source: Connection, target: Connection, scan: Scan, registry: Registry
    ) -> None:
        self._plan = plan
        self._epochs_topic = epochs_topic
        self._source = source
        self._target = target
        self._scan = scan
        self._registry = registry
        self._id = (plan.migration, str(plan.direction))

    def last(self, table: Table, key: Key, loads: Sequence[str]) -> Document | None:
        """What wrote the target's copy of a source row last; `loads` are those that could have loaded it.

        None: neither the stream nor a chunk that is done knows the row.
        """
        chunks = [c for c in (self._chunk(load, table, key) for load in loads) if c is not None]
        newest = max(chunks, key=lambda c: c.lsn, default=None)
        change = self._change(table, key)
        if change is not None and (newest is None or change["position"] > newest.lsn):
            del change["position"]
            return change
        return None if newest is None else newest.document()

    def waits(self, table: str, key: Key) -> list[str]:
        """Queues that the row stands in: quarantine, reread."""
        found = []
        with translated("reading the queues"):
            for queue in ("quarantine", "reread"):
                row = self._target.execute(
                    f"select exists (select from {SCHEMA}.{queue} where migration = %s and direction = %s"
                    " and source = %s and key @> %s::jsonb and key <@ %s::jsonb)".encode(),
                    (*self._id, table, *(2 * (_json(key),))),
                ).fetchone()
                if row == (True,):
                    found.append(queue)
        return found

    # The stream.

    def _change(self, table: Table, key: Key) -> Document | None:
        """The newest applied record of the key; its commit LSN stands under `position`."""
        topic = self._plan.topics[table.name]
        checkpoint = control.checkpoint(self._target, self._plan.migration, self._plan.direction)
        applied = {} if checkpoint is None else checkpoint.offsets.get(topic, {})
        some = self._scan.any(topic)
        if some is None or some.key is None:
            return None
        raw = some.key[:HEADER_BYTES] + _packed(table, key)
        at_home = partition_for(raw, self._scan.partitions(topic))
        # Where partitions were added, older records of the key lie elsewhere.
        others = [p for p in range(self._scan.partitions(topic)) if p != at_home]
        for partition in (at_home, *others):
            below = applied.get(partition, 0)
            found = self._scan.newest(topic, partition, lambda r: r.key == raw, below=below) if below else None
            if found is not None:
                return self._described(found)
        return None

    def _described(self, record: Record) -> Document:
        schema = self._registry.get(framed_id(record.value))
        envelope: Any = fastavro.schemaless_reader(io.BytesIO(record.value[HEADER_BYTES:]), schema, None)
        source = envelope["source"]
        epoch, applied_at = self._epoch(record)
        return {
            "what": "change",
            "op": OPS[envelope["op"]],
            "epoch": epoch,
            "committed_at": rfc3339(datetime.fromtimestamp(source["ts_ms"] / 1000, UTC)),
            "applied_at": None if applied_at is None else rfc3339(applied_at),
            "lsn": format_lsn(source["lsn"]),
            "xid": source["txId"],
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "position": Lsn(source["lsn"]),
        }

    def _epoch(self, record: Record) -> tuple[int | None, datetime | None]:
        """(number, when the target applied it): from the target, or from the epochs topic where that was pruned."""
        with translated("reading the epochs"):
            row: Any = self._target.execute(
                "select epoch, applied_at from slackwater.epoch where migration = %(m)s and direction = %(d)s"
                " and (extents -> %(t)s -> %(p)s ->> 0)::bigint <= %(o)s"
                " and %(o)s < (extents -> %(t)s -> %(p)s ->> 1)::bigint",
                {
                    "m": self._id[0],
                    "d": self._id[1],
                    "t": record.topic,
                    "p": str(record.partition),
                    "o": record.offset,
                },
            ).fetchone()
        if row is not None:
            return row[0], row[1]
        found = self._scan.epoch_of(self._epochs_topic, record)
        return (None if found is None else found.epoch), None

    # The backfill.

    def _chunk(self, load: str, table: Table, key: Key) -> Loaded | None:
        with translated("reading the chunks"):
            rows: list[Any] = self._target.execute(
                "select chunk, kind, lower, upper, source_lsn::text, epoch, done_at from slackwater.backfill_chunk"
                " where migration = %s and direction = %s and load = %s and state = 'done' and source_lsn is not null"
                " order by chunk",
                (*self._id, load),
            ).fetchall()
        if not rows:
            return None
        chunks = {n: Chunk(number=n, kind=Kind(kind), lower=lower, upper=upper) for n, kind, lower, upper, *_ in rows}
        space = KeySpace.of(self._source, table, whole=all(c.kind is Kind.WHOLE for c in chunks.values()))
        number = self._holding(space, list(chunks.values()), key)
        for n, _, lower, upper, lsn, epoch, at in rows:
            if n == number:
                return Loaded(load=load, chunk=n, lower=lower, upper=upper, lsn=parse_lsn(lsn), epoch=epoch, at=at)
        return None

    def _holding(self, space: KeySpace, chunks: list[Chunk], key: Key) -> int | None:
        """The chunk whose condition the key meets, asked of the server that the chunks were cut by."""
        values = ", ".join(f"%s::{space.table.column(c).type_full} as {quote(c)}" for c in key)
        for start in range(0, len(chunks), AT_ONCE):
            some = chunks[start : start + AT_ONCE]
            cases = " ".join(
                f"when {space.condition(self._source, c)} then {c.number}".replace("%", "%%") for c in some
            )
            with translated("looking for a key's chunk"):
                row = self._source.execute(
                    f"select case {cases} end from (select {values}) t".encode(), list(key.values())
                ).fetchone()
            if row is not None and row[0] is not None:
                return int(str(row[0]))
        return None


def _json(key: Key) -> str:
    return json.dumps(dict(key))


def _packed(table: Table, key: Key) -> bytes:
    """The key as the encoder writes it after its header."""
    wire = Wire(
        schema=table.schema,
        table=table.name,
        columns=tuple(WireColumn(name=c, type_oid=table.column(c).type_oid, type=table.column(c).type) for c in key),
        key=tuple(key),
        identity_columns=(),
    )
    schema = key_schema(wire)
    assert schema is not None  # it has a key
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, schema, {c.field: _native(c, key[c.name]) for c in wire.columns})
    return buffer.getvalue()


def _native(column: WireColumn, text: str) -> object:
    match column.avro:
        case "int" | "long":
            return int(text)
        case "float" | "double":
            return float(text)
        case "boolean":
            return text in ("t", "true")
        case _:
            return text
