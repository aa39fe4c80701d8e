"""Rows with unchanged values: every value that was sent is a value, whatever its bytes are."""

from __future__ import annotations

import pytest

from schemas.careful import Careful
from schemas.wire import Wire, WireColumn

COLUMNS = (
    WireColumn(name="id", type_oid=23, type="integer"),
    WireColumn(name="n", type_oid=23, type="integer"),
    WireColumn(name="doc", type_oid=25, type="text"),
)
WIRE = Wire(schema="s", table="t", columns=COLUMNS, key=("id",), identity_columns=("id",))


def sent(text: bytes) -> bytes:
    return b"t" + len(text).to_bytes(4, "big") + text


@pytest.mark.parametrize("n", range(-64, 64))
def test_no_value_is_taken_for_an_unchanged_one(n: int) -> None:
    """Fails for -59 where the mark of an unchanged value is one byte: its Avro form is that very byte."""
    message = b"U" + bytes(4) + b"N\0\3" + sent(b"1") + sent(str(n).encode()) + b"u"
    parsed = Careful(WIRE).parse(message)
    zigzag = (n << 1) ^ (n >> 31)
    assert parsed.images == b"\0\2" + b"\2\2" + b"\2" + bytes([zigzag]) + b"\0"
    assert parsed.missing == b"\2\6doc\0" + b"\0"
