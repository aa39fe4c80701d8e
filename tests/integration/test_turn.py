"""Turning the tide with the real program: who is refused, who goes on, and what is told on every exit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors.postgres import fence, session
from tests.fixtures.ledger import Ledger, writing
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, started_with

# What a turn does not rest on, and would take minutes to wait for.
GATES = "\ncutover: {attempts: 3, max_pause_s: 20, gates: {verification: off, roundtrip: off, canary_age: off}}\n"
CLOSED = psycopg.errors.ReadOnlySqlTransaction


@pytest.fixture
def program(shop: Shop, tmp_path: Path) -> Iterator[Program]:
    """The shop, streaming forward; what `arm` would prove is taken for granted."""
    env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    with started_with(tmp_path, shop.text + GATES, env) as program:
        program("prepare", "--yes")
        program.start("run")
        program("wait", "--for", "phase=streaming", "--timeout", "60")
        shop.on_new("update slackwater.migration set phase = 'armed'")
        program.until(lambda: program.forward()["lag_seconds"] is not None)
        yield program


def turned(program: Program, *arguments: str, code: int = 0) -> dict[str, Any]:
    said = program(*arguments, "--yes", "--json", code=code)
    document: dict[str, Any] = json.loads(said[: said.rindex("}") + 1])
    return document


def route(dsn: str) -> tuple[Any, ...] | None:
    with psycopg.connect(dsn) as conn:
        return conn.execute("select writes, turn from slackwater.route").fetchone()


def insert(conn: psycopg.Connection[Any], side: str, entry: int) -> None:
    if side == "old":
        conn.execute("insert into shop.customers (id, cust_nm) values (%s, 'x')", (entry + 1000,))
    else:
        conn.execute("insert into app.customer (id, name) values (%s, 'x')", (entry + 1000,))


def test_a_cutover_moves_the_writes_and_loses_none(program: Program, shop: Shop) -> None:
    ledger = Ledger(dsns={"old": shop.old, "new": shop.new}, migration=shop.migration, write=insert, writers=4)
    with writing(ledger):
        time.sleep(1)
        done = turned(program, "cutover", "--as", "tonight")
        time.sleep(1)
    assert (done["result"], done["writes"], done["turn"], done["error"]) == ("done", "new", 1, None)
    assert [s["step"] for s in done["steps"]] == [
        "gates", "look", "lock", "drain", "check", "sequences", "journal", "fence", "open",
    ]  # fmt: skip
    assert 0 < done["pause_seconds"] < 20
    sides = {side for told in ledger.told for _, side in told.acknowledged}
    assert sides == {"old", "new"}
    assert ledger.retried
    ledger.agrees_with([n - 1000 for (n,) in shop.on_new("select id from app.customer where id > 1000")])

    assert (route(shop.old), route(shop.new)) == (("new", 1), ("new", 1))
    with session.connect(shop.old) as conn:
        fenced = fence.fences(conn)
        assert {f.turn for f in fenced.values()} == {2}
        assert ("shop", "readings_a") in fenced
        for attack in ("insert into shop.readings_a values (9, '2023-01-01', 1)", "truncate shop.profiles"):
            with pytest.raises(CLOSED, match="slackwater: writes moved to new"):
                conn.execute(attack.encode())
        assert conn.execute("select count(*) from shop.profiles").fetchone() == (1,)  # readers are never refused
    status = program.status()
    assert (status["writes"], status["turn"], status["phase"]) == ("new", 1, "switched")
    assert turned(program, "cutover")["result"] == "already"
    entries = json.loads(program("journal", "--json", "--verify"))["entries"]
    assert [(e["step"], e["outcome"], e["remark"]) for e in entries if e["step"] == "cutover"] == [
        ("cutover", "intent", "tonight"),
        ("cutover", "done", "tonight"),
    ]


def test_a_dry_run_changes_nothing(program: Program, shop: Shop) -> None:
    done = turned(program, "cutover", "--dry-run")
    assert (done["result"], done["writes"], done["turn"], done["dry_run"]) == ("done", "old", 0, True)
    assert 0 < done["expected_pause_seconds"] < 10
    shop.on_old("insert into shop.customers values (7, 'still')")
    assert program.status()["phase"] == "armed"
    assert not [e for e in json.loads(program("journal", "--json"))["entries"] if e["step"] == "cutover"]


def test_a_transaction_that_does_not_end_is_named_and_nobody_fails(program: Program, shop: Shop) -> None:
    ledger = Ledger(dsns={"old": shop.old, "new": shop.new}, migration=shop.migration, write=insert)
    with psycopg.connect(shop.old, application_name="nightly") as stuck, writing(ledger):
        stuck.execute("update shop.profiles set bio = 'forever' where user_id = 1")
        told = turned(program, "cutover", code=4)
        pid = stuck.info.backend_pid
    assert told["result"] == "aborted"
    assert told["writes"] == "old"
    assert any(f"pid {pid} " in r and "nightly" in r and "profiles" in r for r in told["reasons"])
    assert not ledger.errors
    assert ledger.slowest_s < 3
    assert program.status()["phase"] == "armed"
    assert turned(program, "cutover")["result"] == "done"


def test_a_prepared_transaction_is_refused_by_name(program: Program, shop: Shop) -> None:
    with psycopg.connect(shop.old) as conn:
        conn.execute("insert into shop.customers values (9, 'later')")
        try:
            conn.execute("prepare transaction 'month end'")
        except psycopg.errors.ObjectNotInPrerequisiteState:
            pytest.skip("max_prepared_transactions is 0 on this server")
    told = turned(program, "cutover", code=3)
    assert any("'month end'" in r and "customers" in r for r in told["reasons"])
    with psycopg.connect(shop.old, autocommit=True) as conn:
        conn.execute("commit prepared 'month end'")
    assert turned(program, "cutover")["result"] == "done"
    assert (9,) in shop.on_new("select id from app.customer")


def test_two_operators_at_once(program: Program, shop: Shop) -> None:
    program.env["SLACKWATER_FAILPOINTS"] = "turn.after_gates=sleep:4"
    answers: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: answers.append(turned(program, "cutover")))
    first.start()
    time.sleep(3)
    said = program("cutover", "--yes", code=3)
    first.join()
    assert "slackwater cutover by " in said
    assert answers[0]["result"] == "done"
