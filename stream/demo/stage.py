"""Where the demo plays: a folder with everything in it, the commands it runs, and what it has to end afterwards.

Invariant: every process that was started here is ended by `close`, whatever happened in between; and a stage whose
demo was killed is cleared by the next one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TextIO

import psutil

from connectors import local
from connectors.local.processes import Identity, read_identity, write_identity
from schemas.errors import SlackwaterError

PREFIX = "slackwater-demo-"
GRACE_S = 20.0
LIVE_S = 2.0  # how often the live line is printed where it cannot be redrawn


class DemoFailed(SlackwaterError):
    """An act did not end as it should."""


@dataclass(slots=True, kw_only=True)
class Background:
    """A command that runs beside the story."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def end(self, number: int = signal.SIGTERM) -> None:
        """Ends it, and after a while everything it started: it leads a session of its own."""
        members = session(self.process.pid)
        if self.running:
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S)
        for member in members:
            member.signal(signal.SIGKILL)
        self.process.wait()

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Stage:
    """A folder below the system's temporary one, with the shop's files in `shop/`; the story is told on `out`."""

    def __init__(self, out: TextIO) -> None:
        clear()
        self._out = out
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.chmod(0o711)  # PostgreSQL may run as another user
        owner = Identity.of(os.getpid())
        assert owner is not None
        write_identity(self.folder / "owner.json", owner)
        self.shop = self.folder / "shop"
        self.shop.mkdir()
        for file in resources.files("stream.demo").joinpath("shop").iterdir():
            (self.shop / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        programs = [str(Path(sys.executable).parent), str(local.binary("psql").parent)]
        self.env = {**os.environ, "PATH": os.pathsep.join([*programs, os.environ.get("PATH", os.defpath)])}
        self.started_at = time.monotonic()
        self._behind: list[Background] = []
        self._live = out.isatty()
        self._lived_at = 0.0
        self._act = 0

    def act(self, title: str) -> None:
        self._act += 1
        self.say(f"\n{self._bold(f'{self._act}. {title}')}  ({self.elapsed_s:.0f} s)")

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at

    def say(self, text: str) -> None:
        self._out.write(("\r\x1b[K" if self._live else "") + text + "\n")
        self._out.flush()

    def live(self, text: str) -> None:
        """A line that the next one replaces; where there is no terminal, one every other second."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._out.write("\r\x1b[K" + text[:width])
            self._out.flush()
        elif time.monotonic() - self._lived_at > LIVE_S:
            self._lived_at = time.monotonic()
            self.say(text)

    def run(self, command: str, *, first: int = 0, last: int = 0, shown: bool = True, code: int = 0) -> str:
        """Print a command, run precisely that in `shop/`, and print the first and last lines of what it says.

        Errors: DemoFailed when it exits with anything but `code`.
        """
        if shown:
            self.say(f"  {self._bold(f'$ {command}')}")
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=self.shop,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate()
        except BaseException:  # Ctrl-C: the shell's children go with it
            for member in session(process.pid):
                member.signal(signal.SIGKILL)
            process.communicate()
            raise
        if process.returncode != code:
            said = "\n".join((out + err).splitlines()[-30:])
            raise DemoFailed(f"`{command}` exited with {process.returncode}:\n{said}")
        lines = [line for line in out.splitlines() if line.strip()]
        hidden = len(lines) - first - last
        for line in lines if hidden <= 1 else lines[:first]:
            if first or last:
                self.say(f"    {line}")
        if hidden > 1:
            if first or last:
                self.say(f"    ... ({hidden} more lines)")
            for line in lines[len(lines) - last :] if last else ():
                self.say(f"    {line}")
        return out

    def start(self, command: str, name: str) -> Background:
        """Print a command and run it in the background, in a session of its own; a Ctrl-C does not reach it."""
        self.say(f"  {self._bold(f'$ {command} &')}")
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                cwd=self.shop,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        background = Background(name=name, process=process, log=log)
        self._behind.append(background)
        identity = Identity.of(process.pid)
        if identity is not None:
            write_identity(self.folder / f"{name}.process.json", identity)
        return background

    def check(self) -> None:
        """Errors: DemoFailed when something that runs in the background has ended by itself."""
        for background in self._behind:
            if not background.running:
                raise DemoFailed(
                    f"{background.name} ended by itself with {background.process.returncode}:\n{background.tail()}"
                )

    def end(self, background: Background, number: int = signal.SIGTERM) -> None:
        self._behind.remove(background)
        background.end(number)

    @property
    def pids(self) -> list[int]:
        return [background.process.pid for background in self._behind]

    def last_words(self) -> None:
        """What the commands in the background said last: where a failure's cause may stand."""
        for background in self._behind:
            if words := background.tail():
                self.say(f"\nthe end of the output of `{background.name}`:\n{words}")

    def keep(self) -> None:
        """Leave everything as it is; the next demo does not clear it either."""
        (self.folder / "owner.json").unlink()
        self._behind.clear()

    def close(self) -> None:
        """End everything that was started here, and delete the folder."""
        for background in reversed(self._behind):
            background.end()
        self._behind.clear()
        sweep(self.folder)

    def quoted(self, path: Path) -> str:
        return shlex.quote(str(path))

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._live else text


def clear() -> None:
    """End what demos that were killed have left behind; one that runs, or was kept, is left alone."""
    for folder in _stages():
        owner = read_identity(folder / "owner.json")
        if owner is not None and not owner.alive:
            sweep(folder)


def sweep(folder: Path) -> None:
    """End every process recorded in a stage's folder, and delete it."""
    for record in sorted(folder.glob("*.process.json")):
        identity = read_identity(record)
        if identity is not None and identity.alive:
            for member in session(identity.pid):
                member.signal(signal.SIGKILL)
    local.destroy(folder / "servers")
    shutil.rmtree(folder, ignore_errors=True)


def session(leader: int) -> list[Identity]:
    """The living processes of a session, its leader among them."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            if os.getsid(pid) == leader and (identity := Identity.of(pid)) is not None:
                found.append(identity)
    return found


def _stages() -> Iterator[Path]:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):
            if folder.stat().st_uid == os.geteuid():
                yield folder
