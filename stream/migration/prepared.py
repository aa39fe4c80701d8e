"""What `prepare` fixed: the tables of both sides, the mappings, the slot and the topics, as one document on new.

Invariant: roles work from this document, not from the catalog of the moment; what has drifted from it is found out by
comparing with it, and never followed in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping as Map
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from connectors.postgres import control, sequences
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side
from schemas.errors import Refused
from schemas.plan import Plan, Replaced
from schemas.position import Lsn, format_lsn, parse_lsn
from schemas.resolve import Resolution, finish, resolve
from schemas.reversal import Loss
from schemas.sequence_links import named
from schemas.spec import Spec
from schemas.table import Column, Identity, Reference, Table
from stream.migration import prepared_steps
from stream.migration.paths import NONE, Paths, found, in_force, judged_under
from stream.migration.prepared_steps import VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One direction as it was prepared.

    `streamed` are the published source tables: once a table is in the stream it stays there until the migration ends,
    though no mapping may read it any more (WAL already written still holds its changes). `mirrors` are those copied
    whole to the target, `mappings` target table -> fingerprint, `outputs` target table -> output -> its type as the
    target describes it. `topics` is keyed by source table; `topic_ids` by topic, the epochs topic included.
    `consistent_point` is where the slot begins and epoch 0 ends. `canary` is `slackwater.canary` where it is published.
    `replaced`: streamed tables, of now or of once, whose name another relation had.
    """

    streamed: tuple[str, ...]
    mirrors: tuple[str, ...]
    mappings: dict[str, str]
    outputs: dict[str, dict[str, str]]
    topics: dict[str, str]
    topic_ids: dict[str, str]
    epochs_topic: str
    slot: str
    publication: str
    system_id: str
    timeline: int
    consistent_point: Lsn
    canary: Table | None = None
    canary_topic: str = ""
    replaced: dict[str, Replaced] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The whole document. `old` and `new` hold every table of each side's schema, by unqualified name."""

    migration: str
    fingerprint: str  # of the file, as Spec.fingerprint
    old_schema: str
    new_schema: str
    old: dict[str, Table]
    new: dict[str, Table]
    forward: Flow
    reverse: Flow | None = None  # arm's
    schemas_topic: str | None = None  # None: a registry is configured
    ddl_fingerprint: str | None = None  # of new.ddl, once it was applied
    identity_full: dict[str, list[str]] = field(
        default_factory=dict
    )  # old table -> what cancel runs to restore its identity
    paths: Paths = NONE  # where the file says nothing
    version: int = VERSION

    def flow(self, direction: Direction) -> Flow:
        """The direction's flow. Refused: reverse was not armed."""
        flow = self.forward if direction is Direction.FORWARD else self.reverse
        if flow is None:
            raise Refused("the reverse direction was not armed", hint="slackwater arm")
        return flow

    def tables(self, direction: Direction) -> tuple[dict[str, Table], dict[str, Table]]:
        """(the source's, the target's) tables."""
        return (self.old, self.new) if direction is Direction.FORWARD else (self.new, self.old)

    def judged_under(self, spec: Spec) -> str:
        """What verdicts count for now: this file as it was prepared, under the paths that `spec` asks for."""
        return judged_under(self.fingerprint, spec, self.paths)

    def to_json(self) -> str:
        """One JSON document; `from_json` reads it back to an equal value."""
        doc = asdict(self)
        for flow in (doc["forward"], doc["reverse"]):
            if flow is not None:
                flow["consistent_point"] = format_lsn(flow["consistent_point"])
                for found in flow["replaced"].values():
                    found["until"] = format_lsn(found["until"])
        return json.dumps(doc, separators=(",", ":"))

    @classmethod
    def from_json(cls, doc: Map[str, Any]) -> Prepared:
        """Errors: OtherVersion when another version of slackwater wrote it."""
        prepared_steps.assert_current(doc)
        return cls(
            migration=doc["migration"],
            fingerprint=doc["fingerprint"],
            old_schema=doc["old_schema"],
            new_schema=doc["new_schema"],
            old={name: _table(value) for name, value in doc["old"].items()},
            new={name: _table(value) for name, value in doc["new"].items()},
            forward=_flow(doc["forward"]),
            reverse=None if doc["reverse"] is None else _flow(doc["reverse"]),
            schemas_topic=doc["schemas_topic"],
            ddl_fingerprint=doc["ddl_fingerprint"],
            identity_full=doc["identity_full"],
            paths=Paths(**{side: tuple(path) for side, path in doc["paths"].items()}),
        )


def load(conn: Connection, migration: str) -> Prepared | None:
    """What was prepared, read from new's `slackwater.migration`; None before `prepare`."""
    row = control.migration(conn, migration)
    return None if row is None else Prepared.from_json(row.prepared)


def paths_now(spec: Spec, old: Connection, new: Connection) -> Paths:
    """The paths that a verb goes by, whether or not the migration is prepared."""
    prepared = load(new, spec.migration)
    return in_force(spec, prepared.paths if prepared is not None else found(spec, old, new))


def plan_for(spec: Spec, prepared: Prepared, direction: Direction) -> Plan:
    """The direction's plan, from the file and from the tables as they were prepared.

    Errors: Refused when the file is not the one that was prepared, or no longer resolves.
    """
    if spec.fingerprint != prepared.fingerprint:
        raise Refused(
            f"{spec.path or 'the file'} is not the file that migration {prepared.migration} was prepared with",
            hint="`slackwater prepare` prints the difference and prepares what changed; or bring the old file back",
        )
    sources, targets = prepared.tables(direction)
    resolution = resolve(spec, direction, sources, targets)
    flow = prepared.flow(direction)
    if not resolution.problems and (gone := set(flow.mappings) - {m.target for m in resolution.mappings}):
        raise Refused(
            f"this version of slackwater finds no {direction} mapping of {', '.join(sorted(gone))}, which was prepared",
            reasons=tuple(
                f"{r.table}: {r.why}" for r in resolution.reversals if r.table in gone and r.loss is Loss.LOST
            ),
            hint="`slackwater plan` says why; write it in the file and prepare again, or run the version that prepared",
        )
    paths = in_force(spec, prepared.paths)
    plan = plan_of(spec, direction, resolution, sources, targets, flow.topics, flow.outputs, paths)
    return replace(plan, canary=flow.canary, canary_topic=flow.canary_topic, replaced=flow.replaced)


def plan_of(
    spec: Spec,
    direction: Direction,
    resolution: Resolution,
    sources: Map[str, Table],
    targets: Map[str, Table],
    topics: Map[str, str],
    outputs: Map[str, Map[str, str]],
    paths: Paths,
) -> Plan:
    """A resolution as a plan; `topics` holds every streamed table, read or not; `outputs` as in Flow.

    Errors: Refused, with every reason, when the resolution has problems.
    """
    if resolution.problems:
        raise Refused(
            f"the {direction} mapping cannot be used as it is",
            reasons=tuple(str(problem) for problem in resolution.problems),
            hint="slackwater check",
        )
    source_path, target_path = paths.along(direction)
    return Plan(
        migration=spec.migration,
        direction=direction,
        source_schema=spec.old.schema_ if direction is Direction.FORWARD else spec.new.schema_,
        target_schema=spec.new.schema_ if direction is Direction.FORWARD else spec.old.schema_,
        sources={name: sources[name] for name in topics},
        targets={mapping.target: targets[mapping.target] for mapping in resolution.mappings},
        mappings=tuple(finish(m, outputs[m.target], targets[m.target]) for m in resolution.mappings),
        mirrors=resolution.mirrors,
        topics=dict(topics),
        source_path=source_path,
        target_path=target_path,
    )


def _flow(doc: Map[str, Any]) -> Flow:
    return Flow(
        streamed=tuple(doc["streamed"]),
        mirrors=tuple(doc["mirrors"]),
        mappings=doc["mappings"],
        outputs=doc["outputs"],
        topics=doc["topics"],
        topic_ids=doc["topic_ids"],
        epochs_topic=doc["epochs_topic"],
        slot=doc["slot"],
        publication=doc["publication"],
        system_id=doc["system_id"],
        timeline=doc["timeline"],
        consistent_point=parse_lsn(doc["consistent_point"]),
        canary=None if doc.get("canary") is None else _table(doc["canary"]),
        canary_topic=doc.get("canary_topic", ""),
        replaced={
            name: Replaced(oids=tuple(found["oids"]), until=parse_lsn(found["until"]))
            for name, found in doc.get("replaced", {}).items()
        },
    )


def _table(doc: Map[str, Any]) -> Table:
    return Table(
        **{
            **doc,
            "columns": tuple(Column(**column) for column in doc["columns"]),
            "uniques": tuple(tuple(columns) for columns in doc.get("uniques", ())),
            "references": tuple(Reference.of(found) for found in doc.get("references", ())),
            "split_by": tuple(doc.get("split_by", ())),
            "key": tuple(doc["key"]),
            "identity": Identity(doc["identity"]),
            "identity_columns": tuple(doc["identity_columns"]),
        }
    )


def keep_strides(spec: Spec, document: Prepared, old: Connection, new: Connection) -> None:
    """Have each side keep what it has to know of the other's sequences when that one is gone."""
    for side, schema, conn, other in (
        (Side.OLD, document.old_schema, old, new),
        (Side.NEW, document.new_schema, new, old),
    ):
        sequences.keep_strides(conn, document.migration, side, schema, other, named(spec, side))
