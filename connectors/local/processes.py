"""Server processes that outlive the command which started them.

Invariant: a process is signalled only when its pid *and* its start time are those that were recorded, so a pid that the
system has since given to somebody else is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from schemas.errors import SlackwaterError


class LocalFailed(SlackwaterError):
    """An embedded server could not be started or stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process, for as long as it lives."""

    pid: int
    started_at: float  # seconds since the epoch, as the system reports it: the half of an identity that a pid lacks

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The living process that has `pid` now; None where there is none. A zombie is not living."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return cls(pid=pid, started_at=process.create_time())
        except psutil.NoSuchProcess:
            return None

    @property
    def alive(self) -> bool:
        now = Identity.of(self.pid)
        # psutil derives the start time from the boot time, which a clock adjustment moves a little.
        return now is not None and abs(now.started_at - self.started_at) < 2.0

    def signal(self, number: int) -> bool:
        """Send a signal; False where the process is gone."""
        if not self.alive:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def gone_within(self, timeout_s: float) -> bool:
        return until(lambda: not self.alive, timeout_s=timeout_s)


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_identity(path: Path, identity: Identity) -> None:
    write_whole(path, json.dumps(asdict(identity)))


def read_identity(path: Path) -> Identity | None:
    """The process recorded in `path`; None where there is no record, or a crash left half of one."""
    try:
        record = json.loads(path.read_text())
        return Identity(pid=int(record["pid"]), started_at=float(record["started_at"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_whole(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file at once: a reader, or a crash, sees the old text or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.chmod(mode)
    draft.replace(path)


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> Identity:
    """Start a process that belongs to init from its first moment, in a session of its own, output appended to `log`.

    So a terminal's Ctrl-C does not reach it, and no zombie and no unfinished `Popen` is left to this process.
    Errors: LocalFailed, with the end of the log, where it died at once.
    """
    with log.open("ab") as out:
        shell = subprocess.run(
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "slackwater", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=out,
            cwd=cwd,
            env=env,
            check=True,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    identity = Identity.of(int(shell.stdout))
    if identity is None:
        raise LocalFailed(f"{Path(command[0]).name} ended as soon as it was started:\n{tail(log)}")
    return identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The unprivileged user that a server runs as when we are root."""

    name: str
    uid: int
    gid: int

    def reaches(self, path: Path) -> bool:
        """Whether this user can enter (a folder) or execute (a file) `path`; only the system itself knows."""
        command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)]
        done = subprocess.run(command, user=self.uid, group=self.gid, extra_groups=[], cwd="/", check=False)
        return done.returncode == 0


def unprivileged() -> Account | None:
    """Who PostgreSQL runs as: None (ourselves) unless we are root, whom initdb refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise LocalFailed(
        "root may not run PostgreSQL, and this machine has neither a user 'postgres' nor a user 'nobody'",
        hint="run slackwater as an ordinary user, or create the user 'postgres'",
    )


def tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def until(condition: Callable[[], bool], *, timeout_s: float, every_s: float = 0.02) -> bool:
    """Wait for `condition`; False where it did not come about in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port that nobody listens on, below the range from which outgoing connections take theirs.

    A port that the system hands out for the asking can be some client's own before a server has bound it.
    """
    for _ in range(1000):
        port = random.randint(15000, 32000)
        if port_is_free(port):
            return port
    raise LocalFailed("no free port between 15000 and 32000", hint="name one with --pg-port and --kafka-port")


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file lock; whoever else wants it waits. The system releases it when its holder dies."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
