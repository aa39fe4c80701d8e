"""The topics of a migration: made with the settings that correctness needs, or held against them.

Invariant: row topics are never compacted and keep every record until it is applied (hazards C5, C6): a topic that does
less is refused, with the command that puts it right.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from connectors.kafka.client import AUTHENTICATION, BROKER_LEFT, MISSING_TOPIC, Options, settings, translate, translated
from connectors.kafka.offsets import Offsets, Part
from schemas.errors import SlackwaterError, StreamGap, Unavailable
from schemas.problem import Problem

T = TypeVar("T")

MAX_MESSAGE_BYTES = 100_000_000  # within a broker's default socket.request.max.bytes, 100 MiB
DEFAULT_MESSAGE_BYTES = 1_048_588
DEFAULT_TRANSACTION_MS = 900_000
_UNLIMITED = -1
_MOVING_S = 5.0
_NEW_S = 60.0  # what a busy broker may take to lead partitions that were just made
_MOVING = {  # a partition that is new, or changes its leader; or a topic that is not there
    KafkaError._NOENT,
    BROKER_LEFT,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    *MISSING_TOPIC,
}


class Kind(StrEnum):
    """What a topic is for."""

    ROWS = "rows"
    EPOCHS = "epochs"
    SCHEMAS = "schemas"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic that a migration needs. `retention_s` None: unlimited; `replication_factor` None: the broker's own."""

    name: str
    kind: Kind = Kind.ROWS
    partitions: int = 1
    replication_factor: int | None = None
    retention_s: float | None = None

    @property
    def retention_ms(self) -> int:
        unlimited = self.retention_s is None or self.kind is not Kind.ROWS
        return _UNLIMITED if unlimited else int((self.retention_s or 0) * 1000)

    @property
    def config(self) -> dict[str, str]:
        """The topic settings that it is made with."""
        if self.kind is Kind.SCHEMAS:
            return {"cleanup.policy": "compact"}
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": str(_UNLIMITED),
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
            "message.timestamp.type": "CreateTime",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """What preflight and the writer need to know of a cluster. None: the broker does not let us read it."""

    brokers: int
    cluster_id: str | None
    transaction_max_timeout_ms: int | None
    message_max_bytes: int | None
    socket_request_max_bytes: int | None
    min_insync_replicas: int | None
    default_replication_factor: int | None
    unclean_leader_election: bool | None


class Topics:
    """Administration of one cluster; `timeout_s` is for each request. Errors: Unavailable, PrivilegeMissing, Halt."""

    def __init__(self, bootstrap: str, options: Options, *, timeout_s: float = 15.0) -> None:
        self._bootstrap = bootstrap
        self._timeout_s = timeout_s
        self._offsets = Offsets(bootstrap, options, timeout_s=timeout_s)
        self._errors: deque[KafkaError] = deque(maxlen=100)
        with translated(f"connecting to Kafka at {bootstrap}"):
            # Not a method of ours: librdkafka's threads are to end with the last reference, wherever that is dropped.
            self._admin = AdminClient(settings(bootstrap, options, error_cb=self._errors.append))

    def broker_facts(self) -> BrokerFacts:
        """Facts about the cluster, as one of its brokers has them."""
        try:
            metadata = self._admin.list_topics(timeout=self._timeout_s)
        except KafkaException as error:
            raise self._translated(error.args[0], f"asking Kafka at {self._bootstrap}") from error
        config: dict[str, str | None] = {}
        if metadata.brokers:
            broker = str(min(metadata.brokers))
            try:
                config = self._config(ResourceType.BROKER, [broker])[broker]
            except KafkaException as error:
                if error.args[0].code() not in (
                    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
                    KafkaError.INVALID_REQUEST,
                    KafkaError.UNSUPPORTED_VERSION,
                ):
                    raise self._translated(error.args[0], "reading the brokers' settings") from error
        return BrokerFacts(
            brokers=len(metadata.brokers),
            cluster_id=metadata.cluster_id,
            transaction_max_timeout_ms=_int(config.get("transaction.max.timeout.ms")),
            message_max_bytes=_int(config.get("message.max.bytes")),
            socket_request_max_bytes=_int(config.get("socket.request.max.bytes")),
            min_insync_replicas=_int(config.get("min.insync.replicas")),
            default_replication_factor=_int(config.get("default.replication.factor")),
            unclean_leader_election=_bool(config.get("unclean.leader.election.enable")),
        )

    def partitions(self, names: Iterable[str]) -> dict[str, int]:
        """How many partitions each topic has; one that is not there is left out."""
        return {name: len(t.partitions) for name, t in self._described(list(names)).items()}

    def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        """Each topic's id, which a topic made anew under the same name does not share. Missing ones are left out."""
        return {name: str(t.topic_id) for name, t in self._described(list(names)).items()}

    def ensure(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Make what is missing, and return what was made. What is there is left as it is; see `check`.

        Returns once each of their partitions has a leader that answers.
        """
        present = self._described([s.name for s in specs])
        missing = [s for s in specs if s.name not in present]
        if not missing:
            return []
        made: list[str] = []
        new = [
            NewTopic(
                s.name,
                num_partitions=s.partitions if s.kind is Kind.ROWS else 1,
                replication_factor=s.replication_factor if s.replication_factor is not None else -1,
                config=s.config,
            )
            for s in missing
        ]
        for name, future in self._admin.create_topics(new, operation_timeout=self._timeout_s).items():
            try:
                future.result()
                made.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._translated(error.args[0], f"creating topic {name}") from error
        self._until(lambda: len(self._described([s.name for s in missing])) == len(missing), "new topics to appear")
        parts = [(n.topic, p) for n in new for p in range(n.num_partitions)]
        self._led(lambda: self._offsets.end(parts), parts, _NEW_S)
        return made

    def check(self, specs: Sequence[TopicSpec]) -> list[Problem]:
        """What is wrong with the topics as they are, with the command that puts it right."""
        present = self._described([s.name for s in specs])
        try:
            configs = self._config(ResourceType.TOPIC, list(present))
        except KafkaException as error:
            raise self._translated(error.args[0], "reading the topics' settings") from error
        problems: list[Problem] = []
        for spec in specs:
            if spec.name not in present:
                problems.append(
                    Problem(where=f"topic {spec.name}", cause="it does not exist", remedy="slackwater prepare")
                )
            else:
                problems += _judge(spec, configs[spec.name], len(present[spec.name].partitions))
        return problems

    def max_message_bytes(self, topic: str) -> int:
        """The largest record batch that a topic takes; the broker's default where it may not be read."""
        try:
            config = self._config(ResourceType.TOPIC, [topic])[topic]
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return DEFAULT_MESSAGE_BYTES
            raise self._translated(error.args[0], f"reading the settings of topic {topic}") from error
        return _int(config.get("max.message.bytes")) or DEFAULT_MESSAGE_BYTES

    def delete(self, names: Iterable[str]) -> list[str]:
        """Delete topics, and return those that were there. Returns once they are gone."""
        present = list(self._described(list(names)))
        if not present:
            return []
        for name, future in self._admin.delete_topics(present, operation_timeout=self._timeout_s).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() not in MISSING_TOPIC:
                    raise self._translated(error.args[0], f"deleting topic {name}") from error
        self._until(lambda: not self._described(present), "topics to go away")
        return present

    def stable_ends(self, parts: Iterable[Part], *, within_s: float = _MOVING_S) -> dict[Part, tuple[int, int, int]]:
        """Per topic-partition: first offset, last stable offset, end of the log.

        Below the last stable offset no transaction is open; a reader of committed records sees no further. A partition
        without a leader is waited for.
        Errors: StreamGap (no such topic), Unavailable.
        """
        wanted = list(parts)

        def ask() -> dict[Part, tuple[int, int, int]]:
            first, stable = self._offsets.first(wanted), self._offsets.stable(wanted)
            end = self._offsets.end(wanted)  # asked last: none is before the stable offset beside it
            return {part: (first[part], stable[part], end[part]) for part in wanted}

        return self._led(ask, wanted, within_s)

    def _led(self, ask: Callable[[], T], wanted: Sequence[Part], within_s: float) -> T:
        """What `ask` answers once each partition has a leader."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                return ask()
            except KafkaException as error:
                if error.args[0].code() not in _MOVING:
                    raise self._translated(error.args[0], "asking Kafka for offsets") from error
                if time.monotonic() > deadline:
                    names = {topic for topic, _ in wanted}
                    missing = sorted(names - self.topic_ids(names).keys())
                    if missing:
                        raise StreamGap(
                            f"topic {missing[0]} does not exist",
                            hint="what it held is gone: `slackwater cancel`, then prepare anew",
                        ) from error
                    raise Unavailable(
                        f"asking Kafka for offsets: a partition has no leader ({error.args[0].name()})",
                        hint="check that all brokers are up; it is tried again by itself",
                    ) from error
            time.sleep(0.1)

    def _translated(self, error: KafkaError, doing: str) -> SlackwaterError:
        """A refused login shows as a request that timed out; the reason is in librdkafka's own events."""
        self._admin.poll(0)
        refused = next((e for e in self._errors if e.code() in AUTHENTICATION), None)
        return translate(refused or error, doing)

    def _described(self, names: list[str]) -> dict[str, Any]:
        if not names:
            return {}
        found: dict[str, Any] = {}
        futures = self._admin.describe_topics(TopicCollection(names), request_timeout=self._timeout_s)
        for name, future in futures.items():
            try:
                found[name] = future.result()
            except KafkaException as error:
                if error.args[0].code() not in MISSING_TOPIC:
                    raise self._translated(error.args[0], f"describing topic {name}") from error
        return found

    def _config(self, kind: Any, names: list[str]) -> dict[str, dict[str, str | None]]:
        if not names:
            return {}
        resources = [ConfigResource(kind, name) for name in names]
        answers = self._admin.describe_configs(resources, request_timeout=self._timeout_s)
        return {r.name: {k: e.value for k, e in f.result().items()} for r, f in answers.items()}

    def _until(self, done: Any, what: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Kafka takes too long for {what}", hint="look at the controller's log, then try again"
                )
            time.sleep(0.05)


def _judge(spec: TopicSpec, config: Mapping[str, str | None], partitions: int) -> Iterable[Problem]:
    where = f"topic {spec.name}"

    def alter(setting: str) -> str:
        return f"kafka-configs.sh --alter --entity-type topics --entity-name {spec.name} --add-config {setting}"

    policies = set((config.get("cleanup.policy") or "delete").split(","))
    if spec.kind is Kind.SCHEMAS:
        if "delete" in policies and (_int(config.get("retention.ms")) or _UNLIMITED) >= 0:
            yield Problem(where=where, cause="it forgets schemas in time", remedy=alter("cleanup.policy=compact"))
        return
    if "compact" in policies:
        yield Problem(
            where=where,
            cause="it is compacted: only the newest record of each key would be kept, and rows would be lost",
            remedy=alter("cleanup.policy=delete")
            + "; what it has lost already stays lost: prepare into a new topic_prefix",
        )
    retention = _int(config.get("retention.ms"))
    wanted = spec.retention_ms
    if retention is not None and retention >= 0 and (wanted == _UNLIMITED or retention < wanted):
        days = "unlimited" if wanted == _UNLIMITED else f"{wanted / 1000:,.0f} s"
        yield Problem(
            where=where,
            cause=f"it keeps records for {retention / 1000:,.0f} s, the migration needs {days}",
            remedy=alter(f"retention.ms={wanted}"),
        )
    size = _int(config.get("retention.bytes"))
    if size is not None and size >= 0:
        yield Problem(
            where=where,
            cause=f"it keeps {size:,} bytes per partition, whether applied or not",
            remedy=alter("retention.bytes=-1"),
        )
    if spec.kind is Kind.EPOCHS and partitions != 1:
        yield Problem(
            where=where,
            cause=f"it has {partitions} partitions; the order of epochs needs exactly one",
            remedy="delete it, or choose another topic_prefix; prepare makes it anew",
        )


def _int(text: str | None) -> int | None:
    return None if text is None or text == "" else int(text)


def _bool(text: str | None) -> bool | None:
    return None if text is None else text == "true"
