"""Messages that hold unchanged TOAST, encoded column by column.

Invariant: an unsent column takes its value from the same row's old tuple or is named as missing; from nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

from schemas.errors import Halt
from schemas.types import ENCODE, long, string
from schemas.wire import Wire


class Malformed(Exception):
    """A message that does not fit the table's description. It becomes a Halt; its text says how and holds no value."""


class Unsent(Exception):
    """A turn in the road, not an error: an unchanged TOAST column came along."""


def misfit(wire: Wire, error: Exception) -> Halt:
    """What an operator reads when a message and its table's description differ. Never shows a value."""
    what = str(error) if isinstance(error, Malformed) else f"a value that cannot be read ({type(error).__name__})"
    if isinstance(error, Malformed) and "does not hold the key" in what:
        hint = (
            f"run: alter table {wire.schema}.{wire.table} replica identity full (or default, with a primary key);"
            " then prepare again: what was deleted meanwhile has to be read anew"
        )
    else:
        hint = "restart capture, which reads the table's description anew; if it halts again, report the table's DDL"
    return Halt(f"{wire.schema}.{wire.table}: PostgreSQL sent {what}", hint=hint)


class Parsed(NamedTuple):
    """Avro bytes: the key's fields, both images with their branch bytes, and the two arrays of missing columns."""

    key: bytes | None
    images: bytes
    missing: bytes


_Value = bytes | None
_UNSENT = b"unsent"  # compared by identity. Never one byte: Python keeps one object for each, so -59 would be this one
_Tuple = list[_Value]


class Careful:
    """Parses the updates and deletes of one table, whatever is unsent in them."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._encode = [ENCODE[c.avro] for c in wire.columns]
        self._identity = frozenset(i for i, c in enumerate(wire.columns) if c.name in wire.identity_columns)
        index = {c.name: i for i, c in enumerate(wire.columns)}
        self._key = [index[name] for name in wire.key]
        self._fields = [string(c.field.encode()) for c in wire.columns]

    def parse(self, m: bytes) -> Parsed:
        """An Update or Delete body. Malformed, ValueError or IndexError when it does not fit the wire."""
        op, kind, p = m[:1], m[5:6], 5
        if op not in (b"U", b"D"):
            raise Malformed("an unchanged value in a row that is new")
        old: _Tuple | None = None
        new: _Tuple | None = None
        if kind in (b"K", b"O"):
            old, p = self._tuple(m, 6)
        if kind == b"K" and old is not None:
            old = [self._identity_value(i, value) for i, value in enumerate(old)]
        if op == b"U":
            if m[p : p + 1] != b"N":
                raise Malformed("an update without a new row")
            new, p = self._tuple(m, p + 1)
            if old is not None:
                new = [o if n is _UNSENT else n for n, o in zip(new, old, strict=True)]
        if p != len(m):
            raise Malformed("a message that ends early or late")
        row = new if new is not None else old
        if row is None:
            raise Malformed("a delete without an old row")
        images = self._image(old) + self._image(new)
        return Parsed(self._key_of(row), images, self._missing(new) + self._missing(old))

    def _tuple(self, m: bytes, p: int) -> tuple[_Tuple, int]:
        """One tuple from its column count on, and where it ends."""
        if int.from_bytes(m[p : p + 2], "big") != len(self._encode):
            raise Malformed("a tuple of another number of columns")
        p += 2
        values: _Tuple = []
        for encode in self._encode:
            match m[p : p + 1]:
                case b"n":
                    values.append(None)
                    p += 1
                case b"u":
                    values.append(_UNSENT)
                    p += 1
                case b"t":
                    end = p + 5 + int.from_bytes(m[p + 1 : p + 5], "big")
                    if end > len(m):
                        raise Malformed("a value that ends early")
                    values.append(encode(m[p + 5 : end]))
                    p = end
                case b"b":
                    raise Malformed("a value in binary format, which was not asked for")
                case _:
                    raise Malformed("a column that is neither text, NULL nor unchanged")
        return values, p

    def _identity_value(self, i: int, value: _Value) -> _Value:
        """A column of a 'K' tuple: outside the identity it is not NULL but unsent."""
        if i in self._identity:
            if value is None:
                raise Malformed("a NULL in the replica identity")
            return value
        if value is not None:
            raise Malformed("an old value outside the replica identity")
        return _UNSENT

    def _key_of(self, row: _Tuple) -> bytes | None:
        if not self._key:
            return None
        parts: list[bytes] = []
        for i in self._key:
            value = row[i]
            if value is _UNSENT:
                raise Malformed(f"a change that does not hold the key ({self._wire.columns[i].name})")
            if value is None:
                raise Malformed("a NULL in the key")
            parts.append(value)
        return b"".join(parts)

    def _image(self, row: _Tuple | None) -> bytes:
        if row is None:
            return b"\x00"
        return b"\x02" + b"".join(b"\x00" if v is None or v is _UNSENT else b"\x02" + v for v in row)

    def _missing(self, row: _Tuple | None) -> bytes:
        fields = [self._fields[i] for i, value in enumerate(row or ()) if value is _UNSENT]
        return (long(len(fields)) if fields else b"") + b"".join(fields) + b"\x00"
