"""The fence: who passes, who does not, and that nothing short of its turn or the pass opens it."""

from __future__ import annotations

import psycopg
import pytest

from connectors.postgres import catalog, fence, session
from connectors.postgres.control import Checkpoint
from schemas.direction import Side
from schemas.errors import Contended, Halt
from schemas.position import ZERO, Position
from schemas.table import Table
from stream.apply.housekeeping import Tending
from stream.monitoring.metrics import Metrics
from tests.fixtures.databases import Databases, major
from tests.fixtures.preparing import Shop
from tests.fixtures.tape import Tape

CLOSED = psycopg.errors.ReadOnlySqlTransaction


def app_tables(conn: session.Connection) -> list[Table]:
    return list(catalog.tables(conn, "app").values())


def write(conn: session.Connection, secret: str) -> None:
    """One transaction that shows a pass and writes."""
    with conn.transaction():
        fence.show_pass(conn, secret)
        conn.execute("insert into app.customer values (2, 'x')")


def test_every_statement_kind_is_refused_for_everybody(shop: Shop) -> None:
    shop.prepare()
    with psycopg.connect(shop.new, autocommit=True) as conn:
        attacks = [
            "insert into app.customer values (1, 'x')",
            "insert into app.customer values (1, 'x') on conflict do nothing",
            "insert into app.customer select 1, 'x' where false",  # statement level: no row is needed
            "update app.customer set name = 'x'",
            "delete from app.customer",
            "truncate app.customer",
            "truncate app.customer, app.settings",
            "copy app.customer (id, name) from program 'echo 1,x' with (format csv)",
            "with w as (insert into app.customer values (1, 'x') returning id) select * from w",
            "insert into app.readings values (1, '2024-01-01', 1)",
            "insert into app.readings_all values (1, '2024-01-01', 1)",
        ]
        if major(shop.new) >= 15:
            attacks += [
                "merge into app.customer c using app.settings s on false when not matched then insert values (1, 'x')"
            ]
        for role in ("origin", "replica", "local"):
            conn.execute(f"set session_replication_role = {role}".encode())
            for attack in attacks:
                with pytest.raises(CLOSED) as refused:
                    conn.execute(attack.encode())
                assert refused.value.sqlstate == "25006"
                assert refused.value.diag.message_primary == "slackwater: writes moved to old"
        assert conn.execute(
            "select (select count(*) from app.customer) + (select count(*) from app.readings)"
        ).fetchone() == (0,)


def test_only_the_current_pass_opens_it_and_only_for_its_transaction(shop: Shop) -> None:
    shop.prepare()
    with session.connect(shop.new) as conn:
        fence.give_pass(conn, shop.migration, Side.NEW, "apply", "first")
        fence.give_pass(conn, shop.migration, Side.NEW, "apply", "second")
        with conn.transaction():
            fence.show_pass(conn, "second")
            conn.execute("insert into app.customer values (1, 'passed')")
        with pytest.raises(CLOSED):  # it did not outlive its transaction
            conn.execute("insert into app.customer values (2, 'x')")
        with pytest.raises(CLOSED):  # replaced by a successor's
            write(conn, "first")
        with pytest.raises(CLOSED):
            write(conn, "")
        fence.take_pass(conn, shop.migration, Side.NEW, "apply")
        with pytest.raises(CLOSED):
            write(conn, "second")
        [(stored,)] = conn.execute("select count(*) from slackwater.pass").fetchall()
        assert stored == 0
        assert conn.execute("select id from app.customer").fetchall() == [(1,)]


def test_a_pass_for_one_side_or_migration_opens_no_other(shop: Shop) -> None:
    shop.prepare()
    with session.connect(shop.new) as conn:
        fence.give_pass(conn, shop.migration, Side.OLD, "apply", "secret")
        fence.give_pass(conn, "another", Side.NEW, "apply", "secret")
        with pytest.raises(CLOSED):
            write(conn, "secret")


def test_a_hash_alone_is_no_pass(shop: Shop) -> None:
    """Whoever reads the control tables learns nothing that opens the fence."""
    shop.prepare()
    with session.connect(shop.new) as conn:
        fence.give_pass(conn, shop.migration, Side.NEW, "apply", "secret")
        [(stored,)] = conn.execute("select encode(hash, 'hex') from slackwater.pass").fetchall()
        for guess in (stored, f"\\x{stored}"):
            with pytest.raises(CLOSED):
                write(conn, guess)


def test_the_turn_opens_it_without_a_lock_on_any_table(shop: Shop) -> None:
    shop.prepare()
    with psycopg.connect(shop.new) as reader:
        reader.execute("select * from app.customer")  # an open transaction would block any lock on the table
        shop.on_new("update slackwater.turn set open_turn = 1 where side = 'new' and open_turn < 1")
        shop.on_new("insert into app.customer values (1, 'open')")


def test_without_a_turn_row_it_stays_closed(shop: Shop) -> None:
    shop.prepare()
    shop.on_new("delete from slackwater.turn")
    with pytest.raises(CLOSED):
        shop.on_new("insert into app.customer values (1, 'x')")


def test_a_hostile_search_path_changes_nothing(shop: Shop) -> None:
    shop.prepare()
    shop.on_new(
        "create schema evil;"
        " create table evil.turn as select 'x'::text migration, 'new'::text side, 99::bigint open_turn;"
        " create function evil.sha256(bytea) returns bytea language sql as 'select null::bytea'"
    )
    with pytest.raises(CLOSED):
        shop.on_new("set search_path = evil, pg_temp, pg_catalog; insert into app.customer values (1, 'x')")


def test_ensure_is_idempotent_and_repairs(shop: Shop) -> None:
    shop.prepare()
    with session.connect(shop.new) as conn:
        tables = app_tables(conn)
        assert fence.ensure(conn, shop.migration, Side.NEW, 1, tables) == []
        conn.execute("alter table app.customer enable trigger slackwater_fence")  # no longer ALWAYS
        conn.execute("drop trigger slackwater_fence on app.readings_all")
        made = fence.ensure(conn, shop.migration, Side.NEW, 1, tables)
        assert sorted(made) == [("app", "customer"), ("app", "readings_all")]
        assert all(found.always for found in fence.fences(conn).values())


def test_raising_the_turn_keeps_it_closed_all_the_while(shop: Shop) -> None:
    """`create or replace` resets ENABLE ALWAYS: both are one transaction, so no session ever sees it reset."""
    shop.prepare()
    with session.connect(shop.new) as conn:
        shop.on_new("update slackwater.turn set open_turn = 1 where side = 'new'")
        fence.ensure(conn, shop.migration, Side.NEW, 3, app_tables(conn))
        assert {f.turn for f in fence.fences(conn).values()} == {3}
        assert all(f.always for f in fence.fences(conn).values())
        with pytest.raises(CLOSED):
            shop.on_new("insert into app.customer values (1, 'x')")


def test_another_migrations_fence_is_not_replaced(shop: Shop) -> None:
    shop.prepare()
    with (
        session.connect(shop.new) as conn,
        pytest.raises(Halt, match=f"carries the fence of migration {shop.migration}"),
    ):
        fence.ensure(conn, "other", Side.NEW, 1, app_tables(conn))


def test_a_table_that_is_locked_is_given_up_in_time_and_nobody_queues_behind_us(shop: Shop) -> None:
    shop.prepare()
    with psycopg.connect(shop.new) as holder, session.connect(shop.new) as conn:
        holder.execute("lock table app.customer in row exclusive mode")
        shop.on_new("alter table app.settings disable trigger slackwater_fence")
        conn.execute("drop trigger slackwater_fence on app.settings")
        with pytest.raises(Contended, match="other transactions held the table"):
            fence.ensure(conn, shop.migration, Side.NEW, 2, app_tables(conn), patience_s=2)
        assert ("app", "readings") in fence.fences(conn)


def test_odd_names(shop: Shop) -> None:
    shop.on_new('create schema "A ""b"""; create table "A ""b"""."T;--" (id int primary key)')
    shop.prepare()
    with session.connect(shop.new) as conn:
        tables = list(catalog.tables(conn, 'A "b"').values())
        assert fence.ensure(conn, shop.migration, Side.NEW, 1, tables) == [('A "b"', "T;--")]
        with pytest.raises(CLOSED):
            conn.execute('insert into "A ""b"""."T;--" values (1)')
        assert ('A "b"', "T;--") in fence.drop(conn, shop.migration)


def test_a_partition_that_is_made_later_gets_the_fence(databases: Databases) -> None:
    tape = Tape(
        databases,
        "create table t (id integer primary key)",
        "create table t (id integer primary key) partition by range (id);"
        "create table t_a partition of t for values from (minvalue) to (100)",
        "copy: [t]\n",
    )
    tending = Tending(tape.engine, tape.engine.target, Metrics("tape", "forward"), lambda _: None)
    tape.new.execute("create table app.t_b partition of app.t for values from (100) to (maxvalue)")
    tape.new.execute("insert into app.t_b values (100)")
    tending.run(
        Checkpoint(epoch=0, end_lsn=ZERO, last=Position(ZERO, 0), offsets={}, system_id="", timeline=1, slot="")
    )
    for table in ("t", "t_a", "t_b"):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            tape.new.execute(f"delete from app.{table}".encode())
    tape.old.execute("insert into t values (100)")  # the target holds what nothing made until the stream brings it
    tape.advance()
    tape.close()
