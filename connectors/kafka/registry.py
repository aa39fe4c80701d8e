"""Where schemas live: a Confluent-compatible registry, or a compacted topic of our own.

Invariant: an id, once given, always means the same schema; an unknown id is an error, never a guess (hazard C10).
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from fastavro.schema import SchemaParseException, UnknownType, parse_schema

from connectors.kafka.client import Options, settings, translate, translated
from connectors.kafka.topics import Topics
from schemas.envelope import Schema
from schemas.errors import ConfigError, Halt, PrivilegeMissing, Unavailable

_TIMEOUT_S = 15.0


class Registry(Protocol):
    """Both kinds. Errors: Unavailable, PrivilegeMissing, Halt (an incompatible or unknown schema)."""

    def register(self, subject: str, schema: Schema) -> int:
        """The id of a schema, given anew or known already."""
        ...

    def get(self, schema_id: int) -> Schema:
        """The schema of an id."""
        ...


def open_registry(url: str | None, registry_options: Options, bootstrap: str, options: Options, topic: str) -> Registry:
    """The registry at `url`, or the compacted topic where there is none."""
    if url:
        return ConfluentRegistry(url, registry_options)
    return TopicRegistry(bootstrap, options, topic)


def canonical(schema: Schema) -> str:
    """A schema as text, the same for the same schema.

    Errors: Halt on what is not an Avro schema: nobody could read rows written with it.
    """
    try:
        parse_schema(schema)
    except (SchemaParseException, UnknownType) as error:
        raise Halt(f"not an Avro schema: {error}", hint="report this: nothing was written with it") from error
    return json.dumps(schema, sort_keys=True, separators=(",", ":"))


class TopicRegistry:
    """Schemas in a compacted topic, one record each.

    An id is the first 31 bits of a digest of subject and schema, so everybody finds the same one. Should two ever meet,
    the one that is first in the topic keeps the id, and the other takes the first 31 bits of its next digest.
    """

    def __init__(self, bootstrap: str, options: Options, topic: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._bootstrap = bootstrap
        self._options = options
        self._topic = topic
        self._timeout_s = timeout_s
        self._topics = Topics(bootstrap, options)
        self._lock = threading.Lock()
        self._by_id: dict[int, tuple[str, str]] = {}
        self._parsed: dict[int, Schema] = {}
        self._next = 0
        with self._lock:
            self._read()

    def register(self, subject: str, schema: Schema) -> int:
        """See `Registry`. Safe against others doing the same at the same time: the topic's order decides."""
        text = canonical(schema)
        with self._lock:
            for salt in range(64):
                schema_id = schema_digest(subject, text, salt)
                if schema_id not in self._by_id:
                    self._write(schema_id, subject, text)
                    self._read()
                if self._by_id.get(schema_id) == (subject, text):
                    return schema_id
        raise Halt(f"no free id for the schema of {subject}", hint="give the schemas a topic of their own")

    def get(self, schema_id: int) -> Schema:
        """See `Registry`. An id that is not here yet may be on its way: it is waited for."""
        found = self._parsed.get(schema_id)
        if found is not None:
            return found
        deadline = time.monotonic() + self._timeout_s
        with self._lock:
            while schema_id not in self._by_id:
                self._read()
                if schema_id in self._by_id:
                    break
                if time.monotonic() > deadline:
                    raise Halt(
                        f"schema {schema_id} is not in {self._topic}",
                        hint="the topic was emptied or made anew, or the migration now uses another registry than"
                        " when these rows were written: `slackwater cancel`, then prepare anew",
                    )
                time.sleep(0.2)
            parsed: Schema = json.loads(self._by_id[schema_id][1])
            self._parsed[schema_id] = parsed
            return parsed

    def _write(self, schema_id: int, subject: str, text: str) -> None:
        """One record, acknowledged by every replica. The key holds the content: compaction keeps one record of each."""
        failed: list[KafkaError] = []

        def note(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failed.append(error)

        digest = hashlib.sha256(f"{subject}\n{text}".encode()).hexdigest()
        value = json.dumps({"id": schema_id, "subject": subject, "schema": text}).encode()
        with translated(f"writing to {self._topic}"):
            producer = Producer(
                settings(
                    self._bootstrap,
                    self._options,
                    acks="all",
                    enable_idempotence=False,  # a record twice means the same; a producer id takes 0.5 s
                    message_timeout_ms=int(self._timeout_s * 1000),
                )
            )
            producer.produce(self._topic, value, f"{schema_id}:{digest}".encode(), 0, note)
            if producer.flush(self._timeout_s + 5):
                raise Unavailable(f"Kafka does not take a record for {self._topic}", hint="check that Kafka is up")
        if failed:
            raise translate(failed[0], f"writing to {self._topic}")

    def _read(self) -> None:
        """Everything up to the topic's end as it is now."""
        first, _, end = self._topics.stable_ends([(self._topic, 0)])[self._topic, 0]
        if end <= self._next:
            return
        with translated(f"reading {self._topic}"):
            consumer = Consumer(
                settings(
                    self._bootstrap,
                    self._options,
                    group_id=f"{self._topic}.reader",
                    check_crcs=True,
                    enable_auto_commit=False,
                    enable_partition_eof=True,
                    auto_offset_reset="error",
                )
            )
            try:
                consumer.assign([TopicPartition(self._topic, 0, max(first, self._next))])
                self._consume(consumer, end)
            finally:
                consumer.close()

    def _consume(self, consumer: Consumer, end: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        while self._next < end:
            message = consumer.poll(0.5)
            if message is None:
                if time.monotonic() > deadline:
                    raise Unavailable(f"Kafka does not hand out {self._topic}", hint="check that Kafka is up")
                continue
            error = message.error()
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                self._next = max(self._next, message.offset() or 0)
                continue
            try:
                doc = json.loads(message.value() or b"")
                claim = (int(doc["id"]), str(doc["subject"]), str(doc["schema"]))
            except (ValueError, KeyError, TypeError) as problem:
                raise Halt(
                    f"{self._topic}, offset {message.offset()}: not a schema ({type(problem).__name__})",
                    hint="something other than slackwater writes to this topic: find it and stop it",
                ) from problem
            self._by_id.setdefault(claim[0], claim[1:])
            self._next = (message.offset() or 0) + 1


def schema_digest(subject: str, text: str, salt: int) -> int:
    """The first 31 bits of a digest."""
    digest = hashlib.sha256(f"{salt}\n{subject}\n{text}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class ConfluentRegistry:
    """A registry that speaks Confluent's protocol, through confluent-kafka's own client (extra `registry`)."""

    def __init__(self, url: str, options: Options) -> None:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise ConfigError(
                f"kafka.registry.url needs a client that is not installed: {error.name}",
                hint="pip install 'slackwater[registry]'",
            ) from error
        conf: Mapping[str, Any] = {"url": url, **options}
        try:
            self._client = SchemaRegistryClient(dict(conf))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"kafka.registry: {error}", hint="see confluent-kafka's SchemaRegistryClient") from error
        self._url = url
        self._parsed: dict[int, Schema] = {}

    def ping(self) -> None:
        """Ask it anything. Errors: Unavailable, PrivilegeMissing, Halt."""
        self._ask(self._client.get_subjects, "asking for the subjects")

    def register(self, subject: str, schema: Schema) -> int:
        from confluent_kafka.schema_registry import Schema as RegistrySchema

        return int(
            self._ask(
                lambda: self._client.register_schema(subject, RegistrySchema(json.dumps(schema), "AVRO")),
                f"registering the schema of {subject}",
            )
        )

    def get(self, schema_id: int) -> Schema:
        if schema_id not in self._parsed:
            found = self._ask(lambda: self._client.get_schema(schema_id), f"looking up schema {schema_id}")
            self._parsed[schema_id] = json.loads(found.schema_str)
        return self._parsed[schema_id]

    def _ask(self, call: Any, doing: str) -> Any:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        cause = f"{doing} at the schema registry"
        try:
            return call()
        except SchemaRegistryError as error:
            cause = f"{cause}: {error.error_message} (HTTP {error.http_status_code})"
            if error.http_status_code in (401, 403):
                raise PrivilegeMissing(
                    cause, hint="check kafka.registry.options, basic.auth.user.info above all"
                ) from error
            if error.http_status_code == 409:
                raise Halt(
                    cause,
                    hint="the subject holds a schema that this one is not compatible with: delete the subject, or set"
                    " its compatibility to NONE",
                ) from error
            if error.http_status_code == 404:
                raise Halt(cause, hint="the registry lost it, or kafka.registry.url names another one now") from error
            if error.http_status_code in (408, 429) or error.http_status_code >= 500:
                raise Unavailable(cause, hint="check that the registry is up; it is tried again by itself") from error
            raise Halt(cause, hint="see the registry's log") from error
        except Exception as error:
            # The client lets its HTTP library's errors through, and which library that is differs between versions.
            if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            raise Unavailable(
                f"{cause}: {type(error).__name__}", hint="check that the registry is up and reachable"
            ) from error
