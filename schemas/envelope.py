"""The row topics' schemas: Debezium's envelope, in Confluent's wire format.

Invariant: NULL, unsent and absent are three things. A NULL is Avro's null; a column PostgreSQL did not send is null and
named in `missing` (of `after`) or `before_missing` (of `before`); an image that does not exist is a null image.
"""

from __future__ import annotations

import struct
from typing import Any

from schemas import wire_version
from schemas.control import CANARY_TABLE, SCHEMA
from schemas.errors import Halt
from schemas.escape import escape, unescape
from schemas.wire import Wire, WireColumn

Schema = dict[str, Any]

SOURCE_VERSION = str(wire_version.VERSION)
CONNECTOR = "postgresql"
_NAMESPACE = "slackwater"
_ID = struct.Struct(">BI")
HEADER_BYTES = 5


def namespace(wire: Wire) -> str:
    """`slackwater.<schema>.<table>`, each part a legal Avro name."""
    return f"{_NAMESPACE}.{escape(wire.schema)}.{escape(wire.table)}"


def is_canary(schema: Schema) -> bool:
    """Whether an envelope schema is that of `slackwater.canary`: a user's table may have the same name."""
    wire = Wire(schema=SCHEMA, table=CANARY_TABLE, columns=(), key=(), identity_columns=())
    return bool(schema.get("namespace") == namespace(wire))


def value_schema(wire: Wire) -> Schema:
    """The envelope of a table's changes, as an Avro schema."""
    row: Schema = {
        "type": "record",
        "name": "Value",
        "fields": [{**_column(c), "type": ["null", c.avro], "default": None} for c in wire.columns],
    }
    source: Schema = {
        "type": "record",
        "name": "Source",
        "namespace": _NAMESPACE,
        "fields": [
            {"name": "version", "type": "string"},
            {"name": "connector", "type": "string"},
            {"name": "name", "type": "string"},
            {"name": "ts_ms", "type": "long"},
            {"name": "db", "type": "string"},
            {"name": "schema", "type": "string"},
            {"name": "table", "type": "string"},
            {"name": "txId", "type": "long"},
            {"name": "lsn", "type": "long"},
            {"name": "seq", "type": "long"},
        ],
    }
    names: Schema = {"type": "array", "items": "string"}
    return {
        "type": "record",
        "name": "Envelope",
        "namespace": namespace(wire),
        "fields": [
            {"name": "before", "type": ["null", row], "default": None},
            {"name": "after", "type": ["null", "Value"], "default": None},
            {"name": "source", "type": source},
            {"name": "op", "type": "string"},
            {"name": "ts_ms", "type": ["null", "long"], "default": None},
            {"name": "missing", "type": names, "default": []},
            {"name": "before_missing", "type": names, "default": []},
        ],
    }


def key_schema(wire: Wire) -> Schema | None:
    """The record's key, in key order; None for a table without one. Key columns are NOT NULL, so no unions."""
    if not wire.key:
        return None
    by_name = {c.name: c for c in wire.columns}
    fields = [{**_column(by_name[name]), "type": by_name[name].avro} for name in wire.key]
    return {"type": "record", "name": "Key", "namespace": namespace(wire), "fields": fields}


def _column(column: WireColumn) -> Schema:
    field: Schema = {"name": column.field, "type": column.avro, "pg_type": column.type}
    if column.field != column.name:
        field["pg_name"] = column.name
    return field


def frame(schema_id: int) -> bytes:
    """Confluent's header: a zero byte and the schema id, big-endian."""
    return _ID.pack(0, schema_id)


def framed_id(data: bytes) -> int:
    """The schema id in a record's header. Halt on anything that has none."""
    if len(data) < HEADER_BYTES or data[0] != 0:
        raise Halt(
            "a record that is not in Confluent's wire format",
            hint="something other than slackwater writes to this topic; find it, then prepare the migration anew",
        )
    schema_id: int = _ID.unpack_from(data)[1]
    return schema_id


def image_columns(schema: Schema) -> list[tuple[str, str]]:
    """(PostgreSQL name, Avro primitive) of an envelope schema's columns, in order.

    Errors: ValueError when the schema is not one that `value_schema` makes.
    """
    expected = value_schema(Wire(schema="s", table="t", columns=(), key=(), identity_columns=()))
    fields = schema["fields"]
    if [f["name"] for f in fields] != [f["name"] for f in expected["fields"]]:
        raise ValueError("the envelope's fields are not the ones this program writes")
    if fields[2]["type"]["fields"] != expected["fields"][2]["type"]["fields"] or fields[3:] != expected["fields"][3:]:
        raise ValueError("the envelope's source or trailing fields are not the ones this program writes")
    columns: list[tuple[str, str]] = []
    for field in fields[0]["type"][1]["fields"]:
        kind = field["type"]
        if not (isinstance(kind, list) and len(kind) == 2 and kind[0] == "null" and isinstance(kind[1], str)):
            raise ValueError(f"field {field['name']} is not a nullable primitive")
        columns.append((field.get("pg_name") or unescape(field["name"]), kind[1]))
    return columns
