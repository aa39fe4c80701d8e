"""Topics: made as they must be, or refused with the command that puts them right."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from connectors.kafka.topics import Kind, Topics, TopicSpec
from connectors.local.processes import until
from schemas.errors import ConfigError, Unavailable
from tests.fixtures.stream import Stream


def make(stream: Stream, name: str, partitions: int = 1, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": stream.bootstrap})
    new = NewTopic(name, num_partitions=partitions, config={k.replace("_", "."): v for k, v in config.items()})
    admin.create_topics([new])[name].result()
    assert until(lambda: stream.topics.partitions([name]) == {name: partitions}, timeout_s=30)  # the broker hears later


def test_what_is_made_passes_its_own_check(stream: Stream) -> None:
    specs = [
        TopicSpec(name=f"{stream.prefix}.c", partitions=5, retention_s=86400),
        TopicSpec(name=f"{stream.prefix}.d"),
        TopicSpec(name=f"{stream.prefix}.schemas", kind=Kind.SCHEMAS, partitions=9),
        TopicSpec(name=f"{stream.prefix}.e.epochs", kind=Kind.EPOCHS, partitions=9, retention_s=60),
    ]
    assert stream.topics.ensure(specs) == [s.name for s in specs]
    assert stream.topics.ensure(specs) == []
    assert stream.topics.check([*specs, *stream.specs]) == []
    assert list(stream.topics.partitions([s.name for s in specs]).values()) == [5, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "partitions", "config", "cause", "remedy"),
    [
        (Kind.ROWS, 1, {"cleanup_policy": "compact"}, "it is compacted", "cleanup.policy=delete"),
        (Kind.ROWS, 1, {"cleanup_policy": "compact,delete"}, "it is compacted", "cleanup.policy=delete"),
        (Kind.ROWS, 1, {"retention_ms": "60000"}, "keeps records for 60 s, the migration needs", "retention.ms="),
        (Kind.ROWS, 1, {"retention_bytes": "1000000"}, "keeps 1,000,000 bytes", "retention.bytes=-1"),
        (Kind.EPOCHS, 1, {}, "the migration needs unlimited", "retention.ms=-1"),
        (Kind.EPOCHS, 3, {"retention_ms": "-1"}, "3 partitions", "topic_prefix"),
        (Kind.SCHEMAS, 1, {}, "forgets schemas", "cleanup.policy=compact"),
    ],
)
def test_what_would_lose_rows_is_refused(
    stream: Stream, kind: Kind, partitions: int, config: dict[str, str], cause: str, remedy: str
) -> None:
    name = f"{stream.prefix}.bad"
    make(stream, name, partitions, **config)
    wanted = 30 * 86400.0 if kind is Kind.ROWS else None
    problems = stream.topics.check([TopicSpec(name=name, kind=kind, retention_s=wanted)])
    assert any(cause in p.cause and remedy in p.remedy and name in p.where for p in problems), problems


def test_a_missing_topic_is_a_problem(stream: Stream) -> None:
    (problem,) = stream.topics.check([TopicSpec(name=f"{stream.prefix}.none")])
    assert "does not exist" in problem.cause


def test_a_topic_made_anew_has_another_id(stream: Stream) -> None:
    name = stream.rows[0]
    before = stream.topics.topic_ids([name, f"{stream.prefix}.none"])
    assert list(before) == [name]
    assert stream.topics.delete([name, f"{stream.prefix}.none"]) == [name]
    assert stream.topics.topic_ids([name]) == {}
    stream.topics.ensure(stream.specs)
    assert stream.topics.topic_ids([name])[name] != before[name]


def test_facts_of_the_cluster(stream: Stream) -> None:
    facts = stream.topics.broker_facts()
    assert facts.brokers >= 1
    assert facts.transaction_max_timeout_ms == 900_000
    assert facts.socket_request_max_bytes
    assert facts.min_insync_replicas


def test_an_unknown_option_and_a_broker_that_is_not_there(stream: Stream) -> None:
    with pytest.raises(ConfigError, match=r"no\.such\.option"):
        Topics(stream.bootstrap, {"no.such.option": "1"})
    with pytest.raises(Unavailable):
        Topics("127.0.0.1:1", {}, timeout_s=2).broker_facts()
