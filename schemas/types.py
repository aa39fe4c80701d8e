"""How PostgreSQL's types travel. Invariant R5: text in is text out; only what Avro holds without loss is native.

Booleans, integers and floats are Avro's own; every other type is PostgreSQL's text under the pinned settings.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from decimal import Decimal

AVRO_TYPES = {16: "boolean", 21: "int", 23: "int", 20: "long", 700: "float", 701: "double"}
"""By type oid: bool, int2, int4, int8, float4, float8. As Debezium maps them."""

_FLOAT = struct.Struct("<f")
_DOUBLE = struct.Struct("<d")
_BITS = struct.Struct("<q")
_WORD = struct.Struct("<i")
_HALF = 1 << 28  # a double that lies halfway between two normal floats ends in these bits
_LOW = (1 << 29) - 1
_SMALLEST_NORMAL = 2.0**-126

# Varints by two groups of seven bits: LAST ends a number, MORE is followed by higher groups.
_GROUPS = 1 << 14
LAST: list[bytes] = [bytes([z]) if z < 128 else bytes([z & 127 | 128, z >> 7]) for z in range(_GROUPS)]
MORE: list[bytes] = [bytes([z & 127 | 128, z >> 7 | 128]) for z in range(_GROUPS)]


def avro_type(type_oid: int) -> str:
    """The Avro primitive for a PostgreSQL type."""
    return AVRO_TYPES.get(type_oid, "string")


def varint(z: int) -> bytes:
    """An unsigned number in groups of seven bits, lowest first."""
    out = b""
    while z >= _GROUPS:
        out += MORE[z & 0x3FFF]
        z >>= 14
    return out + LAST[z]


def long(n: int) -> bytes:
    """Avro's int and long: zigzag, then varint. ValueError outside 64 bits."""
    if not -(1 << 63) <= n < 1 << 63:
        raise ValueError("an integer of more than 64 bits")
    return varint((n << 1) ^ (n >> 63))


def string(text: bytes) -> bytes:
    """Avro's string: its length in bytes, then the bytes."""
    return long(len(text)) + text


def double(text: bytes) -> bytes:
    """float8 text to Avro's double."""
    return _DOUBLE.pack(float(text))


def single(text: bytes) -> bytes:
    """float4 text to Avro's float, rounded once.

    Text to double to float rounds twice, and for a few values (`7.038531e-26`) ends at the neighbour of what PostgreSQL
    printed. That needs a double halfway between two floats, which is then settled in exact arithmetic.
    """
    value = float(text)
    bits: int = _BITS.unpack(_DOUBLE.pack(value))[0]
    if bits & _LOW == _HALF or (value and -_SMALLEST_NORMAL < value < _SMALLEST_NORMAL):
        return _nearest(Decimal(text.decode("ascii")), value)
    return _FLOAT.pack(value)


def _nearest(exact: Decimal, value: float) -> bytes:
    if not exact.is_finite():
        return _FLOAT.pack(value)
    guess: int = _WORD.unpack(_FLOAT.pack(value))[0]
    best = _FLOAT.pack(value)
    best_error = abs(Decimal(_FLOAT.unpack(best)[0]) - exact)
    for word in (guess - 1, guess + 1):
        if not 0 <= word & 0x7FFFFFFF < 0x7F800000 or (word < 0) != (guess < 0):
            continue
        near = _WORD.pack(word)
        error = abs(Decimal(_FLOAT.unpack(near)[0]) - exact)
        if error < best_error:
            best, best_error = near, error
    return best


def boolean(text: bytes) -> bytes:
    """`t` or `f` to Avro's boolean. ValueError on anything else."""
    if text == b"t":
        return b"\x01"
    if text == b"f":
        return b"\x00"
    raise ValueError("a boolean that is neither t nor f")


def integer(text: bytes) -> bytes:
    """Integer text to Avro's int or long."""
    return long(int(text))


ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "boolean": boolean,
    "int": integer,
    "long": integer,
    "float": single,
    "double": double,
    "string": string,
}
"""Avro primitive -> PostgreSQL text to Avro bytes."""
