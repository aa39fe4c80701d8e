"""The applier as a process: stopped while its successor works, and on a target that is full, gone and back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from connectors.failpoint import VARIABLE
from connectors.postgres.stalled import StalledHolders
from schemas.direction import Direction
from tests.fixtures.preparing import NEW, Shop
from tests.fixtures.running import Program, started_with
from tests.fixtures.servers import private_postgres


@contextmanager
def migrated(shop: Shop, folder: Path) -> Iterator[Program]:
    """Prepared, loaded and streaming; the applier is not running."""
    env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    with started_with(folder, shop.text, env) as program:
        program("prepare", "--yes")
        for role in ("capture", "backfill"):
            program.start("run", role)
        apply = program.start("run", "apply")
        program.until(lambda: program.status()["phase"] == "streaming")
        apply.terminate()
        apply.wait(20)
        yield program


def names(shop: Shop) -> list[str]:
    return [name for (name,) in shop.on_new("select name from app.customer order by id")]


def test_a_stopped_applier_wakes_after_its_successor_and_commits_nothing(shop: Shop, tmp_path: Path) -> None:
    with migrated(shop, tmp_path) as program:
        program.env[VARIABLE] = "apply.before_commit=stop@1"
        stopped = program.start("run", "apply")
        del program.env[VARIABLE]
        shop.on_old("insert into shop.customers values (3, 'Eve')")
        frozen = psutil.Process(stopped.pid)
        program.until(lambda: any(p.status() == psutil.STATUS_STOPPED for p in [frozen, *frozen.children()]))
        asleep = [p for p in [frozen, *frozen.children()] if p.status() == psutil.STATUS_STOPPED]
        shop.on_old("update shop.customers set cust_nm = 'Eva' where id = 3")
        program.start("run", "apply")
        time.sleep(2)
        assert names(shop) == ["Ada", "Bob"]  # it waits for the lock
        # what idle_in_transaction_session_timeout does to a session whose client sleeps
        [(ended,)] = shop.on_new(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and state = 'idle in transaction'"
        )
        assert ended == 1
        program.until(lambda: names(shop) == ["Ada", "Bob", "Eva"])
        shop.on_old("update shop.customers set cust_nm = 'Evi' where id = 3")
        program.until(lambda: names(shop) == ["Ada", "Bob", "Evi"])
        for process in asleep:
            process.send_signal(signal.SIGCONT)
        shop.on_old("insert into shop.customers select i, 'n' from generate_series(4, 300) i")
        program.until(lambda: len(names(shop)) == 300)
        assert names(shop)[2] == "Evi"
        [(double,)] = shop.on_new("select count(*) - count(distinct epoch) from slackwater.epoch")
        assert double == 0


@pytest.mark.parametrize(
    ("role", "place"),
    [
        ("apply", "apply.in_copy"),
        pytest.param("apply", "apply.in_pipeline", marks=pytest.mark.soak),  # half a minute each
        pytest.param("backfill", "backfill.in_copy", marks=pytest.mark.soak),
    ],
)
def test_a_process_stopped_while_the_server_waits_for_it_loses_its_session(
    shop: Shop, tmp_path: Path, role: str, place: str
) -> None:
    """No timeout of PostgreSQL's ends a COPY, or a pipeline, whose client sleeps; the roles wait 60 s, the test 2."""
    with migrated(shop, tmp_path) as program:
        for running in program.background:
            running.terminate()
            running.wait(20)
        program.start("run", "capture")
        if role == "backfill":
            for load in ("customer", "address"):
                shop.on_new("update slackwater.load set state = 'pending' where name = %s", load)
                shop.on_new("delete from slackwater.backfill_chunk where load = %s", load)
        program.env[VARIABLE] = f"{place}=stop@1"
        stopped = program.start("run", role)
        del program.env[VARIABLE]
        shop.on_old("insert into shop.customers select i, 'n' || i from generate_series(10, 1500) i")
        frozen = psutil.Process(stopped.pid)
        program.until(lambda: any(p.status() == psutil.STATUS_STOPPED for p in [frozen, *frozen.children()]))
        asleep = [p for p in [frozen, *frozen.children()] if p.status() == psutil.STATUS_STOPPED]
        program.start("run", "apply")
        time.sleep(3)
        assert len(names(shop)) == 2  # it waits for the lock
        with StalledHolders(shop.new, shop.migration, Direction.FORWARD, stalled_s=2.0):
            program.until(lambda: len(names(shop)) == 1493, within_s=20)
        for process in asleep:
            process.send_signal(signal.SIGCONT)
        shop.on_old("update shop.customers set cust_nm = 'Eva' where id = 2")
        program.until(lambda: names(shop)[1] == "Eva")
        program.until(lambda: program.status()["phase"] == "streaming")
        shop.on_old("delete from shop.customers where id > 1000")
        program.until(lambda: len(names(shop)) == 993)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of a given size takes root to mount")
def test_a_target_that_is_full_then_gone_then_back(shop: Shop, tmp_path: Path) -> None:
    with private_postgres() as server:
        [(data,)] = server.query("show data_directory")
        small = Path(data).with_name("small")
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs", str(small)], check=True)
        try:
            os.chown(small, Path(data).stat().st_uid, -1)
            there = shop.with_(new=server.dsn())
            there.on_new(f"create tablespace small location '{small}'")
            there.on_new(NEW)
            there.on_new("alter table app.customer set tablespace small")
            with migrated(there, tmp_path) as program:
                program.start("run", "apply")
                there.on_old(
                    "insert into shop.customers select i, repeat(md5(i::text), 50) from generate_series(10, 5000) i"
                )
                program.until(lambda: "free space on that server" in str(program.forward()), within_s=30)
                assert len(names(there)) == 2  # all of the epoch or nothing
                subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
                program.until(lambda: len(names(there)) == 4993)
                server.kill()
                there.on_old("update shop.customers set cust_nm = 'Ida' where id = 1")
                time.sleep(2)
                server.start()
                program.until(lambda: names(there)[0] == "Ida")
        finally:
            server.stop()
            subprocess.run(["umount", "-l", str(small)], check=True)
