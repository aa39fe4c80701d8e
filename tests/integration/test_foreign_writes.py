"""Writes that reach a closed side: seen, kept by key, and decided upon; and the end of a migration after a switch."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connectors.kafka.topics import Topics
from schemas.direction import Direction, Side
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, started_with
from tests.fixtures.turning import drain, turn_to
from tests.integration.test_arm import make, same
from tests.integration.test_cancel import CATALOGS, catalogs

PAST_THE_FENCE = "alter table {0} disable trigger slackwater_fence; {1}; alter table {0} enable always trigger {2}"


@pytest.fixture
def plain(make_database: Callable[[str], str], bootstrap: str, topic_prefix: str, migration_name: str) -> Shop:
    old, new = make_database("old"), make_database("new")
    shop = make(Shop(old=old, new=new, bootstrap=bootstrap, prefix=topic_prefix, migration=migration_name))
    return shop.with_(options="finalize: {quiet_s: 2}\n")


@pytest.fixture
def program(plain: Shop, tmp_path: Path) -> Iterator[Program]:
    env = {"OLD_DSN": plain.old, "NEW_DSN": plain.new, "KAFKA": plain.bootstrap}
    with started_with(tmp_path, plain.text, env) as program:
        program("prepare", "--yes")
        program.start("run")
        program("wait", "--for", "phase=streaming", "--timeout", "60")
        program("arm", "--timeout", "60")
        yield program


def past(table: str, statement: str) -> str:
    return PAST_THE_FENCE.format(table, statement, "slackwater_fence")


def listed(program: Program) -> list[tuple[str, str, dict[str, str], str]]:
    found = json.loads(program("foreign-writes", "list", "--json"))["rows"]
    return [(r["side"], r["table"], r["key"], r["op"]) for r in found]


def halted(program: Program, direction: str) -> bool:
    found = program.status()["directions"][direction]["capture"]
    return bool(found is not None and found["state"] == "halted")


def test_on_new_before_the_first_cutover(program: Program, plain: Shop) -> None:
    plain.on_new(past("app.customers", "insert into app.customers values (77, 'secret name')"))
    program.until(lambda: halted(program, "reverse"))
    assert listed(program) == [("new", "customers", {"id": "77"}, "c")]
    status = program.status()
    assert status["foreign_writes"]["rows"] == 1
    assert "written to new while it was closed" in status["directions"]["reverse"]["last_error"]["cause"]
    assert "secret" not in json.dumps(status) + program.log
    program("foreign-writes", "discard", "--reason", "a test", "--yes")
    program.until(lambda: same(plain))
    program.until(lambda: not halted(program, "reverse"))
    drain(plain, Direction.REVERSE)
    assert listed(program) == []
    assert plain.on_old("select count(*) from shop.customers where id = 77") == [(0,)]


@pytest.mark.parametrize("verb", ["accept", "discard"])
def test_on_old_after_a_cutover(program: Program, plain: Shop, verb: str) -> None:
    turn_to(plain, Side.NEW)
    plain.on_new("insert into app.customers values (3, 'Eve')")
    drain(plain, Direction.REVERSE)
    capture = program.forward()["capture"]["pid"]
    os.kill(capture, signal.SIGSTOP)  # so that it meets both transactions at once
    plain.on_old(
        past(
            "shop.customers",
            "update shop.customers set name = 'stray' where id = 1; delete from shop.customers where id = 2;"
            " insert into shop.customers values (50, 'stray'); update shop.customers set id = 30 where id = 3",
        )
    )
    plain.on_old(past("shop.customers", "insert into shop.customers values (51, 'another')"))
    os.kill(capture, signal.SIGCONT)
    program.until(lambda: halted(program, "forward"))
    keys = sorted(int(key["id"]) for _, _, key, _ in listed(program))
    assert keys == [1, 2, 3, 30, 50, 51]
    plain.on_new("update app.customers set note = 'meanwhile' where id = 1")
    program("foreign-writes", verb, "--reason", "a test", "--yes")
    program.until(lambda: not halted(program, "forward"))
    drain(plain, Direction.REVERSE)
    program.until(lambda: same(plain))
    drain(plain, Direction.FORWARD)
    assert same(plain)
    strays = plain.on_new("select count(*) from app.customers where id in (50, 51, 30)")
    assert strays == [(3 if verb == "accept" else 0,)]
    assert plain.on_new("select count(*) from app.customers where id = 2") == [(0 if verb == "accept" else 1,)]
    steps = [e["step"] for e in json.loads(program("journal", "--json", "--verify"))["entries"]]
    assert f"foreign writes {verb}ed" in steps
    turn_to(plain, Side.OLD)
    plain.on_old("insert into shop.customers values (90, 'after')")
    drain(plain, Direction.FORWARD)
    assert same(plain)


def stop(program: Program) -> None:
    for process in program.background:
        process.terminate()
        process.wait(30)


def topics(shop: Shop) -> list[str]:
    prefix = f"{shop.prefix}.{shop.migration}"
    names = [
        f"{prefix}.{d}.{s}.{t}" for d, s in (("forward", "shop"), ("reverse", "app")) for t in ("customers", "log")
    ]
    names += [f"{prefix}.{d}.epochs" for d in Direction]
    names += [f"{prefix}.reverse.slackwater.canary", f"{prefix}.schemas"]
    return sorted(Topics(shop.bootstrap, {}).partitions(names))


@pytest.mark.parametrize("how", ["finalize", "cancel", pytest.param("waive", marks=pytest.mark.soak)])
def test_nothing_is_left(plain: Shop, tmp_path: Path, how: str) -> None:
    before = catalogs(plain.old), catalogs(plain.new)
    env = {"OLD_DSN": plain.old, "NEW_DSN": plain.new, "KAFKA": plain.bootstrap}
    with started_with(tmp_path, plain.text, env) as program:
        program("prepare", "--yes")
        program.start("run")
        program("wait", "--for", "phase=streaming", "--timeout", "60")
        program("arm", "--timeout", "60")
        assert len(topics(plain)) == 8
        if how == "cancel":
            stop(program)
            program("cancel", "--yes")
        else:
            assert "it can be finalized after a switch" in program("finalize", "--yes", code=3)
            turn_to(plain, Side.NEW)
            plain.on_new("update slackwater.migration set phase = 'switched'")
            said = program("finalize", "--yes", code=3)
            assert "the reverse verification is pending, not clean" in said
            assert "a role runs: reverse apply" in said
            broken = how == "waive"  # the way back, for good: nothing can verify it any more
            if not broken:
                program("verify", "--direction", "reverse")
            stop(program)
            if broken:
                plain.on_new(f"select pg_drop_replication_slot('slackwater_{plain.migration}_reverse')")
                assert "--waive verification" in program("finalize", "--yes", code=3)
                assert "needs a reason" in program("finalize", "--waive", "verification", code=2)
            over = ("--waive", "verification", "--reason", "the slot is lost") if broken else ()
            assert "this needs a yes" in program("finalize", *over, code=2)
            said = program("finalize", "--yes", "--drop-topics", "--json", *over)
            assert json.loads(said)["result"] == "finalized"
            assert (
                any("gone over: the reverse verification is pending" in s for s in json.loads(said)["steps"]) == broken
            )
            assert "was not there" in program("finalize", "--yes")
    after = catalogs(plain.old), catalogs(plain.new)
    for side in (0, 1):
        for name in CATALOGS:
            assert after[side][name] == before[side][name], name
    assert topics(plain) == []
    plain.on_old("insert into shop.customers values (200, 'free again')")
    plain.on_new("insert into app.customers values (201, 'free again')")


def test_somebody_still_uses_the_closed_side(program: Program, plain: Shop) -> None:
    turn_to(plain, Side.NEW)
    plain.on_new("update slackwater.migration set phase = 'switched'")
    program("verify", "--direction", "reverse")
    stop(program)
    file = program.file.read_text()
    program.file.write_text(file.replace("quiet_s: 2", "quiet_s: 6"))
    finalizing = program.start("finalize", "--yes")
    program.until(lambda: "looking for 6 s" in program.log)
    plain.on_old("select * from shop.customers")
    assert finalizing.wait(60) == 3
    assert "old.shop.customers was read within 6 s" in program.log
    assert plain.on_new("select phase from slackwater.migration") == [("switched",)]


@pytest.mark.soak
def test_a_truncate_is_put_right_by_verification(program: Program, plain: Shop) -> None:
    """Nobody can tell its rows by a key: `discard` says what to do instead, and that works."""
    turn_to(plain, Side.NEW)
    plain.on_new("insert into app.customers select i, 'n' from generate_series(100, 1600) i")
    drain(plain, Direction.REVERSE)
    plain.on_old(past("shop.customers", "truncate shop.customers"))
    program.until(lambda: halted(program, "forward"))
    for verb, instead in (("discard", "verify --direction reverse --repair"), ("accept", "the same change on new")):
        assert instead in program("foreign-writes", verb, "--reason", "a test", "--yes", code=3)
    program("verify", "--direction", "reverse", "--repair", "--yes", code=None)
    program("foreign-writes", "discard", "--done-by-hand", "--reason", "verified", "--yes")
    program.until(lambda: not halted(program, "forward"))
    program.until(lambda: same(plain))
    drain(plain, Direction.FORWARD)
    assert same(plain)
    program("verify", "--direction", "reverse")
    assert listed(program) == []
