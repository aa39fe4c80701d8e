"""The open side dies: what Kafka has is applied, the other side opens, and what is lost is named and is no more."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.postgres.session import Connection
from schemas.direction import Side
from stream.cutover import Order
from stream.cutover.failover import failover
from stream.migration.journal import Actor
from tests.faults.test_turn_crash import OTHER
from tests.fixtures.ledger import writing
from tests.fixtures.running import ACTOR
from tests.fixtures.servers import private_postgres
from tests.fixtures.tide import NEW, OLD, STATE, TABLES, Probe, Tide, resume, state_of, tide_on

WORDS = ("--accept-loss", "--source-isolated")
# An entry by the application, which has its id from the side's own sequence.
DRAWN = {
    "old": "insert into shop.entry (writer, nm) values (0, 'drawn') returning id",
    "new": "insert into app.ledger_entry (writer, name) values (0, 'drawn') returning id",
}


def test_new_dies_and_old_takes_over(make_database: Callable[[str], str], bootstrap: str, tmp_path: Path) -> None:
    with (
        private_postgres() as server,
        tide_on(
            tmp_path,
            {"old": make_database("old"), "new": server.dsn()},
            bootstrap,
            old=f"{OLD}; create sequence shop.invoice_seq; select setval('shop.invoice_seq', 800)",
            new=f"{NEW}; create sequence app.invoices increment 7",
            tables=f"{TABLES}sequences: [{{to: invoices, from: invoice_seq}}]\n",
        ) as tide,
    ):
        tide.on("new", "alter table app.ledger_entry alter id set cache 3")
        assert tide.cutover()["result"] == "done"
        kept = "select strides->>'ledger_entry.id' from slackwater.stride where migration = %s and side = 'new'"
        assert tide.on("old", kept, tide.migration) == [("3",)]
        ((invoice,),) = tide.on("new", "select max(nextval('app.invoices')) from generate_series(1, 900)")
        ledger = tide.ledger()
        with writing(ledger):
            time.sleep(2)
        tide.drained("new")
        known = {n for n, _ in tide.on("new", STATE["new"])}
        tide.turn("failover", "--to", "old", code=2)
        tide.turn("failover", "--to", "old", WORDS[0], code=2)
        server.kill()
        assert tide.rollback(code=3)["result"] == "refused"
        done = tide.turn("failover", "--to", "old", *WORDS)
        assert (done["result"], done["writes"], done["turn"]) == ("done", "old", 2)
        assert any("everything that committed on new up to" in note for note in done["notes"])
        assert {n for n, _ in tide.on("old", STATE["old"])} == known
        ((drawn,),) = tide.on("old", DRAWN["old"])
        assert drawn > max(known)
        # Nothing tells how much new has given of what feeds no column: two margins of its steps are kept, and said.
        ((following,),) = tide.on("old", "select nextval('shop.invoice_seq')")
        assert following > invoice
        assert "sequence shop.invoice_seq feeds no column: no row tells what new has given" in done["notes"]
        assert tide.turn("failover", "--to", "old", *WORDS)["result"] == "already"
        # New comes back and believes itself open: it is closed before anything else.
        server.start()
        again = tide.turn("failover", "--to", "old", *WORDS)
        assert (again["result"], again["writes"]) == ("done", "old")
        tide.dsns["new"] = server.dsn()
        assert tide.open_sides() == ["old"]


def test_it_is_interrupted_and_the_rest_is_not_given_up(tide: Tide) -> None:
    """The source answers after all, and its capture stands still: no Ctrl-C and no `rollback` does without its rows."""
    assert tide.cutover()["result"] == "done"
    capture = tide.role("reverse", "capture")
    tide.drained("new")
    os.kill(capture, signal.SIGSTOP)
    try:
        tide.on("new", "insert into app.ledger_entry values (700001, 0, 'late')")
        going = tide.start("failover", "--to", "old", *WORDS)
        tide.program.until(lambda: tide.open_sides() == [])
        time.sleep(0.5)
        going.send_signal(signal.SIGINT)
        going.communicate(timeout=30)
        assert (going.returncode, tide.open_sides()) == (5, [])
        told = tide.rollback("--dry-run", code=3)
        assert "new is closed" in told["reasons"][0]
        told = tide.rollback("--max-pause", "1", code=5)
        assert (told["writes"], tide.open_sides()) == ("none", [])
        assert "is not proven" in told["error"]["cause"]
    finally:
        os.kill(capture, signal.SIGCONT)
    done = tide.rollback()
    assert (done["result"], done["writes"]) == ("done", "old")
    assert tide.on("old", "select writer from shop.entry where id = 700001") == [(0,)]
    ((drawn,),) = tide.on("old", DRAWN["old"])
    assert drawn > 700001
    assert tide.turn_until_done("cutover")["writes"] == "new"  # once capture is heard of again


def test_what_fails_after_the_opening_is_ambiguous_and_the_same_words_finish_it(tide: Tide) -> None:
    assert tide.cutover()["result"] == "done"
    ((newest,),) = tide.on("new", DRAWN["new"])

    def actor(_: Connection) -> Actor:
        if tide.open_sides() == ["old"]:
            raise RuntimeError("nobody thought of this")
        return ACTOR

    order = Order(to=Side.OLD, max_pause_s=60.0, attempts=1, forced=True)
    outcome = failover(tide.program.spec, order, actor=actor, say=print, stop=threading.Event())
    assert (outcome.result, outcome.exit_code, outcome.writes) == ("ambiguous", 5, "old")
    assert tide.program.status()["phase"] == "switched"
    ((drawn,),) = tide.on("old", DRAWN["old"])
    assert drawn > newest
    done = tide.turn("failover", "--to", "old", *WORDS)
    assert (done["result"], done["writes"], tide.program.status()["phase"]) == ("done", "old", "armed")
    assert tide.turn("failover", "--to", "old", *WORDS)["result"] == "already"


def cut_off(tide: Tide) -> Tide:
    """As it is for whoever cannot reach new, which lives."""
    env = {**tide.program.env, "NEW_DSN": "host=127.0.0.1 port=1 dbname=new"}
    return replace(tide, program=replace(tide.program, env=env, watch=None, sides=None))


def _closed_again(tide: Tide) -> None:
    done = tide.turn("failover", "--to", "old", *WORDS)
    assert (done["result"], tide.open_sides()) == ("done", ["old"])


@pytest.mark.soak
@pytest.mark.parametrize("closed", [False, True], ids=["still_open", "closed_again"])
def test_new_had_not_sent_everything_and_is_back(tide: Tide, closed: bool) -> None:
    """What it alone has is foreign to the stream: listed, decided upon, and then writes may move again.

    `closed`: it is so before its stream sends anything, and what is yet to come stops a cutover as well.
    """
    assert tide.cutover()["result"] == "done"
    capture = tide.role("reverse", "capture")
    tide.drained("new")
    os.kill(capture, signal.SIGSTOP)
    try:
        ((unsent,),) = tide.on("new", DRAWN["new"])
        done = cut_off(tide).turn("failover", "--to", "old", *WORDS)
        assert (done["result"], done["writes"]) == ("done", "old")
        ((drawn,),) = tide.on("old", DRAWN["old"])
        assert drawn > unsent
        if closed:
            _closed_again(tide)
            told = tide.cutover("--max-pause", "1", code=None)
            assert (told["writes"], told["result"] in ("refused", "aborted")) == ("old", True)
    finally:
        os.kill(capture, signal.SIGCONT)
    tide.program.until(lambda: tide.program.status()["foreign_writes"]["rows"] == 1)
    if not closed:
        _closed_again(tide)
    listed = tide.program.document("foreign-writes", "list")["rows"]
    assert [(r["side"], r["table"], r["key"], r["op"]) for r in listed] == [
        ("new", "ledger_entry", {"id": str(unsent)}, "c")
    ]
    assert any("foreign_writes" in reason for reason in tide.cutover(code=3)["reasons"])
    tide.program("foreign-writes", "discard", "--reason", "lost with new", "--yes")
    tide.program.until(lambda: tide.on("old", STATE["old"]) == tide.on("new", STATE["new"]))
    assert tide.turn_until_done("cutover")["writes"] == "new"


@pytest.mark.soak
def test_what_comes_once_two_failovers_have_passed_it_by(tide: Tide) -> None:
    """What new had not sent when old took over comes when new leads again: what was written over it since stands."""
    notes = {"old": "select id, note from shop.account where id in (3, 4) order by 1"}
    notes["new"] = notes["old"].replace("shop", "app")
    assert tide.cutover()["result"] == "done"
    capture = tide.role("reverse", "capture")
    tide.drained("new")
    os.kill(capture, signal.SIGSTOP)
    try:
        tide.on("new", "update app.account set note = 'unsent' where id = 3")
        assert cut_off(tide).turn("failover", "--to", "old", *WORDS)["writes"] == "old"
        tide.on("old", "update shop.account set note = 'since' where id = 3")
        _closed_again(tide)
        tide.drained("old")
        assert tide.on("new", notes["new"]) == [(3, "since"), (4, "n")]
        assert tide.turn("failover", "--to", "new", *WORDS)["writes"] == "new"
        tide.on("new", "update app.account set note = 'later' where id = 4")
    finally:
        os.kill(capture, signal.SIGCONT)
    tide.drained("new")
    for side, query in notes.items():
        assert tide.on(side, query) == [(3, "since"), (4, "later")], side
    (row,) = tide.program.document("foreign-writes", "list")["rows"]
    assert (row["side"], row["table"], row["key"], row["op"]) == ("new", "account", {"id": "3"}, "u")
    tide.program("foreign-writes", "accept", "--reason", "new has what counts", "--yes")
    assert tide.turn_until_done("rollback")["writes"] == "old"
    assert tide.on("old", notes["old"]) == [(3, "since"), (4, "later")]


@pytest.mark.soak
def test_both_sides_took_writes_and_either_is_chosen(tide: Tide) -> None:
    """Through a partition both are open: what `cutover` says to run closes the side that opened last."""
    assert tide.cutover()["result"] == "done"
    tide.drained("new")
    turn = cut_off(tide).turn("failover", "--to", "old", *WORDS)["turn"]
    assert tide.open_sides() == ["old", "new"]
    ((astray,),) = tide.on("old", DRAWN["old"])
    told = tide.cutover(code=5)
    assert "failover --to new" in told["error"]["remedy"]
    done = tide.turn("failover", "--to", "new", *WORDS)
    assert (done["result"], done["writes"], done["turn"], tide.open_sides()) == ("done", "new", turn + 1, ["new"])
    tide.program.until(lambda: tide.program.status()["foreign_writes"]["rows"] == 1)
    (row,) = tide.program.document("foreign-writes", "list")["rows"]
    assert (row["side"], row["table"], row["key"]) == ("old", "entry", {"id": str(astray)})
    tide.program("foreign-writes", "accept", "--reason", "it was paid for", "--yes")
    tide.drained("new")
    assert tide.on("old", STATE["old"]) == tide.on("new", STATE["new"])
    assert astray in {n for n, _ in tide.on("new", STATE["new"])}
    assert tide.turn_until_done("rollback")["writes"] == "old"


@pytest.mark.soak
def test_it_wakes_after_somebody_else_has_opened_the_other_side(tide: Tide) -> None:
    """A cutover sleeps between its fence and its opening, a failover before its own: whoever opens first is the one."""
    zombie = tide.start("cutover", "--max-pause", "5", failpoints="turn.after_close=stop")
    tide.program.until(lambda: state_of(zombie.pid) == "T")
    assert tide.open_sides() == []
    deadline = time.monotonic() + 90
    while True:  # until the zombie's lease is over
        late = tide.start("failover", "--to", "old", *WORDS, failpoints="failover.after_drain=stop")
        tide.program.until(lambda late=late: late.poll() is not None or state_of(late.pid) == "T")  # type: ignore[misc]
        if late.poll() is None:
            break
        assert (late.communicate(), late.returncode)[1] == 3
        assert time.monotonic() < deadline
        time.sleep(1)
    resume(zombie)
    zombie.communicate(timeout=60)
    assert tide.open_sides() == ["new"]
    resume(late)
    out, err = late.communicate(timeout=60)
    assert tide.open_sides() == ["new"], (out, err)
    assert late.returncode == 4
    assert "new was opened meanwhile" in out
    tide.program.until(lambda: tide.program.status()["safe_to_rollback"] is True)
    assert tide.rollback()["writes"] == "old"


@pytest.mark.soak
def test_killed_at_every_step_while_both_sides_answer(tide: Tide) -> None:
    """There and back: the same words again finish it, and nothing acknowledged is lost, for the source answered."""
    ledger = tide.ledger()
    with Probe(tide=tide) as probe, writing(ledger):
        before = "old"
        for point in (
            "failover.after_intent", "turn.after_hold", "turn.before_close_commit", "turn.after_close",
            "failover.after_drain", "failover.before_open_commit", "failover.after_open",
        ):  # fmt: skip
            to = OTHER[before]
            time.sleep(0.5)
            probe.forget()
            tide.turn("failover", "--to", to, *WORDS, failpoints=f"{point}=kill", code=-signal.SIGKILL)
            assert len(tide.open_sides()) <= 1
            done = tide.turn("failover", "--to", to, *WORDS)
            assert (done["writes"], tide.open_sides()) == (to, [to])
            probe.never_both([before, to])
            before = to
        assert tide.turn_until_done("rollback")["writes"] == "old"  # like any other from here on
        time.sleep(0.5)
    tide.agree(ledger)
