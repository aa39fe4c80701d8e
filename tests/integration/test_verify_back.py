"""Verification of both directions, whichever side is open: the one that takes writes leads, the other follows."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from tests.fixtures.ledger import writing
from tests.fixtures.running import COMMAND
from tests.fixtures.tide import Tide


def verify(tide: Tide, direction: str, code: int) -> dict[str, Any]:
    done = subprocess.run(
        [COMMAND, "-c", str(tide.program.file), "verify", "--json", "--direction", direction],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=os.environ | tide.program.env,
    )
    assert done.returncode == code, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_before_and_after_a_turn_under_load(tide: Tide) -> None:
    ledger = tide.ledger()
    with writing(ledger):
        for direction in ("forward", "reverse"):
            assert verify(tide, direction, 0)["state"] == "clean"
        tide.cutover()
        for direction in ("forward", "reverse"):
            assert verify(tide, direction, 0)["state"] == "clean"
    # Behind its back, on the side that follows now.
    tide.on(
        "old",
        "begin; alter table shop.account disable trigger all; update shop.account set note = 'bad' where id = 14;"
        " alter table shop.account enable always trigger slackwater_fence; commit",
    )
    wrong = verify(tide, "reverse", 3)["tables"]["account"]["mismatches"]
    assert wrong == [{"kind": "different", "key": {"id": "14"}, "columns": ["note"]}]
    wrong = verify(tide, "forward", 3)["tables"]["account"]["mismatches"]
    assert wrong == [{"kind": "different", "key": {"id": "14"}, "columns": ["note"]}]
