"""Whether a stream's rows still have the shape that was prepared.

Invariant: a column that a mapping uses and that is gone, renamed or of another type halts the stream where it happened;
a column that was added halts the tables that are taken over whole, until the target has it. Rows from before the table
was last prepared may have an earlier shape: what they hold of a column that has changed since is left out, for what
reads it was loaded anew, or is compared, after them. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.errors import SchemaChanged
from schemas.escape import unescape
from schemas.plan import Plan
from schemas.position import Lsn, Position
from schemas.types import avro_type

_HELD = "slot and Kafka hold everything meanwhile"


class Shapes:
    """Compares envelope schemas with the plan's tables."""

    def __init__(self, plan: Plan, barriers: Mapping[str, Lsn]) -> None:
        """`barriers`: per source table, the LSN at which its loads were last prepared; older rows may look older."""
        self._plan = plan
        self._barriers = barriers

    def approve(self, schema: dict[str, Any], table: str, position: Position) -> tuple[str, ...] | None:
        """The used columns of which rows of this schema hold nothing that is of use: they were written before a column
        was added, renamed or given another type. None: that goes for the key itself, and nothing of them is of use.

        Errors: SchemaChanged, naming column, mapping and what to do.
        """
        source = self._plan.sources.get(table)
        if source is None:
            raise SchemaChanged(
                f"rows of {table} arrive, which was not prepared", hint="`slackwater prepare` after an edit of the file"
            )
        sent = {}
        for field in schema["fields"][0]["type"][1]["fields"]:
            name = field.get("pg_name") or unescape(field["name"])
            sent[name] = (field["type"][1], field.get("pg_type"))
        used = self._used(table)
        older = position.commit_lsn <= self._barriers.get(table, 0)
        absent = []
        for column in source.columns:
            if column.generated or column.name not in used:
                continue
            if column.name not in sent:
                if not older:
                    raise SchemaChanged(
                        f"{table}.{column.name} was dropped or renamed on the source, and "
                        f"{self._users(table, column.name)} uses it",
                        hint=f"put the column back, or change the mapping and run `slackwater prepare`; {_HELD}",
                    )
                absent.append(column.name)
                continue
            avro, pg_type = sent[column.name]
            if avro != avro_type(column.type_oid) or (pg_type is not None and pg_type != column.type):
                if older:
                    absent.append(column.name)
                    continue
                raise SchemaChanged(
                    f"{table}.{column.name} is now {pg_type or avro}, it was prepared as {column.type}; "
                    f"{self._users(table, column.name)} uses it",
                    hint=f"give new's column a fitting type and run `slackwater prepare`; {_HELD}",
                )
        added = [n for n in sent if n not in source.column_names]
        if added and not older:
            whole = [m.target for m in self._plan.reading(table) if m.origin in ("copy", "from")]
            if whole:
                raise SchemaChanged(
                    f"{table} has a new column {added[0]}, and {whole[0]} takes the table over whole",
                    hint=f"add {added[0]} to {whole[0]}, or drop it in the file, then `slackwater prepare`; {_HELD}",
                )
        if lost := set(source.key) & set(absent):
            self._all_read_since(table, lost)
            return None
        return tuple(absent)

    def _all_read_since(self, table: str, lost: set[str]) -> None:
        """Errors: SchemaChanged where a mapping reads nothing of what has changed: no load, and no comparison, has read
        its rows since, so that it needs the older ones."""
        for mapping in self._plan.reading(table):
            if mapping.row_local and not lost & set(mapping.reads.get(table, ())):
                raise SchemaChanged(
                    f"the key of {table} was changed while rows from before waited, and {mapping.target}, which does"
                    " not read the key, still needs them",
                    hint="change the key back on both sides, `slackwater prepare`, and let `slackwater run` apply what "
                    f"waits; then change it again; {_HELD}",
                )

    def _used(self, table: str) -> set[str]:
        used = {name for m in self._plan.reading(table) for name in m.reads.get(table, ())}
        if table in self._plan.mirrors:
            used.update(self._plan.sources[table].column_names)
        return used

    def _users(self, table: str, column: str) -> str:
        names = [m.target for m in self._plan.reading(table) if column in m.reads.get(table, ())]
        return "the mapping of " + ", ".join(names) if names else "its mirror"
