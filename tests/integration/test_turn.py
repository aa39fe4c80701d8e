"""Turning the tide with the real program: who is refused, who goes on, and what is told on every exit."""

from __future__ import annotations

import json
import os
import signal
import time

import psycopg
import pytest

from connectors.postgres import fence, session
from connectors.postgres.void import void
from schemas.direction import Direction, Side
from tests.fixtures.ledger import writing
from tests.fixtures.tide import Tide, resume, state_of

CLOSED = psycopg.errors.ReadOnlySqlTransaction


def test_a_cutover_moves_the_writes_and_loses_none(tide: Tide) -> None:
    turns, known = tide.turns, len(tide.entries())
    rehearsed = tide.cutover("--dry-run")
    assert (rehearsed["result"], rehearsed["writes"], rehearsed["dry_run"]) == ("done", "old", True)
    assert 0 < rehearsed["expected_pause_seconds"] < 20
    assert tide.program.status()["phase"] == "armed"
    assert len(tide.entries()) == known
    assert tide.program("route").strip() == "old"

    ledger = tide.ledger()
    with tide.program.file.open("a") as file:
        file.write("verify: {workers: 1}\n")
    with writing(ledger):
        comparing = tide.start("verify", failpoints="verify.before_record=stop@1")
        tide.program.until(lambda: state_of(comparing.pid) == "T", within_s=40)
        done = tide.cutover("--as", "tonight")
        time.sleep(1)
        # What the way back has not brought yet differs, and is no mismatch.
        applier = tide.role("reverse", "apply")
        os.kill(applier, signal.SIGSTOP)
        try:
            time.sleep(0.5)
            resume(comparing)
            out, err = comparing.communicate(timeout=60)
        finally:
            os.kill(applier, signal.SIGCONT)
    assert comparing.returncode == 1, (out, err)
    assert "the writes moved away from old while rows were compared" in err
    assert "mismatched" not in {t["state"] for t in tide.program.status()["verification"]["forward"]["tables"].values()}
    assert (done["result"], done["writes"], done["turn"], done["error"]) == ("done", "new", turns + 1, None)
    assert [s["step"] for s in done["steps"]] == [
        "gates", "look", "lock", "catalogs", "drain", "catalogs", "check", "sequences", "journal", "fence", "open",
    ]  # fmt: skip
    assert 0 < done["pause_seconds"] < 20
    assert {side for told in ledger.told for _, side in told.acknowledged} == {"old", "new"}
    assert ledger.retried
    tide.agree(ledger)

    with session.connect(tide.dsns["old"]) as conn:
        fenced = fence.fences(conn)
        assert {f.turn for f in fenced.values()} == {turns + 2}
        assert all(f.always for f in fenced.values())
        assert ("shop", "event_a") in fenced
        for attack in ("insert into shop.event_a values (9, '2023-01-01')", "truncate shop.entry"):
            with pytest.raises(CLOSED, match="slackwater: writes moved to new"):
                conn.execute(attack.encode())
        assert conn.execute("select count(*) > 0 from shop.entry").fetchone() == (True,)  # readers are never refused
    status = tide.program.status()
    assert (status["writes"], status["turn"], status["phase"]) == ("new", turns + 1, "switched")
    assert status["cutover"]["pause_seconds"] == pytest.approx(done["pause_seconds"], abs=0.01)
    assert (tide.cutover()["result"], tide.cutover("--dry-run")["result"]) == ("already", "already")
    added = tide.entries()[known:]
    assert [(e["step"], e["outcome"], e["remark"]) for e in added if e["step"] == "cutover"] == [
        ("cutover", "intent", "tonight"),
        ("cutover", "done", "tonight"),
    ]
    routed = [json.loads(tide.program("route", "--json", "--dsn", tide.dsns[side])) for side in ("old", "new")]
    assert [(r["writes"], r["turn"]) for r in routed] == [("new", turns + 1), ("new", turns + 1)]
    assert tide.program("route", "--wait", "new", "--timeout", "5").strip() == "new"
    assert '"met": false' in tide.program("route", "--wait", "old", "--timeout", "0.3", "--json", code=3)
    assert tide.program("wait", "--for", "writes=new", "--timeout", "5")


def test_a_transaction_that_does_not_end_is_named_and_nobody_fails(tide: Tide) -> None:
    """A session, then a prepared transaction: the one ends attempt after attempt, the other is refused at once."""
    turns, ledger = tide.turns, tide.ledger()
    with psycopg.connect(tide.dsns["old"], application_name="nightly") as stuck, writing(ledger):
        stuck.execute("update shop.account set note = 'forever' where id = 14")
        told = tide.cutover(code=4)
        pid = stuck.info.backend_pid
        stuck.rollback()
        stuck.execute("insert into shop.event values (9, '2024-05-05')")
        stuck.execute("prepare transaction 'month end'")
        refused = tide.cutover(code=3)
        stuck.autocommit = True
        stuck.execute("commit prepared 'month end'")
    assert (told["result"], told["writes"], told["turn"]) == ("aborted", "old", turns)
    assert any(f"pid {pid} " in r and "nightly" in r and "account" in r for r in told["reasons"])
    assert any("'month end'" in r and "event" in r for r in refused["reasons"])
    assert not ledger.errors
    assert ledger.retried == 0
    assert ledger.slowest_s < 5
    assert tide.program.status()["phase"] == "armed"

    with psycopg.connect(tide.dsns["old"], application_name="nightly") as stuck:
        stuck.execute("update shop.account set note = 'forever' where id = 14")
        time.sleep(3.1)
        done = tide.cutover("--terminate-blockers")
        assert done["result"] == "done"
        assert any("ended pid" in note and "nightly" in note for note in done["notes"])
        with pytest.raises(psycopg.OperationalError):
            stuck.execute("select 1")
        stuck.close()
    tide.agree(ledger)


def test_a_row_that_differs_is_found_under_the_hold(tide: Tide) -> None:
    """The gate verification is on, and has passed; then a row of new is changed behind its back."""
    file = tide.program.file
    file.write_text(file.read_text().replace("verification: off, ", ""))
    tide.on("old", "insert into shop.entry select i, 0, 'x' from generate_series(1, 50) i")
    tide.drained("old")
    tide.program("verify")

    def corrupt(name: str) -> None:
        unseen(tide, "new", f"update app.ledger_entry set name = '{name}' where id = 7")

    corrupt("y")
    found = tide.cutover(code=4)
    assert found["reasons"] == ["ledger_entry: 1 row differs: id=7 (name)"]
    assert found["next"].endswith(" verify")
    assert "off" not in found["error"]["remedy"]
    assert tide.open_sides() == ["old"]
    # The same verb does not go through a moment later, be the row mended or not: only a later pass says that.
    for name in ("y", "x"):
        corrupt(name)
        refused = tide.cutover(code=3)
        assert refused["reasons"] == ["verification: not as they should be: 1 rows of ledger_entry"]
    (named,) = tide.on("new", "select listed from slackwater.verification where load = 'ledger_entry'")
    assert named == ([{"kind": "different", "key": {"id": "7"}, "columns": ["name"]}],)
    tide.program("verify")
    done = tide.cutover()
    assert (done["result"], done["uncompared"]) == ("done", {})
    assert "compare" in [s["step"] for s in done["steps"]]


def judged(tide: Tide) -> None:
    """The gate verification is on, and passes; there are rows."""
    file = tide.program.file
    file.write_text(file.read_text().replace("verification: off, ", ""))
    tide.on("old", "insert into shop.entry select i, 0, 'x' from generate_series(1, 50) i on conflict do nothing")
    tide.drained("old")
    tide.program("verify")


def unseen(tide: Tide, side: str, change: str) -> None:
    """As the applier would do it, with a pass and its mark: what nobody notices but who compares rows."""
    direction = "forward" if side == "new" else "reverse"
    with session.connect(tide.dsns[side]) as conn, conn.transaction():
        mark = f"{tide.migration}.{direction}"
        conn.execute("select pg_logical_emit_message(true, 'slackwater.echo', %s)", (mark,))
        fence.give_pass(conn, tide.migration, Side(side), "test", "secret")
        fence.show_pass(conn, "secret")
        conn.execute(change.encode())
        fence.take_pass(conn, tide.migration, Side(side), "test")


def uncompared(tide: Tide) -> dict[str, int]:
    tables = tide.program.status()["verification"]["forward"]["tables"]
    return {name: table["uncompared"] for name, table in tables.items() if table["uncompared"]}


NO_TIME = "turn.before_compare=sleep:0.5"


def test_what_the_pause_had_no_time_for_is_compared_after_it(tide: Tide) -> None:
    judged(tide)
    done = tide.cutover(failpoints=NO_TIME)
    assert (done["result"], done["uncompared"], uncompared(tide)) == ("done", {}, {})
    assert "compare after" in [s["step"] for s in done["steps"]]
    assert [e["detail"]["left"] for e in tide.entries() if e["step"] == "cutover compare"][-1] == {}
    # There, nothing is taken for verified that was compared before: on either side, be it right or wrong.
    voided = tide.program.status()["verification"]["forward"]["tables"]
    assert {t["void"]["cause"] for t in voided.values()} == {f"turn {done['turn']} moved the writes to new"}
    unseen(tide, "old", "update shop.account set note = 'lost' where id = 3")
    # The way back goes on over what differs, and does not say that it is done.
    back = tide.rollback(code=5)
    assert (back["result"], back["writes"]) == ("ambiguous", "old")
    assert back["reasons"] == ["account: 1 row differs: id=3 (note)"]
    assert back["next"].endswith(" verify --direction reverse")
    assert tide.program.status()["verification"]["reverse"]["tables"]["account"]["state"] == "mismatched"
    refused = tide.cutover(code=3)
    assert any("not verified since" in reason for reason in refused["reasons"])


def test_a_difference_that_the_pause_had_no_time_for_is_not_done(tide: Tide) -> None:
    judged(tide)
    unseen(tide, "new", "update app.ledger_entry set name = 'lost' where id = 9")
    found = tide.cutover(failpoints=NO_TIME, code=5)
    assert (found["result"], found["writes"]) == ("ambiguous", "new")
    assert found["reasons"] == ["ledger_entry: 1 row differs: id=9 (name)"]
    assert tide.program.status()["verification"]["forward"]["tables"]["ledger_entry"]["state"] == "mismatched"


def test_a_process_that_dies_after_opening_leaves_word_of_what_is_not_compared(tide: Tide) -> None:
    judged(tide)
    tide.cutover(failpoints=f"{NO_TIME};turn.before_rest=kill", code=-9)
    assert tide.open_sides() == ["new"]
    assert uncompared(tide) == {"account": 1, "event": 1, "ledger_entry": 1}
    assert tide.program.status()["next"].endswith(" verify")
    tide.program("verify")
    assert uncompared(tide) == {}


def test_a_verdict_that_is_voided_after_the_gates_have_passed(tide: Tide) -> None:
    judged(tide)
    turning = tide.start("cutover", failpoints="turn.after_gates=stop@1")
    tide.program.until(lambda: state_of(turning.pid) == "T")
    with session.connect(tide.dsns["new"]) as conn:
        void(conn, tide.migration, Direction.FORWARD, tables=["account"], cause="a test moved rows")
    resume(turning)
    out, err = turning.communicate(timeout=60)
    assert turning.returncode == 4, (out, err)
    told = json.loads(out)
    assert told["error"]["cause"] == "what was verified does not count any more"
    assert told["reasons"][0].startswith("account: not verified since a test moved rows (20")
    assert told["next"].endswith(" verify")
    assert tide.open_sides() == ["old"]
