"""There and back again under load: nothing lost, nothing doubled, for a service as the README shows it as well."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from stream.backfill.role import LOOK_S
from tests.fixtures.ledger import writing
from tests.fixtures.tide import BALANCE, ENTRY, WRITERS, Tide

README = Path(__file__).parents[2] / "README.md"
WAITING = """
select count(*)::int from pg_stat_activity
 where datname = current_database() and application_name = 'slackwater backfill' and wait_event = 'advisory'
"""
TURNS = int(os.environ.get("SLACKWATER_TURNS", "2"))


def there_and_back(tide: Tide, turns: int) -> None:
    before, ledger = tide.turns, tide.ledger()
    with writing(ledger):
        for number in range(1, turns + 1):
            time.sleep(1)
            done = tide.cutover() if number % 2 else tide.rollback()
            assert (done["result"], done["turn"]) == ("done", before + number)
        time.sleep(1)
    tide.agree(ledger)
    assert {side for told in ledger.told for _, side in told.acknowledged} == {"old", "new"}
    assert ledger.retried >= turns
    status = tide.program.status()
    assert (status["phase"], status["turn"]) == ("armed" if turns % 2 == 0 else "switched", before + turns)
    assert status["cutover"]["pause_seconds"] > 0
    assert status["quarantine"]["rows"] == 0


def test_there_and_back_in_one_database(one_database_tide: Tide) -> None:
    there_and_back(one_database_tide, TURNS)


@pytest.mark.soak
def test_twenty_turns(tide: Tide) -> None:
    there_and_back(tide, 20)


def verify(tide: Tide, direction: str, code: int) -> dict[str, Any]:
    return tide.program.document("verify", "--direction", direction, code=code)


def rereads(tide: Tide) -> int:
    rows: int = tide.program.status()["reread"]["rows"]
    return rows


def behind_the_stream(tide: Tide, note: str) -> None:
    tide.on(
        "old",
        f"begin; select pg_logical_emit_message(true, 'slackwater.echo', '{tide.migration}.reverse');"
        f" update shop.account set note = '{note}' where id = 14; commit",
    )


def past_the_fence(tide: Tide, note: str) -> None:
    tide.on(
        "old",
        f"begin; alter table shop.account disable trigger all; update shop.account set note = '{note}' where id = 14;"
        " alter table shop.account enable always trigger slackwater_fence; commit",
    )


def test_verified_before_and_after_a_turn(tide: Tide) -> None:
    """Both directions, whichever side is open: the one that takes writes leads, the other follows."""
    ledger = tide.ledger()
    # What no stream carries, on the side that leads: nothing of ours may write there.
    behind_the_stream(tide, "bad")
    asked = tide.program("verify", "--direction", "reverse", "--repair", "--yes", code=1)
    assert "old takes the application's writes" in asked
    assert rereads(tide) == 0
    behind_the_stream(tide, "n")
    with writing(ledger):
        for direction in ("forward", "reverse"):
            assert verify(tide, direction, 0)["state"] == "clean"
        tide.cutover()
        for direction in ("forward", "reverse"):
            assert verify(tide, direction, 0)["state"] == "clean"
    # Behind its back, on the side that follows now.
    past_the_fence(tide, "bad")
    wrong = verify(tide, "reverse", 3)["tables"]["account"]["mismatches"]
    assert wrong == [{"kind": "different", "key": {"id": "14"}, "columns": ["note"]}]
    wrong = verify(tide, "forward", 3)["tables"]["account"]["mismatches"]
    assert wrong == [{"kind": "different", "key": {"id": "14"}, "columns": ["note"]}]
    tide.program("foreign-writes", "discard", "--reason", "a test", "--yes")
    tide.program.until(lambda: tide.on("old", "select note from shop.account where id = 14") == [("n",)])
    assert verify(tide, "reverse", 0)["state"] == "clean"
    what_waits_for_a_side_is_settled_when_it_opens(tide)


def what_waits_for_a_side_is_settled_when_it_opens(tide: Tide) -> None:
    """Foreign writes that nobody decided about before the way back; and rows asked for again while it was under way."""
    past_the_fence(tide, "kept")
    tide.program.until(lambda: tide.program.status()["foreign_writes"]["rows"] == 1)
    tide.program("pause", "backfill", "--reason", "a test")
    time.sleep(2 * LOOK_S)  # it has everything loaded, and tells nobody that it holds back
    tide.on(
        "old",
        "insert into slackwater.reread (migration, direction, load, source, key, reason)"
        " values (%s, 'reverse', 'account', 'account', '{\"id\": \"12\"}', 'a test')",
        tide.migration,
    )
    # A verification that has halted says nothing of the stream.
    halted = "insert into slackwater.role values (%s, 'reverse', 'verify', 1, 'here', 'halted')"
    tide.on("old", halted, tide.migration)
    assert tide.program.status()["safe_to_rollback"] is False
    assert "reread: 1 rows wait to be read again" in tide.program("rollback", "--yes", code=3)
    over = ("--waive", "reread", "--reason", "a test")
    turning = tide.start("rollback", *over, failpoints="turn.after_close=sleep:3")
    tide.program.until(lambda: tide.open_sides() == [])
    with psycopg.connect(tide.dsns["old"]) as applying:  # as a long epoch would hold it: backfill waits behind it
        applying.execute(
            "select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"slackwater.{tide.migration}.reverse",)
        )
        tide.on(
            "old",
            "insert into slackwater.quarantine (migration, direction, load, source, key, error, carried)"
            " values (%s, 'reverse', 'account', 'account', '{\"id\": \"13\"}', 'a test', '[{\"id\": \"13\"}]')",
            tide.migration,
        )
        tide.program("quarantine", "retry", "--all", "--direction", "reverse")
        tide.program("resume", "backfill")
        tide.program.until(lambda: tide.on("old", WAITING) == [(1,)])
        assert tide.open_sides() == []
        told = json.loads(turning.communicate(timeout=60)[0])
    assert (told["result"], told["writes"]) == ("done", "old")
    assert "gone over: 1 rows wait to be read again" in told["notes"]
    assert any(note.startswith("2 rows that were to be read again stay as they are on old") for note in told["notes"])
    assert any('are lost of rows not written again: account {"id": "13"}' in note for note in told["notes"])
    assert rereads(tide) == 0
    listed = json.loads(tide.program("quarantine", "list", "--direction", "reverse", "--json"))["rows"]
    assert [(row["key"], row["state"]) for row in listed] == [({"id": "13"}, "open")]
    tide.on("old", "delete from slackwater.quarantine where migration = %s returning 1", tide.migration)
    # The side with the foreign row leads by now: the row is its own.
    refused = tide.program("foreign-writes", "discard", "--reason", "a test", "--yes", code=3)
    assert "undo it on old" in refused
    assert tide.on("new", "select note from app.account where id = 14") == [("n",)]
    tide.program("foreign-writes", "accept", "--reason", "a test", "--yes")
    tide.program.until(lambda: tide.on("new", "select note from app.account where id = 14") == [("kept",)])
    tide.drained("old")
    assert rereads(tide) == 0
    assert "backfill halted" not in tide.program.log


def example() -> str:
    """The block that defines `write`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = [b for b in blocks if "def write(" in b]
    return str(found)


def test_the_services_writes_follow_the_route(tide: Tide) -> None:
    code = example().replace("migration = 'shop'", f"migration = '{tide.migration}'")
    urls = {side: dsn.replace("postgresql://", "postgresql+psycopg://") for side, dsn in tide.dsns.items()}
    service: dict[str, Any] = {"OLD_URL": urls["old"], "NEW_URL": urls["new"]}
    exec(compile(code, "README.md", "exec"), service)
    stop = threading.Event()
    acknowledged: list[int] = []

    def entry(number: int) -> Any:
        def work(conn: Any, side: str) -> None:
            conn.exec_driver_sql(ENTRY[side], (number, (number - 1) % WRITERS))
            conn.exec_driver_sql(BALANCE[side], ((number - 1) % WRITERS,))

        return work

    def serve() -> None:
        number = 1
        while not stop.is_set():
            service["write"](entry(number))
            acknowledged.append(number)
            number += 1
            time.sleep(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    time.sleep(1)
    assert tide.cutover()["result"] == "done"
    time.sleep(1)
    assert tide.rollback()["result"] == "done"
    time.sleep(1)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    for engine in service["engines"].values():
        engine.dispose()
    tide.drained("old")
    for side, table in (("old", "shop.entry"), ("new", "app.ledger_entry")):
        assert [n for (n,) in tide.on(side, f"select id from {table} order by 1")] == acknowledged
