"""Hazard A17: what a role's or a database's settings would do to our sessions, those of newer servers included."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

from connectors.postgres import session
from connectors.postgres.replication import Replication
from tests.fixtures.databases import Databases, major


@pytest.fixture
def hasty(databases: Databases) -> str:
    """A database that ends each transaction after a moment."""
    if major(databases.old) < 17:
        pytest.skip("transaction_timeout is PostgreSQL 17's")
    with psycopg.connect(databases.old, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("alter database {} set transaction_timeout = '400ms'").format(name))
    return databases.old


def test_a_transaction_of_ours_may_take_its_time(hasty: str) -> None:
    with psycopg.connect(hasty) as other, pytest.raises(psycopg.errors.TransactionTimeout):
        other.execute("select pg_sleep(3)")
    with session.connect(hasty) as conn, conn.transaction():
        conn.execute("select pg_sleep(0.8)")
    with session.connect(hasty, autocommit=False) as conn:
        conn.rollback()
        conn.execute("select pg_sleep(0.8)")
        conn.commit()


def test_decoding_a_large_transaction_may_take_its_time(hasty: str) -> None:
    with Replication(hasty, slot="none", publication="none") as stream:
        row: Any = stream._conn.execute("show transaction_timeout").fetchone()
    assert row == ("0",)
