"""pgoutput's bytes to Avro's bytes, by code generated for one table.

Invariant: what leaves here decodes to exactly what PostgreSQL sent. A message that does not fit the table's description
raises Halt; nothing is guessed, padded or left out. Tests hold every byte against fastavro.

The generated code keeps a text column's bytes as they are and looks up what repeats: a column's five-byte header gives
its length and its Avro head in one dictionary access. A tuple with unchanged TOAST takes the plain path, `Careful`.

Source: PostgreSQL docs, "Logical Replication Message Formats"; Apache Avro 1.11, "Binary Encoding".
"""

from __future__ import annotations

from typing import Any, Protocol

from schemas.careful import Careful, Malformed, Unsent, misfit
from schemas.envelope import CONNECTOR, SOURCE_VERSION, frame
from schemas.types import ENCODE, LAST, boolean, long, string
from schemas.wire import Wire

_CACHED = 8192


class Encode(Protocol):
    """See `Encoder.encode`."""

    def __call__(
        self, message: bytes, *, commit_lsn: int, seq: int, xid: int, commit_ms: int
    ) -> tuple[bytes | None, bytes]: ...


class _Heads(dict[bytes, tuple[int, bytes]]):
    """A text column's header -> bytes to move on from its fifth byte, and the head of its nullable Avro string.

    The header of a NULL is one byte long, so its entry moves four back; the four bytes that follow it in the key are
    other headers' bytes, never a value's.
    """

    def __missing__(self, head: bytes) -> tuple[int, bytes]:
        if head[:1] == b"n":
            entry = (-4, b"\x00")
        else:
            n = _length(head)
            entry = (n, b"\x02" + long(n))
        if len(self) < _CACHED:
            self[head] = entry
        return entry


class _Lengths(dict[bytes, int]):
    """The same for a column of any other type, whose value is never empty."""

    def __missing__(self, head: bytes) -> int:
        n = -4 if head[:1] == b"n" else _length(head)
        if n == 0:
            raise Malformed("an empty text for a type that has none")
        if len(self) < _CACHED:
            self[head] = n
        return n


class _Integers(dict[bytes, bytes]):
    """Integer text -> nullable Avro int; the empty text stands for NULL."""

    def __missing__(self, text: bytes) -> bytes:
        encoded = b"\x02" + long(int(text))
        if len(text) <= 4:
            self[text] = encoded
        return encoded


def _length(head: bytes) -> int:
    kind = head[:1]
    if kind == b"u":
        raise Unsent
    if kind == b"b":
        raise Malformed("a value in binary format, which was not asked for")
    if kind != b"t" or len(head) != 5 or head[1] & 128:
        raise Malformed("a column that is neither text, NULL nor unchanged")
    return int.from_bytes(head[1:], "big")


_HEADS = _Heads()
_LENGTHS = _Lengths()
_INTEGERS = _Integers({b"": b"\x00"})
_BOOLEANS = {b"t": b"\x02" + boolean(b"t"), b"f": b"\x02" + boolean(b"f"), b"": b"\x00"}


class Encoder:
    """Encodes one table's messages. Make a new one whenever a Relation message describes the table anew."""

    def __init__(
        self, wire: Wire, *, key_schema_id: int | None, value_schema_id: int, database: str, migration: str
    ) -> None:
        self.wire = wire
        careful = Careful(wire)
        constants = _constants(wire, key_schema_id, value_schema_id, database, migration)
        namespace: dict[str, Any] = {
            **constants,
            "careful": careful,
            "HEADS": _HEADS,
            "LENGTHS": _LENGTHS,
            "INTEGERS": _INTEGERS,
            "BOOLEANS": _BOOLEANS,
            "FLOAT": ENCODE["float"],
            "DOUBLE": ENCODE["double"],
            "LAST": LAST,
            "long": long,
            "join": b"".join,
            "Unsent": Unsent,
            "Malformed": Malformed,
            "misfit": lambda error: misfit(wire, error),
        }
        exec(compile(_source(wire), f"<encoder of {wire.schema}.{wire.table}>", "exec"), namespace)
        self._encode: Encode = namespace["make"]()

    @property
    def encode(self) -> Encode:
        """`encode(message, *, commit_lsn, seq, xid, commit_ms) -> (key, value)`, the generated function itself.

        `message` is a whole Insert, Update, Delete or Truncate body of protocol 1, its letter included; a Truncate is
        encoded as this table's. Both results are in Confluent's wire format; the key is None for a truncate and for a
        table without a key.
        Units:  LSNs in bytes, `seq` is the ordinal in the transaction, `commit_ms` milliseconds since 1970.
        Errors: Halt when the message does not fit the wire, or does not hold the key.
        """
        return self._encode


def _constants(
    wire: Wire, key_schema_id: int | None, value_schema_id: int, database: str, migration: str
) -> dict[str, bytes]:
    """Every run of bytes that is the same in all of a table's records."""
    if wire.key and key_schema_id is None:
        raise ValueError(f"{wire.schema}.{wire.table} has a key, so its encoder needs the key schema's id")

    def strings(*texts: str) -> bytes:
        return b"".join(string(t.encode()) for t in texts)

    fields = {c.name: c.field for c in wire.columns}
    absent = [fields[c.name] for c in wire.columns if c.name not in wire.identity_columns]
    head = frame(value_schema_id)
    none = b"\x00"  # a null branch, and an empty array
    return {
        "COUNT": len(wire.columns).to_bytes(2, "big"),
        "NEW": b"N" + len(wire.columns).to_bytes(2, "big"),
        "KEY": frame(key_schema_id) if key_schema_id is not None else b"",
        "HEAD": head,
        "NO_BEFORE": head + none + b"\x02",
        "BEFORE": head + b"\x02",
        "AFTER": b"\x02",
        "NO_AFTER": none,
        "NO_IMAGES": head + none + none,
        "SOURCE_1": strings(SOURCE_VERSION, CONNECTOR, migration),
        "SOURCE_2": strings(database, wire.schema, wire.table),
        "C": strings("c") + none + none + none,
        "U": strings("u") + none + none + none,
        "D": strings("d") + none + none + none,
        "T": strings("t") + none + none + none,
        "U_K": strings("u") + none + none + names(absent),
        "D_K": strings("d") + none + none + names(absent),
        "u": strings("u") + none,
        "d": strings("d") + none,
    }


def names(fields: list[str]) -> bytes:
    """An Avro array of strings."""
    return (long(len(fields)) if fields else b"") + b"".join(string(f.encode()) for f in fields) + b"\x00"


def _source(wire: Wire) -> str:
    lacks = ", ".join(k for k in wire.key if k not in wire.identity_columns)
    refusal = f"a delete that does not hold the key ({lacks})"
    identity = _row(wire, "o", identity=True)
    lines = [
        "def make():",
        "    at_lsn = at_xid = at_ms = None",
        "    source = b''",
        "    def encode(message, *, commit_lsn, seq, xid, commit_ms):",
        "        nonlocal at_lsn, at_xid, at_ms, source",
        "        m = message",
        "        try:",
        "            if commit_lsn != at_lsn or xid != at_xid or commit_ms != at_ms:",
        "                source = SOURCE_1 + long(commit_ms) + SOURCE_2 + long(xid) + long(commit_lsn)",
        "                at_lsn, at_xid, at_ms = commit_lsn, xid, commit_ms",
        "            s = LAST[seq << 1] if seq < 8192 else long(seq)",
        "            op = m[:1]",
        "            if op == b'T':",
        "                return None, join((NO_IMAGES, source, s, T))",
        "            kind = m[5:6]",
        "            try:",
        "                if kind == b'N' and (op == b'I' or op == b'U'):",
        *_read(wire, "n", "5", "NEW", 20, old=False),
        *_end(20),
        *_key(wire, "n", 20),
        f"                    return k, join((NO_BEFORE, {_row(wire, 'n')} source, s, C if op == b'I' else U))",
        "                elif op == b'D' and kind == b'K':",
        f"                    {f'raise Malformed({refusal!r})' if lacks else 'pass'}",
        *_read(wire, "o", "6", "COUNT", 20, old=True),
        *_end(20),
        *_key(wire, "o", 20),
        f"                    return k, join((BEFORE, {identity} NO_AFTER, source, s, D_K))",
        "                elif op == b'D' and kind == b'O':",
        *_read(wire, "o", "6", "COUNT", 20, old=False),
        *_end(20),
        *_key(wire, "o", 20),
        f"                    return k, join((BEFORE, {_row(wire, 'o')} NO_AFTER, source, s, D))",
        "                elif op == b'U' and kind == b'K':",
        *_read(wire, "o", "6", "COUNT", 20, old=True),
        *_read(wire, "n", "p", "NEW", 20, old=False),
        *_end(20),
        *_key(wire, "n", 20),
        f"                    return k, join((BEFORE, {identity} AFTER, {_row(wire, 'n')} source, s, U_K))",
        "                elif op == b'U' and kind == b'O':",
        *_read(wire, "o", "6", "COUNT", 20, old=False),
        *_read(wire, "n", "p", "NEW", 20, old=False),
        *_end(20),
        *_key(wire, "n", 20),
        f"                    return k, join((BEFORE, {_row(wire, 'o')} AFTER, {_row(wire, 'n')} source, s, U))",
        "                raise Malformed('a message of a kind that protocol 1 does not have')",
        "            except Unsent:",
        "                change = careful.parse(m)",
        "                return (",
        "                    KEY + change.key if change.key is not None else None,",
        "                    join((HEAD, change.images, source, s, u if op == b'U' else d, change.missing)),",
        "                )",
        "        except (Malformed, ValueError, KeyError, IndexError, OverflowError) as error:",
        "            raise misfit(error) from error",
        "    return encode",
    ]
    return "\n".join(lines) + "\n"


def _read(wire: Wire, prefix: str, start: str, expected: str, indent: int, *, old: bool) -> list[str]:
    """Code that reads one tuple from `start` on; its column count is held against `expected` (with the N or without).

    Column i ends up in `<prefix>h<i>` (head, text columns only) and `<prefix><i>`. `old` reads a 'K' tuple, where every
    column that is not part of the identity must be NULL.
    """
    size = 3 if expected == "NEW" else 2
    lines = [
        f"p = {start}",
        f"if m[p:p + {size}] != {expected}: raise Malformed('a tuple of another number of columns')",
        f"p += {size}",
    ]
    for i, column in enumerate(wire.columns):
        if old and column.name not in wire.identity_columns:
            lines += ["if m[p:p + 1] != b'n': raise Malformed('an old value outside the replica identity')", "p += 1"]
            continue
        lines.append("a = p + 5")
        name = f"{prefix}{i}"
        if column.avro == "string":
            lines += [f"n, {prefix}h{i} = HEADS[m[p:a]]", "p = a + n", f"{name} = m[a:p]"]
            null = f"{prefix}h{i} == b'\\0'"
        else:
            lines.append("p = a + LENGTHS[m[p:a]]")
            lines.append(f"{name} = {_value(column.avro)}")
            null = f"{name} == b'\\0'"
        if old:
            lines.append(f"if {null}: raise Malformed('a NULL in the replica identity')")
    return [" " * indent + line for line in lines]


def _value(avro: str) -> str:
    match avro:
        case "int" | "long":
            return "INTEGERS[m[a:p]]"
        case "boolean":
            return "BOOLEANS[m[a:p]]"
        case _:
            return f"b'\\2' + {avro.replace('float', 'FLOAT').replace('double', 'DOUBLE')}(m[a:p]) if p > a else b'\\0'"


def _end(indent: int) -> list[str]:
    return [" " * indent + "if p != len(m): raise Malformed('a message that ends early or late')"]


def _key(wire: Wire, prefix: str, indent: int) -> list[str]:
    """Code that puts the record's key into `k`. Key fields are no unions: each value loses its branch byte."""
    if not wire.key:
        return [" " * indent + "k = None"]
    index = {c.name: i for i, c in enumerate(wire.columns)}
    lines, parts = [], []
    for name in wire.key:
        i = index[name]
        if prefix == "o" and name not in wire.identity_columns:
            # A 'K' tuple: refused before it came here. An 'O' tuple holds every column.
            lines.append(f"if kind == b'K': raise Malformed('an old tuple without {i}')")
        if wire.columns[i].avro == "string":
            lines.append(f"if {prefix}h{i} == b'\\0': raise Malformed('a NULL in the key')")
            parts += [f"{prefix}h{i}[1:]", f"{prefix}{i}"]
        else:
            lines.append(f"if {prefix}{i} == b'\\0': raise Malformed('a NULL in the key')")
            parts.append(f"{prefix}{i}[1:]")
    lines.append(f"k = KEY + {' + '.join(parts)}" if len(parts) < 4 else f"k = join((KEY, {', '.join(parts)}))")
    return [" " * indent + line for line in lines]


def _row(wire: Wire, prefix: str, *, identity: bool = False) -> str:
    """A row's parts, for a tuple display; the columns outside the identity as nulls when only that was sent."""
    parts = []
    for i, column in enumerate(wire.columns):
        if identity and column.name not in wire.identity_columns:
            parts.append("b'\\0'")
        elif column.avro == "string":
            parts.append(f"{prefix}h{i}, {prefix}{i}")
        else:
            parts.append(f"{prefix}{i}")
    return "".join(f"{part}, " for part in parts)
