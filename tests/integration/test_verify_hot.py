"""Hot rows, a thousand transactions a second over sixty of them: nothing false, and what is wrong is found.

In `make test` for two minutes: two thousand transactions on each row, as far as the other workers leave room for them.
`make soak` has the ten minutes; SLACKWATER_SOAK_S sets their length.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors import local
from stream.verify import queries
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling
from tests.fixtures.verifying import corrupt, found, swept

TPS = 1000
SCRIPT = Path(__file__).parents[1] / "fixtures" / "hot.sql"
OLD = """
create table customers (id integer primary key, nm text, email text);
insert into customers select i, 'name ' || i, 'M' || i || '@x' from generate_series(1, 3000) i;
create table addresses (id bigint primary key, customer_id integer not null, street text);
insert into addresses select i, i % 3000 + 1, 'street ' || i from generate_series(1, 1500) i;
create index on addresses (customer_id);
create table events (kind text, amount numeric);
alter table events replica identity full;
insert into events select 'k' || i % 3, i % 5 + 0.50 from generate_series(1, 300) i;
create table notes (id integer primary key, tag integer, body text);
alter table notes alter column body set storage external;
insert into notes select i, 0, repeat(md5(i::text), 200) from generate_series(1, 60) i;
"""
NEW = """
create table customer (id integer primary key, name text, email text);
create table account (customer_id integer primary key, name text, streets text);
create table events (kind text, amount numeric);
create table notes (id integer primary key, tag integer, body text);
"""
MAPPING = """
copy: [events, notes]
tables:
  - {to: customer, from: customers, rename: {nm: name}, set: {email: lower(email)}}
  - to: account
    select: |
      select c.id as customer_id, c.nm as name, string_agg(a.street, ',' order by a.id) as streets
        from customers c left join addresses a on a.customer_id = c.id where c.id <= 400 group by c.id, c.nm
"""


@pytest.fixture
def loaded(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Filling]:
    monkeypatch.setattr(queries, "CHUNK_ROWS", 500)
    made = Filling(databases, OLD, NEW, MAPPING)
    try:
        with made.streaming(), made.backfill():
            made.filled()
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def hot(dsn: str, seconds: int) -> Iterator[subprocess.Popen[str]]:
    """The load, for so long; its report is on its stdout."""
    program = [
        *(str(local.binary("pgbench")), "-n", "-c", "8", "-j", "2", "-R", str(TPS), "-T", str(seconds)),
        *("-M", "prepared", "--max-tries", "10", "-f", str(SCRIPT), dsn),
    ]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as load:
        try:
            yield load
        finally:
            load.kill()


def nothing_false(loaded: Filling, seconds: int, *, rest_s: float) -> tuple[int, float]:
    """Passes without end while the load lasts; how many there were, and the load's transactions a second."""
    passes = 0
    with loaded.streaming(), loaded.backfill(), hot(loaded.databases.old, seconds) as load:
        while load.poll() is None:
            assert found(swept(loaded)) == {}
            passes += 1
            time.sleep(rest_s)
        assert load.stdout is not None
        report = load.stdout.read()
        assert load.returncode == 0, report
        corrupt(loaded, "update app.customer set name = 'wrong' where id in (400, 2999)")
        wrong = [("different", ("2999",), ("name",)), ("different", ("400",), ("name",))]
        assert found(swept(loaded, only=["customer"])) == {"customer": wrong}
    tps = re.search(r"tps = ([\d.]+)", report)
    assert tps is not None, report
    return passes, float(tps[1])


def test_hot_rows_are_no_mismatches(loaded: Filling) -> None:
    passes, tps = nothing_false(loaded, 120, rest_s=1.0)
    print(f"\n{passes} passes beside {tps:.0f} transactions a second")
    assert passes >= 8
    assert tps > TPS / 4  # of a machine that five workers share


@pytest.mark.soak
def test_hot_rows_are_no_mismatches_for_ten_minutes(loaded: Filling) -> None:
    seconds = int(os.environ.get("SLACKWATER_SOAK_S", "600"))
    passes, tps = nothing_false(loaded, seconds, rest_s=0.2)
    print(f"\n{passes} passes in {seconds} s beside {tps:.0f} transactions a second: nothing false")
    assert tps > TPS * 0.9
