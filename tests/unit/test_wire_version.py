"""Readers take what the version before theirs wrote, and refuse what a newer one did: records, rows, messages."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest

from connectors.kafka.epochs import epoch_in
from schemas.decoder import Decoder
from schemas.envelope import HEADER_BYTES, frame, value_schema
from schemas.epoch import Epoch
from schemas.errors import Halt
from schemas.position import Lsn, Position
from schemas.wire import Wire, WireColumn
from schemas.wire_version import READ, UNSAID, VERSION, assert_readable

EPOCH = Epoch(
    epoch=1,
    previous=0,
    end_lsn=Lsn(8),
    last=Position(Lsn(8), 1),
    committed_at=1.0,
    first_committed_at=1.0,
    published_at=1.0,
)
COLUMN = WireColumn(name="id", type_oid=23, type="integer")
SCHEMA = value_schema(Wire(schema="s", table="t", columns=(COLUMN,), key=("id",), identity_columns=("id",)))


def row(version: str) -> bytes:
    """An INSERT's record, as a program of that version would write it."""
    texts, numbers = ("connector", "name", "db", "schema", "table"), ("ts_ms", "txId", "lsn", "seq")
    source: dict[str, Any] = {**dict.fromkeys(texts, "t"), **dict.fromkeys(numbers, 1), "version": version}
    record: dict[str, Any] = {
        "before": None,
        "after": {"id": 7},
        "source": source,
        "op": "c",
        "missing": [],
        "before_missing": [],
    }
    out = io.BytesIO(frame(1))
    out.seek(HEADER_BYTES)
    fastavro.schemaless_writer(out, fastavro.parse_schema(SCHEMA), record)
    return out.getvalue()


def test_one_version_back_and_none_ahead() -> None:
    assert READ == (VERSION - 1, VERSION)
    assert UNSAID in READ
    for version in (VERSION + 1, VERSION - 2, "2", None):
        with pytest.raises(Halt) as refused:
            assert_readable(version, "a message")
        assert f"a message of version {version}" in refused.value.cause
        assert "a newer one" in refused.value.hint


@pytest.mark.parametrize("version", READ)
def test_an_epoch_of_either_version_is_read(version: int) -> None:
    record = json.dumps(json.loads(EPOCH.to_json()) | {"version": version}).encode()
    assert epoch_in("topic", 0, record) == EPOCH


def test_an_epoch_of_the_next_version_is_refused_by_name() -> None:
    record = json.dumps(json.loads(EPOCH.to_json()) | {"version": VERSION + 1}).encode()
    with pytest.raises(Halt, match=f"an epoch record of version {VERSION + 1}"):
        epoch_in("topic", 0, record)


@pytest.mark.parametrize("version", READ)
def test_a_row_of_either_version_is_read(version: int) -> None:
    assert Decoder(lambda _: SCHEMA).decode(row(str(version))).after == {"id": 7}


def test_a_row_of_the_next_version_is_refused_by_name() -> None:
    decoder = Decoder(lambda _: SCHEMA)
    decoder.decode(row(str(VERSION)))  # what is the same for a whole transaction is parsed once
    with pytest.raises(Halt, match=f"a row's record of version {VERSION + 1}"):
        decoder.decode(row(str(VERSION + 1)))
