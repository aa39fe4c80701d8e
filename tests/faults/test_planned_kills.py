"""`prepare` is killed while it changes both directions of an armed migration: whoever comes next completes it.

The judge is plain SQL over whole tables. What old keeps for the day on which new is gone has to be what the tables are
like now, wherever `prepare` was killed.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.test_failover import WORDS
from tests.fixtures.running import Program, end
from tests.fixtures.servers import private_postgres
from tests.fixtures.tide import tide_on
from tests.integration.test_planned_changes import (
    Writing,
    changes,
    differing,
    edited,
    on,
    program,
    settled,
    waiting,
)

__all__ = ["program"]  # a fixture

KILLED = -signal.SIGKILL
ACCOUNTS = "select id, balance, note, mood from {}.account order by 1"


@pytest.mark.parametrize(
    "place", [pytest.param("prepare.before_recorded", marks=pytest.mark.soak), "prepare.before_accepted"]
)
def test_new_dies_when_prepare_was_killed(
    make_database: Callable[[str], str], bootstrap: str, tmp_path: Path, place: str
) -> None:
    """After a turn, a planned change, a `prepare` that was killed: and old can still take over, with every row."""
    with (
        private_postgres() as server,
        tide_on(tmp_path, {"old": make_database("old"), "new": server.dsn()}, bootstrap) as tide,
    ):
        run, *_ = tide.program.background
        assert tide.cutover()["result"] == "done"
        tide.on("new", "alter table app.account add mood text default 'calm'")
        tide.on("new", "insert into app.account select i, 0, 'late', 'm' || i from generate_series(900, 950) i")
        tide.program.until(lambda: tide.program.status()["directions"]["reverse"]["apply"]["state"] == "halted", 60)
        run.terminate()
        run.wait(60)
        tide.on("old", "alter table shop.account add mood text default 'calm'; create table shop.nothing (id int)")
        text = tide.program.file.read_text()
        tide.program.file.write_text(f"{text}exclude: [nothing]\n")
        preparing = tide.program.launch("prepare", "--yes", failpoints=f"{place}=kill", log=tide.program.log_path)
        assert preparing.wait(60) == KILLED, tide.program.log[-2000:]
        there = tide.on("new", ACCOUNTS.format("app"))
        server.kill()
        tide.program.start("run", "apply", "--direction", "reverse")
        done = tide.turn("failover", "--to", "old", *WORDS)
        assert (done["result"], done["writes"], done["turn"]) == ("done", "old", 2)
        assert tide.on("old", ACCOUNTS.format("shop")) == there


def killed(program: Program, side: str, n: int, place: str) -> None:
    """A planned change by the runbook, with `prepare` killed at `place`; what runs is ended, and one may go on."""
    other, way = ("new", "forward") if side == "old" else ("old", "reverse")
    run, *_ = program.background
    on(program, side, changes(side, n))
    on(program, side, f"update {side}.added set extra{n} = 'first' where id < 9")
    on(program, side, f"update {side}.retyped set n{n} = 'first' where id < 9")
    if side == "old":
        on(program, "old", f"alter table old.bio rename said{n - 1} to said{n}")
    program.until(lambda: program.status()["directions"][way]["apply"]["state"] == "halted", 60)
    end(run)
    program.background.clear()
    on(program, other, changes(other, n))
    if side == "new":
        on(program, "old", f"alter table old.bio rename said{n - 1} to said{n}")
    edited(program, n)
    on(program, side, f"update {side}.retyped set n{n} = 'while' where id between 20 and 30")
    preparing = program.launch("prepare", "--yes", failpoints=f"{place}=kill", log=program.log_path)
    assert preparing.wait(60) == KILLED, program.log[-2000:]
    program.background.clear()
    on(program, side, f"update {side}.retyped set n{n} = 'after' where id between 25 and 35")
    on(program, side, f"insert into {side}.fresh{n} values ({n}, 'after')")


def completed(program: Program, side: str, n: int) -> None:
    with Writing(program.env[f"{side.upper()}_DSN"], side, n):
        program("prepare", "--yes")
        program.start("run")
    settled(program, "forward" if side == "old" else "reverse")
    assert differing(program, n) == []
    assert waiting(program) == []


@pytest.mark.soak
def test_killed_anywhere_before_a_turn_and_after_it(program: Program) -> None:
    run = program.armed()
    assert run is not None
    program.until(lambda: program.status()["safe_to_cutover"] is True, 60)
    killed(program, "old", 1, "prepare.before_recorded")
    completed(program, "old", 1)
    program("arm")
    program.until(lambda: program.status()["safe_to_cutover"] is True, 90)
    program("cutover", "--yes")
    assert differing(program, 1) == []
    killed(program, "new", 2, "prepare.before_commit")
    completed(program, "new", 2)
    program.until(lambda: program.status()["safe_to_rollback"] is True, 90)
    # Nobody runs it again: the roles work by what was recorded, and no way back is called safe before somebody does.
    killed(program, "new", 3, "prepare.before_accepted")
    run = program.start("run")
    settled_but(program, "old: column n3 of retyped has another type")
    end(run)
    program.background.clear()
    completed(program, "new", 3)
    program.until(lambda: program.status()["safe_to_rollback"] is True, 90)
    program("rollback", "--yes")
    assert differing(program, 3) == []


def settled_but(program: Program, cause: str) -> None:
    """Everything arrives, and yet the gate stays red, and sends whoever asks to `prepare`."""
    program.watch = None
    program.until(lambda: not differing(program, 3), 90)
    time.sleep(5)
    status = program.status()
    (gate,) = (g for g in status["gates"] if g["gate"] == "silent_changes")
    assert (gate["state"], gate["detail"], status["safe_to_rollback"]) == ("failed", cause, False)
    assert "prepare" in gate["remedy"]
