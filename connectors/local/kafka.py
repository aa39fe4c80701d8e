"""An embedded Kafka: one KRaft node, broker and controller in one process, in a folder of its own.

Invariant: a folder belongs to one broker; what a crash leaves in it (locks, open segments) never stops the next start.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from connectors.local import jars, warmup
from connectors.local.binaries import java
from connectors.local.processes import (
    Identity,
    LocalFailed,
    exclusive,
    free_port,
    port_is_free,
    read_identity,
    spawn,
    tail,
    until,
    write_identity,
    write_whole,
)

HEAP = "512m"
SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    # one node holds every copy there is
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # fifty partitions of each are made at first use, for nothing
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # a broker that was killed may register again only once its old session has run out
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "log.cleaner.dedupe.buffer.size": "16777216",  # 128 MB of a 512 MB heap by default
}
JVM = (
    f"-Xmx{HEAP}",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Xlog:disable",  # the cache of `warmup` has Java grumble about details of itself
    "-Xlog:all=error:stderr",
    "-Djava.awt.headless=true",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)


class Kafka:
    """One broker: `folder` holds its data, log, settings and the identity of its process."""

    def __init__(self, folder: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder.absolute()
        self.wanted_port = port
        self.settings = dict(settings or {})
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"

    @property
    def port(self) -> int:
        """The port of the running broker, or the one it ran on last."""
        return self._ports()[0]

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def identity(self) -> Identity | None:
        """The running broker; None where none runs."""
        recorded = read_identity(self.folder / "process.json")
        if recorded is not None and recorded.alive:
            return recorded
        # `up` may have died between starting a broker and writing down which: its command line names the folder.
        return next((i for p in psutil.process_iter() if self._mark in _command(p) and (i := Identity.of(p.pid))), None)

    @property
    def running(self) -> bool:
        return self.identity is not None

    def start(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Start the broker where it does not run; returns when it answers. The first start ever downloads it."""
        if self.running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        class_path = jars.class_path(progress=progress)
        self._format()
        options = warmup.options(class_path, JVM, progress)
        for _ in range(5):
            port, controller_port = self._choose_ports()
            self._configure(port, controller_port)
            progress(f"Kafka: starting on port {port}")
            began_at = self.log.stat().st_size if self.log.exists() else 0
            command = broker_command(class_path, (*JVM, *options, self._mark), self.folder / "server.properties")
            identity = spawn(command, log=self.log, cwd=self.folder, env=environment())
            write_identity(self.folder / "process.json", identity)
            if self._wait_ready(identity):
                return
            identity.signal(signal.SIGKILL)
            said = self.log.read_text(errors="replace")[began_at:]
            if "Address already in use" not in said or self.wanted_port is not None:
                break
        raise LocalFailed(f"Kafka did not start:\n{tail(self.log)}", hint=f"its whole log is {self.log}")

    def stop(self, *, timeout_s: float = 30) -> None:
        """Stop the broker in good order; one that does not obey in time is killed."""
        identity = self.identity
        if identity is not None:
            identity.signal(signal.SIGTERM)
            identity.signal(signal.SIGCONT)
            if not identity.gone_within(timeout_s):
                identity.signal(signal.SIGKILL)
                identity.gone_within(timeout_s)
        (self.folder / "process.json").unlink(missing_ok=True)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the broker a signal: SIGKILL it, or SIGSTOP and SIGCONT it."""
        identity = self.identity
        if identity is not None and identity.signal(number) and number == signal.SIGKILL:
            identity.gone_within(10)

    def freeze(self) -> None:
        """SIGSTOP: a broker that accepts connections (the kernel does) and answers nothing."""
        self.kill(signal.SIGSTOP)

    def thaw(self) -> None:
        self.kill(signal.SIGCONT)

    def destroy(self) -> None:
        """Kill the broker and delete its data."""
        self.kill(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _mark(self) -> str:
        return f"-Dslackwater.folder={self.folder}"

    def _ports(self) -> tuple[int, int]:
        port, controller_port = json.loads((self.folder / "server.json").read_text())
        return int(port), int(controller_port)

    def _choose_ports(self) -> tuple[int, int]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            port, controller_port = self._ports()
            if self.wanted_port in (None, port) and port_is_free(port) and port_is_free(controller_port):
                return port, controller_port
        return self.wanted_port or free_port(), free_port()

    def _format(self) -> None:
        """What `kafka-storage format` writes, copied from what it wrote once, with a cluster id of its own."""
        if (self.data / "meta.properties").exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)
        draft = self.folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(formatted_template(), draft)
        ids = f"cluster.id={random_id()}\ndirectory.id={random_id()}\nnode.id=1\nversion=1\n"
        write_whole(draft / "meta.properties", ids)
        draft.rename(self.data)

    def _configure(self, port: int, controller_port: int) -> None:
        write_whole(self.folder / "server.json", json.dumps([port, controller_port]))
        write_properties(self.folder / "server.properties", self.data, port, controller_port, self.settings)

    def _wait_ready(self, identity: Identity) -> bool:
        return until(lambda: answers(self.port) or not identity.alive, timeout_s=120) and identity.alive


def write_properties(
    path: Path, data: Path, port: int, controller_port: int, settings: Mapping[str, str] | None = None
) -> None:
    values = {
        **SETTINGS,
        "log.dirs": str(data),
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        **(settings or {}),
    }
    write_whole(path, "".join(f"{name}={value}\n" for name, value in values.items()))


def broker_command(class_path: list[Path], options: tuple[str, ...], properties: Path) -> list[str]:
    return [str(java()), *options, "-cp", ":".join(map(str, class_path)), "kafka.Kafka", str(properties)]


def environment() -> dict[str, str]:
    """Without what would change a Java's options behind our back."""
    return {name: value for name, value in os.environ.items() if name not in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")}


def formatted_template() -> Path:
    """A formatted, empty data folder; made once by Kafka's own tool, because that takes a Java of its own."""
    template = warmup.build_folder() / "formatted"
    with exclusive(template.with_suffix(".lock")):
        if not template.exists():
            _make_template(template)
    return template


def _make_template(template: Path) -> None:
    draft = template.with_name(".formatted")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    properties = draft.with_suffix(".properties")
    write_properties(properties, draft, 1, 2)
    class_path = ":".join(map(str, jars.class_path()))
    arguments = ["kafka.tools.StorageTool", "format", "-t", random_id(), "-c", str(properties)]
    done = subprocess.run(
        [str(java()), "-cp", class_path, *arguments], capture_output=True, text=True, check=False, env=environment()
    )
    properties.unlink()
    if done.returncode != 0:
        raise LocalFailed(f"Kafka's storage could not be formatted: {(done.stderr or done.stdout)[-2000:]}")
    draft.rename(template)


def answers(port: int) -> bool:
    """Whether a broker on this port answers a metadata request with itself in it."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return False
    client = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}"}, logger=logging.getLogger("slackwater.local"))
    try:
        return bool(client.list_topics(timeout=2).brokers)
    except KafkaException:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.Error:
        return []


def random_id() -> str:
    """Kafka's form of a UUID: its bytes in URL-safe base64, never beginning with a dash."""
    text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return text if not text.startswith("-") else random_id()
