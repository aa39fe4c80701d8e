"""Avro's bytes back to changes, by code generated for one schema.

Invariant: a record decodes to exactly what was encoded, or raises Halt (hazard C10): a default never stands in for a
field, a length never reaches past the record, and every byte is accounted for. fastavro is the reference in tests.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

from schemas.change import Change
from schemas.envelope import Schema, framed_id, image_columns
from schemas.errors import Halt
from schemas.escape import unescape
from schemas.position import Lsn, Position
from schemas.wire_version import READ, assert_readable

_VERSIONS = tuple(str(version).encode() for version in READ)

_Decode = Callable[[bytes], Change]

_SHORT = [b >> 1 if b < 128 and not b & 1 else -1 for b in range(256)]
_ZIGZAG = [(b >> 1) ^ -(b & 1) for b in range(1 << 14)]


class _Corrupt(Exception):
    """Becomes a Halt before anybody sees it: bytes that are not a record of the schema. The text holds no value."""


class Decoder:
    """Decodes records in Confluent's wire format. `schema_of` finds an envelope schema by its id, or raises."""

    def __init__(self, schema_of: Callable[[int], Schema]) -> None:
        self._schema_of = schema_of
        self._by_header: dict[bytes, _Decode] = {}

    def decode(self, value: bytes) -> Change:
        """One record's value. Integers, floats and booleans are Python's, other types PostgreSQL's text.

        Errors: Halt on a record that is not ours, a newer slackwater's, or damaged; whatever `schema_of` raises for an
        unknown schema.
        """
        decode = self._by_header.get(value[:5])
        if decode is None:
            decode = self._by_header[value[:5]] = self._make(framed_id(value))
        try:
            return decode(value)
        except (_Corrupt, IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise Halt(
                f"a record of schema {framed_id(value)} cannot be decoded ({type(error).__name__})",
                hint="the topic holds a damaged record, or one that something else wrote; prepare the migration anew",
            ) from error

    def _make(self, schema_id: int) -> _Decode:
        schema = self._schema_of(schema_id)
        try:
            columns = image_columns(schema)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Halt(
                f"schema {schema_id} is not an envelope that this program writes: {error}",
                hint="find out who registered it; a slackwater topic must hold nothing but slackwater's records",
            ) from error
        namespace: dict[str, Any] = {
            "SHORT": _SHORT,
            "ZIGZAG": _ZIGZAG,
            "length": _length,
            "long": _long,
            "names": _names,
            "Source": _Source,
            "Corrupt": _Corrupt,
            "Change": Change,
            "Position": Position,
            "new": tuple.__new__,  # what a named tuple's own constructor does, without its call
            "FLOAT": struct.Struct("<f").unpack_from,
            "DOUBLE": struct.Struct("<d").unpack_from,
            "NAN": math.nan,
            "BOOLEAN": {0: False, 1: True}.__getitem__,
            "OP": {b"\x02c": "c", b"\x02u": "u", b"\x02d": "d", b"\x02t": "t"},
        }
        exec(compile(_source(columns), f"<decoder of schema {schema_id}>", "exec"), namespace)
        made: _Decode = namespace["make"]()
        return made


class _Source:
    """The envelope's source, parsed once for all the records of a transaction that follow one another.

    Of the next transaction's, only what can differ is parsed: the rest of it is the same for a whole table.
    """

    __slots__ = ("end", "head", "lsn", "raw", "table", "tail", "xid")
    head: bytes
    tail: bytes
    table: str

    def __init__(self, d: bytes, start: int, last: _Source | None) -> None:
        if last is not None and d.startswith(last.head, start):
            self.head, self.tail, self.table = last.head, last.tail, last.table
            _, p = _long(d, start + len(last.head))
            if not d.startswith(last.tail, p):
                p = self._name(d, p)
            else:
                p += len(last.tail)
        else:
            p = start
            for part in ("version", "connector", "name"):
                n, p = _length(d, p)
                if part == "version" and d[p : p + n] not in _VERSIONS:
                    assert_readable(d[p : p + n].decode(), "a row's record")
                p += n
            self.head = d[start:p]
            _, p = _long(d, p)
            p = self._name(d, p)
        self.xid, p = _long(d, p)
        lsn, self.end = _long(d, p)
        self.lsn = Lsn(lsn)
        self.raw = d[start : self.end]

    def _name(self, d: bytes, start: int) -> int:
        """Database, schema and table; where they end."""
        p = start
        for _ in ("db", "schema"):
            n, p = _length(d, p)
            p += n
        n, p = _length(d, p)
        self.table = d[p : p + n].decode()
        self.tail = d[start : p + n]
        return p + n


def _long(d: bytes, p: int) -> tuple[int, int]:
    """A zigzag varint at `p`, and where it ends."""
    b = d[p]
    z = b & 127
    shift = 7
    while b & 128:
        p += 1
        b = d[p]
        z |= (b & 127) << shift
        shift += 7
        if shift > 70:
            raise _Corrupt("an integer of more than 64 bits")
    return (z >> 1) ^ -(z & 1), p + 1


def _length(d: bytes, p: int) -> tuple[int, int]:
    """A string's length at `p`, and where its bytes start."""
    n, p = _long(d, p)
    if n < 0 or p + n > len(d):
        raise _Corrupt("a length that reaches past the record")
    return n, p


def _names(d: bytes, p: int) -> tuple[tuple[str, ...], int]:
    """An array of field names at `p` as column names, and where it ends."""
    found: list[str] = []
    while True:
        count, p = _long(d, p)
        if count == 0:
            return tuple(found), p
        if count < 0:  # a block that carries its size in bytes
            _, p = _long(d, p)
        for _ in range(abs(count)):
            n, p = _length(d, p)
            found.append(unescape(d[p : p + n].decode()))
            p += n


_STRING = """\
b = d[p]
if b == 2:
    n = SHORT[d[p + 1]]
    if n >= 0: a = p + 2
    else: n, a = length(d, p + 1)
    p = a + n
    v{i} = d[a:p].decode()
elif b == 0:
    v{i} = None
    p += 1
else: raise Corrupt('a branch that the union does not have')"""

_INTEGER = """\
b = d[p]
if b == 2:
    b = d[p + 1]
    if b < 128:
        v{i} = ZIGZAG[b]
        p += 2
    elif d[p + 2] < 128:
        v{i} = ZIGZAG[b & 127 | d[p + 2] << 7]
        p += 3
    else: v{i}, p = long(d, p + 1)
elif b == 0:
    v{i} = None
    p += 1
else: raise Corrupt('a branch that the union does not have')"""

_FIXED = """\
b = d[p]
if b == 2:
    v{i} = {read}
    p += {size}
elif b == 0:
    v{i} = None
    p += 1
else: raise Corrupt('a branch that the union does not have')"""

# One object stands for every NaN: Python's are equal to nothing but themselves, PostgreSQL's to one another.
_FLOAT = _FIXED.replace("{read}\n", "{read}\n    if v{i} != v{i}: v{i} = NAN\n")

_READ = {
    "string": _STRING,
    "int": _INTEGER,
    "long": _INTEGER,
    "boolean": _FIXED.replace("{read}", "BOOLEAN(d[p + 1])").replace("{size}", "2"),
    "float": _FLOAT.replace("{read}", "FLOAT(d, p + 1)[0]").replace("{size}", "5"),
    "double": _FLOAT.replace("{read}", "DOUBLE(d, p + 1)[0]").replace("{size}", "9"),
}


def _image(columns: list[tuple[str, str]], name: str) -> list[str]:
    lines = ["b = d[p]", "p += 1", f"if b == 0: {name} = None", "elif b == 2:"]
    for i, (_, avro) in enumerate(columns):
        if avro not in _READ:
            raise ValueError(f"a column of Avro type {avro}")
        lines += ["    " + line for line in _READ[avro].replace("{i}", str(i)).splitlines()]
    row = ", ".join(f"{column!r}: v{i}" for i, (column, _) in enumerate(columns))
    lines += [f"    {name} = {{{row}}}", "else: raise Corrupt('a branch that the union does not have')"]
    return lines


def _source(columns: list[tuple[str, str]]) -> str:
    body = [
        "p = 5",
        *_image(columns, "before"),
        *_image(columns, "after"),
        "if d.startswith(raw, p): p += size",
        "else:",
        "    source = Source(d, p, source)",
        "    p = source.end",
        "    raw, size, table, lsn, xid = source.raw, len(source.raw), source.table, source.lsn, source.xid",
        "b = d[p]",
        "if b < 128:",
        "    seq = ZIGZAG[b]",
        "    p += 1",
        "else: seq, p = long(d, p)",
        "op = OP.get(d[p:p + 2])",
        "if op is None: raise Corrupt('an op that is not c, u, d or t')",
        "p += 2",
        "if d[p] == 0: p += 1",
        "elif d[p] == 2: _, p = long(d, p + 1)",
        "else: raise Corrupt('a branch that the union does not have')",
        "if d[p:] == b'\\0\\0': return new(Change, (op, table, before, after, (), (), new(Position, (lsn, seq)), xid))",
        "missing, p = names(d, p)",
        "before_missing, p = names(d, p)",
        "if p != len(d): raise Corrupt('a record that ends early or late')",
        "return Change(op, table, before, after, missing, before_missing, Position(lsn, seq), xid)",
    ]
    head = [
        "def make():",
        "    raw = b'\\xff'",
        "    size = 0",
        "    table = lsn = xid = source = None",
        "    def decode(d):",
    ]
    head.append("        nonlocal raw, size, table, lsn, xid, source")
    return "\n".join([*head, *("        " + line for line in body), "    return decode"]) + "\n"
