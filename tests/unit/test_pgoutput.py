"""pgoutput's frames against bytes written down from a real server's walsender."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.postgres import pgoutput
from schemas.position import Lsn

HEAD = b"w" + bytes(24)
US_2000 = 946_684_800_000_000


def test_begin_and_commit() -> None:
    begin = pgoutput.begin(HEAD + b"B" + struct.pack(">qqI", 0x1_0000_0010, 5, 4_000_000_000))
    assert begin == (0x1_0000_0010, US_2000 + 5, 4_000_000_000)
    commit = pgoutput.commit(HEAD + b"C" + struct.pack(">Bqqq", 0, 16, 64, 7))
    assert commit == (16, 64, US_2000 + 7)


def test_commit_flags_that_protocol_1_does_not_know_are_refused() -> None:
    with pytest.raises(pgoutput.Malformed, match="flags 1"):
        pgoutput.commit(HEAD + b"C" + struct.pack(">Bqqq", 1, 16, 64, 7))


def test_relation_with_odd_names() -> None:
    body = b"R" + struct.pack(">I", 16385) + 'Quoted "Schema"\0Täble\0f'.encode() + struct.pack(">H", 2)
    body += b"\x01id\0" + struct.pack(">Ii", 20, -1) + b"\x00n\0" + struct.pack(">Ii", 1700, 655366)
    relation = pgoutput.relation(HEAD + body)
    assert relation.oid == 16385
    assert (relation.schema, relation.name, relation.replica_identity) == ('Quoted "Schema"', "Täble", "f")
    assert relation.columns == ((True, "id", 20, -1), (False, "n", 1700, 655366))


def test_type_of_pg_catalog_travels_as_an_empty_schema() -> None:
    assert pgoutput.type_(HEAD + b"Y" + struct.pack(">I", 600) + b"\0point\0") == (600, "pg_catalog", "point")


def test_truncate_of_several_tables() -> None:
    frame = HEAD + b"T" + struct.pack(">IBII", 2, 3, 16385, 16390)
    assert pgoutput.truncate(frame) == (3, (16385, 16390))


@given(
    st.binary(max_size=300), st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30), st.booleans()
)
def test_message_round_trip(content: bytes, prefix: str, transactional: bool) -> None:
    frame = HEAD + b"M" + struct.pack(">Bq", transactional, 99) + prefix.encode() + b"\0"
    frame += struct.pack(">I", len(content)) + content
    assert pgoutput.message(frame) == (transactional, 99, prefix, content)


@pytest.mark.parametrize(
    ("parse", "frame"),
    [
        (pgoutput.begin, HEAD + b"B" + struct.pack(">qqI", 16, 5, 700)),
        (pgoutput.commit, HEAD + b"C" + struct.pack(">Bqqq", 0, 16, 64, 7)),
        (pgoutput.relation, HEAD + b"R" + struct.pack(">I", 1) + b"s\0t\0d\x00\x01" + b"\x01a\0" + bytes(8)),
        (pgoutput.type_, HEAD + b"Y" + struct.pack(">I", 600) + b"\0point\0"),
        (pgoutput.truncate, HEAD + b"T" + struct.pack(">IBI", 1, 0, 16385)),
        (pgoutput.message, HEAD + b"M" + struct.pack(">Bq", 1, 99) + b"p\0" + struct.pack(">I", 3) + b"abc"),
        (pgoutput.keepalive, b"k" + struct.pack(">qqB", 5, 6, 1)),
    ],
)
def test_every_cut_and_every_surplus_is_refused(parse: object, frame: bytes) -> None:
    assert callable(parse)
    parse(frame)
    for size in range(BODY_START if frame[0:1] == b"w" else 1, len(frame)):
        with pytest.raises(pgoutput.Malformed):
            parse(frame[:size])
    with pytest.raises(pgoutput.Malformed):
        parse(frame + b"x")


BODY_START = pgoutput.BODY + 1


def test_keepalive_and_status() -> None:
    assert pgoutput.keepalive(b"k" + struct.pack(">qqB", 1 << 40, 3, 1)) == (1 << 40, US_2000 + 3, True)
    sent = pgoutput.status(Lsn(7), now_us=US_2000 + 11, reply_requested=True)
    assert struct.unpack(">cqqqqB", sent) == (b"r", 7, 7, 7, 11, 1)
