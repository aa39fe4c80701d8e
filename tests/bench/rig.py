"""Servers, roles and SQL of a measurement: the real programs, on a PostgreSQL and a Kafka of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from connectors import local
from connectors.local.processes import Identity, read_identity, write_identity
from connectors.postgres.session import Connection, connect

HERE = Path(__file__).parent
PREFIX = "slackwater-bench-"
MIGRATION = "bench"
SLOT = f"slackwater_{MIGRATION}_forward"
ROLES = ("capture", "apply", "backfill")
MAPPED = "rename: {nm: name}, set: {email: lower(email), amount: 'amount::numeric(12, 2)'}, drop: [status]"
SELECT = (
    "select id, nm as name, lower(email) as email, amount::numeric(12, 2) as amount, made, note"
    " from item where status <> 4"
)
SPEC = f"""
migration: {MIGRATION}
old: {{dsn: "${{OLD_DSN}}"}}
new: {{dsn: "${{NEW_DSN}}", schema: app, ddl: new.sql}}
kafka: {{bootstrap: "${{KAFKA_BOOTSTRAP}}"}}
copy: [probe]
tables:
  - {{to: item, select: "{SELECT}"}}
""" + "".join(f"  - {{to: t{n}, from: t{n}, {MAPPED}}}\n" for n in range(21))


class Rig:
    """One set of servers, its roles as processes, and a session on each side."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.file = "bench.yaml"
        self.say = say
        self.servers = local.up(folder / "servers", progress=say)
        self.env = {
            **os.environ,
            "OLD_DSN": self.servers.old_dsn,
            "NEW_DSN": self.servers.new_dsn,
            "KAFKA_BOOTSTRAP": self.servers.kafka_bootstrap,
        }
        (folder / self.file).write_text(SPEC)
        shutil.copy(HERE / "new.sql", folder / "new.sql")
        self.old = connect(self.servers.old_dsn, application="bench", settings={"search_path": "public"})
        self.new = connect(self.servers.new_dsn, application="bench", settings={"search_path": "app"})
        self.old.execute((HERE / "old.sql").read_bytes())
        self.roles: dict[str, subprocess.Popen[bytes]] = {}
        self.peak_bytes: dict[str, int] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self.stop()
        self.old.close()
        self.new.close()

    def slackwater(self, *arguments: str, code: int = 0) -> str:
        """Run a verb to its end. Raises CalledProcessError, its output shown, when it ends with another exit code."""
        program = [str(Path(sys.executable).with_name("slackwater")), "-c", self.file, *arguments]
        done = subprocess.run(program, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode != code:
            self.say(done.stdout + done.stderr)
            raise subprocess.CalledProcessError(done.returncode, program)
        return done.stdout

    def start(self, *roles: str) -> None:
        for role in roles:
            verb = ["run", role, "--child-of", str(os.getpid())]
            program = [str(Path(sys.executable).with_name("slackwater")), "-c", self.file, *verb]
            log = (self.folder / f"{role}.log").open("ab")
            self.roles[role] = subprocess.Popen(program, cwd=self.folder, env=self.env, stdout=log, stderr=log)
            log.close()

    def stop(self) -> None:
        for process in self.roles.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.roles.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.roles.clear()

    def freeze(self, *roles: str) -> None:
        for role in roles:
            self.roles[role].send_signal(signal.SIGSTOP)

    def thaw(self, *roles: str) -> None:
        for role in roles:
            self.roles[role].send_signal(signal.SIGCONT)

    def until(self, met: Callable[[], bool], what: str, timeout_s: float = 180) -> None:
        """Look every 10 ms. Raises TimeoutError, with the end of the roles' logs."""
        deadline = time.monotonic() + timeout_s
        while not met():
            dead = [role for role, process in self.roles.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                for role in self.roles:
                    self.say(f"--- {role}\n" + "\n".join((self.folder / f"{role}.log").read_text().splitlines()[-15:]))
                raise TimeoutError(f"{what} did not come about" + (f"; {', '.join(dead)} ended" if dead else ""))
            time.sleep(0.01)

    def one(self, conn: Connection, query: str, *values: object) -> Any:
        """The first value of the first row; None where there is none."""
        row = conn.execute(query.encode(), values).fetchone()
        return None if row is None else row[0]

    def here(self) -> str:
        """The source's WAL position after everything committed so far."""
        return str(self.one(self.old, "select pg_current_wal_insert_lsn()"))

    def captured(self, lsn: str) -> bool:
        query = "select confirmed_flush_lsn >= %s from pg_replication_slots where slot_name = %s"
        return bool(self.one(self.old, query, lsn, SLOT))

    def applied(self, lsn: str) -> bool:
        return bool(
            self.one(self.new, "select end_lsn >= %s from slackwater.checkpoint where direction = 'forward'", lsn)
        )

    def commit_mark(self) -> str:
        """A last transaction of a table that is streamed; the LSN that an epoch has to reach to contain it."""
        self.old.execute("insert into probe select coalesce(max(id), 0) + 1, 0 from probe")
        return str(self.one(self.old, "select pg_current_wal_flush_lsn()"))

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds spent so far: each role, Kafka, and PostgreSQL's sessions by what they do for whom."""
        pids = {process.pid: role for role, process in self.roles.items()}
        kafka = self.servers.kafka.identity
        if kafka is not None:
            pids[kafka.pid] = "Kafka"
        sessions = "select pid, backend_type, application_name from pg_stat_activity"
        for pid, kind, application in self.old.execute(sessions.encode()).fetchall():
            if kind == "walsender":
                pids[pid] = "PostgreSQL, decoding"
            elif application == f"slackwater apply {MIGRATION}.forward":
                pids[pid] = "PostgreSQL, applying"
            elif application != "bench":
                pids[pid] = "PostgreSQL, the rest"
        spent: dict[str, float] = {}
        for pid, name in pids.items():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = psutil.Process(pid).cpu_times()
                spent[name] = spent.get(name, 0.0) + times.user + times.system
        return spent

    def _watch_memory(self) -> None:
        while not self._ended.wait(0.1):
            for role, process in list(self.roles.items()):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    now = psutil.Process(process.pid).memory_info().rss
                    self.peak_bytes[role] = max(now, self.peak_bytes.get(role, 0))


@contextmanager
def rig(say: Callable[[str], None]) -> Iterator[Rig]:
    """A rig in a temporary folder, which is gone afterwards with everything that was started.

    What a measurement that was killed left running is ended by the next one.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = read_identity(left / "owner.json")
        if owner is not None and not owner.alive and left.stat().st_uid == os.geteuid():
            local.destroy(left / "servers")
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    folder.chmod(0o711)
    owner = Identity.of(os.getpid())
    assert owner is not None
    write_identity(folder / "owner.json", owner)
    made: Rig | None = None
    try:
        made = Rig(folder, say)
        yield made
    finally:
        if made is not None:
            made.close()
        local.destroy(folder / "servers")
        shutil.rmtree(folder, ignore_errors=True)
