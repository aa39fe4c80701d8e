"""The user's own commands around a turn, with what they need to know in their environment.

Invariant: a command can hold secrets, and so can what it says: neither reaches an error or the journal, and what it
says is told without the values that the file took from the environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from schemas.errors import Aborted
from stream.cutover import progress
from stream.cutover.attempt import Turning
from stream.monitoring.logs import Redaction, hidden

PATIENCE_S = 120.0
SHOWN = 4_000  # characters of what a hook said


def before(t: Turning) -> None:
    """`before_cutover`, `before_rollback`. Errors: Aborted when it fails, or does not end."""
    command = t.spec.hooks.before_cutover if t.order.verb == "cutover" else t.spec.hooks.before_rollback
    if command is None:
        return
    with t.steps.step(f"hook before_{t.order.verb}"):
        if problem := _run(t, f"before_{t.order.verb}", command):
            raise Aborted(f"the hook before_{t.order.verb} {problem}", hint=f"put it right, then {t.again}")


def after(t: Turning, *, still: Callable[[], None]) -> None:
    """`on_change`, then `after_cutover` or `after_rollback`. One that fails is reported: the turn stands.

    `still` is asked before each: a hook would send the application to a side that has been closed since.
    """
    hooks = t.spec.hooks
    verb = progress.verb(t.to)  # a failover is followed by what follows a turn to that side
    following = hooks.after_cutover if verb == "cutover" else hooks.after_rollback
    for name, command in (("on_change", hooks.on_change), (f"after_{verb}", following)):
        if command is None:
            continue
        still()
        with t.steps.step(f"hook {name}"):
            if problem := _run(t, name, command):
                t.note(f"the hook {name} {problem}; the turn stands")


def environment(t: Turning, name: str) -> dict[str, str]:
    """What a hook is told."""
    told = {
        "SLACKWATER_HOOK": name,
        "SLACKWATER_MIGRATION": t.migration,
        "SLACKWATER_VERB": t.order.verb,
        "SLACKWATER_FROM": t.source.value,
        "SLACKWATER_TO": t.to.value,
        "SLACKWATER_TURN": str(t.turn),
        "SLACKWATER_WRITES": t.to.value if t.closed else t.source.value,
        "SLACKWATER_PAUSE_SECONDS": "" if t.pause_s is None else f"{t.pause_s:.3f}",
    }
    if t.spec.path is not None:
        told["SLACKWATER_CONFIG"] = str(t.spec.path)
    return told


def _run(t: Turning, name: str, command: str) -> str | None:
    """None when it exits with 0; else a clause that says how it ended."""
    folder: Path | None = t.spec.path.parent if t.spec.path is not None else None
    t.say(f"hooks.{name} runs")
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env={**os.environ, **environment(t, name)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        _tell(t, error.stdout)
        return f"did not end in {PATIENCE_S:.0f} s"
    except OSError as error:
        return f"could not be started: {error.strerror}"
    _tell(t, done.stdout)
    return None if done.returncode == 0 else f"exited with {done.returncode}"


def _tell(t: Turning, said: bytes | None) -> None:
    """The end of what a hook said, for whoever looks on."""
    text = Redaction([*hidden(t.spec), *t.spec.substituted])((said or b"").decode(errors="replace")).strip()
    if text:
        t.say(text[-SHOWN:])
