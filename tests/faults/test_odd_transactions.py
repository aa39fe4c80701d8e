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


@pytest.mark.parametrize("slot", ["none", "made anew", "synchronised"])
def test_a_standby_that_lagged_and_was_promoted_halts(
    bootstrap: str, topic_prefix: str, migration_name: str, slot: str
) -> None:
    """Hazard A12: Kafka holds a transaction that the new primary never had. Whatever slot is there, it is refused."""
    with private_postgres({"hot_standby_feedback": "on"}) as primary:
        primary.create_database("shop")
        at = primary.dsn("shop")
        with psycopg.connect(at, autocommit=True) as conn:
            conn.execute(ITEM)
            version = conn.info.server_version // 10_000
        if slot == "synchronised" and version < 17:
            pytest.skip("slots are not synchronised to standbys before 17")
        rig = Rig(dsn=at, bootstrap=bootstrap, prefix=topic_prefix, migration=migration_name, tables=("item",))
        rig.prepare()
        synchronising = {"hot_standby_feedback": "on"}
        with standby_of(primary, settings=synchronising) as standby:
            if slot == "synchronised":
                with psycopg.connect(f"{at}?replication=database", autocommit=True) as walsender:
                    walsender.execute(f"ALTER_REPLICATION_SLOT {rig.slot} (FAILOVER true)".encode())
            with rig.running() as task:
                insert(rig, 1)
                rig.captured(task)
                if slot == "synchronised":
                    synchronise(rig, primary.dsn("shop"), standby.dsn("shop"))
            standby.query("select pg_wal_replay_pause()")
            with rig.running() as task:
                insert(rig, 2)
                rig.captured(task)
            standby.query("select pg_wal_replay_resume()")
            primary.kill()  # before the row arrives there, or after: the timeline is another one either way
            standby.query("select pg_promote()")
            rig.dsn = with_database(standby.dsn(), "shop")
            if slot == "made anew":
                slots.create_slot(rig.dsn, rig.slot, waiting=lambda _: None, timeout_s=30)
            insert(rig, 3)
            error = rig.run_until_it_fails()
            assert isinstance(error, SlotLost), error
            assert ("does not exist" if slot == "none" else "another cluster or timeline") in error.cause
            assert "prepare anew" in error.hint
            assert [(c.after or {})["id"] for c in rig.published().changes if c.op == "c"] == [1, 2]


def synchronise(rig: Rig, primary: str, standby: str) -> None:
    """Until the standby has the slot, as a failover would need it."""
    with psycopg.connect(standby, autocommit=True) as there, psycopg.connect(primary, autocommit=True) as here:

        def there_is() -> bool:
            here.execute("update item set v = 'again'")  # the slot has to move for its copy to be kept
            here.execute("select pg_log_standby_snapshot()")
            there.execute("select pg_sync_replication_slots()")
            row = there.execute(
                "select synced and not temporary and invalidation_reason is null from pg_replication_slots"
                " where slot_name = %s",
                (rig.slot,),
            ).fetchone()
            return row == (True,)

        until(there_is, 30)
