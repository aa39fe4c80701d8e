"""`slackwater verify` as people use it: on a running migration, with real servers on both ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.plain import Pair, fresh_shop, program_on
from tests.fixtures.preparing import NEW, OLD, TABLES, Shop
from tests.fixtures.running import Program


@pytest.fixture(scope="module")
def streaming(postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A migration that streams, every role running; each test leaves the rows as it found them."""
    with fresh_shop(postgres_dsn, bootstrap, OLD, NEW) as made:
        shop = made.with_(tables=TABLES)
        with program_on(shop, tmp_path_factory.mktemp("streaming")) as program:
            program.streaming()
            yield Pair(shop=shop, program=program)


@pytest.fixture
def shop(streaming: Pair) -> Iterator[Shop]:
    """Never verified so far, both sides as they were filled."""
    text = streaming.program.file.read_text()
    streaming.shop.on_new("truncate slackwater.verification, slackwater.verify_chunk")
    yield streaming.shop
    streaming.program.file.write_text(text)


@pytest.fixture
def program(shop: Shop, streaming: Pair) -> Program:
    return streaming.program


def verify(program: Program, *arguments: str, code: int) -> dict[str, Any]:
    return program.document("verify", *arguments, code=code)


def repairs(program: Program) -> int:
    """How many the journal has."""
    return [e["step"] for e in json.loads(program("journal", "--json"))["entries"]].count("verify repair")


def behind_its_back(shop: Shop, statement: str) -> None:
    """A write to new that no fence saw, whatever table it is."""
    tables = [row[0] for row in shop.on_new("select tablename from pg_tables where schemaname = 'app'")]
    fenced = [t for t in tables if shop.on_new(f"select from pg_trigger where tgrelid = 'app.{t}'::regclass")]
    off = "; ".join(f"alter table app.{t} disable trigger all" for t in fenced)
    on = "; ".join(f"alter table app.{t} enable always trigger slackwater_fence" for t in fenced)
    shop.on_new(f"begin; {off}; {statement}; {on}; commit")


def test_found_by_key_repaired_and_clean_again(program: Program, shop: Shop) -> None:
    clean = verify(program, code=0)
    assert clean["state"] == "clean"
    assert {name: t["rows"] for name, t in clean["tables"].items()} == {
        "account": 2, "address": 1, "customer": 2, "readings": 2
    }  # fmt: skip
    status = program.status()["verification"]["forward"]
    assert status["state"] == "clean"
    assert (status["mismatched"], status["tables"]["customer"]["rows"]) == (0, 2)

    behind_its_back(
        shop,
        "update app.customer set email = 'x' where id = 1; delete from app.address where customer_id = 1;"
        " insert into app.readings values (77, '2024-01-01', 1); update app.account set bio = '' where id = 2",
    )
    found = verify(program, code=3)
    listed = {name: t["mismatches"] for name, t in found["tables"].items()}
    assert listed == {
        "account": [{"kind": "different", "key": {"id": "2"}, "columns": ["bio"]}],
        "address": [{"kind": "missing", "key": {"customer_id": "1"}, "columns": []}],
        "customer": [{"kind": "different", "key": {"id": "1"}, "columns": ["email"]}],
        "readings": [{"kind": "extra", "key": {"id": "77", "at": "2024-01-01"}, "columns": []}],
    }
    shown = verify(program, "--table", "account", "--show-values", code=3)["tables"]["account"]["mismatches"][0]
    assert (shown["source"][0]["bio"], shown["target"][0]["bio"]) == (None, "")
    kept = str(shop.on_new("select v::text from slackwater.verification v"))
    assert "ada@x.org" not in kept + program.log

    said = program("verify", "--repair", code=2)  # nobody to ask
    assert "--yes" in said
    before = repairs(program)
    repaired = verify(program, "--repair", "--delete", "--yes", code=3)
    assert repaired["state"] == "repaired"
    assert repaired["repaired"]["rows"] >= 4
    assert repaired["repaired"]["left"] == 0
    assert program.status()["verification"]["forward"]["state"] == "repaired"  # not clean: nobody has looked again
    assert verify(program, code=0)["state"] == "clean"
    assert shop.on_new("select email from app.customer where id = 1") == [("ada@x.org",)]
    assert shop.on_new("select count(*) from app.readings") == [(2,)]
    assert repairs(program) == before + 1

    line = f'slackwater_mismatched_rows{{direction="forward",migration="{shop.migration}"}} 0.0'
    program.until(lambda: line in program.get("apply", "/metrics")[1])


def test_what_cannot_be_compared_is_never_clean(program: Program, shop: Shop) -> None:
    verify(program, code=0)
    said = program("verify", "--table", "custommer", code=2)
    assert "custommer" in said

    # A mapping edited after a clean pass.
    text = program.file.read_text()
    program.file.write_text(text.replace("lower(email)", "upper(email)"))
    assert "is not the file that migration" in program("verify", code=1)
    program.file.write_text(text)
    assert "not armed" in program("verify", "--direction", "reverse", code=1)

    # A table that is gone.
    shop.on_new("alter table app.address rename to addresses")
    found = verify(program, code=1)
    assert found["tables"]["address"]["problem"]["cause"]
    assert found["tables"]["customer"]["state"] == "clean"
    assert found["next"]
    shop.on_new("alter table app.addresses rename to address")
    verify(program, code=0)

    # The applier stands still.
    program("pause", "apply", "--reason", "a test")
    program.until(lambda: program.forward()["state"] == "paused")
    said = program("verify", code=1)
    assert "stands still: apply is paused" in said
    program("resume", "apply")
    program.until(lambda: program.forward()["state"] == "running")
    verify(program, code=0)

    # Nothing is loaded yet.
    shop.on_new("update slackwater.load set state = 'running' where name = 'customer'")
    assert "not loaded yet: customer (running)" in program("verify", code=1)
    shop.on_new("update slackwater.load set state = 'done' where name = 'customer'")


def test_paused_and_continuous(program: Program, shop: Shop) -> None:
    program("pause", "verify", "--reason", "the nightly report")
    process = program.start("verify")
    program.until(lambda: "the nightly report" in program.log)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 4
    assert "stopped before every row was compared" in program.log
    process = program.start("verify")
    program("resume", "verify")
    assert process.wait(30) == 0

    program.file.write_text(program.file.read_text() + "\nverify: {max_rows_per_s: 100000}\n")
    role = program.start("run", "verify")
    at = program.status()["verification"]["forward"]["at"]
    program.until(lambda: program.status()["verification"]["forward"]["at"] != at)
    behind_its_back(shop, "delete from app.customer where id = 2")
    program.until(lambda: program.status()["verification"]["forward"]["state"] == "mismatched", within_s=60)
    assert verify(program, "--repair", "--yes", code=3)["state"] == "repaired"  # the role makes way
    program.until(lambda: program.status()["verification"]["forward"]["state"] == "clean", within_s=60)
    assert program.get("verify", "/readyz")[0] == 200
    assert "slackwater_verify_rows_total" in program.get("verify", "/metrics")[1]
    role.send_signal(signal.SIGTERM)
    assert role.wait(20) == 0


def killed(program: Program, failpoint: str, *arguments: str) -> None:
    """A verify that dies at a failpoint, with SIGKILL."""
    done = program.launch("verify", *arguments, failpoints=f"{failpoint}=kill")
    assert done.wait(120) == -signal.SIGKILL


def test_a_kill_leaves_no_verdict_and_no_half_of_a_repair(program: Program, shop: Shop) -> None:
    killed(program, "verify.before_record", "--table", "customer")
    assert program.status()["verification"]["forward"]["state"] in ("pending", "running")
    assert verify(program, code=0)["state"] == "clean"

    behind_its_back(shop, "delete from app.customer where id = 2; update app.account set bio = 'x' where id = 1")
    verify(program, code=3)
    killed(program, "verify.before_record", "--table", "customer")
    assert program.status()["verification"]["forward"]["state"] == "mismatched"  # as long as nothing says otherwise

    killed(program, "verify.mid_repair", "--repair", "--yes")
    assert program.status()["verification"]["forward"]["state"] == "mismatched"
    assert shop.on_new("select count(*) from slackwater.reread") == [(0,)]
    assert verify(program, "--repair", "--yes", code=3)["state"] == "repaired"
    assert verify(program, code=0)["state"] == "clean"
    assert shop.on_new("select bio from app.account where id = 1") == [("maths",)]
