"""A verification says nothing any more once anything happened that can have moved rows unseen: each cause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import plain
from tests.fixtures.plain import Pair, fresh_shop, program_on
from tests.fixtures.preparing import NEW, OLD, TABLES, Shop
from tests.fixtures.running import Program
from tests.fixtures.tide import resume, state_of

CLEAN = ["account", "address", "customer", "readings"]
REFUSING = """
alter table app.address drop constraint if exists no_such_street;
alter table app.address add constraint no_such_street check (street <> 'nowhere')
"""


@pytest.fixture(scope="module")
def streaming(postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with fresh_shop(postgres_dsn, bootstrap, OLD, NEW) as made:
        shop = made.with_(tables=TABLES)
        with program_on(shop, tmp_path_factory.mktemp("void")) as program:
            program.streaming()
            yield Pair(shop=shop, program=program)


@pytest.fixture
def pair(streaming: Pair) -> Pair:
    """Every table clean."""
    streaming.program("verify")
    assert clean(streaming.program) == CLEAN
    return streaming


def verdicts(program: Program, direction: str = "forward") -> dict[str, Any]:
    tables: dict[str, Any] = program.status()["verification"][direction]["tables"]
    return tables


def clean(program: Program) -> list[str]:
    return [name for name, table in verdicts(program).items() if table["state"] == "clean"]


def void(program: Program, direction: str = "forward") -> dict[str, str]:
    """Table -> why its verdict says nothing; what is void is pending, and has no age."""
    found = {}
    for name, table in verdicts(program, direction).items():
        if table["void"] is not None:
            assert table["state"] != "clean"
            assert table["state"] != "pending" or (table["at"], table["rows"]) == (None, None)
            found[name] = table["void"]["cause"]
    return found


def gate(program: Program) -> tuple[str, str]:
    found = program.status()["gates"]
    return next((g["state"], g["detail"]) for g in found if g["gate"] == "verification")


def quarantined(pair: Pair) -> int:
    """A row that new refuses; its number."""
    pair.shop.on_new(REFUSING)
    pair.shop.on_old("update shop.customers set street = 'nowhere' where id = 2")
    query = "select id from slackwater.quarantine where state = 'open'"
    pair.program.until(lambda: pair.shop.on_new(query))
    return int(pair.shop.on_new(query)[0][0])


def test_a_waived_row(pair: Pair) -> None:
    program = pair.program
    row = quarantined(pair)
    assert clean(program) == CLEAN
    program("quarantine", "waive", str(row), "--reason", "a test")
    assert void(program) == {"address": "quarantined rows were waived"}
    state, detail = gate(program)
    assert state == "failed"
    assert detail.startswith("not verified since quarantined rows were waived (20")
    assert detail.endswith("): address")
    program("verify", "--table", "address")
    assert clean(program) == CLEAN
    pair.shop.on_old("update shop.customers set street = null where id = 2")
    pair.shop.on_new("delete from slackwater.quarantine")


def test_a_repair_voids_what_shares_its_mirrors(pair: Pair) -> None:
    """A row of a mirror that is read again moves every table that is computed from it."""
    program, shop = pair.program, pair.shop
    mirror = shop.on_new(
        "select relname from pg_class where relnamespace = 'slackwater_mirror'::regnamespace and relname ~ 'profiles$'"
    )[0][0]
    shop.on_new(f"update slackwater_mirror.\"{mirror}\" set bio = 'lost' where user_id = 1")
    shop.on_new(
        "alter table app.account disable trigger all; update app.account set bio = 'lost' where id = 1;"
        " alter table app.account enable always trigger slackwater_fence"
    )
    program("verify", "--repair", "--yes", code=3)
    states = {name: table["state"] for name, table in verdicts(program).items()}
    assert states == {"account": "repaired", "address": "pending", "customer": "pending", "readings": "pending"}
    assert set(void(program) | {"account": ""}) == set(CLEAN)
    program("verify")
    assert clean(program) == CLEAN
    assert shop.on_new("select bio from app.account where id = 1") == [("maths",)]


def test_another_path_of_users_code(pair: Pair) -> None:
    """What a function makes of a row may hang on where its names lead: neither verdict outlives the path it had."""
    program = pair.program
    program("roundtrip", code=3)  # lossy, and judged so under this path
    program.watch = None
    text = program.file.read_text()
    states = {g["gate"]: g["state"] for g in program.status()["gates"]}
    assert (states["verification"], states["roundtrip"]) == ("passed", "failed")
    for side, schema in (("old", "shop"), ("new", "app")):
        program.file.write_text(text.replace(f"schema: {schema}}}", f"schema: {schema}, search_path: []}}"))
        assert program.file.read_text() != text
        program.watch = None
        assert clean(program) == [], side
        assert gate(program) == ("unknown", f"not compared under this file: {', '.join(CLEAN)}")
        found = {g["gate"]: g["detail"] for g in program.status()["gates"]}
        assert found["roundtrip"].endswith("with another file, or under another search_path")
    program("verify")
    assert clean(program) == CLEAN
    program.file.write_text(text)
    program.watch = None
    assert clean(program) == []
    program("verify")
    assert clean(program) == CLEAN


def test_a_table_that_stood_without_its_fence(pair: Pair) -> None:
    """Before `arm` nobody reads what is written to new: who writes past its fence is in no stream, and puts it back."""
    program, shop = pair.program, pair.shop
    shop.on_new(
        "begin; alter table app.readings_all disable trigger slackwater_fence;"
        " update app.readings_all set v = 7 where id = 1;"
        " alter table app.readings_all enable always trigger slackwater_fence; commit"
    )
    assert void(program) == {"readings": "its fence was taken off, or put on anew"}
    assert gate(program) == ("failed", "not verified since its fence was taken off, or put on anew: readings")
    found = program.document("verify", "--repair", "--yes", code=3)
    assert [m["key"]["id"] for m in found["tables"]["readings"]["mismatches"]] == ["1"]
    program("verify")
    assert clean(program) == CLEAN


def test_a_pass_under_way_begins_anew(pair: Pair) -> None:
    """What was compared before the cause does not count, be it in a pass that goes on, or in one that was killed."""
    program = pair.program
    row = quarantined(pair)
    killed = program.start("verify", "--table", "address", "--fresh", failpoints="verify.before_record=kill@1")
    assert killed.wait(60) == -9
    program.file.write_text(program.file.read_text() + "\nverify: {workers: 1}\n")
    comparing = program.start("verify", "--fresh", failpoints="verify.before_record=stop@1")
    program.until(lambda: state_of(comparing.pid) == "T")
    program("quarantine", "waive", str(row), "--reason", "a test")
    voided_at = verdicts(program)["address"]["void"]["at"]
    resume(comparing)
    assert comparing.wait(60) == 0
    assert clean(program) == CLEAN
    assert verdicts(program)["address"]["at"] > voided_at
    pair.shop.on_old("update shop.customers set street = null where id = 2")
    pair.shop.on_new("delete from slackwater.quarantine")


def test_another_server_an_earlier_version_and_what_stays(pair: Pair) -> None:
    program, shop = pair.program, pair.shop
    shop.on_new(
        "update slackwater.verification set ground = jsonb_set(ground, '{server}', '\"7311/00000001\"')"
        " where load = 'account'; update slackwater.verification set ground = null where load = 'address'"
    )
    assert void(program) == {
        "account": "its server was promoted, or restored from a backup",
        "address": "slackwater was upgraded",
    }
    shop.on_new("update slackwater.verification set state = 'mismatched', mismatched = 1 where load = 'account'")
    assert verdicts(program)["account"]["state"] == "mismatched"  # what was found wrong is not made good by a cause
    program("verify")
    assert clean(program) == CLEAN


def test_a_turn_voids_both_directions(pair: Pair) -> None:
    """There and back: a verdict from before says nothing of what came between."""
    program, shop = pair.program, pair.shop
    there_and_back(shop)
    state, detail = gate(program)
    assert (state, detail.partition(" (")[0]) == ("failed", "not verified since turn 2 moved the writes to old")
    assert set(void(program)) == set(CLEAN)
    program("verify")
    assert clean(program) == CLEAN


def there_and_back(shop: Shop) -> None:
    """The turn rows alone, as two turns leave them: what becomes of verdicts rests on nothing else."""
    shop.on_old("update slackwater.turn set open_turn = 2, fence_turn = 2, changed_at = clock_timestamp()")
    shop.on_new("update slackwater.turn set open_turn = 1, fence_turn = 3, changed_at = clock_timestamp()")


def test_a_table_that_is_loaded_anew_is_analysed(postgres_dsn: str, bootstrap: str, tmp_path: Path) -> None:
    """As after the backfill: the gate `statistics` asks for it."""
    with fresh_shop(postgres_dsn, bootstrap, plain.OLD, plain.NEW) as shop:
        shop.on_old("insert into shop.log select 'line ' || i from generate_series(1, 1500) i")
        with program_on(shop, tmp_path) as program:
            program.streaming()
            program("verify")
            shop.on_new(
                "alter table app.log disable trigger all; delete from app.log where line = 'line 7';"
                " alter table app.log enable always trigger slackwater_fence"
            )
            program("verify", "--repair", "--yes", code=3)
            program.until(lambda: program.status()["backfill"]["tables"]["log"]["state"] == "done")
            found = {g["gate"]: (g["state"], g["detail"]) for g in program.document("gates")["gates"]}
            assert found["statistics"][0] == "passed", found["statistics"]
            program("verify")
            assert clean(program) == ["customers", "log", "orders"]
