"""A wide table split in two, there and back through the command line: what new may hold without a child comes back, and
a table without a way back is accepted by name before the way back is built."""

from __future__ import annotations

from pathlib import Path

from schemas.direction import Direction
from tests.fixtures.plain import fresh_shop, program_on
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program
from tests.fixtures.turning import drain

OLD = """
create schema shop;
create table shop.customers (id text primary key, name text not null, street text, city text, zip text);
create table shop.orders (id int primary key, customer text not null references shop.customers);
create table shop.item (id int primary key, state text, name text);
insert into shop.item select g, case when g % 3 > 0 then 'here' else 'gone' end, 'n' from generate_series(1, 30) g;
create table shop.audit (at int primary key, who text);
insert into shop.customers
  select 'C' || g, 'Name ' || g, case when g % 3 > 0 then 'Street ' || g end, 'Town', null
    from generate_series(1, 30) g;
insert into shop.orders select g, 'C' || (1 + g % 30) from generate_series(1, 60) g;
insert into shop.audit values (1, 'a'), (2, 'b');
"""
NEW = """
create schema app;
create table app.customer (id text primary key, name text not null);
create table app.customer_address (customer_id text primary key references app.customer, street text, city text,
                                   zip text);
create table app.orders (id int primary key, customer text not null references app.customer);
create table app.item (id int primary key, state text, name text);
create table app.audits (who text primary key, n bigint);
"""
TABLES = """
copy: [orders]
drop: [audit.at]
tables:
  - {to: customer, select: "select id, name from customers"}
  - {to: customer_address, select: "select id as customer_id, street, city, zip from customers"}
  - {to: item, select: "select id, state, name from item where state = 'here'"}
  - {to: audits, select: "select who, count(*) as n from audit group by who"}
cutover: {max_pause_s: 20, attempts: 8, gates: {statistics: off}}
"""


def test_a_row_without_its_child_comes_back(postgres_dsn: str, bootstrap: str, tmp_path: Path) -> None:
    with fresh_shop(postgres_dsn, bootstrap, OLD, NEW) as plain:
        shop = plain.with_(tables=TABLES)
        with program_on(shop, tmp_path) as program:
            assert "from customer\n      left join customer_address" in program("plan")
            checked = program("check")
            assert "old table audit has no way back" in checked
            assert "`arm` refuses that until it is accepted by name" in checked
            program.streaming()
            refused_until_named(program)
            program("roundtrip")
            program("verify")
            program("arm", "--timeout", "90")
            program("gates", "--recheck")  # the applier's own look may be half a minute away
            program("cutover", "--yes")
            shop.on_new("insert into app.customer values ('ZZ', 'No address'), ('YY', 'One')")
            shop.on_new("insert into app.customer_address values ('YY', 'Street', null, null)")
            shop.on_new("insert into app.orders values (1000, 'ZZ')")
            shop.on_new("delete from app.customer_address where customer_id = 'C1'")
            # what the filter would not have let through, and old's own rows beside it
            shop.on_new(
                "insert into app.item values (100, 'new', 'x'); update app.item set state = 'sold' where id = 1"
            )
            drain(shop, Direction.REVERSE)
            assert shop.on_old("select state, count(*) from shop.item group by 1 order by 1") == [
                ("gone", 10), ("here", 19), ("new", 1), ("sold", 1),
            ]  # fmt: skip
            found = shop.on_old(
                "select id, name, street, city from shop.customers where id in ('C1', 'YY', 'ZZ') order by 1"
            )
            assert found == [
                ("C1", "Name 1", None, None),
                ("YY", "One", "Street", None),
                ("ZZ", "No address", None, None),
            ]
            assert shop.on_old("select customer from shop.orders where id = 1000") == [("ZZ",)]
            program("verify", "--direction", "reverse")
            orphans_are_no_safe_way_back(program, shop)
            program("rollback", "--yes")
            assert shop.on_old("select count(*) from shop.customers") == [(33,)]


def orphans_are_no_safe_way_back(program: Program, shop: Shop) -> None:
    """Old's own foreign keys are looked at: the way back writes past them."""
    shop.on_new("alter table app.orders drop constraint orders_customer_fkey")
    shop.on_new("insert into app.orders values (2000, 'NOBODY')")
    drain(shop, Direction.REVERSE)
    said = program.document("gates", "--direction", "reverse", "--recheck")
    [gate] = [g for g in said["gates"] if g["gate"] == "foreign_keys"]
    assert (gate["state"], gate["blocks"], said["safe"]) == ("failed", True, False)
    assert "1 rows of shop.orders refer to no row of shop.customers" in gate["detail"]
    assert program.document("status")["safe_to_rollback"] is False
    assert any("foreign_keys" in r for r in program.document("rollback", "--yes", code=3)["reasons"])
    shop.on_new("insert into app.customer values ('NOBODY', 'Somebody')")
    drain(shop, Direction.REVERSE)
    said = program.document("gates", "--recheck")  # without a word: of the next turn
    assert said["direction"] == "reverse"
    assert [g["state"] for g in said["gates"] if g["gate"] == "foreign_keys"] == ["passed"]


def refused_until_named(program: Program) -> None:
    """`arm`, and the gate, for both kinds of table; the words that they ask for are the ones that they take."""
    said = program.document("arm", code=3)
    assert [r.partition(":")[0] for r in said["reasons"]], said
    assert any("old table audit has no way back" in r for r in said["reasons"])
    assert any("nothing on old is fed by new's audits" in r for r in said["reasons"])
    lost = program.document("roundtrip", code=3)["losses"]
    assert lost == ["audit.at", "audit.who", "new.audits"]
    program.file.write_text(program.file.read_text() + "roundtrip: {accept: [audit, new.audits]}\n")
    assert "No way back" in program("plan")
