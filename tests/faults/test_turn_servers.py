"""A server stops as in a crash (`pg_ctl stop -m immediate`) while a turn is at a named step: never two sides are open,
nothing acknowledged is lost, and the same verb finishes or begins anew once the server is back.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from connectors import local
from tests.faults.test_turn_crash import CLOSED_AT, OPEN_AT, OTHER, POINTS, side, verb
from tests.fixtures.ledger import writing
from tests.fixtures.servers import private_postgres
from tests.fixtures.tide import Probe, Tide, resume, state_of, tide_on

pytestmark = pytest.mark.soak

# How a verb may end when a server has gone away in the middle of it.
ENDS = {0: "done", 3: "refused", 4: "aborted", 5: "ambiguous"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """A migration between two servers of its own."""

    tide: Tide
    servers: dict[str, local.Postgres]


@pytest.fixture
def apart(bootstrap: str, tmp_path: Path) -> Iterator[Apart]:
    with ExitStack() as stack:
        servers = {name: stack.enter_context(private_postgres()) for name in ("old", "new")}
        dsns = {name: server.dsn() for name, server in servers.items()}
        yield Apart(tide=stack.enter_context(tide_on(tmp_path, dsns, bootstrap)), servers=servers)


def crashed(apart: Apart, probe: Probe, point: str, broken: str, down_s: float) -> str:
    """One turn, in which the server of `broken` goes away at `point` for `down_s`; how the verb ended."""
    tide, server = apart.tide, apart.servers[broken]
    before = side(tide)
    to = OTHER[before]
    place = POINTS.index(point)
    tide.turn_until_done(verb(to), "--dry-run")  # every role has got over the last time
    probe.forget()
    turning = tide.start(verb(to), failpoints=f"turn.{point}=stop@1")
    tide.program.until(lambda: turning.poll() is not None or state_of(turning.pid) == "T")
    assert turning.poll() is None, turning.communicate()
    server.stop("immediate")
    resume(turning)
    time.sleep(down_s)
    server.start()
    out, err = turning.communicate(timeout=120)
    told = json.loads(out)
    assert ENDS[turning.wait()] == told["result"], (out, err)
    found = tide.open_sides()
    if told["result"] == "done":
        assert found == [to]
    elif told["result"] == "ambiguous":  # only where the answer to a commit can be lost, or the other side is gone
        assert place >= POINTS.index("before_close_commit"), told
        assert len(found) <= 1
    else:
        assert (place <= CLOSED_AT, found) == (True, [before]), told
    if place >= OPEN_AT:
        assert found == [to]
    assert told["writes"] in (None, "none", *found), told
    done = tide.turn_until_done(verb(to))
    assert done["writes"] == to
    probe.never_both([before, to])
    assert side(tide) == to
    return str(told["result"])


@pytest.mark.parametrize("broken", ["old", "new"])
@pytest.mark.parametrize("start", [0, 1], ids=["cutover first", "rollback first"])
def test_stopped_at_every_step(apart: Apart, broken: str, start: int) -> None:
    """Each point is met on the way there in one of the runs, and on the way back in the other."""
    ledger = apart.tide.ledger()
    with Probe(tide=apart.tide) as probe, writing(ledger):
        if start:
            assert apart.tide.cutover()["result"] == "done"
        for number, point in enumerate(POINTS):
            began = time.monotonic()
            down_s = 0.0 if number % 3 else 2.0
            ended = crashed(apart, probe, point, broken, down_s)
            print(f"{broken} down for {down_s:g} s at {point}: {ended}, all in {time.monotonic() - began:.0f} s")
    apart.tide.agree(ledger)


def test_gone_for_longer_than_it_is_waited_for(apart: Apart) -> None:
    """The side that is to open is away when the other one has closed: exit 5, and later the same verb opens it."""
    tide = apart.tide
    ledger = tide.ledger()
    with Probe(tide=tide) as probe, writing(ledger):
        time.sleep(0.5)
        turning = tide.start("cutover", "--max-pause", "2", failpoints="turn.after_close=stop@1")
        tide.program.until(lambda: state_of(turning.pid) == "T")
        apart.servers["new"].stop("immediate")
        turning.send_signal(signal.SIGCONT)
        out, _ = turning.communicate(timeout=60)
        assert turning.returncode == 5
        assert "failover --to old" in json.loads(out)["error"]["remedy"]
        apart.servers["new"].start()
        assert tide.open_sides() == []
        done = tide.turn_until_done("cutover")
        assert done["writes"] == "new"
        probe.never_both(["old", "new"])
        time.sleep(0.5)
    tide.agree(ledger)


# Where the process sleeps, which server is frozen while it goes on, how it then ends, and who takes writes.
FROZEN = (
    ("after_hold", "new", 4, "old"),
    ("after_token", "old", 4, "old"),
    ("before_close_commit", "old", 5, ""),
    ("after_close", "new", 5, ""),
    ("before_open_commit", "old", 0, "new"),
    ("after_open", "old", 0, "new"),
)


@pytest.mark.parametrize(("point", "frozen", "code", "expected"), FROZEN)
def test_a_server_is_frozen(apart: Apart, point: str, frozen: str, code: int, expected: str) -> None:
    """It answers nothing, with every connection open: the verb ends all the same, and says what it knows."""
    tide = apart.tide
    ledger = tide.ledger()
    with Probe(tide=tide) as probe, writing(ledger):
        time.sleep(0.5)
        turning = tide.start("cutover", "--max-pause", "4", failpoints=f"turn.{point}=stop@1")
        tide.program.until(lambda: state_of(turning.pid) == "T")
        apart.servers[frozen].freeze()
        try:
            resume(turning)
            began = time.monotonic()
            out, err = turning.communicate(timeout=120)
            took_s = time.monotonic() - began
        finally:
            apart.servers[frozen].thaw()
        assert turning.returncode == code, (out, err)
        print(f"{frozen} frozen at {point}: exit {code} after {took_s:.0f} s")
        assert took_s < 90
        told = json.loads(out)
        assert told["error"] is None or told["error"]["remedy"]
        found = tide.open_sides()
        assert found == ([expected] if expected else found)
        assert len(found) <= 1
        assert tide.turn_until_done("cutover")["writes"] == "new"
        probe.never_both(["old", "new"])
        time.sleep(0.5)
    tide.agree(ledger)
