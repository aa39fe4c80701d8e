"""A turn is killed, or stopped and woken late, at every named step: never two sides are open, nothing acknowledged is
lost, and the same verb, run again, finishes or begins anew.

Two clients write to both sides all the time and never follow the route: who is let through is what is so.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from tests.fixtures.ledger import Ledger, writing
from tests.fixtures.tide import Probe, Tide, resume, state_of

# In the order of their steps; the source is closed from `after_close` on.
POINTS = (
    "after_gates",
    "after_before_hook",
    "after_intent_locks",
    "after_hold",
    "after_token_sent",
    "after_token",
    "after_check",
    "before_setval",
    "after_sequences",
    "before_intent_commit",
    "after_intent",
    "before_close_commit",
    "after_close",
    "before_open_commit",
    "after_open",
    "after_route",
    "after_hooks",
)
CLOSED_AT = POINTS.index("after_close")
OPEN_AT = POINTS.index("after_open")
OTHER = {"old": "new", "new": "old"}


def rotating(of: int) -> list[str]:
    """A part of the points, another one each day; all of them in the soak."""
    day = int(os.environ.get("SLACKWATER_ROTATION", time.time() // 86_400)) % of
    return [p for n, p in enumerate(POINTS) if n % of == day]


def side(tide: Tide) -> str:
    (found,) = tide.open_sides()
    return found


def verb(to: str) -> str:
    return "cutover" if to == "new" else "rollback"


def killed_and_run_again(tide: Tide, ledger: Ledger, probe: Probe, point: str) -> None:
    before = side(tide)
    to = OTHER[before]
    probe.forget()
    tide.turn(verb(to), failpoints=f"turn.{point}=kill", code=-signal.SIGKILL)
    place = POINTS.index(point)
    time.sleep(0.3)
    expected = [before] if place < CLOSED_AT else [to] if place >= OPEN_AT else []
    assert tide.open_sides() == expected
    status = tide.program.status()
    assert status["writes"] == (expected[0] if expected else "none")
    if not expected:
        assert status["next"].endswith(verb(to))
    again = tide.turn(verb(to))
    # Killed after everything was recorded but the last word, it may find nothing left to do.
    assert again["result"] == "done"
    assert (again["writes"], again["next"] is not None) == (to, True)
    probe.never_both([before, to])
    assert side(tide) == to
    status = tide.program.status()
    assert (status["writes"], status["phase"]) == (to, "switched" if to == "new" else "armed")
    assert status["switching"] is None


def stopped_and_woken(tide: Tide, ledger: Ledger, probe: Probe, point: str) -> None:
    """It is stopped in the middle; another operator turns, and all the way back; then it wakes, and does no more."""
    before = side(tide)
    to = OTHER[before]
    plain = tide.program.file.read_text()
    told = tide.program.file.with_suffix(".told")
    tell = f"'echo $SLACKWATER_HOOK $SLACKWATER_TO >> {told}'"
    hooks = f"{{on_change: {tell}, after_cutover: {tell}, after_rollback: {tell}}}"
    tide.program.file.write_text(f"{plain}hooks: {hooks}\n")
    probe.forget()
    zombie = tide.start(verb(to), failpoints=f"turn.{point}=stop@1")
    tide.program.until(lambda: state_of(zombie.pid) == "T", within_s=40)
    # The first who come are told that somebody is at work; once its lease is over, the turn is theirs.
    if POINTS.index(point) < OPEN_AT:
        assert taken_over(tide, verb(to))["writes"] == to
    probe.never_both([before, to])
    probe.forget()
    assert taken_over(tide, verb(before))["writes"] == before
    probe.never_both([to, before])
    probe.forget()
    stands = (told.read_text(), sequences(tide, to), past(tide))
    zombie.send_signal(signal.SIGCONT)
    out, err = zombie.communicate(timeout=90)
    assert tide.open_sides() == [before]
    time.sleep(0.3)
    assert not probe.let_through[to]
    status = tide.program.status()
    assert (status["writes"], status["phase"]) == (before, "switched" if before == "new" else "armed")
    assert (told.read_text(), sequences(tide, to), past(tide)) == stands, (out, err)
    assert zombie.returncode in (0, 1, 3, 4, 5)
    if POINTS.index(point) >= OPEN_AT:
        assert any("the writes have moved on" in note for note in json.loads(out)["notes"]), (out, err)
    # Nothing of it stands in the way of the next turn.
    tide.program.file.write_text(plain)
    assert tide.turn(verb(to))["writes"] == to
    probe.never_both([before, to])


def taken_over(tide: Tide, verb: str) -> dict[str, Any]:
    """The verb, again and again until the lease of one that was stopped is over."""
    deadline = time.monotonic() + 90
    while (done := tide.turn(verb, code=None))["result"] == "refused":
        assert time.monotonic() < deadline, done
        time.sleep(1)
    return done


def sequences(tide: Tide, name: str) -> list[tuple[Any, ...]]:
    """Where they stand on a side."""
    return tide.on(name, "select sequencename, last_value from pg_sequences where schemaname in ('shop', 'app')")


def past(tide: Tide) -> dict[str, Any]:
    """The last turn that came to its end, as the journal has it."""
    return [e for e in tide.entries() if e["outcome"] == "done" and e["step"] in ("cutover", "rollback")][-1]


def cut_and_run_again(tide: Tide, ledger: Ledger, probe: Probe, point: str) -> None:
    """Its sessions on both sides end under it, as when a server restarts: it gives up, or finishes, and says which."""
    before = side(tide)
    to = OTHER[before]
    probe.forget()
    turning = tide.start(verb(to), failpoints=f"turn.{point}=stop@1")  # it comes by again
    tide.program.until(lambda: state_of(turning.pid) == "T")
    for name in ("old", "new"):
        tide.on(
            name,
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()"
            f" and application_name like 'slackwater {verb(to)} %'",
        )
    resume(turning)
    out, err = turning.communicate(timeout=60)
    told = json.loads(out)
    place = POINTS.index(point)
    # Past its commit, what is left is done over new sessions; before it, nothing has happened.
    assert told["result"] == ("done" if place >= CLOSED_AT else "aborted" if place > 1 else "refused"), (out, err)
    expected = to if place >= CLOSED_AT else before
    assert (told["writes"], tide.open_sides()) == (expected, [expected])
    tide.turn_until_done(verb(to))
    probe.never_both([before, to])
    assert side(tide) == to


HOW = {"kill": killed_and_run_again, "stop": stopped_and_woken, "cut": cut_and_run_again}


def run(tide: Tide, **points: list[str]) -> None:
    """`points` are those at which each thing (a key of HOW) is done."""
    ledger = tide.ledger()
    with Probe(tide=tide) as probe, writing(ledger):
        time.sleep(0.5)
        for how, where in points.items():
            for point in where:
                HOW[how](tide, ledger, probe, point)
    tide.agree(ledger)


def test_killed(tide: Tide) -> None:
    run(tide, kill=rotating(8), cut=rotating(16))


def test_stopped_and_woken_late(tide: Tide) -> None:
    run(tide, stop=rotating(16))


@pytest.mark.soak
@pytest.mark.parametrize("start", [0, 1])  # each point is met on the way there, and on the way back
def test_killed_at_every_step(tide: Tide, start: int) -> None:
    run(tide, kill=[*(["after_gates"] if start else []), *POINTS])


@pytest.mark.soak
@pytest.mark.parametrize("start", [0, 1])
def test_cut_at_every_step(tide: Tide, start: int) -> None:
    first = ["after_hooks"] if start else []  # a turn that is done whatever happens: the others are met on the way back
    run(tide, cut=[*first, *POINTS])


@pytest.mark.soak
@pytest.mark.parametrize("point", POINTS)
def test_stopped_at_every_step(tide: Tide, point: str) -> None:
    run(tide, stop=[point, point])  # on the way there, and on the way back
