"""What Kafka must be, before epochs stand in it."""

from __future__ import annotations

from collections.abc import Iterable

from connectors.kafka.registry import ConfluentRegistry
from connectors.kafka.topics import MAX_MESSAGE_BYTES, BrokerFacts
from schemas.direction import Direction, epochs_topic, schemas_topic, topic_name
from schemas.errors import SlackwaterError
from schemas.spec import Spec
from stream.migration.topics import FlowTopics
from stream.preflight.finding import Findings

SHORT_TRANSACTION_MS = 60_000


def topic_names(spec: Spec, tables: Iterable[str]) -> tuple[list[str], str, str | None]:
    """(row topics, the epochs topic, the schemas topic or None) of the forward flow."""
    prefix, migration = spec.kafka.topic_prefix, spec.migration
    rows = [topic_name(prefix, migration, Direction.FORWARD, spec.old.schema_, table) for table in tables]
    schemas = None if spec.kafka.registry.url else schemas_topic(prefix, migration)
    return rows, epochs_topic(prefix, migration, Direction.FORWARD), schemas


def examine(spec: Spec, topics: FlowTopics, tables: Iterable[str], found: Findings) -> None:
    """The cluster, and those of the topics that are there already."""
    try:
        judge(spec, topics.brokers(), found)
        names = topic_names(spec, tables)
        for problem in topics.check(*names):
            found.problem("topic", problem.cause, problem.remedy, problem.where)
        for name, limit in topics.small(names[0], MAX_MESSAGE_BYTES).items():
            found.warning(
                "max_message_bytes",
                f"it takes records of up to {limit:,} bytes: a larger row would halt capture",
                f"kafka-configs.sh --alter --entity-type topics --entity-name {name}"
                f" --add-config max.message.bytes={MAX_MESSAGE_BYTES}",
                f"topic {name}",
            )
        if spec.kafka.registry.url is not None:
            ConfluentRegistry(spec.kafka.registry.url, spec.kafka.registry.options).ping()
    except SlackwaterError as error:
        found.problem("kafka", error.cause, error.hint, "kafka")


def judge(spec: Spec, facts: BrokerFacts, found: Findings) -> None:
    """What is wrong with the cluster itself. Pure."""
    wanted = spec.kafka.replication_factor
    effective = wanted if wanted is not None else facts.default_replication_factor
    if wanted is not None and wanted > facts.brokers:
        found.problem(
            "replication_factor",
            f"replication_factor is {wanted}, and the cluster has {facts.brokers} brokers",
            f"set kafka.replication_factor to {facts.brokers} or less",
            "kafka",
        )
    elif facts.brokers >= 3 and effective is not None and effective < 3:
        found.problem(
            "replication_factor",
            f"topics would have {effective} replicas on {facts.brokers} brokers: one broker lost could lose rows",
            "set kafka.replication_factor: 3",
            "kafka",
        )
    if facts.brokers >= 3 and facts.min_insync_replicas is not None and facts.min_insync_replicas < 2:
        found.warning(
            "min_insync_replicas",
            "min.insync.replicas is 1: an epoch counts as safe while one broker alone has it",
            "set min.insync.replicas=2 on the cluster or on this migration's topics",
            "kafka",
        )
    if facts.unclean_leader_election:
        found.warning(
            "unclean_leader_election",
            "unclean.leader.election.enable is true: a replica that lags may become leader and drop records",
            "set it to false",
            "kafka",
        )
    if facts.transaction_max_timeout_ms is not None and facts.transaction_max_timeout_ms < SHORT_TRANSACTION_MS:
        found.warning(
            "transaction_max_timeout",
            f"transaction.max.timeout.ms is {facts.transaction_max_timeout_ms}: an epoch must reach Kafka within it",
            "raise it to 900000, Kafka's default",
            "kafka",
        )
    if facts.socket_request_max_bytes is not None and facts.socket_request_max_bytes <= MAX_MESSAGE_BYTES:
        found.warning(
            "socket_request_max_bytes",
            f"socket.request.max.bytes is {facts.socket_request_max_bytes:,}: a larger row would halt capture",
            f"raise it above {MAX_MESSAGE_BYTES:,} on every broker, and restart them",
            "kafka",
        )
