"""`arm`, and the reverse direction beside the forward one: it carries what is written to new, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from schemas.direction import Direction, Side
from tests.fixtures import plain
from tests.fixtures.plain import Pair, program_on, rows_applied, same
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, end
from tests.fixtures.turning import drain, turn_to

ECHO_S = int(os.environ.get("SLACKWATER_ECHO_S", "600"))


@pytest.fixture(scope="module", params=["two databases", "one database"])
def shared(
    request: pytest.FixtureRequest, postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    one = request.param == "one database"
    with (
        plain.fresh_shop(postgres_dsn, bootstrap, plain.OLD, plain.NEW, one_database=one) as shop,
        program_on(shop, tmp_path_factory.mktemp("armed")) as program,
    ):
        program.armed()
        yield Pair(shop=shop, program=program)


@pytest.fixture
def pair(shared: Pair) -> Pair:
    """An armed pair, old open, the rows that it began with."""
    plain.come_home(shared)
    shared.shop.on_old(plain.ANEW)
    drain(shared.shop, Direction.FORWARD)
    return shared


def test_there_and_back(pair: Pair) -> None:
    program, shop = pair.program, pair.shop
    status = program.status()
    assert status["phase"] == "armed"
    assert status["directions"]["reverse"]["state"] == "running"
    drain(shop, Direction.REVERSE)
    before = rows_applied(shop, Direction.REVERSE)
    shop.on_old("insert into shop.customers values (3, 'Eve'); update shop.orders set total = 11 where id = 1")
    shop.on_old("delete from shop.log where ctid = (select min(ctid) from shop.log)")
    drain(shop, Direction.FORWARD)
    assert same(shop)
    drain(shop, Direction.REVERSE)
    own = rows_applied(shop, Direction.REVERSE) - before
    assert own <= 3, "the reverse direction carries what forward wrote"

    turn_to(shop, Side.NEW)
    shop.on_new("insert into app.customers values (4, 'Zoe'); delete from app.orders where id = 2")
    shop.on_new("insert into app.log values ('two'), ('two'), ('one')")
    shop.on_new("update app.customers set id = 20, note = repeat('n', 5000) where id = 2")
    forward = rows_applied(shop, Direction.FORWARD)
    drain(shop, Direction.REVERSE)
    assert same(shop)
    drain(shop, Direction.FORWARD)
    assert rows_applied(shop, Direction.FORWARD) == forward, "the forward direction carries what reverse wrote"

    turn_to(shop, Side.OLD)
    shop.on_old("update shop.customers set name = 'Adam' where id = 1; insert into shop.log values ('three')")
    drain(shop, Direction.FORWARD)
    assert same(shop)
    assert program.document("arm", "--timeout", "60")["result"] == "already"
    steps = [(e["step"], e["detail"].get("to")) for e in program.document("journal", "--verify")["entries"]]
    assert steps[-2:] == [("arm", None), ("phase", "armed")]


# `arm.after_slot` is met on the way, where the slot has to wait.
KILLED = (
    "arm.after_topics",
    "arm.after_publication",
    "arm.after_epoch_0",
    "arm.after_checkpoint",
    "arm.before_commit",
)
IDENTITY = "select relreplident::text from pg_class where oid = 'app.log'::regclass"


def test_refused_made_to_wait_killed_and_proven(postgres_dsn: str, bootstrap: str, tmp_path: Path) -> None:
    with (
        plain.fresh_shop(postgres_dsn, bootstrap, plain.OLD, plain.NEW) as shop,
        program_on(shop, tmp_path) as program,
    ):
        refused(program, shop)
        waits_for_open_transactions(program, shop)
        env = dict(program.env)
        for place in KILLED:
            killed(program, place)
        nobody_runs(program, env)
        killed(program, "arm.before_armed")
        program.env.clear()
        program.env.update(env)
        answer = program.document("arm", "--timeout", "60")
        assert (answer["result"], answer["writes"], answer["turn"], answer["error"]) == ("done", "old", 0, None)
        assert [s["step"] for s in answer["steps"]] == ["build", "mirrors", "canary"]
        assert shop.on_new(IDENTITY) == [("f",)]
        turn_to(shop, Side.NEW)
        shop.on_new("insert into app.customers values (9, 'Ida')")
        drain(shop, Direction.REVERSE)
        assert same(shop)


def refused(program: Program, shop: Shop) -> None:
    """Before it can be, and where updates of a table would not say which row they mean. `run` runs afterwards."""
    assert "is not prepared" in program("arm", code=3)
    program.prepare()
    said = program.document("arm", code=3)
    assert said["result"] == "refused"
    assert "is prepared: the way back is built once every row is there" in said["error"]["cause"]
    assert said["reasons"] == [said["error"]["cause"]]
    assert said["next"] == f"slackwater -c {program.file} wait --for phase=streaming"
    program.streaming()
    shop.on_new("alter table app.log replica identity default")
    said_so = program("arm", "--timeout", "30", code=3)
    assert "updates and deletes of log do not send all of the row" in said_so
    assert f"slackwater -c {program.file} arm --set-replica-identity" in said_so


def waits_for_open_transactions(program: Program, shop: Shop) -> None:
    """And says for whom; then it is killed, with the slot made and nothing recorded."""
    with psycopg.connect(shop.new, application_name="a long report") as conn:
        conn.execute("select pg_current_xact_id()")
        said = program.document("arm", "--timeout", "1", "--set-replica-identity", code=4)
        assert said["result"] == "aborted"
        assert "given up after" in said["error"]["cause"]
        assert "a long report" in said["reasons"][0]
        assert said["next"] == f"slackwater -c {program.file} arm"
        stopped = program.launch("arm", "--json", "--set-replica-identity")
        slot = shop.slot.replace("forward", "reverse")  # of this migration: another one's may stand in the cluster
        program.until(lambda: shop.on_new("select 1 from pg_replication_slots where slot_name = %s", slot))
        stopped.send_signal(signal.SIGINT)
        said = json.loads(stopped.communicate(30)[0])
        assert (stopped.returncode, said["result"]) == (4, "aborted")
        assert "stopped after" in said["error"]["cause"]
    program.env["SLACKWATER_FAILPOINTS"] = "arm.after_slot=kill"
    with psycopg.connect(shop.new, application_name="a long report") as conn:
        conn.execute("select pg_current_xact_id()")
        arming = program.start("arm", "--timeout", "60", "--set-replica-identity")
        program.until(lambda: f"waiting for pid {conn.info.backend_pid} (postgres a long report" in program.log)
        conn.commit()
    assert arming.wait(60) == -9
    assert program.status()["phase"] == "streaming"
    del program.env["SLACKWATER_FAILPOINTS"]


def killed(program: Program, place: str) -> None:
    program.env["SLACKWATER_FAILPOINTS"] = f"{place}=kill"
    program("arm", "--timeout", "60", code=-9)
    assert program.status()["phase"] == "streaming", place


def nobody_runs(program: Program, env: dict[str, str]) -> None:
    """It is built, and not proven: said so in time, with what is missing. `run` runs again afterwards."""
    program.env.clear()
    program.env.update(env)
    end(program.background[0])
    began = time.monotonic()
    said = program("arm", "--timeout", "4", code=4)
    assert time.monotonic() - began < 20
    assert "reverse capture has never run: start `slackwater run`" in said
    assert program.status()["phase"] == "streaming"
    program.start("run")


def load_for(shop: Shop, write: Callable[[str], object], schema: str, seconds: float) -> None:
    began, n = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        n += 1
        write(f"insert into {schema}.orders (customer, total) values ({n}, {n}.5)")
        write(f"update {schema}.customers set note = 'load {n}' where id = 1 + {n} % 2")
        if n % 50 == 0:
            write(f"delete from {schema}.orders where customer < {n} - 20")


@pytest.mark.parametrize("seconds", [6, pytest.param(ECHO_S, marks=pytest.mark.soak)])
def test_nothing_echoes(pair: Pair, seconds: int) -> None:
    """Load, backfill, reread and repair of one direction are no row of the other's."""
    program, shop = pair.program, pair.shop
    drain(shop, Direction.REVERSE)
    before = rows_applied(shop, Direction.REVERSE)
    load_for(shop, shop.on_old, "shop", seconds / 2)
    shop.on_old(
        "insert into shop.customers select n, 'bulk', repeat('x', 5000) from generate_series(1000, 1500) n;"
        " update shop.customers set id = id + 10000 where id > 1400"
    )
    drain(shop, Direction.FORWARD)
    shop.on_new(
        "insert into slackwater.reread (migration, direction, load, source, key, reason)"
        " values (%s, 'forward', 'customers', 'customers', '{\"id\": \"1\"}', 'a test')",
        shop.migration,
    )
    reread = "select count(*) from slackwater.reread where migration = %s"
    program.until(lambda: shop.on_new(reread, shop.migration) == [(0,)])
    program("verify", "--repair", "--yes")
    drain(shop, Direction.REVERSE)
    minutes = seconds / 60 + 2
    assert rows_applied(shop, Direction.REVERSE) - before <= minutes, "only canaries may come back"

    turn_to(shop, Side.NEW)
    before = rows_applied(shop, Direction.FORWARD)
    shop.on_new("select setval('app.orders_id_seq', 1000000)")
    load_for(shop, shop.on_new, "app", seconds / 2)
    drain(shop, Direction.REVERSE)
    program("verify", "--direction", "reverse", "--repair", "--yes")
    drain(shop, Direction.FORWARD)
    assert rows_applied(shop, Direction.FORWARD) == before
    assert same(shop)
