"""The frames of pgoutput protocol 1, from bytes to values, without a socket.

Row messages (Insert, Update, Delete) are only located here: their bodies travel, as the bytes that PostgreSQL sent, to
the encoder of their table. Invariant: a message that is not understood is an error, never something to step over.

Source: PostgreSQL documentation, "Logical Replication Message Formats" and "Streaming Replication Protocol".
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from schemas.position import Lsn

BEGIN: Final = ord("B")
COMMIT: Final = ord("C")
ORIGIN: Final = ord("O")
RELATION: Final = ord("R")
TYPE: Final = ord("Y")
INSERT: Final = ord("I")
UPDATE: Final = ord("U")
DELETE: Final = ord("D")
TRUNCATE: Final = ord("T")
MESSAGE: Final = ord("M")

XLOG_DATA: Final = ord("w")
KEEPALIVE: Final = ord("k")
STATUS: Final = ord("r")

BODY: Final = 25
"""Where pgoutput's message begins in an XLogData frame: 'w', start LSN, end LSN, send time."""
ROW_RELATION: Final = slice(BODY + 1, BODY + 5)
"""Where a row message's relation id lies in an XLogData frame."""

_UNIX_OF_2000_S = 946_684_800
_BEGIN = struct.Struct(">qqI")
_COMMIT = struct.Struct(">Bqqq")
_KEEPALIVE = struct.Struct(">qqB")
_STATUS = struct.Struct(">BqqqqB")
_MESSAGE = struct.Struct(">Bq")
_COLUMN = struct.Struct(">Ii")
_LENGTH = struct.Struct(">I")
_COUNT = struct.Struct(">H")


class Malformed(ValueError):
    """Bytes that protocol 1 does not describe."""


class Begin(NamedTuple):
    commit_lsn: Lsn  # where the commit record starts
    committed_us: int  # microseconds since 1970, UTC
    xid: int  # 32 bits


class Commit(NamedTuple):
    commit_lsn: Lsn
    end_lsn: Lsn  # where the commit record ends
    committed_us: int


class RelationColumn(NamedTuple):
    identity: bool  # part of what an update or delete sends of the old row
    name: str
    type_oid: int
    typmod: int


class Relation(NamedTuple):
    oid: int
    schema: str
    name: str
    replica_identity: str  # pg_class.relreplident
    columns: tuple[RelationColumn, ...]


class Type(NamedTuple):
    oid: int
    schema: str
    name: str


class Truncate(NamedTuple):
    options: int  # 1 cascade, 2 restart identity
    relations: tuple[int, ...]


class LogicalMessage(NamedTuple):
    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


class Keepalive(NamedTuple):
    wal_end: Lsn  # everything that commits below it and is ours was sent before this
    sent_us: int  # the server's clock, microseconds since 1970, UTC
    reply_requested: bool


def unix_us(since_2000_us: int) -> int:
    return since_2000_us + _UNIX_OF_2000_S * 1_000_000


def begin(frame: bytes) -> Begin:
    """A `frame`, here and below, is a whole XLogData message, pgoutput's own at BODY. Errors: Malformed."""
    _expect(frame, BODY + 21)
    commit_lsn, committed, xid = _BEGIN.unpack_from(frame, BODY + 1)
    return Begin(Lsn(commit_lsn), unix_us(committed), xid)


def commit(frame: bytes) -> Commit:
    _expect(frame, BODY + 26)
    flags, commit_lsn, end_lsn, committed = _COMMIT.unpack_from(frame, BODY + 1)
    if flags:
        raise Malformed(f"commit with flags {flags}: protocol 1 knows none")
    return Commit(Lsn(commit_lsn), Lsn(end_lsn), unix_us(committed))


def relation(frame: bytes) -> Relation:
    """No streamed transactions: protocol 1 has no xid before the relation id."""
    try:
        (oid,) = _LENGTH.unpack_from(frame, BODY + 1)
        schema, at = _string(frame, BODY + 5)
        name, at = _string(frame, at)
        replica_identity = chr(frame[at])
        count = int.from_bytes(frame[at + 1 : at + 3], "big")
        at += 3
        columns = []
        for _ in range(count):
            identity = bool(frame[at] & 1)
            column, at = _string(frame, at + 1)
            type_oid, typmod = _COLUMN.unpack_from(frame, at)
            at += 8
            columns.append(RelationColumn(identity, column, type_oid, typmod))
    except (struct.error, IndexError, ValueError) as error:
        raise Malformed("a relation message is cut short") from error
    _expect(frame, at)
    # pg_catalog travels as an empty string.
    return Relation(oid, schema or "pg_catalog", name, replica_identity, tuple(columns))


def type_(frame: bytes) -> Type:
    try:
        (oid,) = _LENGTH.unpack_from(frame, BODY + 1)
        schema, at = _string(frame, BODY + 5)
        name, at = _string(frame, at)
    except (struct.error, ValueError) as error:
        raise Malformed("a type message is cut short") from error
    _expect(frame, at)
    return Type(oid, schema or "pg_catalog", name)


def images(frame: bytes) -> tuple[list[str | None], list[str | None]]:
    """The old and the new image of a row message as text, in the order of the relation's columns; empty where there is
    none. A value that was not sent reads as None: this is for keys, which always are.
    """
    found: dict[str, list[str | None]] = {}
    at = BODY + 5
    try:
        while at < len(frame):
            letter = chr(frame[at])
            (count,) = _COUNT.unpack_from(frame, at + 1)
            at += 3
            values: list[str | None] = []
            for _ in range(count):
                kind = frame[at]
                at += 1
                if kind in b"nu":
                    values.append(None)
                    continue
                (size,) = _LENGTH.unpack_from(frame, at)
                values.append(frame[at + 4 : at + 4 + size].decode())
                at += 4 + size
            found["new" if letter == "N" else "old"] = values
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise Malformed("a row message is cut short") from error
    return found.get("old", []), found.get("new", [])


def truncate(frame: bytes) -> Truncate:
    count = int.from_bytes(frame[BODY + 1 : BODY + 5], "big")
    _expect(frame, BODY + 6 + 4 * count)
    return Truncate(frame[BODY + 5], struct.unpack_from(f">{count}I", frame, BODY + 6))


def message(frame: bytes) -> LogicalMessage:
    try:
        flags, lsn = _MESSAGE.unpack_from(frame, BODY + 1)
        prefix, at = _string(frame, BODY + 10)
        (length,) = _LENGTH.unpack_from(frame, at)
    except (struct.error, ValueError) as error:
        raise Malformed("a logical message is cut short") from error
    _expect(frame, at + 4 + length)
    return LogicalMessage(bool(flags & 1), Lsn(lsn), prefix, frame[at + 4 :])


def keepalive(frame: bytes) -> Keepalive:
    _expect(frame, 18)
    wal_end, sent, reply = _KEEPALIVE.unpack_from(frame, 1)
    return Keepalive(Lsn(wal_end), unix_us(sent), bool(reply))


def status(confirmed: Lsn, *, now_us: int, reply_requested: bool = False) -> bytes:
    """A standby status update: written, flushed and applied are all `confirmed`; `now_us` since 1970, UTC.

    The written position is deliberately no further: a server whose client has not written all that was sent announces
    with a keepalive that it is about to sleep, and that is how capture knows that it has caught up.
    """
    since_2000 = now_us - _UNIX_OF_2000_S * 1_000_000
    return _STATUS.pack(STATUS, confirmed, confirmed, confirmed, since_2000, reply_requested)


def _string(frame: bytes, at: int) -> tuple[str, int]:
    end = frame.index(b"\0", at)
    return frame[at:end].decode(), end + 1


def _expect(frame: bytes, size: int) -> None:
    if len(frame) != size:
        letter = chr(frame[BODY]) if len(frame) > BODY else chr(frame[0])
        raise Malformed(f"a message {letter!r} of {len(frame)} bytes, where {size} were expected")
