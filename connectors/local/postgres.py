"""An embedded PostgreSQL cluster in a folder of its own.

Invariant: whatever a crash leaves in the folder (a stale postmaster.pid, orphaned backends, half an initdb), the next
`start` works, and never runs two servers over one data folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, LiteralString
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from connectors.local.binaries import binary, major
from connectors.local.processes import (
    Identity,
    LocalFailed,
    free_port,
    is_zombie,
    port_is_free,
    read_identity,
    spawn,
    tail,
    unprivileged,
    until,
    write_identity,
    write_whole,
)

SUPERUSER = "postgres"
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a state folder's path may be longer than the 107 bytes that a socket's may be
    "wal_level": "logical",
    "max_replication_slots": "50",
    "max_wal_senders": "50",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "max_worker_processes": "16",
    "shared_buffers": "128MB",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
    "log_checkpoints": "off",
    "timezone": "UTC",
}
# The superuser, who could run programs on the machine, needs the password; roles made later are their maker's affair.
HBA = f"""\
host  replication  {SUPERUSER}  127.0.0.1/32  scram-sha-256
host  replication  all          127.0.0.1/32  trust
host  all          {SUPERUSER}  127.0.0.1/32  scram-sha-256
host  all          all          127.0.0.1/32  trust
"""
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# The same order and letters on every machine: 17 brought a provider that knows all letters and needs no locale.
LOCALE = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
NO_SUCH_PID = 2**22 + 1  # above the largest pid that Linux or macOS gives


class Postgres:
    """One cluster: `folder` holds its data, log, settings and the identity of its server.

    A running server keeps the settings that it was started with; `stop` and `start` apply new ones.
    """

    def __init__(self, folder: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder.absolute()
        self.wanted_port = port
        self.settings = dict(settings or {})
        self.account = unprivileged()
        self.log = self.folder / "server.log"

    @property
    def data(self) -> Path:
        return Path(str(self._record().get("data", self.folder / "data")))

    @property
    def port(self) -> int:
        """The port of the running server, or the one it ran on last."""
        return int(self._record()["port"])

    @property
    def identity(self) -> Identity | None:
        """The running postmaster; None where none runs."""
        recorded = read_identity(self.folder / "process.json")
        if recorded is not None and recorded.alive:
            return recorded
        # `up` may have died between starting a server and writing down which: postmaster.pid knows it as well.
        found = Identity.of(_postmaster_pid(self.data))
        return found if found is not None and _works_in(found.pid, self.data) else None

    @property
    def running(self) -> bool:
        return self.identity is not None

    def dsn(self, database: str = "postgres") -> str:
        password = quote(str(self._record()["password"]), safe="")
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def start(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Start the server where it does not run, creating the cluster where there is none; returns when it answers."""
        if self.running:
            return
        self._prepare_folder()
        # One that was killed counts as running for PostgreSQL until its parent, which can be slow, has noticed.
        until(lambda: not is_zombie(_postmaster_pid(self.data)), timeout_s=30)
        self._clear_leftovers()
        if not (self.data / "PG_VERSION").exists():
            progress("PostgreSQL: creating a cluster")
            self._initdb()
        for _ in range(5):
            port = self._choose_port()
            self._configure(port)
            progress(f"PostgreSQL: starting on port {port}")
            began_at = self.log.stat().st_size if self.log.exists() else 0
            identity = spawn([binary("postgres"), "-D", self.data], log=self.log, cwd=self.data, account=self.account)
            write_identity(self.folder / "process.json", identity)
            if self._wait_ready(identity):
                return
            said = self.log.read_text(errors="replace")[began_at:]
            if "Address already in use" not in said or self.wanted_port is not None:
                break
        raise LocalFailed(f"PostgreSQL did not start:\n{tail(self.log)}", hint=f"its whole log is {self.log}")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast", *, timeout_s: float = 30) -> None:
        """Stop the server as pg_ctl would; one that does not obey in time is killed."""
        identity = self.identity
        if identity is not None:
            identity.signal(STOP_SIGNALS[mode])
            self.thaw()
            if not identity.gone_within(timeout_s):
                identity.signal(signal.SIGKILL)
                identity.gone_within(timeout_s)
        self._end_orphans()
        (self.folder / "process.json").unlink(missing_ok=True)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the postmaster a signal. After SIGKILL its backends notice and leave, as after a real crash."""
        identity = self.identity
        if identity is not None and identity.signal(number) and number == signal.SIGKILL:
            identity.gone_within(10)

    def freeze(self) -> None:
        """SIGSTOP every process of the cluster: a server that accepts nothing and answers nothing, connections open."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # one that ends meanwhile
                process.resume()

    def create_database(self, name: str) -> None:
        """Create a database where there is none of that name."""
        if not self.query(sql.SQL("select 1 from pg_database where datname = {}").format(sql.Literal(name))):
            self.query(sql.SQL("create database {}").format(sql.Identifier(name)))

    def query(self, text: LiteralString | sql.Composed, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser, outside a transaction; its rows, where it has any."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(text)
            return cursor.fetchall() if cursor.description else []

    def clone_from(self, primary: Postgres, *, application_name: str) -> None:
        """Make this, which has no data yet, a physical standby of `primary`, through a slot of the same name there."""
        self._prepare_folder()
        self.data.mkdir(mode=0o700)
        if self.account is not None:
            os.chown(self.data, self.account.uid, self.account.gid)
        source = f"{primary.dsn()}?application_name={application_name}"
        self.run(
            "pg_basebackup", "-d", source, "-D", self.data, "-X", "stream", "-c", "fast", "--no-sync",
            "-R", "-C", "-S", application_name,
        )  # fmt: skip
        self._remember(password=primary._record()["password"])

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of PostgreSQL's own programs as the server's user, from inside the cluster's folder."""
        done = subprocess.run(
            [binary(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=self.data.parent,
            check=False,
            env={**os.environ, "PGPASSWORD": str(self._record().get("password", ""))},
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
        )
        if done.returncode != 0:
            raise LocalFailed(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def destroy(self) -> None:
        """Stop the server and delete the cluster."""
        self.stop("immediate")
        elsewhere = self.data.parent
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if elsewhere != self.folder:
            shutil.rmtree(elsewhere, ignore_errors=True)

    def _record(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((self.folder / "server.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return record

    def _remember(self, **values: Any) -> None:
        write_whole(self.folder / "server.json", json.dumps({**self._record(), **values}))

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder
        if self.account is not None:
            self.folder.chmod(0o711)
            if "data" not in self._record() and not self.account.reaches(self.folder.parent):
                # Below root's own home, for one: the server could not even enter the folder.
                name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
                place = Path("/var/lib/slackwater") / name
                place.mkdir(parents=True, exist_ok=True)
        if "data" not in self._record():
            self._remember(data=str(place / "data"), password=secrets.token_urlsafe(18))

    def _initdb(self) -> None:
        # Under another name until it is whole: an initdb that was killed is begun again.
        draft = self.data.with_name("data.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password = draft.with_name("password")
        write_whole(password, str(self._record()["password"]))
        if self.account is not None:
            for path in (draft, password):
                os.chown(path, self.account.uid, self.account.gid)
        try:
            self.run(
                "initdb", "-D", draft, "-U", SUPERUSER, "--pwfile", password, "--auth=scram-sha-256", "--no-sync",
                "-E", "UTF8", "--no-locale", *(LOCALE if major() >= 17 else ()),
            )  # fmt: skip
        finally:
            password.unlink()
        with (draft / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude 'slackwater.conf'\n")
        draft.rename(self.data)

    def _choose_port(self) -> int:
        if self.wanted_port is not None:
            return self.wanted_port
        last = self._record().get("port")
        return int(last) if last and port_is_free(int(last)) else free_port()

    def _configure(self, port: int) -> None:
        values = {**SETTINGS, **self.settings, "port": str(port)}
        lines = (f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items())
        for name, text in (("slackwater.conf", "".join(lines)), ("pg_hba.conf", HBA)):
            write_whole(self.data / name, text)
            if self.account is not None:
                os.chown(self.data / name, self.account.uid, self.account.gid)
        self._remember(port=port)

    def _wait_ready(self, identity: Identity) -> bool:
        """The eighth line of postmaster.pid says when connections are welcome (a hot standby's, too)."""

        def settled() -> bool:
            lines = _postmaster_lines(self.data)
            ready = len(lines) >= 8 and lines[0] == str(identity.pid) and lines[7].strip() in ("ready", "standby")
            return ready or not identity.alive

        return until(settled, timeout_s=120) and identity.alive

    def _clear_leftovers(self) -> None:
        """What a server that was killed leaves behind.

        postmaster.pid stays, for its shared memory key is the guard against a second server over the same data; but a
        pid in it that now belongs to some other process would keep ours from starting for ever.
        """
        self._end_orphans()
        lines = _postmaster_lines(self.data)
        if lines and Identity.of(_postmaster_pid(self.data)) is not None:
            with (self.data / "postmaster.pid").open("r+") as handle:
                handle.write("\n".join([str(NO_SUCH_PID), *lines[1:]]) + "\n")
                handle.truncate()

    def _end_orphans(self) -> None:
        """Backends that outlived their postmaster: one that was stopped, or is busy, does not notice it."""
        if not self.running and not until(lambda: not any(self._processes()), timeout_s=2):
            for process in self._processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            until(lambda: not any(self._processes()), timeout_s=10)

    def _processes(self) -> Iterator[psutil.Process]:
        """The postmaster and its children, postmaster first: PostgreSQL's processes work in the data folder."""
        if not self.data.exists():
            return
        for process in psutil.process_iter():
            if _works_in(process.pid, self.data):
                yield process


def _works_in(pid: int, data: Path) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(data.resolve())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _postmaster_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _postmaster_pid(data: Path) -> int:
    lines = _postmaster_lines(data)
    return int(lines[0]) if lines and lines[0].isdigit() else NO_SUCH_PID
