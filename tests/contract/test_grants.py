"""grants: the SQL is enough for a whole migration, and no role of the data plane may do more than its work."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from connectors.local import Postgres
from connectors.postgres.control import CONTROL_TABLES
from stream.planning import grants
from stream.planning.grants import APPLY, BACKFILL, CAPTURE, OPERATOR
from tests.fixtures.preparing import NEW, OLD, Shop
from tests.fixtures.running import Program, started_with
from tests.fixtures.servers import private_postgres

ROOT = Path(__file__).parents[2]
ROLES = (CAPTURE, APPLY, BACKFILL, OPERATOR)


def test_the_deployed_file_is_what_grants_prints() -> None:
    assert (ROOT / "deploy/postgres/roles.sql").read_text() == grants.ROLES


def test_every_control_table_is_spoken_of() -> None:
    assert grants.control_tables() == set(CONTROL_TABLES)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A cluster of its own: roles belong to the whole of it."""
    with private_postgres() as started:
        yield started


@pytest.fixture
def owned(server: Postgres, bootstrap: str, topic_prefix: str, migration_name: str) -> Shop:
    """The shop, owned by an application's role that is not a superuser; nobody else may do anything."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        for side in ("old", "new"):
            conn.execute(f"drop database if exists {side}_shop with (force)".encode())
            conn.execute(f"create database {side}_shop".encode())
        conn.execute("do $$begin if to_regrole('shop_owner') is null then create role shop_owner; end if; end$$")
        conn.execute(grants.ROLES.encode())
        for role in ROLES:
            conn.execute(sql.SQL("alter role {} password 'pw'").format(sql.Identifier(role)))
    shop = Shop(
        old=server.dsn("old_shop"),
        new=server.dsn("new_shop"),
        bootstrap=bootstrap,
        prefix=topic_prefix,
        migration=migration_name,
    )
    for run, text in ((shop.on_old, OLD), (shop.on_new, NEW)):
        run("revoke all on schema public from public")
        run("do $$begin execute format('grant create on database %I to shop_owner', current_database()); end$$")
        run("set role shop_owner;" + text)
    return shop


def as_role(shop: Shop, role: str) -> Shop:
    return replace(
        shop,
        old=make_conninfo(shop.old, user=role, password="pw"),
        new=make_conninfo(shop.new, user=role, password="pw"),
    )


def grant(shop: Shop, program: Program) -> None:
    """What an administrator does with what `grants` prints."""
    printed = program("grants")
    head, old, new = re.split(r"^-- (?:old|new): database .*$", printed, flags=re.MULTILINE)
    assert head.strip() == grants.ROLES.strip()
    shop.on_old(old)
    shop.on_new(new)


def environment(shop: Shop) -> dict[str, str]:
    return {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}


def test_a_whole_migration_runs_as_the_least_privileged_roles(owned: Shop, tmp_path: Path) -> None:
    with started_with(tmp_path, owned.text, environment(owned)) as administrator:
        grant(owned, administrator)
        operator = replace_env(administrator, as_role(owned, OPERATOR))
        assert "Nothing would stop" in operator("check")
        operator("prepare")
        grant(owned, administrator)  # the control tables are there now
        roles = {
            name: replace_env(administrator, as_role(owned, role))
            for name, role in (("capture", CAPTURE), ("apply", APPLY), ("backfill", BACKFILL))
        }
        try:
            for name, program in roles.items():
                program.start("run", name)
            owned.on_old(
                "update shop.customers set cust_nm = 'Ada L.' where id = 1; insert into shop.profiles values (2, 'b')"
            )
            administrator.until(lambda: administrator.status()["phase"] == "streaming", within_s=90)
            owned.on_old(
                "delete from shop.customers where id = 2; insert into shop.customers values (3, 'Cy', 'C@X', 'High')"
            )
            wanted = [(1, "Ada L.", "ada@x.org", "cross"), (3, "Cy", "c@x", "calm")]
            administrator.until(
                lambda: owned.on_new("select id, name, email, mood from app.customer order by id") == wanted
            )
            administrator.until(
                lambda: owned.on_new("select id, bio from app.account order by id") == [(1, "maths"), (3, None)]
            )
        finally:
            stop(administrator, roles.values())
        time.sleep(0.1)
        operator("cancel", "--yes")
    assert owned.on_new("select to_regnamespace('slackwater') is null") == [(True,)]


def replace_env(program: Program, shop: Shop) -> Program:
    """The same file, under another role's DSNs; what it starts is ended with the first program's."""
    return Program(file=program.file, env=environment(shop), background=program.background)


def stop(first: Program, programs: object) -> None:
    for process in first.background:
        process.terminate()
    for process in first.background:
        process.wait(30)


GATED = """
cutover: {max_pause_s: 20, attempts: 8}
verify: {max_age_s: 3600}
finalize: {quiet_s: 1}
roundtrip: {accept: [customers.fax, new.address, new.account]}
reverse:
  - {to: profiles, select: "select id as user_id, bio from account where bio is not null"}
"""
"""Every gate is on, and the way back has a join."""

FORWARD_ROLES = {"capture": CAPTURE, "apply": APPLY, "backfill": BACKFILL, "verify": BACKFILL}


@pytest.mark.soak
@pytest.mark.parametrize("end", ["finalize", "cancel"])
def test_there_and_back_as_the_least_privileged_roles(owned: Shop, tmp_path: Path, end: str) -> None:
    """Every role of both directions, every verb, to both ends: nobody is a superuser, nobody owns what he need not."""
    gated = owned.with_(options=GATED)
    with started_with(tmp_path, gated.text, environment(owned)) as administrator:
        grant(owned, administrator)
        operator = replace_env(administrator, as_role(owned, OPERATOR))
        operator("prepare", "--yes")
        grant(owned, administrator)
        for direction in ("forward", "reverse"):  # as deployed: the reverse ones wait for their turn
            for name, role in FORWARD_ROLES.items():
                replace_env(administrator, as_role(owned, role)).start("run", name, "--direction", direction)
        operator("wait", "--for", "phase=streaming", "--timeout", "90")
        grant(owned, administrator)  # before `arm`
        operator("arm", "--timeout", "90")
        assert operator("verify")
        operator("roundtrip")
        operator("gates", "--recheck")
        assert "halted" not in administrator.log, administrator.log
        if end == "finalize":
            _turn(owned, operator)
        stop(administrator, ())
        operator(end, "--yes")
    for run in (owned.on_old, owned.on_new):
        assert run("select to_regnamespace('slackwater') is null") == [(True,)]


def _turn(owned: Shop, operator: Program) -> None:
    """There, a foreign write, and back; there, and back by force; and there to stay."""
    owned.on_old("insert into shop.customers values (3, 'Cy', 'c@x', 'High')")
    operator.until(lambda: owned.on_new("select count(*) from app.customer") == [(3,)])
    operator("cutover", "--dry-run")
    operator("cutover", "--yes")
    owned.on_new("update app.customer set name = 'Ada K.' where id = 1; update app.account set bio = 'b' where id = 1")
    operator.until(lambda: owned.on_old("select cust_nm from shop.customers where id = 1") == [("Ada K.",)])
    owned.on_old(
        "begin; alter table shop.customers disable trigger slackwater_fence;"
        " update shop.customers set cust_nm = 'Mallory' where id = 1;"
        " alter table shop.customers enable always trigger slackwater_fence; commit"
    )
    operator.until(lambda: operator.status()["foreign_writes"]["rows"] == 1)
    operator("foreign-writes", "discard", "--reason", "a test", "--yes")
    operator.until(lambda: owned.on_old("select cust_nm from shop.customers where id = 1") == [("Ada K.",)])
    operator("wait", "--for", "writes=new", "--timeout", "5")
    operator.until(lambda: operator.status()["safe_to_rollback"], within_s=60)
    operator("rollback", "--yes")
    owned.on_old("update shop.customers set cust_nm = 'Ada L.' where id = 1")
    operator.until(lambda: owned.on_new("select name from app.customer where id = 1") == [("Ada L.",)])
    operator("verify")
    operator.until(lambda: operator.status()["safe_to_cutover"], within_s=60)  # new's account is computed again first
    operator("cutover", "--yes")
    operator("failover", "--to", "old", "--accept-loss", "--source-isolated", "--yes")
    operator("verify")
    operator.until(lambda: operator.status()["safe_to_cutover"], within_s=60)  # new's account is computed again first
    operator("cutover", "--yes")
    operator("verify", "--direction", "reverse")
    operator("journal", "--verify")


def test_no_role_of_the_data_plane_may_do_more(owned: Shop, tmp_path: Path) -> None:
    with started_with(tmp_path, owned.text, environment(owned)) as administrator:
        grant(owned, administrator)
        replace_env(administrator, as_role(owned, OPERATOR))("prepare")
        grant(owned, administrator)
    for role in (CAPTURE, APPLY, BACKFILL):
        [(superuser,)] = owned.on_new(
            "select rolsuper or rolcreaterole or rolcreatedb or rolbypassrls from pg_roles where rolname = %s", role
        )
        assert superuser is False
        one = as_role(owned, role)
        for attempt in (
            "update slackwater.turn set open_turn = 1",  # open a side
            "update slackwater.turn set fence_turn = null",
            "insert into slackwater.migration values ('x', 'prepared', '', '{}')",
            "update slackwater.migration set prepared = '{}'",
            "update slackwater.journal set actor = 'somebody else'",
            "delete from slackwater.journal",
            "alter table app.customer disable trigger all",
            "drop trigger slackwater_fence on app.customer",
            "truncate app.customer",
            "create table app.mine (id integer)",
            "update slackwater.route set writes = 'new'",
            "select value from app.settings",  # a table outside the migration
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                one.on_new(attempt)
        for attempt in (
            "insert into shop.profiles values (5, 'x')",
            "delete from shop.profiles",
            "update slackwater.turn set open_turn = 9",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                one.on_old(attempt)
        if role != CAPTURE:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                one.on_old("select slackwater.watch(%s, 'forward', 'shop.readings_a'::regclass)", owned.migration)
    capture = as_role(owned, CAPTURE)
    capture.on_old("select slackwater.watch(%s, 'forward', 'shop.readings_a'::regclass)", owned.migration)
    for leaf, migration in (("shop.customers", owned.migration), ("shop.readings_a", "another")):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="not a partition of a table"):
            capture.on_old(f"select slackwater.watch(%s, 'forward', '{leaf}'::regclass)", migration)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role(owned, CAPTURE).on_new("select * from slackwater.pass")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role(owned, APPLY).on_old("select * from shop.customers")


def test_an_application_reads_the_route_and_nothing_else(owned: Shop, tmp_path: Path) -> None:
    with started_with(tmp_path, owned.text, environment(owned)) as administrator:
        administrator("prepare")
    owned.on_new(
        "do $$begin if to_regrole('app_user') is null then create role app_user login password 'pw'; end if; end$$"
    )
    user = as_role(owned, "app_user")
    for run in (user.on_old, user.on_new):
        assert run("select writes, turn from slackwater.route") == [("old", 0)]
        for table in set(CONTROL_TABLES) - {"route"}:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                run(f"select * from slackwater.{table}")
