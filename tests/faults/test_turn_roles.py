"""`kill -9` of each role while a turn is at a named step: it gives up in time or goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.faults.test_turn_crash import OTHER, POINTS, side, verb
from tests.fixtures.ledger import writing
from tests.fixtures.tide import Probe, Tide, resume, state_of

pytestmark = pytest.mark.soak

ROLES = [(direction, role) for direction in ("forward", "reverse") for role in ("capture", "apply")]
# Before the token, while it is under way, when nothing rests on a role any more, and on both sides of the fence.
AT = ("after_gates", "after_hold", "after_token_sent", "after_token", "after_intent", "after_close", "after_open")
PROVEN_AT = POINTS.index("after_token")


def killed(tide: Tide, probe: Probe, point: str, direction: str, role: str) -> str:
    before = side(tide)
    to = OTHER[before]
    tide.turn_until_done(verb(to), "--dry-run")  # every role is well again
    pid = tide.role(direction, role)
    probe.forget()
    turning = tide.start(verb(to), failpoints=f"turn.{point}=stop@1")
    tide.program.until(lambda: turning.poll() is not None or state_of(turning.pid) == "T")
    assert turning.poll() is None, turning.communicate()
    os.kill(pid, signal.SIGKILL)
    resume(turning)
    out, err = turning.communicate(timeout=120)
    told = json.loads(out)
    drains = direction == ("forward" if to == "new" else "reverse")
    assert told["result"] == "done" or (drains and POINTS.index(point) < PROVEN_AT), (told, err)
    if told["result"] != "done":
        assert (told["result"], told["writes"], tide.open_sides()) == ("aborted", before, [before])
        assert tide.turn_until_done(verb(to))["writes"] == to
    probe.never_both([before, to])
    assert side(tide) == to
    return str(told["result"])


@pytest.mark.parametrize(("direction", "role"), ROLES)
def test_killed_at_every_step(tide: Tide, direction: str, role: str) -> None:
    """Twice through the steps: an odd number of them, so each is met on the way there and on the way back."""
    ledger = tide.ledger()
    with Probe(tide=tide) as probe, writing(ledger):
        for point in (*AT, *AT):
            began = time.monotonic()
            ended = killed(tide, probe, point, direction, role)
            print(f"{direction} {role} killed at {point}: {ended}, all in {time.monotonic() - began:.0f} s")
    tide.agree(ledger)
