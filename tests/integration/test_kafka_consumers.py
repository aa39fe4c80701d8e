"""Consumers that know nothing of slackwater read its topics: Confluent's AvroDeserializer, and plain fastavro."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import fastavro
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from connectors.kafka.registry import ConfluentRegistry, Registry, TopicRegistry
from connectors.kafka.topics import Kind, TopicSpec
from schemas.decoder import Decoder
from schemas.encoder import Encoder
from schemas.envelope import SOURCE_VERSION, key_schema, value_schema
from schemas.wire import Wire, WireColumn
from tests.fixtures.registry import RegistryServer
from tests.fixtures.stream import Stream, epoch_record
from tests.unit.rows import UNSENT, encode_message

WIRE = Wire(
    schema="Shop Floor",
    table="Kunden-Liste",
    columns=(
        WireColumn(name="id", type_oid=20, type="bigint"),
        WireColumn(name="full name", type_oid=1043, type="character varying"),
        WireColumn(name="balance", type_oid=1700, type="numeric"),
        WireColumn(name="active", type_oid=16, type="boolean"),
        WireColumn(name="score", type_oid=701, type="double precision"),
        WireColumn(name="photo", type_oid=17, type="bytea"),
    ),
    key=("id",),
    identity_columns=("id",),
)
FIELD = "full_x20name"
MESSAGES = [
    encode_message("i", None, None, [b"1", "Zoë".encode(), b"12.50", b"t", b"0.5", b"\\xff"]),
    encode_message("u", b"K", [b"1", None, None, None, None, None], [b"2", b"", None, b"f", b"NaN", UNSENT]),
    encode_message("d", b"K", [b"2", None, None, None, None, None], None),
]
AT = {"commit_lsn": 4096, "xid": 77, "commit_ms": 1780000000000}


def published(stream: Stream, registry: Registry) -> list[tuple[bytes, bytes]]:
    """Encodes and publishes the messages in one epoch, behind an aborted one; (key, value) as a consumer gets them."""
    topic = stream.rows[0]
    keyed = key_schema(WIRE)
    assert keyed is not None
    encoder = Encoder(
        WIRE,
        key_schema_id=registry.register(f"{topic}-key", keyed),
        value_schema_id=registry.register(f"{topic}-value", value_schema(WIRE)),
        database="shop",
        migration="m",
    )
    rows = [encoder.encode(m, seq=i, **AT) for i, m in enumerate(MESSAGES)]

    class Refused(Exception):
        pass

    def refuse(_: object) -> bytes:
        raise Refused

    with pytest.raises(Refused):
        stream.writer().publish({(topic, 0): rows}, refuse)
    stream.writer().publish({(topic, 0): rows}, lambda extents: epoch_record(1, extents).to_json())
    consumer = Consumer(
        {
            "bootstrap.servers": stream.bootstrap,
            "group.id": f"{stream.prefix}.independent",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[tuple[bytes, bytes]] = []
    while len(found) < len(rows):
        message = consumer.poll(10)
        assert message is not None
        assert message.error() is None
        found.append((message.key() or b"", message.value() or b""))
    assert consumer.poll(1) is None
    consumer.close()
    return found


def check(keys: list[Any], values: list[Any]) -> None:
    insert, update, delete = values
    assert keys == [{"id": 1}, {"id": 2}, {"id": 2}]
    assert [v["op"] for v in values] == ["c", "u", "d"]
    assert insert["before"] is None
    assert insert["after"] == {
        "id": 1,
        FIELD: "Zoë",
        "balance": "12.50",
        "active": True,
        "score": 0.5,
        "photo": "\\xff",
    }
    assert update["before"]["id"] == 1
    assert update["before_missing"] == [FIELD, "balance", "active", "score", "photo"]
    assert update["after"][FIELD] == ""
    assert update["after"]["balance"] is None
    assert update["after"]["score"] != update["after"]["score"]
    assert update["missing"] == ["photo"]
    assert delete["after"] is None
    assert delete["before"]["id"] == 2
    assert insert["source"] == {
        "version": SOURCE_VERSION,
        "connector": "postgresql",
        "name": "m",
        "ts_ms": 1780000000000,
        "db": "shop",
        "schema": "Shop Floor",
        "table": "Kunden-Liste",
        "txId": 77,
        "lsn": 4096,
        "seq": 0,
    }


def test_confluents_deserializer_reads_the_topic(stream: Stream) -> None:
    with RegistryServer() as server:
        found = published(stream, ConfluentRegistry(server.url, {}))
        client = SchemaRegistryClient({"url": server.url})
        read: Callable[..., Any] = AvroDeserializer(client)
        topic = stream.rows[0]
        keys = [read(k, SerializationContext(topic, MessageField.KEY)) for k, _ in found]
        check(keys, [read(v, SerializationContext(topic, MessageField.VALUE)) for _, v in found])


def test_plain_fastavro_reads_the_topic_with_our_registry(stream: Stream) -> None:
    name = f"{stream.prefix}.schemas"
    stream.topics.ensure([TopicSpec(name=name, kind=Kind.SCHEMAS)])
    registry = TopicRegistry(stream.bootstrap, {}, name)
    found = published(stream, registry)

    def read(data: bytes) -> Any:
        zero, schema_id = struct.unpack(">BI", data[:5])
        assert zero == 0
        return fastavro.schemaless_reader(io.BytesIO(data[5:]), fastavro.parse_schema(registry.get(schema_id)))

    check([read(k) for k, _ in found], [read(v) for _, v in found])
    changes = [Decoder(registry.get).decode(v) for _, v in found]
    assert [c.table for c in changes] == ["Kunden-Liste"] * 3
    assert changes[1].after is not None
    assert changes[1].after["full name"] == ""
    assert changes[1].missing == ("photo",)
