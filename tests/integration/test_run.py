"""`slackwater run` as people use it: started, killed, edited, halted and stopped, with real servers on both ends."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, started_with


@pytest.fixture
def program(shop: Shop, tmp_path: Path) -> Iterator[Program]:
    env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    with started_with(tmp_path, shop.text, env) as program:
        yield program


def customers(shop: Shop) -> list[tuple[object, ...]]:
    return shop.on_new("select id, name from app.customer order by 1")


def test_from_before_prepare_to_the_end(program: Program, shop: Shop) -> None:
    run = program.start("run")
    program.until(lambda: program.log.count("waiting: the migration is not prepared yet") == 3)
    for role in ("capture", "apply", "backfill"):
        assert program.get(role, "/healthz")[0] == 200
        status, body = program.get(role, "/readyz")
        assert (status, json.loads(body)["state"]) == (200, "waiting")
    assert json.loads(program.get("apply", "/route")[1])["writes"] is None

    program("prepare", "--yes")
    waited = json.loads(program("wait", "--for", "phase=streaming", "--timeout", "60", "--json"))
    assert waited["met"] is True
    assert customers(shop) == [(1, "Ada"), (2, "Bob")]
    shop.on_old("insert into shop.customers values (3, 'Eve')")
    program.until(lambda: len(customers(shop)) == 3)
    program.until(lambda: program.forward()["lag_seconds"] == 0)

    before = program.forward()["apply"]["pid"]
    os.kill(before, signal.SIGKILL)
    shop.on_old("update shop.customers set cust_nm = 'Eva' where id = 3")
    program.until(lambda: customers(shop)[2] == (3, "Eva"))
    assert "apply was killed by SIGKILL; started again" in program.log
    program.until(lambda: program.forward()["apply"]["pid"] != before)

    label = f'direction="forward",migration="{shop.migration}"'
    # Nothing is said of the migration as a whole until the new process has looked at it.
    program.until(lambda: f"slackwater_safe_to_cutover{{{label}}} 0.0" in program.get("apply", "/metrics")[1])
    metrics = program.get("apply", "/metrics")[1]
    assert f'slackwater_phase{{{label},phase="streaming"}} 1.0' in metrics
    assert f"slackwater_safe_to_cutover{{{label}}}" not in program.get("capture", "/metrics")[1]
    assert json.loads(program.get("backfill", "/status.json")[1])["phase"] == "streaming"

    program.file.write_text(program.file.read_text() + "\nbackfill: {max_rows_per_s: 5}\n")
    run.send_signal(signal.SIGHUP)
    program.until(lambda: program.log.count("took over rates, limits and windows") == 3)

    steps = [
        (e["step"], e["detail"].get("to")) for e in json.loads(program("journal", "--json", "--verify"))["entries"]
    ]
    assert steps == [("prepare", None), ("phase", "backfilling"), ("phase", "streaming")]

    children = psutil.Process(run.pid).children()
    assert len(children) == 3
    run.send_signal(signal.SIGTERM)
    assert run.wait(20) == 0
    assert not [c for c in children if c.is_running()]
    forward = program.forward()
    assert (forward["state"], forward["stuck"]["cause"]) == ("stopped", "capture was stopped")


def test_roles_of_one_way_end_with_the_process_that_started_them(program: Program) -> None:
    run = program.start("run", "--direction", "reverse")
    program.until(lambda: program.log.count("waiting: the migration is not prepared yet") == 3)
    children = psutil.Process(run.pid).children()
    roles = sorted(" ".join(words[words.index("run") + 1 :][:3]) for words in (c.cmdline() for c in children))
    assert roles == [f"{role} --direction reverse" for role in ("apply", "backfill", "capture")]
    run.kill()
    run.wait()
    psutil.wait_procs(children, timeout=10)
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]


def test_another_file_than_the_prepared_one_is_refused(program: Program) -> None:
    program("prepare", "--yes")
    program.file.write_text(program.file.read_text().replace("lower(email)", "upper(email)"))
    for arguments in (["run", "apply"], ["run"]):
        said = program(*arguments, code=2)
        assert "is not the file that migration" in said
        assert f"remedy: `slackwater -c {program.file} prepare` prints the difference" in said


def test_a_halted_and_a_paused_role_go_on_when_told(program: Program, shop: Shop) -> None:
    """Then: a limit that is lowered while they run holds from then on."""
    run = program.streaming()
    shop.on_new("alter table app.address rename to addresses")
    shop.on_old("update shop.customers set street = 'Side' where id = 1")
    program.until(lambda: program.forward()["state"] == "halted")
    assert program.get("apply", "/readyz")[0] == 503
    assert program.get("apply", "/healthz")[0] == 200
    document = program.status()
    forward = document["directions"]["forward"]
    assert forward["stuck"]["stage"] == "apply"
    assert forward["last_error"]["cause"] in forward["stuck"]["cause"]
    assert forward["last_error"]["remedy"]
    assert document["safe_to_cutover"] is False

    shop.on_new("alter table app.addresses rename to address")
    time.sleep(3)
    assert program.forward()["state"] == "halted"  # nobody has said so yet
    program("resume", "apply", "--as", "the table is back")
    program.until(lambda: shop.on_new("select street from app.address where customer_id = 1") == [("Side",)])
    program.until(lambda: program.forward()["state"] == "running")

    program("pause", "apply", "--reason", "the nightly report")
    program.until(lambda: program.forward()["state"] == "paused")
    shop.on_old("insert into shop.customers values (9, 'Zoe')")
    program.until(lambda: (program.forward()["lag_seconds"] or 0) > 1)
    forward = program.forward()
    assert forward["paused"]["reason"] == "the nightly report"
    assert "the nightly report" in forward["stuck"]["cause"]
    assert program.get("apply", "/readyz")[0] == 200
    assert len(customers(shop)) == 2
    program("resume", "apply", "--reason", "the report is out")
    told = shop.on_new("select detail ->> 'reason' from slackwater.journal where step = 'resume' order by seq")
    assert told == [(None,), ("the report is out",)]
    program.until(lambda: len(customers(shop)) == 3)
    program.until(lambda: program.forward()["lag_seconds"] == 0)

    program.file.write_text(program.file.read_text() + "\nquarantine: {limit: 0}\nepoch: {max_rows: 2}\n")
    run.send_signal(signal.SIGHUP)
    program.until(lambda: program.log.count("took over rates, limits and windows") == 3)
    shop.on_old("insert into shop.customers select i, 'Ann' from generate_series(20, 24) i")
    program.until(lambda: len(customers(shop)) == 8)
    assert shop.on_new("select rows from slackwater.epoch where rows > 0 order by epoch desc limit 3") == [
        (1,),
        (2,),
        (2,),
    ]
    shop.on_new("alter table app.customer add check (id <> 13)")
    shop.on_old("insert into shop.customers values (13, 'Una')")
    program.until(lambda: program.forward()["state"] == "halted")
    assert "the limit is 0" in program.forward()["last_error"]["cause"]
