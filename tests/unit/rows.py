"""Tables, rows and pgoutput messages for the codecs' tests; nothing here shares code with what they test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from schemas.wire import Wire, WireColumn

UNSENT = object()
Tuple = list[Any]  # each: bytes (PostgreSQL's text), None, or UNSENT

TYPES = {
    16: "boolean",
    21: "smallint",
    23: "integer",
    20: "bigint",
    700: "real",
    701: "double precision",
    25: "text",
    1700: "numeric",
    17: "bytea",
    16500: "app.mood",
}

NAMES = st.text(
    st.one_of(st.sampled_from("ab_x2f0 Z-."), st.characters(codec="utf-8", exclude_characters="\0")),
    min_size=1,
    max_size=12,
)


def _float_texts(width: int) -> st.SearchStrategy[bytes]:
    def text(value: float) -> bytes:
        if value != value:
            return b"NaN"
        if value in (float("inf"), float("-inf")):
            return b"Infinity" if value > 0 else b"-Infinity"
        return f"{value:.9g}".encode() if width == 32 else repr(value).encode()

    return st.one_of(
        st.floats(width=64 if width == 64 else 32).map(text),
        st.sampled_from([b"0", b"-0", b"1e-45", b"7.038531e-26", b"0.1", b"3.4028235e+38", b"1e+15"]),
    )


def value(type_oid: int) -> st.SearchStrategy[bytes]:
    """A value's text, as PostgreSQL prints it."""
    match type_oid:
        case 16:
            return st.sampled_from([b"t", b"f"])
        case 21:
            return st.integers(-(1 << 15), (1 << 15) - 1).map(lambda n: str(n).encode())
        case 23:
            return st.integers(-(1 << 31), (1 << 31) - 1).map(lambda n: str(n).encode())
        case 20:
            edges = st.sampled_from([-(1 << 63), (1 << 63) - 1, 0, -1, 63, 64, -64, -65, 8191, 8192])
            return st.one_of(edges, st.integers(-(1 << 63), (1 << 63) - 1)).map(lambda n: str(n).encode())
        case 700:
            return _float_texts(32)
        case 701:
            return _float_texts(64)
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
    long_ones = st.sampled_from([63, 64, 127, 128, 8191, 8192, 70000]).map(lambda n: "ä" * (n // 2) + "x" * (n % 2))
    return st.one_of(texts, long_ones).map(lambda t: t.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A message, and what is in it."""

    wire: Wire
    message: bytes
    op: str
    old_kind: bytes | None
    old: Tuple | None
    new: Tuple | None


@st.composite
def wires(draw: st.DrawFn) -> Wire:
    names = draw(st.lists(NAMES, min_size=1, max_size=7, unique=True))
    oids = [draw(st.sampled_from(list(TYPES))) for _ in names]
    columns = tuple(WireColumn(name=n, type_oid=o, type=TYPES[o]) for n, o in zip(names, oids, strict=True))
    key = tuple(draw(st.permutations(names)))[: draw(st.integers(0, len(names)))]
    full = draw(st.booleans())
    identity = tuple(names) if full else tuple(n for n in names if n in key)
    return Wire(schema=draw(NAMES), table=draw(NAMES), columns=columns, key=key, identity_columns=identity)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any message that PostgreSQL could send for any table; unsent values among them."""
    wire = draw(wires())
    whole = len(wire.identity_columns) == len(wire.columns)

    def column_value(column: WireColumn, *, unsent: bool) -> Any:
        options: list[st.SearchStrategy[Any]] = [value(column.type_oid)]
        if column.name not in wire.key:
            options.append(st.none())
            if unsent and column.avro == "string":
                options.append(st.just(UNSENT))
        return draw(st.one_of(*options))

    op = draw(st.sampled_from("iudt")) if wire.identity_columns else draw(st.sampled_from("it"))
    old_kind: bytes | None = None
    old: Tuple | None = None
    new: Tuple | None = None
    if op in "iu":
        new = [column_value(c, unsent=op == "u") for c in wire.columns]
    if op == "d" or (op == "u" and draw(st.booleans())):
        old_kind = draw(st.sampled_from([b"K", b"O"])) if whole else b"K"
        sent = [c.name in wire.identity_columns for c in wire.columns]
        old = [draw(value(c.type_oid)) if s else None for c, s in zip(wire.columns, sent, strict=True)]
        if old_kind == b"O":
            old = [column_value(c, unsent=False) for c in wire.columns]
    message = encode_message(op, old_kind, old, new)
    return Case(wire=wire, message=message, op=op, old_kind=old_kind, old=old, new=new)


def encode_message(op: str, old_kind: bytes | None, old: Tuple | None, new: Tuple | None) -> bytes:
    body = struct.pack(">cI", op.upper().encode(), 16400)
    if op == "t":
        return b"T" + struct.pack(">IbI", 1, 0, 16400)
    if old is not None and old_kind is not None:
        body += old_kind + encode_tuple(old)
    if new is not None:
        body += b"N" + encode_tuple(new)
    return body


def encode_tuple(values: Tuple) -> bytes:
    out = struct.pack(">H", len(values))
    for v in values:
        if v is None:
            out += b"n"
        elif v is UNSENT:
            out += b"u"
        else:
            out += b"t" + struct.pack(">I", len(v)) + v
    return out


def native(type_oid: int, text: bytes) -> Any:
    """What a value is in Python: text decoded, numbers parsed."""
    match type_oid:
        case 16:
            return text == b"t"
        case 20 | 21 | 23:
            return int(text)
        case 700 | 701:
            return float(text)
    return text.decode()
