"""The tables of the stream: each Relation message held against what was prepared, and turned into an encoder.

Invariant (hazards A2, A3, A14): a relation that was not prepared, was made anew, lost its key or sends less of the old
row than it did stops the stream; any other change of shape is a new schema, and what it means is for apply to decide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from connectors.postgres.pgoutput import Relation
from schemas.control import CANARY, CANARY_TABLE, SCHEMA
from schemas.encoder import Encoder
from schemas.envelope import Schema, key_schema, value_schema
from schemas.errors import Halt, SchemaChanged
from schemas.plan import Plan
from schemas.table import Table
from schemas.wire import Wire, WireColumn
from stream.migration.replaced import LeftOut

log = logging.getLogger("slackwater.capture")

Rows = list[tuple[bytes | None, bytes]]


class Subjects(Protocol):
    """The one thing that capture asks of a schema registry."""

    def register(self, subject: str, schema: Schema) -> int: ...


class Route:
    """Where one table's rows go: the epoch's `rows` by partition, and its `counts` by pgoutput's letter."""

    __slots__ = ("counts", "encode", "name", "rows", "table", "topic", "wire")

    def __init__(
        self, table: str, name: str, topic: str, wire: Wire, encode: Callable[..., tuple[bytes | None, bytes]]
    ) -> None:
        self.table = table  # as the plan has it
        self.name = name  # "schema.table"
        self.topic = topic
        self.wire = wire
        self.encode = encode
        self.rows: list[Rows] = []
        self.counts: dict[int, int] = {}


class Relations:
    """Routes by relation id, as the stream describes them.

    A description alone is no change: pgoutput also describes the partition in which a row of a published root lies.
    Only a row of a relation that was not prepared is an error, and `stranger` is that error; one whose place another
    relation has taken since is left out. `by_id` is keyed by the four bytes with which a row message names its
    relation, so that the hot loop parses nothing.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        database: str,
        registry: Subjects,
        type_names: Callable[[Iterable[int]], Mapping[int, str]],
    ) -> None:
        self.by_id: dict[bytes, Route] = {}
        self.announced = 0  # descriptions so far
        self._strangers: dict[bytes, SchemaChanged] = {}
        self._replaced = {oid.to_bytes(4, "big"): name for name, found in plan.replaced.items() for oid in found.oids}
        self.left_out = LeftOut(log)
        self._plan = plan
        self._database = database
        self._registry = registry
        self._type_names = type_names
        self._routes: dict[str, Route] = {}
        self._prepared_types = {c.type_oid: c.type for t in plan.published.values() for c in t.columns}

    def describe(self, relation: Relation) -> None:
        """A relation as it is from here on. Errors: SchemaChanged; the registry's."""
        self.announced += 1
        oid = relation.oid.to_bytes(4, "big")
        key, table = relation.name, self._plan.sources.get(relation.name)
        if self._plan.canary is not None and (relation.schema, relation.name) == (SCHEMA, CANARY_TABLE):
            key, table = CANARY, self._plan.canary
        if oid in self._replaced and (table is None or table.oid != relation.oid):
            self.by_id.pop(oid, None)
            return
        if table is None or table.schema != relation.schema:
            self.by_id.pop(oid, None)
            self._strangers[oid] = self._unprepared(relation)
            return
        if table.oid and table.oid != relation.oid:
            raise SchemaChanged(
                f"table {table.schema}.{table.name} was dropped and created anew: changes made in between are lost",
                hint="stop `slackwater run`, then `slackwater prepare`: it loads that table anew, and no other",
            )
        wire = self._wire(relation, table)
        route = self._routes.get(key)
        if route is None or route.wire != wire:
            topic = self._plan.canary_topic if key == CANARY else self._plan.topics[key]
            encode = self._encoder(topic, wire).encode
            if route is None:
                route = self._routes[key] = Route(key, f"{table.schema}.{table.name}", topic, wire, encode)
            else:
                route.wire, route.encode = wire, encode
        self.by_id[oid] = route

    def leaves_out(self, oid: bytes) -> bool:
        """Whether a row of a relation without a route is one of a table whose place another one has taken."""
        if (name := self._replaced.get(oid)) is None:
            return False
        self.left_out.add(name)
        return True

    def stranger(self, oid: bytes) -> Halt:
        """What a row of a relation without a route means."""
        return self._strangers.get(oid) or Halt(
            f"a row of relation {int.from_bytes(oid, 'big')} came before its description",
            hint="report this with the server's version; nothing of it was published",
        )

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def _unprepared(self, relation: Relation) -> SchemaChanged:
        name = f"{relation.schema}.{relation.name}"
        before = next((t for t in self._plan.sources.values() if t.oid == relation.oid), None)
        if before is not None:
            return SchemaChanged(
                f"table {before.schema}.{before.name} was renamed to {name}",
                hint="rename it back, or edit the mapping and run `slackwater prepare`; the slot holds everything",
            )
        return SchemaChanged(
            f"the stream holds changes of {name}, which was not prepared",
            hint="take it out of the publication, or add it to the mapping and run `slackwater prepare`",
        )

    def _wire(self, relation: Relation, table: Table) -> Wire:
        name = f"{table.schema}.{table.name}"
        present = {c.name for c in relation.columns}
        sent = tuple(c.name for c in relation.columns if c.identity)
        if relation.replica_identity == "n" or not sent:
            raise SchemaChanged(
                f"table {name} has no replica identity any more, so updates and deletes cannot say which row they mean",
                hint=f"alter table {name} replica identity "
                + ("default" if table.key else "full")
                + ", then `slackwater resume`",
            )
        if lost := [c for c in table.identity_columns if c in present and c not in sent]:
            raise SchemaChanged(
                f"the replica identity of {name} no longer holds {', '.join(lost)}, which it held when it was prepared",
                hint="restore its REPLICA IDENTITY; changes made meanwhile lack old values that a mapping may need",
            )
        if gone := [c for c in table.key if c not in present]:
            raise SchemaChanged(
                f"table {name} lost or renamed {', '.join(gone)} of its primary key",
                hint="bring it back, or edit the mapping and run `slackwater prepare`; the slot holds everything",
            )
        # The key comes from what was prepared, never from the flags: FULL flags every column. Where the identity is
        # another index, its columns are all that a delete sends.
        key = table.key if set(table.key) <= set(sent) else sent
        types = self._types({c.type_oid for c in relation.columns})
        columns = tuple(WireColumn(name=c.name, type_oid=c.type_oid, type=types[c.type_oid]) for c in relation.columns)
        return Wire(schema=table.schema, table=table.name, columns=columns, key=key, identity_columns=sent)

    def _types(self, oids: set[int]) -> dict[int, str]:
        known = self._prepared_types
        if unknown := oids - known.keys():
            known.update(self._type_names(unknown))
            # A type that is gone again: its rows travel as text all the same.
            known.update((oid, f"(dropped type {oid})") for oid in unknown - known.keys())
        return known

    def _encoder(self, topic: str, wire: Wire) -> Encoder:
        keyed = key_schema(wire)
        return Encoder(
            wire,
            key_schema_id=None if keyed is None else self._registry.register(f"{topic}-key", keyed),
            value_schema_id=self._registry.register(f"{topic}-value", value_schema(wire)),
            database=self._database,
            migration=self._plan.migration,
        )
