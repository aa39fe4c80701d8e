"""The generated encoder and decoder, held against fastavro byte for byte, for any table and any row."""

from __future__ import annotations

import io
import math
import struct
from decimal import Decimal
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.change import Change
from schemas.decoder import Decoder
from schemas.encoder import Encoder
from schemas.envelope import SOURCE_VERSION, Schema, framed_id, key_schema, value_schema
from schemas.errors import Halt
from schemas.types import single
from schemas.wire import Wire, WireColumn
from tests.unit.rows import UNSENT, Case, Tuple, cases, encode_message, native, wires

KEY_ID, VALUE_ID = 7, 0x01020304
AT = {"commit_lsn": (1 << 40) + 5, "seq": 8192, "xid": 4294967295, "commit_ms": 1780000000123}
CUSTOMER = Wire(
    schema="public",
    table="customers",
    columns=(
        WireColumn(name="id", type_oid=20, type="bigint"),
        WireColumn(name="name", type_oid=25, type="text"),
        WireColumn(name="photo", type_oid=17, type="bytea"),
    ),
    key=("id",),
    identity_columns=("id",),
)


def encoder(wire: Wire) -> Encoder:
    return Encoder(wire, key_schema_id=KEY_ID, value_schema_id=VALUE_ID, database="shop", migration="m")


def reference_images(case: Case) -> tuple[Tuple | None, Tuple | None]:
    """The images with unsent values filled from the same row's old tuple, as the design has it."""
    old, new = case.old, case.new
    if case.old_kind == b"K" and old is not None:
        old = [
            v if c.name in case.wire.identity_columns else UNSENT for c, v in zip(case.wire.columns, old, strict=True)
        ]
    if new is not None and old is not None:
        new = [o if n is UNSENT else n for n, o in zip(new, old, strict=True)]
    return old, new


def reference_record(case: Case) -> dict[str, Any]:
    columns = case.wire.columns

    def image(row: Tuple | None) -> dict[str, Any] | None:
        if row is None:
            return None
        return {
            c.field: None if v is None or v is UNSENT else native(c.type_oid, v)
            for c, v in zip(columns, row, strict=True)
        }

    def unsent(row: Tuple | None) -> list[str]:
        return [c.field for c, v in zip(columns, row or [None] * len(columns), strict=True) if v is UNSENT]

    old, new = reference_images(case)
    return {
        "before": image(old),
        "after": image(new),
        "source": {
            "version": SOURCE_VERSION,
            "connector": "postgresql",
            "name": "m",
            "ts_ms": AT["commit_ms"],
            "db": "shop",
            "schema": case.wire.schema,
            "table": case.wire.table,
            "txId": AT["xid"],
            "lsn": AT["commit_lsn"],
            "seq": AT["seq"],
        },
        "op": {"i": "c", "u": "u", "d": "d", "t": "t"}[case.op],
        "ts_ms": None,
        "missing": unsent(new),
        "before_missing": unsent(old),
    }


def written(schema: Schema, record: Any, schema_id: int) -> bytes:
    out = io.BytesIO(struct.pack(">BI", 0, schema_id))
    out.seek(5)
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record, strict=True)
    return out.getvalue()


def same(a: Any, b: Any) -> bool:
    """Equality under which NaN is NaN and -0 is not 0."""
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return bool(a == b) and type(a) is type(b)


@settings(deadline=None, max_examples=400)
@given(case=cases())
def test_bytes_are_fastavros(case: Case) -> None:
    key, value = encoder(case.wire).encode(case.message, **AT)
    assert framed_id(value) == VALUE_ID
    expected = written(value_schema(case.wire), reference_record(case), VALUE_ID)
    singles = [c for c in case.wire.columns if c.avro == "float"]
    if singles:  # fastavro rounds text to double to float; `single` rounds once, and has a test of its own
        read = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(value_schema(case.wire)))
        again = written(value_schema(case.wire), read, VALUE_ID)
        assert again == value
        assert len(expected) == len(value)
    else:
        assert value == expected
    schema = key_schema(case.wire)
    row = next((r for r in reversed(reference_images(case)) if r is not None), None)
    if schema is None or row is None:
        assert key is None
        return
    texts = {c.name: (c, v) for c, v in zip(case.wire.columns, row, strict=True)}
    record = {texts[n][0].field: native(texts[n][0].type_oid, texts[n][1]) for n in case.wire.key}
    if not singles:
        assert key == written(schema, record, KEY_ID)
    else:
        assert key is not None
        assert len(key) == len(written(schema, record, KEY_ID))


@settings(deadline=None, max_examples=400)
@given(case=cases())
def test_decoder_gives_back_what_was_encoded(case: Case) -> None:
    schema = value_schema(case.wire)
    _, value = encoder(case.wire).encode(case.message, **AT)
    change = Decoder({VALUE_ID: schema}.__getitem__).decode(value)
    read: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(schema))

    def by_name(image: dict[str, Any] | None) -> dict[str, Any] | None:
        return image and {c.name: image[c.field] for c in case.wire.columns}

    name_of = {c.field: c.name for c in case.wire.columns}
    assert same(change.before, by_name(read["before"])) if change.before else read["before"] is None
    assert same(change.after, by_name(read["after"])) if change.after else read["after"] is None
    assert change.missing == tuple(name_of[f] for f in read["missing"])
    assert change.before_missing == tuple(name_of[f] for f in read["before_missing"])
    assert change.table == case.wire.table
    assert (change.position.commit_lsn, change.position.seq, change.xid) == (AT["commit_lsn"], AT["seq"], AT["xid"])
    assert change.op == read["op"]


@settings(deadline=None, max_examples=150)
@given(case=cases(), data=st.data())
def test_a_damaged_message_never_passes_as_another_row(case: Case, data: st.DataObject) -> None:
    if case.op == "t":
        return
    cut = data.draw(st.integers(0, len(case.message) - 1))
    for damaged in (case.message[:cut], case.message + b"\0", case.message[:6] + b"\xff" + case.message[7:]):
        with pytest.raises(Halt):
            encoder(case.wire).encode(damaged, **AT)


@settings(deadline=None, max_examples=150)
@given(case=cases(), data=st.data())
def test_a_truncated_record_never_decodes(case: Case, data: st.DataObject) -> None:
    decoder = Decoder({VALUE_ID: value_schema(case.wire)}.__getitem__)
    _, value = encoder(case.wire).encode(case.message, **AT)
    decoder.decode(value)
    with pytest.raises(Halt):
        decoder.decode(value[: data.draw(st.integers(0, len(value) - 1))])
    with pytest.raises(Halt):
        decoder.decode(value + b"\0")


@settings(deadline=None)
@given(wire=wires())
def test_schemas_are_legal_avro(wire: Wire) -> None:
    fastavro.parse_schema(value_schema(wire))
    schema = key_schema(wire)
    if schema is not None:
        fastavro.parse_schema(schema)
    assert len({c.field for c in wire.columns}) == len(wire.columns)


@given(bits=st.integers(0, 0x7F7FFFFF), negative=st.booleans())
def test_a_float4_text_gives_the_float_it_was_printed_from(bits: int, negative: bool) -> None:
    (value,) = struct.unpack("<f", struct.pack("<I", bits | negative << 31))
    texts = [f"{value:.{n}g}" for n in range(1, 10)]
    text = next(t for t in texts if abs(float(t)) <= 3.4028235e38 and nearest_single(t) == value)
    assert single(text.encode()) == struct.pack("<f", value)


def nearest_single(text: str) -> float:
    """Exact arithmetic: the float nearest to a decimal text, ties to even."""
    exact = Decimal(text)
    guess = struct.unpack("<I", struct.pack("<f", abs(float(text))))[0]
    near = [
        struct.unpack("<f", struct.pack("<I", g))[0] for g in range(max(guess - 1, 0), min(guess + 1, 0x7F7FFFFF) + 1)
    ]
    best: float = min(
        near, key=lambda f: (abs(Decimal(f) - abs(exact)), struct.unpack("<I", struct.pack("<f", f))[0] & 1)
    )
    return math.copysign(best, -1.0 if exact.is_signed() else 1.0)


def test_the_float4_that_rounding_twice_gets_wrong() -> None:
    """PostgreSQL's own regression test prints this one."""
    assert single(b"7.038531e-26") == struct.pack("<I", 0x15AE43FD)
    assert struct.pack("<f", float("7.038531e-26")) == struct.pack("<I", 0x15AE43FE)


def decode(wire: Wire, message: bytes) -> Change:
    _, value = encoder(wire).encode(message, **AT)
    return Decoder({VALUE_ID: value_schema(wire)}.__getitem__).decode(value)


def test_an_unsent_value_is_named_and_never_taken_for_null() -> None:
    change = decode(CUSTOMER, encode_message("u", None, None, [b"1", b"", UNSENT]))
    assert change.after == {"id": 1, "name": "", "photo": None}
    assert change.missing == ("photo",)
    assert change.before is None


def test_an_unsent_value_comes_from_the_full_old_row() -> None:
    full = Wire(
        schema=CUSTOMER.schema,
        table=CUSTOMER.table,
        columns=CUSTOMER.columns,
        key=("id",),
        identity_columns=("id", "name", "photo"),
    )
    message = encode_message("u", b"O", [b"1", b"a", b"\\x00"], [b"2", b"b", UNSENT])
    change = decode(full, message)
    assert change.before == {"id": 1, "name": "a", "photo": "\\x00"}
    assert change.after == {"id": 2, "name": "b", "photo": "\\x00"}
    assert (change.missing, change.before_missing) == ((), ())


def test_a_key_change_is_one_update_with_the_old_key() -> None:
    change = decode(CUSTOMER, encode_message("u", b"K", [b"1", None, None], [b"2", b"b", UNSENT]))
    assert change.before == {"id": 1, "name": None, "photo": None}
    assert change.before_missing == ("name", "photo")
    assert change.after == {"id": 2, "name": "b", "photo": None}
    assert change.missing == ("photo",)


def test_a_delete_without_the_key_halts_and_names_the_remedy() -> None:
    wire = Wire(schema="public", table="t", columns=CUSTOMER.columns, key=("id",), identity_columns=("name",))
    with pytest.raises(Halt, match="does not hold the key") as halt:
        encoder(wire).encode(encode_message("d", b"K", [None, b"a", None], None), **AT)
    assert "replica identity" in halt.value.hint


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (encode_message("i", None, None, [b"1", b"a"]), "another number of columns"),
        (encode_message("u", b"K", [b"1", None], [b"1", b"a", None]), "another number of columns"),
        (b"I\0\0\0\1N\0\3b\0\0\0\1x", "binary format"),
        (encode_message("i", None, None, [b"1", b"a", UNSENT]), "unchanged value in a row that is new"),
        (encode_message("d", b"K", [b"1", b"a", None], None), "outside the replica identity"),
        (encode_message("d", b"K", [None, None, None], None), "NULL in the replica identity"),
        (encode_message("i", None, None, [None, b"a", None]), "NULL in the key"),
        (encode_message("i", None, None, [b"", b"a", None]), "empty text"),
        (encode_message("i", None, None, [b"secret", b"a", None]), "cannot be read"),
        (b"R", "protocol 1"),
    ],
)
def test_what_does_not_fit_halts(message: bytes, reason: str) -> None:
    with pytest.raises(Halt, match=reason) as halt:
        encoder(CUSTOMER).encode(message, **AT)
    assert halt.value.hint
    assert "secret" not in str(halt.value)


def test_a_foreign_schema_halts() -> None:
    schema = value_schema(CUSTOMER)
    schema["fields"].append({"name": "extra", "type": "string", "default": ""})
    with pytest.raises(Halt, match="not an envelope"):
        Decoder(lambda _: schema).decode(b"\0\0\0\0\1\0\0")
    with pytest.raises(Halt, match="wire format"):
        Decoder(lambda _: schema).decode(b"{}")
