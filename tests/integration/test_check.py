"""check: everything that would stop a migration is found, at once, each with its remedy, and nothing is changed."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors.kafka.topics import Topics, TopicSpec
from connectors.local import binaries
from connectors.local.processes import until
from connectors.postgres import session
from stream import preflight
from stream.migration.topics import FlowTopics
from stream.preflight import Finding, Severity
from tests.fixtures.catalogs import catalogs
from tests.fixtures.databases import major
from tests.fixtures.preparing import NEW, OLD, Shop
from tests.fixtures.servers import private_postgres, standby_of
from tests.integration.test_prepare import run


def problems(shop: Shop) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in preflight.check(shop.spec).problems:
        assert finding.cause, finding
        assert finding.remedy, finding
        found.setdefault(finding.name, []).append(finding)
    return found


def the(found: dict[str, list[Finding]], name: str) -> Finding:
    """The one problem of that name, and no other problem at all."""
    assert list(found) == [name], found
    [finding] = found[name]
    return finding


def warnings(shop: Shop) -> set[str]:
    return {f.name for f in preflight.check(shop.spec).of(Severity.WARNING)}


def test_a_good_migration_has_no_problems_and_nothing_is_changed(shop: Shop) -> None:
    before = catalogs(shop.old), catalogs(shop.new)
    assert problems(shop) == {}
    assert (catalogs(shop.old), catalogs(shop.new)) == before
    shop.prepare()
    assert problems(shop) == {}


def test_ddl_that_is_not_applied_yet_is_seen_through(shop: Shop, tmp_path: Path) -> None:
    shop.on_new("drop schema app cascade")
    (tmp_path / "new.sql").write_text(NEW)
    given = shop.with_(ddl="new.sql", folder=tmp_path)
    before = catalogs(shop.new)
    assert problems(given) == {}
    assert catalogs(shop.new) == before
    assert "mapping" in problems(shop)
    assert given.prepare().result == "prepared"


def test_everything_is_listed_at_once(shop: Shop) -> None:
    shop.on_old("alter table shop.profiles set unlogged; create table shop.forgotten (id integer primary key)")
    shop.on_new("insert into app.customer values (1, 'somebody')")
    shop.on_new("create function app.f() returns trigger language plpgsql as 'begin return new; end'")
    shop.on_new("create trigger t before insert on app.address for each row execute function app.f()")
    shop.on_new("alter table app.address enable always trigger t")
    found = problems(shop)
    assert set(found) == {"unlogged", "mapping", "not_empty", "triggers"}
    assert "forgotten" in found["mapping"][0].cause
    assert found["triggers"][0].where == "new.address"


def test_the_command_lists_them_and_exits_3(shop: Shop, tmp_path: Path) -> None:
    assert run(shop, tmp_path, "check").returncode == 0
    shop.on_old("alter table shop.profiles set unlogged")
    told = run(shop, tmp_path, "check")
    assert told.returncode == 3
    assert "set logged" in told.stdout
    document = json.loads(run(shop, tmp_path, "check", "--json").stdout)
    assert document["problems"] == 1
    assert {"name", "severity", "cause", "remedy", "where"} <= set(document["findings"][0])


# -- servers ----------------------------------------------------------------------------------------------------------


@contextmanager
def own_server(settings: dict[str, str], shop: Shop) -> Iterator[Shop]:
    """The same shop, with old on a server of its own."""
    with private_postgres(settings) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(OLD.encode())
        yield shop.with_(old=server.dsn())


def test_wal_level_replica(shop: Shop) -> None:
    with own_server({"wal_level": "replica"}, shop) as there:
        finding = the(problems(there), "wal_level")
    assert "alter system set wal_level = logical" in finding.remedy
    assert finding.where == "old"


def test_no_slot_and_settings_that_take_slots_away(shop: Shop) -> None:
    taking = {"max_slot_wal_keep_size": "1GB"}
    if binaries.major() >= 18:
        taking["idle_replication_slot_timeout"] = "1h"
    with own_server({"max_replication_slots": "1", **taking}, shop) as there:
        assert taking.keys() <= warnings(there)
        there.on_old("select pg_create_physical_replication_slot('somebodys')")
        finding = the(problems(there), "replication_slots")
    assert "max_replication_slots" in finding.remedy


def test_a_standby_is_refused(shop: Shop) -> None:
    with private_postgres() as primary:
        with psycopg.connect(primary.dsn(), autocommit=True) as conn:
            conn.execute(OLD.encode())
        with standby_of(primary) as standby:
            found = problems(shop.with_(old=standby.dsn()))
    assert "standby" in found
    assert "primary" in found["standby"][0].remedy


def test_a_database_without_an_encoding(shop: Shop) -> None:
    with psycopg.connect(shop.old, autocommit=True) as conn:
        conn.execute("create database ascii encoding 'SQL_ASCII' template template0 locale 'C'")
    try:
        parts = {**conninfo_to_dict(shop.old), "dbname": "ascii"}
        there = shop.with_(old=make_conninfo("", **parts))
        there.on_old(OLD)
        assert the(problems(there), "encoding").where == "old"
    finally:
        with psycopg.connect(shop.old, autocommit=True) as conn:
            conn.execute("drop database ascii with (force)")


def test_a_server_that_is_not_there(shop: Shop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    finding = the(problems(shop.with_(old=f"host=127.0.0.1 port={port} dbname=x password=hidden")), "unreachable")
    assert "hidden" not in str(finding)


def test_the_same_schema_twice(shop: Shop) -> None:
    class Same(Shop):
        @property
        def text(self) -> str:
            return super().text.replace("schema: app", "schema: shop")

    same = Same(**{name: getattr(shop, name) for name in shop.__dataclass_fields__})
    assert "same_schema" in problems(same.with_(new=shop.old))


# -- the way there ----------------------------------------------------------------------------------------------------


class Pooler(threading.Thread):
    """What a transaction pooler does to a session's start, in front of a real server: it hands out process ids of its
    own; told to, it refuses startup options as PgBouncer does, or drops them as its ignore_startup_parameters does."""

    def __init__(self, dsn: str, options: str) -> None:
        super().__init__(daemon=True)
        self.parts = conninfo_to_dict(dsn)
        self.options = options
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(
            dsn, host="127.0.0.1", port=self.listener.getsockname()[1], sslmode="disable", gssencmode="disable"
        )

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        size = int.from_bytes(self._exactly(client, 4), "big")
        startup = self._exactly(client, size - 4)
        pairs = startup[4:].split(b"\0")
        named = dict(zip(pairs[::2], pairs[1::2], strict=False))
        if self.options == "refuse" and b"options" in named:
            text = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            client.sendall(b"E" + (len(text) + 4).to_bytes(4, "big") + text)
            client.close()
            return
        if self.options == "drop":
            named.pop(b"options", None)
        body = startup[:4] + b"".join(k + b"\0" + v + b"\0" for k, v in named.items() if k) + b"\0"
        server = socket.create_connection((str(self.parts["host"]), int(str(self.parts["port"]))))
        server.sendall((len(body) + 4).to_bytes(4, "big") + body)
        threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
        while True:  # up to the first ReadyForQuery, message by message
            head = self._exactly(server, 5)
            rest = self._exactly(server, int.from_bytes(head[1:], "big") - 4)
            if head[:1] == b"K" and self.options == "pass":
                rest = (4242).to_bytes(4, "big") + rest[4:]
            client.sendall(head + rest)
            if head[:1] in (b"Z", b"E"):
                break
        self._pump(server, client)

    @staticmethod
    def _exactly(sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := sock.recv(size - len(data))):
            data += more
        return data

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            return
        finally:
            for end in (source, sink):
                end.close()


@pytest.mark.parametrize("options", ["refuse", "drop", "pass"])
def test_a_pooler_is_recognised(shop: Shop, options: str) -> None:
    pooler = Pooler(shop.old, options)
    pooler.start()
    try:
        found = problems(shop.with_(old=pooler.dsn))
    finally:
        pooler.listener.close()
    assert "pooler" in found
    assert "pooler" in found["pooler"][0].cause + found["pooler"][0].remedy


# -- privileges -------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain_role(shop: Shop) -> Iterator[str]:
    name = f"plain_{shop.migration}"
    shop.on_old(f"create role {name} login password 'plain'")
    yield name
    for run_on in (shop.on_old, shop.on_new):
        run_on(f"drop owned by {name} cascade")
    shop.on_old(f"drop role {name}")


def as_role(dsn: str, role: str) -> str:
    return make_conninfo(dsn, user=role, password="plain")


def test_a_role_without_privileges_is_told_of_all_it_lacks(shop: Shop, plain_role: str) -> None:
    there = shop.with_(old=as_role(shop.old, plain_role), new=as_role(shop.new, plain_role))
    found = problems(there)
    assert {"replication_privilege", "privileges"} <= set(found)
    causes = " ".join(f.cause for f in found["privileges"])
    for lacking in ("CREATE", "SELECT", "INSERT", "does not own", "shop.readings_b", "app.readings_all"):
        assert lacking in causes
    assert "replication" in found["replication_privilege"][0].remedy
    assert "session_replication_role" in warnings(there)


def test_triggers_matter_only_where_they_would_fire(shop: Shop, plain_role: str) -> None:
    shop.on_new("create function app.f() returns trigger language plpgsql as 'begin return new; end'")
    shop.on_new("create trigger t before insert on app.address for each row execute function app.f()")
    assert problems(shop) == {}  # this role may set session_replication_role: they do not fire
    shop.on_new(f"alter schema app owner to {plain_role}")
    for table in ("customer", "address", "account", "readings", "readings_all", "settings"):
        shop.on_new(f"alter table app.{table} owner to {plain_role}")
    shop.on_new(f"do $$begin execute 'grant create on database ' || current_database() || ' to {plain_role}'; end$$")
    there = shop.with_(new=as_role(shop.new, plain_role))
    assert the(problems(there), "triggers").where == "new.address"
    if major(shop.new) < 15:
        pytest.skip("no role but a superuser may set session_replication_role before PostgreSQL 15")
    shop.on_new(f"grant set on parameter session_replication_role to {plain_role}")
    try:
        assert problems(there) == {}
    finally:
        shop.on_new(f"revoke set on parameter session_replication_role from {plain_role}")


def test_policies_that_would_hide_rows(shop: Shop, plain_role: str) -> None:
    shop.on_old("alter table shop.profiles enable row level security")
    assert problems(shop) == {}
    there = shop.with_(old=as_role(shop.old, plain_role))
    shop.on_old(
        f"grant usage on schema shop to {plain_role}; grant select on all tables in schema shop to {plain_role}"
    )
    assert problems(there)["row_security"][0].where == "old.profiles"


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "name", "remedy"),
    [
        ("alter table shop.profiles set unlogged", "", "unlogged", "set logged"),
        ("alter table shop.profiles replica identity nothing", "", "replica_identity", "replica identity full"),
        ("alter table shop.readings_a replica identity full", "", "replica_identity", "as the table itself has it"),
        ("", "alter table app.address set unlogged", "unlogged", "set logged"),
        ("", "alter table app.account add unique (email) deferrable", "deferrable_constraint", "immediate"),
        ("", "insert into app.account values (5)", "not_empty", 'truncate "app"."account"'),
        (
            "",
            "create rule r as on insert to app.address do also notify x; alter table app.address enable always rule r",
            "triggers",
            "disable rule",
        ),
    ],
)
def test_tables(shop: Shop, old: str, new: str, name: str, remedy: str) -> None:
    if old:
        shop.on_old(old)
    if new:
        shop.on_new(new)
    found = problems(shop)
    assert name in found, found
    assert remedy in found[name][0].remedy


def test_a_partition_s_own_identity_is_not_glossed_over(shop: Shop) -> None:
    """Setting replica identities does not set this one: the table itself needs no FULL."""
    shop.on_old("alter table shop.readings_a replica identity full")
    with session.connect(shop.old) as old, session.connect(shop.new) as new, FlowTopics(shop.spec) as topics:
        found = preflight.examine(shop.spec, old, new, topics, None, set_identity=True)
    assert [f.name for f in found.problems] == ["replica_identity"]


def test_a_table_fed_by_a_native_subscription(shop: Shop) -> None:
    shop.on_old("create publication feed for table shop.profiles")
    shop.on_new("create schema shop; create table shop.profiles (user_id integer primary key, bio text)")
    with psycopg.connect(shop.new, autocommit=True) as conn:
        conn.execute(
            "create subscription s connection 'host=127.0.0.1 port=1' publication feed"
            " with (connect = false, slot_name = none, enabled = false)"
        )
        conn.execute(
            "insert into pg_subscription_rel select oid, 'app.address'::regclass, 'r', null from pg_subscription"
            " where subname = 's'"
        )
    assert the(problems(shop), "subscription").where == "new.address"


def test_what_is_good_to_know_is_told(shop: Shop) -> None:
    shop.on_old(
        "alter table shop.profiles add column n integer generated always as (user_id * 2) stored, add column o oid"
    )
    shop.on_old("create table shop.orders (id integer generated always as identity primary key)")
    shop.on_new("create table app.orders (id integer generated always as identity primary key)")
    there = shop.with_(
        tables=shop.tables.replace("copy: [readings]", "copy: [readings, orders]").replace(
            "customers.fax]", "customers.fax, profiles.o]"
        )
    )
    found = preflight.check(there.spec)
    assert found.problems == ()
    names = {f.name for f in found}
    assert {"generated_columns", "sequences", "large_objects", "partitions"} <= names


def test_open_transactions_are_warned_of(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.server, "LONG_S", 0.0)
    with psycopg.connect(shop.old, application_name="the report") as conn:
        conn.execute("insert into shop.profiles values (99, 'open')")
        found = preflight.check(shop.spec)
        conn.rollback()
    [warning] = [f for f in found if f.name == "open_transactions"]
    assert "the report" in warning.cause


def test_a_type_that_new_cannot_hold(shop: Shop) -> None:
    shop.on_old(
        "create type shop.shell; create function shop.i(cstring) returns shop.shell"
        " language internal strict immutable as 'textin'"
    )
    shop.on_old("create function shop.o(shop.shell) returns cstring language internal strict immutable as 'textout'")
    shop.on_old("create type shop.shell (input = shop.i, output = shop.o, like = text)")
    shop.on_old("alter table shop.profiles add column x shop.shell")
    there = shop.with_(tables=shop.tables.replace("customers.fax]", "customers.fax, profiles.x]"))
    assert "shop.shell" in problems(there)["type"][0].cause


# -- mappings and Kafka -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ("select id as customer_id, street from customers where", "address"),
        ("select id as customer_id, streat as street from customers", "streat"),
        ("select id as customer_id, street from customers; select 1", "address"),
        ("select id as customer_id, street || random() as street from customers", "random"),
        ("select id as customer_id, now()::text as street from customers", "now"),
        ("select id as customer_id, street from shop.customers", "shop"),
        ("select id as customer_id, street from customers limit 5", "limit"),
        ("select street as customer_id, street from customers", "customer_id"),
        ("select id as customer_id from customers", "street"),
    ],
)
def test_mappings(shop: Shop, select: str, says: str) -> None:
    line = '{to: address, select: "select id as customer_id, street from customers where street is not null"}'
    assert line in shop.tables
    there = shop.with_(tables=shop.tables.replace(line, f'{{to: address, select: "{select}"}}'))
    found = problems(there)
    assert set(found) == {"mapping"}
    assert any(says in f.cause.lower() and "address" in f.where + f.cause for f in found["mapping"]), found


def test_topics_that_lose_rows(shop: Shop) -> None:
    topics = Topics(shop.bootstrap, {})
    name = f"{shop.prefix}.{shop.migration}.forward.shop.profiles"
    topics.ensure([TopicSpec(name=name, retention_s=60)])
    finding = the(problems(shop), "topic")
    assert "retention.ms=-1" in finding.remedy
    topics.delete([name])


def test_a_topic_that_takes_small_rows_only(shop: Shop) -> None:
    topics = Topics(shop.bootstrap, {})
    name = f"{shop.prefix}.{shop.migration}.forward.shop.profiles"
    admin = AdminClient({"bootstrap.servers": shop.bootstrap})
    config = {"retention.ms": "-1", "max.message.bytes": "1000"}
    admin.create_topics([NewTopic(name, num_partitions=1, config=config)])[name].result()
    assert until(lambda: topics.partitions([name]) == {name: 1}, timeout_s=30)  # the broker hears of it later
    try:
        assert "max_message_bytes" in warnings(shop)
    finally:
        topics.delete([name])


def test_a_registry_that_is_not_there(shop: Shop) -> None:
    class Registered(Shop):
        @property
        def text(self) -> str:
            return super().text.replace("partitions: 2", "partitions: 2, registry: {url: 'http://127.0.0.1:1'}")

    there = Registered(**{name: getattr(shop, name) for name in shop.__dataclass_fields__})
    assert "registry" in the(problems(there), "kafka").cause


def test_kafka_that_is_not_there(shop: Shop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    there = shop.with_(bootstrap=f"127.0.0.1:{port}")
    assert "kafka" in problems(there)


def test_more_replicas_than_brokers(shop: Shop) -> None:
    class Three(Shop):
        @property
        def text(self) -> str:
            return super().text.replace("partitions: 2", "partitions: 2, replication_factor: 3")

    three = Three(**{name: getattr(shop, name) for name in shop.__dataclass_fields__})
    assert "set kafka.replication_factor to 1" in the(problems(three), "replication_factor").remedy


def test_no_secret_is_shown(shop: Shop, tmp_path: Path) -> None:
    there = shop.with_(
        old=make_conninfo(shop.old, password="s3cr3t-old"), new="host=127.0.0.1 port=1 password=s3cr3t-new"
    )
    told: Any = run(there, tmp_path, "check")
    assert told.returncode == 3
    assert "s3cr3t" not in told.stdout + told.stderr


def test_sessions_are_given_back(shop: Shop) -> None:
    preflight.check(shop.spec)
    with session.connect(shop.old) as conn:
        rows = conn.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name like 'slackwater check%'"
        ).fetchone()
    assert rows == (0,)
