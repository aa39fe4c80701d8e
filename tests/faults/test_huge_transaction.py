"""A transaction of millions of rows, most of them rolled back with a savepoint: memory stays bounded."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

import psutil
import pytest

from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, started_with

KEPT, DROPPED = 2_000_000, 3_000_000
LIMIT_MB = 400


class Peaks:
    """The largest resident size of each process, looked at ten times a second."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.mb: dict[str, float] = dict.fromkeys(pids, 0.0)
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            for role, pid in self._pids.items():
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                self.mb[role] = max(self.mb[role], sum(p.memory_info().rss for p in family) / 2**20)


@pytest.mark.soak
def test_five_million_rows_and_a_savepoint(shop: Shop, tmp_path: Path) -> None:
    """Hazard A10: what is rolled back is never sent, the rest is published in parts and applied as one."""
    shop = shop.with_(tables="copy: [item]\nexclude: [customers, profiles, readings]\n")
    ddl = "create table {}.item (id integer primary key, v text)"
    shop.on_old(ddl.format("shop"))
    shop.on_new(ddl.format("app"))
    env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    with started_with(tmp_path, shop.text, env) as program:
        program("prepare", "--yes")
        pids = {role: program.start("run", role, "--direction", "forward").pid for role in ("capture", "apply")}
        backfill = program.start("run", "backfill")
        program.until(lambda: program.status()["phase"] == "streaming")
        backfill.terminate()
        backfill.wait(20)
        with Peaks(pids) as peaks:
            huge(shop)
            arrived(shop, program)
        print(f"peaks: {peaks.mb}")
        assert all(0 < mb <= LIMIT_MB for mb in peaks.mb.values()), peaks.mb
        assert shop.on_new("select count(*) from app.item where id > %s", KEPT) == [(0,)]


def huge(shop: Shop) -> None:
    rows = "insert into shop.item select i, 'row ' || i from generate_series({}, {}) i"
    shop.on_old(
        "do $$ begin begin "
        + rows.format(1, DROPPED)
        + "; raise exception 'away with them'; exception when raise_exception then null; end; "
        + rows.format(1, KEPT)
        + "; end $$"
    )


def arrived(shop: Shop, program: Program) -> None:
    """None of it, and then all of it."""
    deadline = time.monotonic() + 300
    while (count := shop.on_new("select count(*) from app.item")[0][0]) != KEPT:
        assert count == 0
        assert time.monotonic() < deadline, program.log[-4000:]
        time.sleep(1)
