"""What every verb shares: the migration file, one JSON document on stdout, who acts, and questions that never hang.

How a verb is written: `stream/cli/<module>.py` holds a function named as the verb (`-` becomes `_`) with typer
annotations, or a `typer.Typer` named `app` for a group. It is listed in `stream/cli/__init__.py`, which gives it
`-c`, `--json` and `--debug`, `--as` when it changes something and `--yes` when it asks; so a verb declares only what
is its own. It raises SlackwaterError, and `typer.Exit(exits.NO)` when the answer is no.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from connectors.postgres import control
from connectors.postgres.session import Connection, connect, translated
from schemas.direction import Side
from schemas.errors import ConfigError, Refused, Unanswerable
from schemas.remedy import on_file as named
from stream.migration.journal import Actor
from stream.monitoring.clock import rfc3339
from stream.monitoring.sessions import Sides

if TYPE_CHECKING:
    from schemas.spec import Spec


@dataclass(slots=True, kw_only=True)
class Invocation:
    """The options that every verb has, as they were given. One process is one invocation."""

    config: Path | None = None
    json: bool = False
    debug: bool = False
    remark: str | None = None  # --as
    yes: bool = False


_invocation = Invocation()


def invocation() -> Invocation:
    return _invocation


def config_path() -> Path:
    """The file of `-c`, or of SLACKWATER_CONFIG. ConfigError when neither is given."""
    path = _invocation.config or os.environ.get("SLACKWATER_CONFIG") or None
    if path is None:
        raise ConfigError(
            "no migration file is given",
            hint="slackwater -c migration.yaml ..., or set SLACKWATER_CONFIG; `slackwater init` prints a first one",
        )
    return Path(path)


def spec() -> Spec:
    """The migration file, read and checked."""
    from schemas.spec import load_spec

    return load_spec(config_path(), os.environ)


def open_side(spec: Spec, side: Side, verb: str) -> Connection:
    """A pinned session on one side, in autocommit."""
    return connect(str((spec.old if side is Side.OLD else spec.new).dsn), application=f"slackwater {verb}")


def sides(spec: Spec, verb: str) -> Sides:
    """Lines to both sides, for a verb that must answer although one of them does not."""
    return Sides({Side.OLD: spec.old.dsn, Side.NEW: spec.new.dsn}, application=f"slackwater {verb}")


def command(spec: Spec, rest: str) -> str:
    """How to call a verb on this file, for a message: `slackwater -c shop.yaml <rest>`."""
    return f"{spec.command} {rest}"


def on_file(remedy: str) -> str:
    """The remedy with its command lines on the file that this one was called on, where there is one."""
    path = _invocation.config or os.environ.get("SLACKWATER_CONFIG")
    return named(remedy, f"slackwater -c {shlex.quote(str(path))}") if path else remedy


def prepared_side(spec: Spec, side: Side, verb: str) -> Connection:
    """A session on a side that was prepared. Refused where the migration is not there."""
    conn = open_side(spec, side, verb)
    found = control.migration(conn, spec.migration) is not None if side is Side.NEW else control.installed(conn)
    if not found:
        conn.close()
        raise Refused(f"migration {spec.migration} is not prepared on {side}", hint=command(spec, "prepare"))
    return conn


@contextmanager
def asking() -> Iterator[None]:
    """For a verb whose 3 says what its rows are like. Errors: Unanswerable where it is refused to look at them."""
    try:
        yield
    except Refused as error:
        raise Unanswerable(error.cause, reasons=error.reasons, hint=error.hint) from error


def actor(conn: Connection) -> Actor:
    """Who acts: the role that PostgreSQL authenticated, the account and host it came from, and the remark of `--as`."""
    with translated("asking who is connected"):
        row = conn.execute("select session_user::text").fetchone()
    assert row is not None
    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        account = str(os.getuid())
    return Actor(identity=str(row[0]), host=f"{account}@{socket.gethostname()}", remark=_invocation.remark)


def document(value: object, *, indent: int | None = 2) -> str:
    """JSON as every verb prints it: times in RFC 3339 UTC, secrets impossible because nothing holds them as text."""
    return json.dumps(value, default=_plain, indent=indent, ensure_ascii=False)


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def show(value: object, text: str | Callable[[], str]) -> None:
    """The verb's answer on stdout: `value` as one JSON document under `--json`, else `text`."""
    if _invocation.json:
        typer.echo(document(value))
    else:
        typer.echo(text if isinstance(text, str) else text())


def note(line: str) -> None:
    """Progress, on stderr."""
    typer.echo(line, err=True)


def waived(gates: str, reason: str | None, known: Collection[str]) -> tuple[str, ...]:
    """The gates of `--waive`, each of which is one of `known`. ConfigError without a reason."""
    named = tuple(g.strip() for g in gates.split(",") if g.strip())
    if unknown := sorted(set(named) - set(known)):
        raise ConfigError(f"--waive {unknown[0]}: there is no such gate here", hint=f"one of {', '.join(known)}")
    if named and not (reason and reason.strip()):
        raise ConfigError("a waiver needs a reason", hint='--reason "why these gates need not pass"')
    return named


def stoppable() -> threading.Event:
    """Set by Ctrl-C and SIGTERM, for a verb to stop at its next safe point; once more ends the program at once."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return stop


def confirm(question: str) -> None:
    """Asks before a verb turns, drops or repairs. `--yes` answers it; without a terminal it is exit 2, never a hang.

    Errors: ConfigError (nobody to ask), Refused (the answer was no).
    """
    if _invocation.yes:
        return
    if _invocation.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"this needs a yes: {question}", hint="run it on a terminal, or give --yes")
    before = {n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGINT, signal.SIGTERM)}  # a safe point
    try:
        typer.echo(f"{question} [y/N] ", err=True, nl=False)
        answer = sys.stdin.readline()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if answer.strip().lower() not in ("y", "yes"):
        raise Refused("not confirmed; nothing was changed", hint="answer y, or give --yes")
