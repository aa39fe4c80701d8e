"""The fixtures themselves: a database goes, whatever a test left in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from connectors import local
from tests.fixtures.databases import Databases, fresh_database, with_database
from tests.fixtures.servers import private_postgres, sweep


def test_databases_are_two_empty_ones(databases: Databases, migration_name: str) -> None:
    for dsn in databases:
        with psycopg.connect(dsn) as connection:
            assert connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)


def test_a_database_goes_with_its_slots_sessions_and_prepared_transactions(postgres_dsn: str) -> None:
    with fresh_database(postgres_dsn, "busy") as dsn:
        left_open = psycopg.connect(dsn, autocommit=True)
        left_open.execute("select pg_create_logical_replication_slot('left_behind', 'pgoutput')")
        left_open.execute("create table t ()")
        left_open.execute("begin; insert into t default values; prepare transaction 'left behind'")
    with pytest.raises(psycopg.OperationalError):
        left_open.execute("select 1")
    left_open.close()
    with psycopg.connect(postgres_dsn) as connection:
        slots = connection.execute("select 1 from pg_replication_slots where slot_name = 'left_behind'").fetchall()
        assert slots == []


def test_servers_of_a_run_that_was_killed_are_ended_by_the_next() -> None:
    script = (
        "from tests.fixtures.servers import private_postgres; import os, signal\n"
        "with private_postgres() as server: print(server.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    server = local.Postgres(Path(killed.stdout.strip()))
    with private_postgres() as mine:
        assert server.running
        identity = server.identity
        sweep()
        assert identity is not None
        assert not identity.alive
        assert not server.folder.parent.exists()
        assert mine.running


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p@h:1/a?sslmode=disable", "postgresql://u:p@h:1/b?sslmode=disable"),
        ("postgresql://h", "postgresql://h/b"),
        ("dbname=a host=h", "dbname=b host=h"),
    ],
)
def test_another_database_of_the_same_server(dsn: str, expected: str) -> None:
    assert with_database(dsn, "b") == expected
