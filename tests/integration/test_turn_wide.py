"""A turn of many: twenty tables, one more with fifty partitions, a hundred connections that write, vacuums at work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.ledger import writing
from tests.fixtures.servers import private_postgres
from tests.fixtures.tide import GATES, Tide, tide_on

pytestmark = pytest.mark.soak

TABLES = [f"t{n:02}" for n in range(20)]
PARTITIONS = 50
CONNECTIONS = 100
# Five tables are being vacuumed at any time, a page in a tenth of a second; whoever has to leave one begins another.
VACUUMS = {
    "autovacuum_naptime": "1s",
    "autovacuum_vacuum_threshold": "1",
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_insert_threshold": "1",
    "autovacuum_vacuum_insert_scale_factor": "0",
    "autovacuum_vacuum_cost_delay": "100ms",
    "autovacuum_vacuum_cost_limit": "1",
    "autovacuum_max_workers": "5",
}


def ddl(schema: str) -> str:
    made = [f"create schema {schema}"]
    made += [f"create table {schema}.{t} (id bigint primary key, writer int not null, n int)" for t in TABLES]
    made.append(f"create table {schema}.event (id bigint primary key, writer int not null) partition by hash (id)")
    made += [
        f"create table {schema}.event_{n} partition of {schema}.event for values with"
        f" (modulus {PARTITIONS}, remainder {n})"
        for n in range(PARTITIONS)
    ]
    return ";".join(made)


def write(conn: psycopg.Connection[Any], side: str, entry: int) -> None:
    """Three tables in a transaction, in no fixed order; one of them by its leaf."""
    schema = "shop" if side == "old" else "app"
    first, second = entry % len(TABLES), (entry * 7 + 3) % len(TABLES)
    conn.execute(f"insert into {schema}.{TABLES[first]} values (%s, %s)".encode(), (entry, entry % CONNECTIONS))
    conn.execute(
        f"update {schema}.{TABLES[second]} set n = coalesce(n, 0) + 1 where id = %s".encode(), (-entry % CONNECTIONS,)
    )
    conn.execute(f"insert into {schema}.event values (%s, %s)".encode(), (entry, entry % CONNECTIONS))


@pytest.fixture
def wide(bootstrap: str, tmp_path: Path) -> Iterator[Tide]:
    with ExitStack() as stack:
        servers = [stack.enter_context(private_postgres(VACUUMS)) for _ in range(2)]
        dsns = dict(zip(("old", "new"), [s.dsn() for s in servers], strict=True))
        yield stack.enter_context(
            tide_on(tmp_path, dsns, bootstrap, GATES, old=ddl("shop"), new=ddl("app"), tables='copy: "*"\n')
        )


def test_many_tables_and_connections(wide: Tide) -> None:
    for table in TABLES:  # nothing that is updated is missing
        wide.on("old", f"insert into shop.{table} select -i, 0, 0 from generate_series(0, {CONNECTIONS}) i")
    ledger = wide.ledger(write=write, writers=CONNECTIONS, pause_s=1.0)
    with writing(ledger):
        time.sleep(5)
        for number, verb in enumerate(("cutover", "rollback", "cutover"), 1):
            done = wide.turn_until_done(verb)
            assert (done["result"], done["turn"]) == ("done", number)
            print(f"{verb}: paused for {done['pause_seconds']} s, {done['steps']}, {done['notes']}")
            time.sleep(3)
    assert not ledger.errors, ledger.errors[:3]
    print(
        f"{len(ledger.acknowledged)} acknowledged, the slowest after {ledger.slowest_s:.2f} s, {ledger.retried} retried"
    )
    assert ledger.slowest_s < 15
    wide.drained("new")
    ledger.agrees_with([n for (n,) in wide.on("new", "select id from app.event")])
    for table in (*TABLES, "event"):
        there, here = (
            wide.on(s, f"select * from {schema}.{table} order by 1") for s, schema in (("old", "shop"), ("new", "app"))
        )
        assert there == here, table
    leaves = [f"event_{n}" for n in range(PARTITIONS)]
    for leaf in leaves:
        with (
            psycopg.connect(wide.dsns["old"]) as conn,
            pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
        ):
            conn.execute(f"delete from shop.{leaf}".encode())
