"""Rows from before a change of their table: what of them is still of use, and to whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.direction import Direction
from schemas.envelope import value_schema
from schemas.errors import SchemaChanged
from schemas.plan import Plan
from schemas.position import Lsn, Position
from schemas.table import Table
from schemas.wire import Wire, WireColumn
from stream.apply.schema_check import Shapes
from tests.unit.tables import resolved, table

OIDS = {"integer": 23, "text": 25}
BEFORE, AFTER = Position(Lsn(100), 0), Position(Lsn(300), 0)
SENT = {"id": "integer", "email": "text", "note": "integer"}
BY_ID = "tables:\n  - {to: by_id, select: 'select id, email, note from people'}\n"
BY_EMAIL = "  - {to: by_email, key: [email], select: 'select email from people'}\n"


def _real(found: Table) -> Table:
    return replace(found, columns=tuple(replace(c, type_oid=OIDS[c.type]) for c in found.columns))


def shapes(mappings: str, **types: str) -> Shapes:
    """Over a table of these types now, prepared at LSN 200."""
    columns = ", ".join(f"{name} {kind}!" for name, kind in {**SENT, **types}.items())
    people = replace(_real(table("people", columns)), uniques=(("email",),), identity_columns=tuple(SENT))
    new = [table("by_id", columns), table("by_email", "email!", key="email")]
    found = resolved(mappings, [people], [t for t in new if t.name in mappings])
    assert not found.problems, found.problems
    plan = Plan(
        migration="m",
        direction=Direction.FORWARD,
        source_schema="public",
        target_schema="app",
        sources={"people": people},
        targets={},
        mappings=found.mappings,
        mirrors=(),
        topics={"people": "t"},
    )
    return Shapes(plan, {"people": Lsn(200)})


def as_sent() -> dict[str, object]:
    """The envelope's schema of rows as they were before."""
    columns = tuple(WireColumn(name=n, type_oid=OIDS[t], type=t) for n, t in SENT.items())
    return value_schema(Wire(schema="public", table="people", columns=columns, key=("id",), identity_columns=("id",)))


def test_a_column_of_another_type_is_left_out_of_older_rows_alone() -> None:
    now = shapes(BY_ID, note="text")
    assert now.approve(as_sent(), "people", BEFORE) == ("note",)
    with pytest.raises(SchemaChanged, match=r"people\.note is now integer, it was prepared as text"):
        now.approve(as_sent(), "people", AFTER)


def test_older_rows_of_another_key_are_left_out_where_all_was_read_since() -> None:
    assert shapes(BY_ID, id="text").approve(as_sent(), "people", BEFORE) is None


def test_they_halt_where_a_mapping_does_not_read_the_key_and_was_not_loaded_anew() -> None:
    with pytest.raises(SchemaChanged, match="by_email, which does not read the key, still needs them"):
        shapes(BY_ID + BY_EMAIL, id="text").approve(as_sent(), "people", BEFORE)
