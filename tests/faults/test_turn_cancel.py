"""`cancel` while a cutover is under way, or asleep: one of the two happens, the other is told, and writes go on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.databases import Databases
from tests.fixtures.ledger import writing
from tests.fixtures.running import end
from tests.fixtures.tide import Tide, resume, state_of, tide_on

pytestmark = pytest.mark.soak


@pytest.fixture
def tide(databases: Databases, bootstrap: str, tmp_path: Path) -> Iterator[Tide]:
    """One of its own, for its end."""
    with tide_on(tmp_path, {"old": databases.old, "new": databases.new}, bootstrap) as made:
        yield made


# What is ours in a database, whatever schema it is in.
OURS = """
select (select count(*) from pg_namespace where nspname like 'slackwater%'),
       (select count(*) from pg_trigger where tgname like 'slackwater%'),
       (select count(*) from pg_publication where pubname like 'slackwater%'),
       (select count(*) from pg_replication_slots where database = current_database())
"""


def cancelled(tide: Tide, within_s: float = 60.0) -> str:
    """Cancel, again while somebody is at the migration."""
    deadline = time.monotonic() + within_s
    while True:
        said = tide.program("cancel", "--yes", code=None)
        if "somebody else is at migration" not in said:
            return said
        assert time.monotonic() < deadline, said
        time.sleep(1)


def entries(tide: Tide) -> int:
    (found,) = tide.on("old", "select count(*) from shop.entry")
    return int(found[0])


def test_under_way(tide: Tide) -> None:
    """It is told who is at work; afterwards it is too late."""
    ledger = tide.ledger()
    with writing(ledger):
        time.sleep(0.5)
        turning = tide.start("cutover", failpoints="turn.after_token=stop")
        tide.program.until(lambda: state_of(turning.pid) == "T")
        end(tide.program.background[0])
        said = tide.program("cancel", "--yes", code=3)
        assert "somebody else is at migration" in said
        assert "slackwater cutover by" in said
        resume(turning)
        out, err = turning.communicate(timeout=60)
        assert json.loads(out)["result"] == "done", (out, err)
        assert "writes were moved" in tide.program("cancel", "--yes", code=3)
        assert tide.open_sides() == ["new"]
        tide.program.start("run")
        time.sleep(1)
    tide.agree(ledger)


def test_asleep_before_its_intent(tide: Tide) -> None:
    """Its lease is over: the migration ends, and a cutover that wakes late changes nothing on either side."""
    ledger = tide.ledger()
    with writing(ledger):
        time.sleep(0.5)
        turning = tide.start("cutover", "--max-pause", "5", failpoints="turn.after_token=stop")
        tide.program.until(lambda: state_of(turning.pid) == "T")
        end(tide.program.background[0])
        cancelled(tide)
        assert [tide.on(side, OURS) for side in ("old", "new")] == [[(0, 0, 0, 0)]] * 2
        resume(turning)
        out, err = turning.communicate(timeout=60)
        assert turning.returncode in (3, 4), (out, err)
        before = entries(tide)
        time.sleep(0.5)
        assert entries(tide) > before
    assert ledger.retried == 0
    assert not ledger.errors
    assert [tide.on(side, OURS) for side in ("old", "new")] == [[(0, 0, 0, 0)]] * 2
    found = [n for (n,) in tide.on("old", "select id from shop.entry")]
    ledger.agrees_with(found)
    tide.program.watch = None


def test_asleep_after_its_intent(tide: Tide) -> None:
    """It may have closed old: `cancel` is refused until that is known."""
    ledger = tide.ledger()
    with writing(ledger):
        time.sleep(0.5)
        turning = tide.start("cutover", "--max-pause", "5", failpoints="turn.after_intent=stop")
        tide.program.until(lambda: state_of(turning.pid) == "T")
        end(tide.program.background[0])
        assert "writes were moved, or are being" in cancelled(tide)
        assert tide.open_sides() == ["old"]
        resume(turning)
        out, _ = turning.communicate(timeout=60)
        assert (turning.returncode, json.loads(out)["result"]) == (4, "aborted")
        assert tide.open_sides() == ["old"]
        cancelled(tide)
        assert [tide.on(side, OURS) for side in ("old", "new")] == [[(0, 0, 0, 0)]] * 2
        with psycopg.connect(tide.dsns["old"]) as conn:
            conn.execute("update shop.account set note = note")
    assert ledger.retried == 0
    assert not ledger.errors
