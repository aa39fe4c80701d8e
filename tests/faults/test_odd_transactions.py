"""Transactions that come by another way than an application's COMMIT, and a source that is not the one it was."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from connectors.postgres import slots
from schemas.errors import SlotLost
from tests.fixtures.capturing import Rig, until
from tests.fixtures.databases import Databases, with_database
from tests.fixtures.servers import private_postgres, standby_of

ITEM = "create table item (id int primary key, v text)"


def ids(rig: Rig) -> list[int]:
    return [(c.after or {})["id"] for c in rig.published().changes]


def insert(rig: Rig, number: int) -> None:
    with rig.connect() as conn:
        conn.execute("insert into item values (%s)", (number,))


@pytest.fixture
def rig(databases: Databases, bootstrap: str, topic_prefix: str, migration_name: str) -> Rig:
    with psycopg.connect(databases.old, autocommit=True) as conn:
        conn.execute(ITEM)
    return Rig(
        dsn=databases.old, bootstrap=bootstrap, prefix=topic_prefix, migration=migration_name, tables=("item",)
    ).prepare()


def test_rows_that_come_from_elsewhere_are_carried(rig: Rig, make_database: Callable[[str], str]) -> None:
    """Hazard A18: what a subscription, or any session with an origin, wrote to old is old's data as much as any; a
    filter by origin would drop it. What our own other direction wrote says so itself, whatever its origin.
    """
    upstream, name = make_database("upstream"), f"chain_{rig.migration}"
    with psycopg.connect(upstream, autocommit=True) as up, rig.connect() as conn:
        up.execute(ITEM)
        up.execute(f"create publication {name} for table item")
        up.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        where = conninfo_to_dict(upstream)
        said = " ".join(f"{key}=''{where[key]}''" for key in ("host", "port", "dbname", "user", "password"))
        conn.execute(
            f"create subscription {name} connection '{said}' publication {name}"
            " with (create_slot = false, copy_data = false)"
        )
        conn.execute("select pg_replication_origin_create(%s)", (name,))
        with rig.running() as task:
            up.execute("insert into item values (1, 'from upstream')")
            until(lambda: conn.execute("select from item where id = 1").fetchone() is not None, 20)
            with rig.connect() as other:
                other.execute("select pg_replication_origin_session_setup(%s)", (name,))
                other.execute("insert into item values (2, 'with an origin')")
                mark = "select pg_logical_emit_message(true, 'slackwater.echo', %s)"
                for number, direction in ((3, "reverse"), (4, "forward")):
                    with other.transaction():
                        other.execute(mark, (f"{rig.migration}.{direction}",))
                        other.execute("insert into item values (%s, 'marked')", (number,))
            conn.execute("insert into item values (5, 'ours')")
            rig.captured(task)
        conn.execute("select pg_replication_origin_drop(%s)", (name,))
    assert sorted(ids(rig)) == [1, 2, 4, 5]


@pytest.mark.parametrize("max_rows", [20_000, 20])
def test_prepared_transactions_across_restarts(rig: Rig, max_rows: int) -> None:
    """Hazard A19: it is decoded when it commits, however often capture was restarted since it was prepared."""
    with rig.connect() as conn:
        for name, first in (("kept", 100), ("never", 200)):
            conn.execute("begin")
            conn.execute("insert into item select i, 'two' from generate_series(%s::int, %s) i", (first, first + 49))
            conn.execute(f"prepare transaction '{rig.migration}.{name}'")
        with rig.running(max_rows=max_rows) as task:
            conn.execute("insert into item values (1)")
            rig.captured(task)
        conn.execute("insert into item values (2)")
        with rig.running(max_rows=max_rows) as task:
            rig.captured(task)
            assert rig.confirmed() > 0
        conn.execute(f"commit prepared '{rig.migration}.kept'")  # nobody is listening
        conn.execute("insert into item values (3)")
        with rig.running(max_rows=max_rows) as task:
            rig.captured(task)
            conn.execute(f"rollback prepared '{rig.migration}.never'")
            conn.execute("insert into item values (4)")
            rig.captured(task)
    assert ids(rig) == [1, 2, *range(100, 150), 3, 4]


@pytest.mark.parametrize("slot", ["none", "made anew"])
def test_a_standby_that_lagged_and_was_promoted_halts(
    bootstrap: str, topic_prefix: str, migration_name: str, slot: str
) -> None:
    """Hazard A12: Kafka holds a transaction that the new primary never had. Whatever slot is there, it is refused."""
    with private_postgres() as primary:
        primary.create_database("shop")
        at = primary.dsn("shop")
        with psycopg.connect(at, autocommit=True) as conn:
            conn.execute(ITEM)
        rig = Rig(dsn=at, bootstrap=bootstrap, prefix=topic_prefix, migration=migration_name, tables=("item",))
        rig.prepare()
        with standby_of(primary) as standby:
            with rig.running() as task:
                insert(rig, 1)
                rig.captured(task)
            standby.stop()
            with rig.running() as task:
                insert(rig, 2)
                rig.captured(task)
            primary.kill()
            standby.start()
            standby.query("select pg_promote()")
            assert standby.query("select id from item", "shop") == [(1,)]
            rig.dsn = with_database(standby.dsn(), "shop")
            if slot == "made anew":
                slots.create_slot(rig.dsn, rig.slot, waiting=lambda _: None, timeout_s=30)
            insert(rig, 3)
            error = rig.run_until_it_fails()
            assert isinstance(error, SlotLost), error
            assert ("does not exist" if slot == "none" else "another cluster or timeline") in error.cause
            assert "prepare anew" in error.hint
            assert ids(rig) == [1, 2]
