"""What every Kafka client of ours shares: its settings, its log, and what librdkafka's errors mean for us.

Invariant: an option of the user's never weakens what correctness rests on; ours win. A secret never reaches an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from schemas.errors import ConfigError, Halt, PrivilegeMissing, SlackwaterError, StreamGap, Unavailable

log = logging.getLogger("slackwater.kafka")

Options = Mapping[str, Any]
GIGABYTE = 1_000_000_000  # librdkafka's own ceiling for a message


def settings(bootstrap: str, options: Options, **ours: Any) -> dict[str, Any]:
    """librdkafka's configuration: defaults, then the user's options, then `ours` with dots for underscores."""
    defaults: dict[str, Any] = {
        "client.id": "slackwater",
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 1000,
        "log.connection.close": False,
        "enable.metrics.push": False,  # what a broker would be told of this client, and need not be
    }
    callbacks = ("error_cb", "on_commit")
    mine = {name if name in callbacks else name.replace("_", "."): value for name, value in ours.items()}
    return {**defaults, **options, "bootstrap.servers": bootstrap, **mine, "logger": log}


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turns librdkafka's errors into ours. `doing` opens the message."""
    try:
        yield
    except KafkaException as error:
        raise translate(error.args[0], doing) from error


@contextmanager
def unmasked() -> Iterator[None]:
    """A fatal error is raised out of a callback; when another callback follows it, Python wraps what it finds."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, KafkaException):
            raise error.__cause__ from None
        raise


_AUTHORIZATION = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
AUTHENTICATION = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
    KafkaError._SSL,
}
MISSING_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
}
BROKER_LEFT = getattr(KafkaError, "_DESTROY_BROKER", KafkaError._DESTROY)  # a broker that was asked is one no more
OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
_LOST_PRODUCER = {  # a new producer, through the whole start order, is the answer to all of them
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    KafkaError.INVALID_TXN_STATE,
}
_AGAIN = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._DESTROY,
    BROKER_LEFT,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_CONTROLLER,
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.THROTTLING_QUOTA_EXCEEDED,
}


def translate(error: KafkaError, doing: str) -> SlackwaterError:
    """What a librdkafka error means for us. An unknown one is a Halt: it is never retried in silence."""
    code = error.code()
    cause = f"{doing}: {error.str()} ({error.name()})"
    if code == KafkaError._INVALID_ARG:
        return ConfigError(cause, hint="see kafka.options in the migration's file; they are librdkafka's own")
    if code in _LOST_PRODUCER:
        return Unavailable(
            cause,
            hint="its Kafka transaction was ended by the broker: a newer process took over, or it stayed open too long;"
            " it starts anew by itself, and the replication slot decides who owns the stream",
        )
    if code in _AUTHORIZATION:
        return PrivilegeMissing(cause, hint="give this principal the ACLs that the README lists under Kafka")
    if code in AUTHENTICATION:
        return PrivilegeMissing(cause, hint="check sasl.* and ssl.* under kafka.options, and security.protocol")
    if code in MISSING_TOPIC:
        return StreamGap(cause, hint="a topic is missing; what it held is gone: `slackwater cancel`, then prepare anew")
    if code in OUT_OF_RANGE:
        return StreamGap(
            cause,
            hint="Kafka deleted records that were not applied yet (retention, or the topic was made anew):"
            " `slackwater cancel`, then prepare anew",
        )
    if code in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE):
        return Halt(cause, hint="raise max.message.bytes of the topic, and socket.request.max.bytes of the brokers")
    if code == KafkaError.INVALID_TRANSACTION_TIMEOUT:
        return Halt(
            cause, hint="transaction.timeout.ms under kafka.options is above the broker's transaction.max.timeout.ms"
        )
    if code in _AGAIN or (error.retriable() and not error.fatal()):
        return Unavailable(cause, hint="check that Kafka is up and reachable; it is tried again by itself")
    return Halt(cause, hint="see the broker's log for this request")
