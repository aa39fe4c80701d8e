"""show, plan and init: what people read before they trust a mapping."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psycopg
import pytest

from connectors.postgres import catalog, session
from schemas.errors import ConfigError
from schemas.spec import parse_spec
from stream import preflight
from stream.planning import ddl, plan
from stream.planning.init import first_file
from stream.planning.show import Part, show
from tests.fixtures.preparing import Shop
from tests.integration.test_prepare import run


def shown(shop: Shop, table: str, key: str | None = None, limit: int = 5) -> list[Part]:
    with session.connect(shop.old) as old, session.connect(shop.new) as new:
        return show(preflight.planned(shop.spec, old, new), old, new, table, key=key, limit=limit)


def rows(parts: list[Part], what: str, table: str) -> list[dict[str, str | None]]:
    return [
        dict(zip(part.rows.columns, row, strict=True))
        for part in parts
        if (part.what, part.table) == (what, table)
        for row in part.rows.rows
    ]


def test_an_old_row_and_everything_it_becomes(shop: Shop) -> None:
    shop.on_new("insert into app.customer values (1, 'Ada', 'stale', 'cross'), (2, 'Bob', 'b@x', 'calm')")
    parts = shown(shop, "customers", "1")
    assert [r["cust_nm"] for r in rows(parts, "old", "customers")] == ["Ada"]
    assert rows(parts, "becomes", "customer") == [{"id": "1", "name": "Ada", "email": "ada@x.org", "mood": "cross"}]
    assert rows(parts, "holds", "customer") == [{"id": "1", "name": "Ada", "email": "stale", "mood": "cross"}]
    assert rows(parts, "becomes", "address") == [{"customer_id": "1", "street": "Main"}]
    assert rows(parts, "holds", "address") == []
    assert rows(parts, "becomes", "account") == [{"id": "1", "email": "ADA@X.ORG", "bio": "maths"}]


def test_a_row_that_a_filter_keeps_out(shop: Shop) -> None:
    parts = shown(shop, "customers", "2")
    assert rows(parts, "becomes", "address") == []
    assert [p.note for p in parts if (p.what, p.table) == ("becomes", "address")] == ["no new row"]


def test_a_new_row_and_the_old_rows_behind_it(shop: Shop) -> None:
    parts = shown(shop, "account", "1")
    assert rows(parts, "becomes", "account") == [{"id": "1", "email": "ADA@X.ORG", "bio": "maths"}]
    assert [r["id"] for r in rows(parts, "old", "customers")] == ["1"]
    assert rows(parts, "old", "profiles") == [{"user_id": "1", "bio": "maths"}]


def test_a_joined_table_s_row_leads_to_its_owner(shop: Shop) -> None:
    parts = shown(shop, "profiles", "1")
    assert rows(parts, "becomes", "account") == [{"id": "1", "email": "ADA@X.ORG", "bio": "maths"}]


def test_without_a_key_the_first_rows(shop: Shop) -> None:
    assert [r["id"] for r in rows(shown(shop, "customers", limit=1), "old", "customers")] == ["1"]
    assert [r["id"] for r in rows(shown(shop, "customer"), "becomes", "customer")] == ["1", "2"]


def test_a_key_of_several_columns(shop: Shop) -> None:
    for key in ("1,2023-05-05", '[1, "2023-05-05"]'):
        parts = shown(shop, "readings", key)
        assert rows(parts, "old", "readings") == [{"id": "1", "at": "2023-05-05", "v": "1.50"}]
        assert rows(parts, "becomes", "readings") == [{"id": "1", "at": "2023-05-05", "v": "1.50"}]
    with pytest.raises(ConfigError, match="gives 1 of 2 values"):
        shown(shop, "readings", "1")


def test_a_table_without_a_key(shop: Shop) -> None:
    shop.on_old("create table shop.log (line text); alter table shop.log replica identity full")
    shop.on_old("insert into shop.log values ('a'), ('a')")
    shop.on_new("create table app.log (line text)")
    there = shop.with_(tables=shop.tables.replace("copy: [readings]", "copy: [readings, log]"))
    parts = shown(there, "log")
    assert rows(parts, "becomes", "log") == [{"line": "a"}, {"line": "a"}]
    with pytest.raises(ConfigError, match="has no key"):
        shown(there, "log", "1")


def test_an_unknown_table_names_the_nearest(shop: Shop) -> None:
    with pytest.raises(ConfigError) as error:
        shown(shop, "custmer")
    assert error.value.hint == "did you mean customer?"


def test_values_are_compared_as_their_type_and_never_pasted_in(shop: Shop) -> None:
    with pytest.raises(Exception, match="invalid input syntax"):
        shown(shop, "customers", "1; drop table shop.customers")
    assert rows(shown(shop, "customers", "0001"), "old", "customers")[0]["cust_nm"] == "Ada"


def test_show_reads_while_everything_is_locked_against_writes(shop: Shop) -> None:
    shop.prepare()
    with psycopg.connect(shop.old) as conn:
        conn.execute("lock table shop.customers in share row exclusive mode")
        assert rows(shown(shop, "customers", "1"), "old", "customers")


def test_the_command(shop: Shop, tmp_path: Path) -> None:
    told = run(shop, tmp_path, "show", "customers", "--key", "2")
    assert told.returncode == 0, told.stderr
    assert "new, by its mapping: customer" in told.stdout
    assert "∅" in told.stdout  # NULL is not an empty text
    document = json.loads(run(shop, tmp_path, "show", "customers", "--key", "2", "--json").stdout)
    assert document[0]["rows"][0]["street"] is None


# -- plan -------------------------------------------------------------------------------------------------------------


def test_plan_tells_what_will_happen(shop: Shop) -> None:
    shop.on_old(
        "create view shop.names as select cust_nm from shop.customers;"
        " create table shop.orders (id integer primary key, customer integer references shop.customers (id));"
        " create publication debezium for table shop.customers;"
        " create function shop.count_them() returns bigint language sql as 'select count(*) from shop.customers'"
    )
    there = shop.with_(tables=shop.tables + "exclude: [orders]\n")
    with session.connect(shop.old) as old, session.connect(shop.new) as new:
        report = plan.plan(there.spec, old, new)
    text = plan.text(report)
    for expected in (
        "customer  (from, row by row; key id)",
        "account  (select, over mirrors of customers, profiles; key id)",
        "customers: fax",
        "(excluded)",
        "customers: view shop.names",
        "customers: foreign key shop.orders.orders_customer_fkey",
        "customers: publication debezium",
        "shop.count_them()",
        "lower(",
    ):
        assert expected in text, text
    document = plan.document(report)
    assert json.loads(json.dumps(document))["new"]["address"]["select"].startswith("select id as customer_id")
    assert document["problems"] == []


def test_plan_ddl_proposes_what_new_lacks(shop: Shop) -> None:
    shop.on_new("drop schema app cascade; create schema app; create type app.mood as enum ('calm', 'cross')")
    with session.connect(shop.old) as old, session.connect(shop.new) as new:
        sources, targets = catalog.tables(old, "shop"), catalog.tables(new, "app")
        script = ddl.script(ddl.proposals(shop.spec, old, sources, targets))
    assert "id integer NOT NULL" in script
    assert "v numeric" in script
    shop.on_new(script)
    with session.connect(shop.new) as new:
        made = catalog.tables(new, "app")
    assert set(made) == {"readings", "customer", "address", "account"}
    assert made["customer"].column_names == ("id", "name", "email", "mood")
    assert made["customer"].key == ("id",)
    assert made["readings"].key == ("id", "at")
    assert made["customer"].column("mood").type == "text"


def test_plan_names_a_select_that_cannot_be_described(shop: Shop) -> None:
    there = shop.with_(tables=shop.tables + '  - {to: broken, select: "select nothing from customers"}\n')
    with session.connect(shop.old) as old:
        found = ddl.proposals(there.spec, old, catalog.tables(old, "shop"), {})
    [broken] = [p for p in found if p.table == "broken"]
    assert broken.sql is None
    assert "nothing" in broken.reason


def test_the_plan_command(shop: Shop, tmp_path: Path) -> None:
    told = run(shop, tmp_path, "plan")
    assert told.returncode == 0, told.stderr
    assert "Old tables" in told.stdout
    assert "new has every table" in run(shop, tmp_path, "plan", "--ddl").stdout


# -- init -------------------------------------------------------------------------------------------------------------


def test_init_prints_a_file_that_loads_and_is_a_start(shop: Shop, tmp_path: Path) -> None:
    shop.on_old('create table shop."Odd Name" (id integer primary key, "from" text)')
    told = run(shop, tmp_path, "init", "--old", shop.old, "--new", shop.new, "--old-schema", "shop")
    assert told.returncode == 0, told.stderr
    env = {**os.environ, "OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA_BOOTSTRAP": shop.bootstrap}
    spec = parse_spec(told.stdout, env=env)
    assert spec.new.schema_ == "app"  # the only schema of new that holds tables
    assert spec.copy_ == ["readings"]
    [customer] = [entry for entry in spec.tables if entry.to == "customer"]
    assert customer.from_ == "customers"
    assert customer.drop == []  # nothing is left behind in silence: it is named, and check asks for it
    assert "drop: [cust_nm, street, fax]" in told.stdout
    assert "name (text) must be filled" in told.stdout
    assert '"Odd Name"' in told.stdout
    assert "# - to: settings" in told.stdout


def test_init_on_one_schema_copied_is_a_whole_migration(one_database: Shop) -> None:
    with session.connect(one_database.old) as conn:
        tables = catalog.tables(conn, "shop")
    text = first_file("shop", "shop", "app", tables, tables)
    env = {"OLD_DSN": "a", "NEW_DSN": "b", "KAFKA_BOOTSTRAP": "c"}
    assert set(parse_spec(text, env=env).copy_) == set(tables)


def test_plan_ddl_carries_defaults_indexes_and_foreign_keys(shop: Shop) -> None:
    shop.on_old(
        "create table shop.kinds (id serial primary key, name varchar(9) not null default 'x', check (name <> ''));"
        "create index kinds_name on shop.kinds (lower(name));"
        "create table shop.items (id bigint primary key, kind integer references shop.kinds on delete cascade unique)"
    )
    there = shop.with_(tables="copy: [kinds, items]\n")
    with session.connect(shop.old) as old, session.connect(shop.new) as new:
        sources, targets = catalog.tables(old, "shop"), catalog.tables(new, "app")
        script = ddl.script(ddl.proposals(there.spec, old, sources, targets))
    shop.on_new(script)
    for expected in (
        "GENERATED BY DEFAULT AS IDENTITY",
        "DEFAULT 'x'",
        "lower(",
        "ON DELETE CASCADE",
        "CHECK",
        "UNIQUE",
    ):
        assert expected in script, script
    with session.connect(shop.new) as new:
        made = catalog.tables(new, "app")
    assert made["kinds"].column("name").type_full == "character varying(9)"
    assert made["kinds"].column("id").identity == "d"
