"""`slackwater run`: every role this migration needs now, or one of them as a service."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from schemas import exits
from schemas.direction import Direction
from schemas.errors import ConfigError
from schemas.spec import Spec
from stream.cli import context
from stream.runtime import worker
from stream.runtime.supervisor import RoleName, Supervisor
from stream.web.server import serve
from stream.web.views import views

log = logging.getLogger("slackwater.run")


class RoleArgument(StrEnum):
    CAPTURE = "capture"
    APPLY = "apply"
    BACKFILL = "backfill"
    VERIFY = "verify"


def run(
    role: Annotated[
        RoleArgument | None, typer.Argument(help="One role in this process; without it, all of them.")
    ] = None,
    direction: Annotated[
        Direction | None,
        typer.Option(help="Which way. Not given: a role goes forward; without a role, both as needed."),
    ] = None,
    listen: Annotated[str | None, typer.Option(hidden=True)] = None,
    child_of: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the migration until stopped: every role it needs now, each started again if it dies, or one as a service.

    Ctrl-C and SIGTERM stop at the next safe point; a second one at once. SIGHUP re-reads rates, limits and windows.
    A role whose turn has not come waits, is ready, and says so. With a fixed port under http.listen, `run` without a
    role gives capture, apply and backfill that port and the two after it, and the reverse ones the same four later.
    """
    spec = context.spec()
    if role is None:
        finish(spec, None, _all(spec, direction))
    name = RoleName(role.value, direction or Direction.FORWARD)
    finish(spec, name, one(spec, name, listen or spec.http.listen, child_of))


def finish(spec: Spec, name: RoleName | None, status: int) -> NoReturn:
    if context.invocation().json:
        result = "stopped" if status == exits.DONE else "failed"
        context.show({"migration": spec.migration, "role": str(name) if name else None, "result": result}, "")
    raise typer.Exit(status)


def one(spec: Spec, name: RoleName, listen: str, parent: int | None) -> int:
    from stream.runtime import process

    process.log_as(spec, str(name))
    ours = process.Process(spec, name)
    stop = threading.Event()

    def reload() -> None:
        try:
            log.info("%s", ours.reload())
        except ConfigError as error:
            log.error("the file was not taken over: %s", error)

    worker.stop_on_signals(stop, reload)
    _, address = serve(
        listen,
        views(
            heartbeat=ours.heartbeat,
            metrics=ours.metrics,
            refresh=ours.monitor.refresh,
            sides=ours.sides,
            document=ours.watch.document,
        ),
    )
    ours.heartbeat.measured["http"] = address
    log.info("started; http://%s has /metrics, /healthz, /readyz, /status.json and /route", address)
    ours.start()
    try:
        return worker.attend(lambda: ours.worker.run(stop), stop, parent)
    finally:
        ours.stop()
        log.info("stopped")


def _all(spec: Spec, direction: Direction | None) -> int:
    from stream.runtime import process

    process.log_as(spec, "run")
    stop = threading.Event()
    known: list[RoleName] = []
    ask = process.sides(spec, "slackwater run")

    def wanted() -> list[RoleName]:
        if direction is None:
            known[:] = process.wanted(spec, known, ask)
        else:
            known[:] = [RoleName(role, direction) for role in process.ROLES]
        return known

    supervisor = Supervisor(command=lambda name: _command(spec, name), wanted=wanted)
    worker.stop_on_signals(stop, supervisor.hang_up)
    which = "" if direction is None else f", its {direction} direction"
    log.info("running migration %s%s; Ctrl-C stops at the next safe point", spec.migration, which)
    try:
        return supervisor.run(stop)
    finally:
        ask.close()
        log.info("stopped")


def _command(spec: Spec, name: RoleName) -> list[str]:
    """How a role is started: by the console script that started this process."""
    script = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name.startswith("slackwater") else None
    program = [script] if script else [sys.executable, "-c", "from stream.cli import main; main()"]
    options = ["--direction", name.direction.value, "--listen", _listen(spec, name), "--child-of", str(os.getpid())]
    return [*program, "-c", str(context.config_path()), "run", name.role, *options]


def _listen(spec: Spec, name: RoleName) -> str:
    """The file's address; a fixed port is the first of a row, one per role."""
    host, _, port = spec.http.listen.rpartition(":")
    if int(port) == 0:
        return spec.http.listen
    roles = list(RoleArgument)
    place = roles.index(RoleArgument(name.role)) + (len(roles) if name.direction is Direction.REVERSE else 0)
    return f"{host}:{int(port) + place}"
