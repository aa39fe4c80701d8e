"""There and back again under load: nothing lost, nothing doubled, in two databases and in one."""

from __future__ import annotations

import os
import time

import pytest

from tests.fixtures.ledger import writing
from tests.fixtures.tide import Tide

TURNS = int(os.environ.get("SLACKWATER_TURNS", "2"))


def there_and_back(tide: Tide, turns: int) -> None:
    ledger = tide.ledger()
    with writing(ledger):
        for number in range(1, turns + 1):
            time.sleep(1)
            done = tide.cutover() if number % 2 else tide.rollback()
            assert (done["result"], done["turn"]) == ("done", number)
        time.sleep(1)
    tide.agree(ledger)
    assert {side for told in ledger.told for _, side in told.acknowledged} == {"old", "new"}
    assert ledger.retried >= turns
    status = tide.program.status()
    assert (status["phase"], status["turn"]) == (("armed", turns) if turns % 2 == 0 else ("switched", turns))
    assert status["cutover"]["pause_seconds"] > 0
    assert status["quarantine"]["rows"] == 0


def test_there_and_back(tide: Tide) -> None:
    there_and_back(tide, TURNS)


def test_there_and_back_in_one_database(one_database_tide: Tide) -> None:
    there_and_back(one_database_tide, TURNS)


@pytest.mark.soak
def test_twenty_turns(tide: Tide) -> None:
    there_and_back(tide, 20)
