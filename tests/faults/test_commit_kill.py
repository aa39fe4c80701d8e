"""The applier dies around its COMMIT, again and again: before it is sent, while it is on its way, after the answer."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.preparing import Shop
from tests.fixtures.running import started_with

LIVES = Path(__file__).with_name("lives.py")
ROOT = Path(__file__).parents[2]

OLD = """
create table shop.counter (id integer primary key, n integer not null);
create table shop.log (counter integer, n integer);
alter table shop.log replica identity full;
insert into shop.counter select i, 0 from generate_series(0, 4) i;
"""
NEW = """
create table app.counter (id integer primary key, n integer not null);
create table app.log (counter integer, n integer);
"""
TABLES = "copy: [counter, log]\nexclude: [customers, profiles, readings]\n"


@pytest.mark.parametrize("lives", [5, pytest.param(200, marks=pytest.mark.soak)])
def test_rows_and_checkpoint_commit_together_or_not_at_all(shop: Shop, tmp_path: Path, lives: int) -> None:
    """Hazard D1. A log without a key tells of anything that was applied twice, its counters of anything torn."""
    shop = shop.with_(tables=TABLES)
    shop.on_old(OLD)
    shop.on_new(NEW)
    rng = random.Random(lives)
    env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    with started_with(tmp_path, shop.text, env) as program:
        program("prepare", "--yes")
        for role in ("capture", "backfill", "apply"):
            process = program.start("run", role)
        program.until(lambda: program.status()["phase"] == "streaming")
        process.terminate()
        process.wait(20)
        for running in program.background[1:2]:
            running.terminate()
            running.wait(20)
        with (
            program.log_path.open("ab") as log,
            subprocess.Popen(
                [sys.executable, str(LIVES)],
                env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as warm,
        ):
            assert warm.stdin is not None
            assert warm.stdout is not None
            committed = 0
            for _ in range(lives):
                for n in range(rng.randrange(1, 4)):
                    shop.on_old(
                        f"with c as (update shop.counter set n = n + 1 where id = {n} returning id, n)"
                        " insert into shop.log select * from c"
                    )
                arguments = ["-c", str(program.file), "run", "apply", "--direction", "forward"]
                # the answer to a COMMIT takes about a millisecond
                life = {"arguments": arguments, "place": "apply.before_commit", "delay_s": rng.uniform(0, 0.003)}
                warm.stdin.write(json.dumps(life) + "\n")
                warm.stdin.flush()
                assert int(warm.stdout.readline()) == -signal.SIGKILL, program.log[-4000:]
                [(logged, counted, double)] = shop.on_new(
                    "select (select count(*) from app.log), (select sum(n) from app.counter),"
                    " (select count(*) - count(distinct epoch) from slackwater.epoch)"
                )
                assert (logged, double) == (counted, 0)
                committed += logged > 0
            warm.stdin.close()
        program.start("run", "apply")
        [(written,)] = shop.on_old("select count(*) from shop.log")
        program.until(lambda: shop.on_new("select count(*) from app.log") == [(written,)])
        assert program.status()["quarantine"]["rows"] == 0
    assert shop.on_new("select counter, n from app.log order by 1, 2") == shop.on_old(
        "select counter, n from shop.log order by 1, 2"
    )
