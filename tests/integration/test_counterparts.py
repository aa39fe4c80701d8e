"""Rows that nothing on the other side stands for: what is found, for each kind of mapping, in each direction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest

from connectors.postgres import catalog
from connectors.postgres.sight import Sight, bases
from schemas import counterparts as asking
from schemas.direction import Direction
from schemas.plan import Plan
from schemas.resolve import resolve
from schemas.spec import parse_spec
from stream.migration.paths import NONE
from stream.migration.prepared import plan_of
from stream.verify import counterparts
from tests.fixtures.databases import fresh_database

HEAD = """
migration: m
old: {dsn: "dbname=x", schema: old}
new: {dsn: "dbname=y", schema: new}
kafka: {bootstrap: k}
"""
DDL = """
create schema old; create schema new; create domain new.code as text;
create table old.customers (id text primary key, name text, street text, n numeric(10, 2) not null unique);
create table old.orders (id int primary key, customer text not null, note text, cancelled boolean not null);
create table old.person (id int primary key, kind text not null, tags int[] not null);
create table old.log (line text); alter table old.log replica identity full;
create table new.customer (id new.code primary key, name text, n numeric not null unique);
create table new.address (customer_id new.code primary key, street text, priority int);
create table new.orders (id int primary key, customer text not null, note text, cancelled boolean not null);
create table new.tag (person int, no bigint, tag int, primary key (person, no));
create table new.summary (customer text primary key, n bigint);
create table new.person (id int primary key, kind text not null, tags int[] not null);
create table new.named (id int primary key, name text);
create table new.n (n numeric primary key, id text);
create table new.log (line text); alter table new.log replica identity full;
insert into old.customers values ('A', 'Ann', 'Main', 1), ('B', 'Bob', null, 2), ('C', 'Cat', 'Side', 3);
insert into old.orders values (1, 'A', 'x', false), (2, 'A', 'y', true), (3, 'C', 'z', true), (4, 'Z', 'z', false);
insert into old.person values (1, 'staff', '{7,8}'), (2, 'guest', '{}'), (3, 'guest', '{9}');
insert into old.log values ('a'), ('a'), ('b');
insert into new.customer values ('A', 'Ann', 1.0), ('B', 'Bob', 2.00), ('Z', 'Zoe', 3);
insert into new.address values ('A', 'Main', 1), ('B', 'Side', 2), ('Y', 'Nowhere', 1);
insert into new.orders select * from old.orders;
"""


@pytest.fixture(scope="module")
def dsn(postgres_dsn: str) -> Iterator[str]:
    with fresh_database(postgres_dsn, "both") as made, psycopg.connect(made, autocommit=True) as conn:
        conn.execute(DDL)
        yield made


@contextmanager
def looking(dsn: str, text: str, direction: Direction) -> Iterator[tuple[Sight, Plan, dict[str, str]]]:
    spec = parse_spec(HEAD + text, env={})
    with closing(Sight(dsn, application="test")) as sight:
        there = catalog.tables(sight.primary, direction.source.value)
        here = catalog.tables(sight.primary, direction.target.value)
        resolution = resolve(spec, direction, there, here)
        outputs = {
            m.target: {o.name: here[m.target].column(o.name).type for o in m.outputs} for m in resolution.mappings
        }
        topics = dict.fromkeys(resolution.streamed, "t")
        plan = plan_of(spec, direction, resolution, there, here, topics, outputs, NONE)
        yield sight, plan, bases(sight.primary, list(plan.targets.values()))


def alone(dsn: str, text: str, direction: Direction = Direction.FORWARD) -> dict[str, tuple[int, bool, list[str]]]:
    """Source table -> rows, whether they are a fault, the values of their keys."""
    with looking(dsn, text, direction) as (sight, plan, known):
        found = counterparts.count(sight, plan, list(plan.sources), known, ())
    return {n: (u.rows, u.fault, sorted("/".join(map(str, k.values())) for k in u.keys)) for n, u in found.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("copy: [orders, person, log]\nexclude: [customers]", {}, id="a copy"),
        pytest.param(
            "exclude: [orders, person, log]\ndrop: [customers.name, customers.n]\n"
            "tables:\n"
            "  - {to: address, select: 'select id as customer_id, street from customers where street is not null'}",
            {"customers": (1, False, ["B"])},
            id="a filter",
        ),
        pytest.param(
            "exclude: [orders, person, log]\ntables:\n"
            "  - {to: address, select: 'select id as customer_id, street from customers where street is not null'}\n"
            "  - {to: customer, select: 'select id, name, n from customers where n < 3'}\n",
            {},
            id="two filters that together leave nobody out",
        ),
        pytest.param(
            "exclude: [orders, customers, log]\ndrop: [person.kind]\ntables:\n"
            "  - {to: tag, select: 'select p.id as person, x.no, x.tag from person p"
            " cross join lateral unnest(p.tags) with ordinality as x(tag, no)'}\n",
            {"person": (1, False, ["2"])},
            id="a fan-out without a row",
        ),
        pytest.param(
            "exclude: [person, log]\ndrop: [customers.street, customers.n, orders.note, orders.cancelled]\ntables:\n"
            "  - {to: named, select: 'select o.id, c.name from orders o join customers c on c.id = o.customer'}\n",
            {"customers": (1, False, ["B"]), "orders": (1, False, ["4"])},
            id="a join leaves out orders without customer, and customers without orders",
        ),
        pytest.param(
            "exclude: [person, log]\ndrop: [customers.street, customers.n, orders.note, orders.cancelled]\ntables:\n"
            "  - {to: named, select: 'select o.id, c.name from orders o left join customers c on c.id = o.customer'}\n",
            {"customers": (1, False, ["B"])},
            id="an outer join takes every order",
        ),
        pytest.param(
            "exclude: [person, log, customers]\ndrop: [orders.id, orders.note]\ntables:\n"
            "  - to: summary\n"
            "    select: select customer, count(*) as n from orders where not cancelled group by customer\n",
            {"orders": (1, False, ["3"])},
            id="an aggregate over some: 2 joins the row of its customer, 3 is in none",
        ),
        pytest.param(
            "exclude: [orders, person, customers]\n"
            "tables: [{to: log, select: \"select line from log where line <> 'a'\"}]",
            {"log": (2, False, [])},
            id="without a key",
        ),
    ],
)
def test_forward_it_is_what_was_written(dsn: str, text: str, expected: object) -> None:
    assert alone(dsn, text) == expected


SPLIT = """
exclude: [orders, person, log]
tables:
  - {to: customer, select: "select id, name, n from customers"}
  - {to: address, select: "select id as customer_id, street from customers"}
"""


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        pytest.param(
            "select a.customer_id as id, c.name, a.street, c.n"
            " from address a left join customer c on c.id = a.customer_id",
            {"customer": (1, True, ["Z"])},
            id="it begins at the child",
        ),
        pytest.param(
            "select c.id, c.name, a.street, c.n from customer c left join address a on a.customer_id = c.id",
            {"address": (1, True, ["Y"])},
            id="it begins at the parent: only an address of nobody is left",
        ),
        pytest.param(
            "select c.id, c.name, a.street, c.n from customer c join address a on a.customer_id = c.id",
            {"address": (1, True, ["Y"]), "customer": (1, True, ["Z"])},
            id="an inner join",
        ),
        pytest.param(
            "select c.id, c.name, null as street, c.n from customer c where c.id < 'Z'",
            {"customer": (1, True, ["Z"])},
            id="a filter that drops",
        ),
    ],
)
def test_on_the_way_back_it_is_loss(dsn: str, select: str, expected: object) -> None:
    text = SPLIT + f'reverse: [{{to: customers, select: "{select}"}}]'
    assert alone(dsn, text, Direction.REVERSE) == expected


def test_a_key_that_is_equal_in_another_spelling_is_the_same_row(dsn: str) -> None:
    text = (
        "exclude: [orders, person, log]\ndrop: [customers.name, customers.street]\n"
        "tables: [{to: n, select: 'select c.n, d.id from customers c join customers d on d.n = c.n'}]"
    )
    assert alone(dsn, text) == {}


def test_what_is_plainly_taken_whole_is_not_even_asked(dsn: str) -> None:
    with looking(dsn, SPLIT, Direction.FORWARD) as (_, plan, known):
        assert asking.alone(plan, "customers", known) is None
    select = "select c.id, c.name, a.street, c.n from customer c left join address a on a.customer_id = c.id"
    with looking(dsn, SPLIT + f'reverse: [{{to: customers, select: "{select}"}}]', Direction.REVERSE) as (
        _,
        plan,
        known,
    ):
        assert asking.alone(plan, "customer", known) is None
        assert asking.alone(plan, "address", known) is not None
