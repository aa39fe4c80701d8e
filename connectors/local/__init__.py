"""An embedded PostgreSQL (databases `old` and `new`) and Kafka in one state folder, for trials, tests and the demo.

Invariant: `down` ends what `up` started and nothing else, and after a crash of anything `up` works again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from connectors.local.binaries import binary
from connectors.local.kafka import Kafka
from connectors.local.postgres import Postgres
from connectors.local.processes import LocalFailed, exclusive

__all__ = ["Kafka", "Local", "LocalFailed", "Postgres", "binary", "destroy", "down", "find", "up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What `up` started. A part that was left out has an empty address and port 0."""

    dir: Path
    old_dsn: str
    new_dsn: str
    kafka_bootstrap: str
    pg_port: int
    kafka_port: int

    @property
    def postgres(self) -> Postgres:
        return Postgres(self.dir / "postgres")

    @property
    def kafka(self) -> Kafka:
        return Kafka(self.dir / "kafka")


def up(
    dir: Path,  # noqa: A002 the option that an operator types is called --dir
    *,
    pg_port: int | None = None,
    kafka_port: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
    pg_settings: Mapping[str, str] | None = None,
    kafka_settings: Mapping[str, str] | None = None,
    postgres: bool = True,
    kafka: bool = True,
) -> Local:
    """Start what does not run yet, both at once, and return when both answer.

    Ports are free ones unless given, and the same ones again as long as they stay free. Settings and ports reach a
    server that starts; one that runs already on another port than the one asked for is an error.
    Errors: LocalFailed.
    """
    dir.mkdir(parents=True, exist_ok=True)
    servers: list[Postgres | Kafka] = []
    if postgres:
        servers.append(Postgres(dir / "postgres", port=pg_port, settings=pg_settings))
    if kafka:
        servers.append(Kafka(dir / "kafka", port=kafka_port, settings=kafka_settings))
    with exclusive(dir / "lock"), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda server: _start(server, progress), servers))
    found = find(dir)
    if found is None:
        raise LocalFailed(f"a server in {dir} ended as soon as it had started", hint="see the server.log files there")
    return found


def down(dir: Path) -> None:  # noqa: A002
    """Stop both servers, Kafka first; their data stays. Done already where nothing runs."""
    if dir.is_dir():
        with exclusive(dir / "lock"):
            Kafka(dir / "kafka").stop()
            Postgres(dir / "postgres").stop()


def destroy(dir: Path) -> None:  # noqa: A002
    """Stop both servers without ceremony and delete their data; the folder too, unless something else is in it."""
    if dir.is_dir():
        with exclusive(dir / "lock"):
            Kafka(dir / "kafka").destroy()
            Postgres(dir / "postgres").destroy()
        (dir / "lock").unlink(missing_ok=True)
        if dir.is_dir() and not any(dir.iterdir()):
            dir.rmdir()


def find(dir: Path) -> Local | None:  # noqa: A002
    """What runs in `dir` now; None where nothing does."""
    postgres, kafka = Postgres(dir / "postgres"), Kafka(dir / "kafka")
    pg_runs, kafka_runs = postgres.running, kafka.running
    if not pg_runs and not kafka_runs:
        return None
    return Local(
        dir=dir,
        old_dsn=postgres.dsn("old") if pg_runs else "",
        new_dsn=postgres.dsn("new") if pg_runs else "",
        kafka_bootstrap=kafka.bootstrap if kafka_runs else "",
        pg_port=postgres.port if pg_runs else 0,
        kafka_port=kafka.port if kafka_runs else 0,
    )


def _start(server: Postgres | Kafka, progress: Callable[[str], None]) -> None:
    wanted = server.wanted_port
    if server.running and wanted not in (None, server.port):
        raise LocalFailed(
            f"{type(server).__name__} runs already, on port {server.port} and not {wanted}",
            hint="slackwater local down, then up with the port that you want",
        )
    server.start(progress)
    if isinstance(server, Postgres):
        for name in ("old", "new"):
            server.create_database(name)
