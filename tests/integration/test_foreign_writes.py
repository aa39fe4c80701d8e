"""Writes that reach a closed side: seen, kept by key, and decided upon; and the end of a migration after a switch."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.direction import Direction, Side
from tests.fixtures import plain
from tests.fixtures.catalogs import nothing_is_left, topics
from tests.fixtures.plain import Pair, program_on, same
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, end
from tests.fixtures.turning import drain, turn_to

PAST_THE_FENCE = "alter table {0} disable trigger slackwater_fence; {1}; alter table {0} enable always trigger {2}"


@pytest.fixture(scope="module")
def shared(postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        plain.fresh_shop(postgres_dsn, bootstrap, plain.OLD, plain.NEW) as shop,
        program_on(shop, tmp_path_factory.mktemp("foreign")) as program,
    ):
        program.armed()
        yield Pair(shop=shop, program=program)


@pytest.fixture
def pair(shared: Pair) -> Pair:
    """An armed pair, old open, the rows that it began with, no foreign write undecided."""
    plain.come_home(shared)
    shared.shop.on_old(plain.ANEW)
    drain(shared.shop, Direction.FORWARD)
    assert shared.program.status()["foreign_writes"]["rows"] == 0
    return shared


def past(table: str, statement: str) -> str:
    return PAST_THE_FENCE.format(table, statement, "slackwater_fence")


def listed(program: Program) -> list[tuple[str, str, dict[str, str], str]]:
    found = program.document("foreign-writes", "list")["rows"]
    return [(r["side"], r["table"], r["key"], r["op"]) for r in found]


def halted(program: Program, direction: str) -> bool:
    found = program.status()["directions"][direction]["capture"]
    return bool(found is not None and found["state"] == "halted")


def sent(shop: Shop, lsn: str) -> bool:
    """Whether the server has sent the forward stream's capture everything up to there."""
    query = (
        "select sent_lsn >= %s::pg_lsn from pg_stat_replication r"
        " join pg_replication_slots s on s.active_pid = r.pid where s.slot_name = %s"
    )
    return shop.on_old(query, lsn, shop.slot) == [(True,)]


def test_on_new_before_a_cutover(pair: Pair) -> None:
    program, shop = pair.program, pair.shop
    shop.on_new(past("app.customers", "insert into app.customers values (77, 'secret name'), (78, 'secret too')"))
    program.until(lambda: halted(program, "reverse"))
    shop.on_new("delete from slackwater.foreign_write where key ->> 'id' = '78'")  # as if a list held no more than one
    assert listed(program) == [("new", "customers", {"id": "77"}, "c")]
    status = program.status()
    assert status["foreign_writes"]["rows"] == 1
    assert "written to new while it was closed" in status["directions"]["reverse"]["last_error"]["cause"]
    assert "secret" not in json.dumps(status) + program.log
    program("foreign-writes", "discard", "--yes", "--as", "a remark")  # a reason is kept where one is given
    kept = "select remark, detail->>'reason' from slackwater.journal where migration = %s and step = %s order by seq"
    assert shop.on_new(kept, shop.migration, "foreign writes discarded")[-1:] == [("a remark", None)]
    program.until(lambda: program.status()["foreign_writes"]["rows"] == 1)
    assert listed(program) == [("new", "customers", {"id": "78"}, "c")]
    program.until(lambda: halted(program, "reverse"))
    program("foreign-writes", "discard", "--reason", "a test", "--yes")
    program.until(lambda: same(shop))
    program.until(lambda: not halted(program, "reverse"))
    drain(shop, Direction.REVERSE)
    assert listed(program) == []
    assert shop.on_old("select count(*) from shop.customers where id in (77, 78)") == [(0,)]


@pytest.mark.parametrize("verb", ["accept", "discard"])
def test_on_old_after_a_cutover(pair: Pair, verb: str) -> None:
    program, shop = pair.program, pair.shop
    turn_to(shop, Side.NEW)
    shop.on_new("insert into app.customers values (3, 'Eve')")
    drain(shop, Direction.REVERSE)
    capture = program.forward()["capture"]["pid"]
    os.kill(capture, signal.SIGSTOP)  # so that it meets both transactions at once
    shop.on_old(
        past(
            "shop.customers",
            "update shop.customers set name = 'stray' where id = 1; delete from shop.customers where id = 2;"
            " insert into shop.customers values (50, 'stray'); update shop.customers set id = 30 where id = 3",
        )
    )
    shop.on_old(past("shop.customers", "insert into shop.customers values (51, 'another')"))
    ((end_lsn,),) = shop.on_old("select pg_current_wal_insert_lsn()::text")
    program.until(lambda: sent(shop, end_lsn))
    os.kill(capture, signal.SIGCONT)
    program.until(lambda: halted(program, "forward"))
    keys = sorted(int(key["id"]) for _, _, key, _ in listed(program))
    assert keys == [1, 2, 3, 30, 50, 51]
    shop.on_new("update app.customers set note = 'meanwhile' where id = 1")
    program("foreign-writes", verb, "--reason", "a test", "--yes")
    program.until(lambda: not halted(program, "forward"))
    drain(shop, Direction.REVERSE)
    program.until(lambda: same(shop))
    drain(shop, Direction.FORWARD)
    assert same(shop)
    strays = shop.on_new("select count(*) from app.customers where id in (50, 51, 30)")
    assert strays == [(3 if verb == "accept" else 0,)]
    assert shop.on_new("select count(*) from app.customers where id = 2") == [(0 if verb == "accept" else 1,)]
    steps = [e["step"] for e in program.document("journal", "--verify")["entries"]]
    assert f"foreign writes {verb}ed" in steps
    turn_to(shop, Side.OLD)
    shop.on_old("insert into shop.customers values (90, 'after')")
    drain(shop, Direction.FORWARD)
    assert same(shop)


@pytest.mark.soak
@pytest.mark.parametrize("verb", ["accept", "discard"])
def test_more_than_one_list_holds(pair: Pair, verb: str) -> None:
    """What is left over of a transaction is listed once the first rows of it were decided about, and not before."""
    program, shop = pair.program, pair.shop
    turn_to(shop, Side.NEW)
    shop.on_old(
        past("shop.customers", "insert into shop.customers select i, 'stray' from generate_series(101, 10350) i")
    )
    for count in (10_000, 250):
        program.until(lambda: halted(program, "forward"))
        program.until(lambda count=count: program.status()["foreign_writes"]["rows"] == count)  # type: ignore[misc]
        program("foreign-writes", verb, "--reason", "a test", "--yes")
        assert program.status()["foreign_writes"]["rows"] == 0
    program.until(lambda: not halted(program, "forward"))
    drain(shop, Direction.FORWARD)
    drain(shop, Direction.REVERSE)
    program.until(lambda: same(shop))
    assert shop.on_old("select count(*) from shop.customers where id > 100") == [(10_250 if verb == "accept" else 0,)]


@pytest.mark.soak
def test_a_truncate_is_put_right_by_verification(pair: Pair) -> None:
    """Nobody can tell its rows by a key: `discard` says what to do instead, and that works."""
    program, shop = pair.program, pair.shop
    turn_to(shop, Side.NEW)
    shop.on_new("insert into app.customers select i, 'n' from generate_series(100, 1600) i")
    drain(shop, Direction.REVERSE)
    shop.on_old(past("shop.customers", "truncate shop.customers"))
    program.until(lambda: halted(program, "forward"))
    for verb, instead in (("discard", "verify --direction reverse --repair"), ("accept", "the same change on new")):
        assert instead in program("foreign-writes", verb, "--reason", "a test", "--yes", code=3)
    program("verify", "--direction", "reverse", "--repair", "--yes", code=None)
    program("foreign-writes", "discard", "--done-by-hand", "--reason", "verified", "--yes")
    program.until(lambda: not halted(program, "forward"))
    program.until(lambda: same(shop))
    drain(shop, Direction.FORWARD)
    assert same(shop)
    program("verify", "--direction", "reverse")
    assert listed(program) == []


KEPT = (
    "insert into slackwater.repaired (migration, direction, load, action, key, image, by, reason)"
    " values (%s, 'forward', 'customers', 'deleted', '{}', '{}', 'somebody', 'verify --repair')"
)


@pytest.mark.parametrize("broken", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_end_after_a_switch(postgres_dsn: str, bootstrap: str, tmp_path: Path, broken: bool) -> None:
    """Not before a switch, nor while a role runs or somebody uses the closed side; then nothing is left.

    `broken`: the way back is, for good, so that nothing can verify it any more.
    """
    with (
        plain.fresh_shop(postgres_dsn, bootstrap, plain.OLD, plain.NEW) as made,
        nothing_is_left(made),
        program_on(made.with_(options="finalize: {quiet_s: 2}\n"), tmp_path) as program,
    ):
        program.armed()
        assert len(topics(made)) == 8
        assert "it can be finalized after a switch" in program("finalize", "--yes", code=3)
        turn_to(made, Side.NEW)
        made.on_new("update slackwater.migration set phase = 'switched'")
        made.on_new(KEPT, made.migration)
        said = program("finalize", "--yes", code=3)
        assert "the reverse verification is pending, not clean" in said
        assert "a role runs: reverse apply" in said
        if not broken:
            program("verify", "--direction", "reverse")
        end(program.background[0])
        if broken:
            made.on_new(f"select pg_drop_replication_slot('slackwater_{made.migration}_reverse')")
            assert "--waive verification" in program("finalize", "--yes", code=3)
            assert "needs a reason" in program("finalize", "--waive", "verification", code=2)
        else:
            somebody_uses_the_closed_side(program, made)
            assert program.launch("finalize", "--yes", failpoints="finalize.after_old=kill").wait(60) == -9
            told = program.status()
            assert (told["phase"], told["writes"], told["switching"]) == ("finalized", "new", None)
            assert told["next"].endswith(" finalize")
        over = ("--waive", "verification", "--reason", "the slot is lost") if broken else ()
        said = program("finalize", *over, code=2)
        assert "this needs a yes" in said
        assert said.index("their only copy: on new 1 that a repair deleted") < said.index("this needs a yes")
        answer = program.document("finalize", "--yes", "--drop-topics", *over)
        assert answer["result"] == "finalized"
        assert any("gone over: the reverse verification is pending" in step for step in answer["steps"]) == broken
        assert "new takes the writes, and nothing here tells of it any more" in answer["left"][1]
        assert "was not there" in program("finalize", "--yes")
        assert "nothing of this migration is on the servers" in program("wait", "--for", "writes=new", code=1)
        assert (program.status()["writes"], program.status()["turn"]) == (None, None)
        assert "nothing of this migration is on the servers" in program("route", code=3)  # and no side


def somebody_uses_the_closed_side(program: Program, shop: Shop) -> None:
    file = program.file.read_text()
    program.file.write_text(file.replace("quiet_s: 2", "quiet_s: 6"))
    finalizing = program.start("finalize", "--yes")
    program.until(lambda: "looking for 6 s" in program.log)
    shop.on_old("select * from shop.customers")
    assert finalizing.wait(60) == 3
    assert "old.shop.customers was read within 6 s" in program.log
    assert shop.on_new("select phase from slackwater.migration") == [("switched",)]
    program.file.write_text(file)


def test_cancelled_while_armed(postgres_dsn: str, bootstrap: str, tmp_path: Path) -> None:
    """Nothing is left, and a replica identity that `arm` set is as it was."""
    identity = "select relreplident::text from pg_class where oid = 'app.log'::regclass"
    with plain.fresh_shop(postgres_dsn, bootstrap, plain.OLD, plain.NEW) as shop:
        shop.on_new("alter table app.log replica identity default")
        with nothing_is_left(shop), program_on(shop, tmp_path) as program:
            run = program.streaming()
            program.arm(set_identity=True)
            assert shop.on_new(identity) == [("f",)]
            assert len(topics(shop)) == 8
            end(run)
            program("cancel", "--yes")
        assert shop.on_new(identity) == [("d",)]
