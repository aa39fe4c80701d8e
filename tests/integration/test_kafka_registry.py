"""Schemas by id: the compacted topic, and a Confluent-compatible registry."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from connectors.kafka import registry as registry_module
from connectors.kafka.registry import ConfluentRegistry, TopicRegistry, open_registry
from connectors.kafka.topics import Kind, TopicSpec
from schemas.envelope import Schema, value_schema
from schemas.errors import Halt, PrivilegeMissing, Unavailable
from schemas.wire import Wire, WireColumn
from tests.fixtures.registry import RegistryServer
from tests.fixtures.stream import Stream


def schema(n: int) -> Schema:
    columns = tuple(WireColumn(name=f"c{i}", type_oid=25, type="text") for i in range(n))
    return value_schema(Wire(schema="public", table="t", columns=columns, key=(), identity_columns=()))


@pytest.fixture
def topic(stream: Stream) -> str:
    name = f"{stream.prefix}.schemas"
    stream.topics.ensure([TopicSpec(name=name, kind=Kind.SCHEMAS)])
    return name


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


def test_a_schema_keeps_its_id_for_everybody(stream: Stream, topic: str) -> None:
    first = TopicRegistry(stream.bootstrap, {}, topic)
    second = TopicRegistry(stream.bootstrap, {}, topic)
    ids = [first.register("t-value", schema(n)) for n in range(3)]
    assert len(set(ids)) == 3
    assert [second.register("t-value", schema(n)) for n in range(3)] == ids
    assert first.register("other-value", schema(0)) not in ids
    assert [second.get(i) for i in ids] == [schema(n) for n in range(3)]
    assert all(0 <= i < 1 << 31 for i in ids)
    assert [TopicRegistry(stream.bootstrap, {}, topic).get(i) for i in ids] == [schema(n) for n in range(3)]


def test_ids_that_meet_are_told_apart(stream: Stream, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "schema_digest", lambda _subject, _text, salt: 5 + salt)
    first = TopicRegistry(stream.bootstrap, {}, topic)
    second = TopicRegistry(stream.bootstrap, {}, topic)
    assert [first.register("a", schema(1)), second.register("a", schema(2)), first.register("a", schema(3))] == [
        5,
        6,
        7,
    ]
    assert [second.register("a", schema(n)) for n in (3, 1, 2)] == [7, 5, 6]
    assert second.get(6) == schema(2)


def test_racing_for_one_id_ends_with_one_owner(stream: Stream, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "schema_digest", lambda _subject, _text, salt: 5 + salt)
    registries = [TopicRegistry(stream.bootstrap, {}, topic) for _ in range(4)]
    given: dict[int, int] = {}

    def register(n: int) -> None:
        given[n] = registries[n].register("a", schema(n))

    threads = [threading.Thread(target=register, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given.values()) == [5, 6, 7, 8]
    fresh = TopicRegistry(stream.bootstrap, {}, topic)
    assert {n: fresh.get(i) for n, i in given.items()} == {n: schema(n) for n in range(4)}


def test_an_id_on_its_way_is_waited_for_and_an_unknown_one_halts(stream: Stream, topic: str) -> None:
    reader = TopicRegistry(stream.bootstrap, {}, topic, timeout_s=10)
    writer = TopicRegistry(stream.bootstrap, {}, topic)
    expected = registry_module.schema_digest("t", registry_module.canonical(schema(1)), 0)
    timer = threading.Timer(0.7, lambda: writer.register("t", schema(1)))
    timer.start()
    assert reader.get(expected) == schema(1)
    timer.join()
    with pytest.raises(Halt, match="schema 12345 is not in"):
        TopicRegistry(stream.bootstrap, {}, topic, timeout_s=0.5).get(12345)


def test_a_confluent_registry_by_its_own_client(stream: Stream, server: RegistryServer) -> None:
    registry = open_registry(server.url, {}, stream.bootstrap, {}, "unused")
    assert isinstance(registry, ConfluentRegistry)
    schema_id = registry.register("t-value", schema(2))
    assert registry.register("t-value", schema(2)) == schema_id
    assert ConfluentRegistry(server.url, {}).get(schema_id) == schema(2)
    with pytest.raises(Halt, match="404"):
        registry.get(999)


@pytest.mark.parametrize(
    ("status", "error", "hint"),
    [(409, Halt, "compatibility"), (401, PrivilegeMissing, "basic.auth"), (422, Halt, "log"), (503, Unavailable, "up")],
)
def test_a_registrys_refusals(server: RegistryServer, status: int, error: type[Halt], hint: str) -> None:
    server.refuse_with = status
    registry = ConfluentRegistry(server.url, {"max.retries": 0})
    with pytest.raises(error, match=f"HTTP {status}") as raised:
        registry.register("t-value", schema(1))
    assert hint in raised.value.hint


def test_a_registry_that_is_not_there() -> None:
    with pytest.raises(Unavailable):
        ConfluentRegistry("http://127.0.0.1:1", {"max.retries": 0}).register("t", schema(1))
