"""What only PostgreSQL knows of a mapping, asked of PostgreSQL: types, functions, types of the user's, what is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from connectors.postgres import bindings, catalog, session
from connectors.postgres.session import Connection
from schemas.direction import Direction
from schemas.resolve import resolve
from tests.fixtures.databases import fresh_database
from tests.unit.tables import spec

OLD = """
create type mood as enum ('sad', 'ok');
create domain price as numeric(10,2) check (value >= 0);
create table customers (id integer primary key, email text, born text, mood mood, tags text[], total price,
                        at timestamptz, bal double precision, code char(3), flags bit(4));
create table orders (id integer primary key, customer_id integer not null, amount numeric, note text);
create table other (id integer primary key, x text);
create table "Odd ""x"" Name" ("Key" text primary key, "select" numeric, "Date" text);
create table parts (id integer, at date, v text, primary key (id, at)) partition by range (at);
create table parts_a partition of parts for values from ('2020-01-01') to ('2021-01-01');
create function slug(text) returns text language sql as 'select lower($1)';
create function upper_note(text) returns text language sql immutable as 'select upper($1)';
create function reads_other(integer) returns text immutable begin atomic select x from public.other where id = $1; end;
create aggregate glue(text) (sfunc = textcat, stype = text);
create function many(integer) returns setof integer language sql immutable as 'select generate_series(1, $1)';
"""
NEW = """
create schema app;
create type app.mood as enum ('sad', 'ok', 'glad');
create table app.customer (id bigint primary key, email text, born date, mood app.mood, total numeric(12,2), n integer,
                           small varchar(3), at timestamptz, code char(3), flags bit(4), tags text[]);
create table app.spending (customer_id integer primary key, total numeric, n bigint, note text);
create table app."Odd Name" ("Key" text primary key, "user" integer, "When" date);
create table app.parts (id integer, at date, v text, primary key (id, at));
create table app.loose (id integer, email text);
create function slug(text) returns text language sql as 'select lower($1)';
create function upper_note(text) returns text language sql immutable as 'select upper($1)';
create table other (id integer primary key, x text);
create function reads_other(integer) returns text immutable begin atomic select x from public.other where id = $1; end;
create aggregate glue(text) (sfunc = textcat, stype = text);
create function many(integer) returns setof integer language sql immutable as 'select generate_series(1, $1)';
"""


@dataclass(frozen=True)
class Sides:
    old: Connection
    new: Connection

    def problems(self, select: str, to: str = "customer", more: str = "", trust: str = "[]") -> str:
        """Everything that is wrong with one SELECT: the file's problems, or the servers'."""
        text = f"copy: []\ntrust: {trust}\ntables:\n  - to: {to}\n    select: |\n      {select}\n{more}"
        sources, targets = catalog.tables(self.old, "public"), catalog.tables(self.new, "app")
        s = spec(text)
        resolution = resolve(s, Direction.FORWARD, sources, targets)
        found = [p for p in resolution.problems if "read by nothing" not in p.cause]
        for mapping in resolution.mappings:
            examined = bindings.examine(
                self.old, self.new, mapping, sources, targets[to], trust=s.trust, where=s.tables[0].place
            )
            found += examined.problems
        assert all(p.remedy and "migration.yaml line" in p.where for p in found)
        return "\n".join(map(str, found))


@pytest.fixture(scope="module")
def sides(postgres_dsn: str) -> Iterator[Sides]:
    """One pair for the whole module: an examination leaves nothing behind, which a test says as well."""
    with (
        fresh_database(postgres_dsn, "old") as old_dsn,
        fresh_database(postgres_dsn, "new") as new_dsn,
        session.connect(old_dsn) as old,
        session.connect(new_dsn) as new,
    ):
        for conn, statements in ((old, OLD), (new, NEW)):
            conn.execute("set search_path = public")
            conn.execute(statements.encode())
            conn.execute("set search_path = ''")
        yield Sides(old, new)


def test_what_fits_has_no_problems(sides: Sides) -> None:
    assert (
        sides.problems("select id, email, born, mood::text as mood, total, at, code, flags, tags from customers") == ""
    )
    assert sides.problems("select id, email, lower(email) as small, at from customers where at > '2020-01-01'") == ""
    assert (
        sides.problems(
            "select customer_id, sum(amount) as total, count(*) as n from orders group by customer_id", "spending"
        )
        == ""
    )


def test_nothing_is_left_behind(sides: Sides) -> None:
    assert sides.problems("select id, mood::text as mood, total from customers") == ""
    for conn in (sides.old, sides.new):
        row = conn.execute(
            "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = 'slackwater_mirror' or c.relname = 'slackwater_probe' or relpersistence = 't'"
        ).fetchone()
        assert row == (0,)
        assert conn.info.transaction_status.name == "IDLE"


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ("select id, bal as n, at as born from customers", None),
        ("select id, tags as n from customers", ["column customer.n is of type integer, but the mapping gives text[]"]),
        ("select id, at as n from customers", ["customer.n is of type integer", "timestamp with time zone"]),
        (
            "select id, bal as at from customers",
            ["customer.at is of type timestamp with time zone", "double precision"],
        ),
        ("select id, mood from customers", ["customer.mood is of type app.mood", "mood"]),
        ("select email as id from customers where id > 0", ["key column id of customer is computed from email"]),
        ("select id, email + 1 as n from customers", ["the source does not accept", "operator does not exist"]),
        ("select id, nowhere(email) as email from customers", ["the source does not accept", "nowhere(text)"]),
        ("select id, email::nothing as email from customers", ["the source does not accept", "nothing"]),
        ("select id, email from customers order", ["syntax error"]),
        ("select id, (select note from orders) as email from customers where bal", ["does not say which"]),
    ],
)
def test_types_and_names_are_the_servers_business(sides: Sides, select: str, said: list[str] | None) -> None:
    message = sides.problems(select)
    if said is None:
        assert message == ""
        return
    for words in said:
        assert words in message, message


def test_group_by_a_key_works_over_a_table_and_not_over_a_binding(sides: Sides) -> None:
    message = sides.problems(
        "select c.id as customer_id, c.email as note, count(o.id) as n from customers c"
        " left join orders o on o.customer_id = c.id group by c.id",
        "spending",
    )
    assert "must appear in the GROUP BY clause" in message
    assert "the source does not accept" in message


@pytest.mark.parametrize(
    ("expression", "trust", "said"),
    [
        ("public.upper_note(email)", "[]", ""),
        ("public.slug(email)", "[]", "public.slug() in the mapping of customer is declared volatile"),
        ("public.slug(email)", "[public.slug]", ""),
        ("public.reads_other(id)", "[]", "reads other: a change there would change new rows unseen"),
        ("public.glue(email)", "[]", "must appear in the GROUP BY clause"),
        ("to_tsvector(email)::text", "[]", "to_tsvector() in the mapping of customer depends on more"),
        ("to_tsvector('simple', email)::text", "[]", ""),
        ("age(at)::text", "[]", "age() in the mapping of customer depends on more"),
        ("age(at, at)::text", "[]", ""),
        ("to_char(at, 'YYYY')", "[]", ""),
        ("(at + interval '1 day')::text", "[]", ""),
        ("(at > date '2020-01-01')::text", "[]", ""),
        ("'x'::regclass::text", "[]", 'relation "x" does not exist'),
        ("concat(email, at)", "[]", ""),
        ("(row_to_json(customers))::text", "[]", ""),
        ("pg_catalog.format('%s', email)", "[]", ""),
    ],
)
def test_functions_are_judged_by_what_the_server_calls(sides: Sides, expression: str, trust: str, said: str) -> None:
    message = sides.problems(f"select id, {expression} as email from customers", trust=trust)
    if said == "":
        assert message == ""
    else:
        assert said in message, message


def test_a_users_aggregate_cannot_be_followed(sides: Sides) -> None:
    message = sides.problems(
        "select customer_id, public.glue(note) as note from orders group by customer_id", "spending"
    )
    assert "public.glue() in the mapping of spending is an aggregate or window function of your own" in message


def test_a_users_set_in_the_output_list_is_refused(sides: Sides) -> None:
    message = sides.problems("select id, public.many(3) as n from customers")
    assert "public.many() in the mapping of customer gives any number of rows" in message
    assert "cross join lateral public.many(...)" in message


def test_types_that_new_lacks_are_stood_in_for(sides: Sides) -> None:
    # old's public.mood and public.price are not on new; its app.mood is another type
    assert sides.problems("select id, mood::text as mood, total from customers") == ""
    message = sides.problems("select id, mood::public.mood::text as mood from customers")
    assert "the target does not accept the mapping of customer over staged rows" in message


def test_a_key_must_be_unique_and_not_null(sides: Sides) -> None:
    message = sides.problems("select id, email from customers", "loose", more="    key: [id]\n")
    assert "nothing in new says that the key (id) of loose is unique" in message
    assert 'create unique index on "app"."loose" ("id")' in message
    assert "key column id of loose may be null" in message
    sides.new.execute("create unique index on app.loose (id); alter table app.loose alter id set not null")
    assert sides.problems("select id, email from customers", "loose", more="    key: [id]\n") == ""


def test_feeds_are_prepared_too(sides: Sides) -> None:
    select = (
        "select c.id as customer_id, o.note from customers c left join orders o on o.customer_id::text = c.id::text"
    )
    message = sides.problems(select, "spending", more="    feeds: {orders: 'note || amount || tags'}\n")
    assert "column tags is unknown" in message
    message = sides.problems(select, "spending", more="    feeds: {orders: array_agg}\n")
    assert "column array_agg is unknown" in message
    message = sides.problems(select, "spending", more="    feeds: {orders: 'array[customer_id]'}\n")
    assert "the feed of spending from orders does not give its owner (customer_id)" in message
    assert sides.problems(select, "spending", more="    feeds: {orders: customer_id}\n") == ""


def test_a_table_joined_to_itself(sides: Sides) -> None:
    select = "select a.id as customer_id, b.note from orders a left join orders b on b.id = a.customer_id"
    assert sides.problems(select, "spending") == ""


def test_odd_names_and_partitions(sides: Sides) -> None:
    select = 'select "Key", "select" as "user", "Date" as "When" from "Odd ""x"" Name" o where o."Key" <> \'\''
    assert sides.problems(select, "Odd Name") == ""
    assert sides.problems("select id, at, v from parts", "parts") == ""


def test_one_database_for_both_sides(sides: Sides) -> None:
    sides.new.execute("create table public.customers (id integer primary key, email text)")
    sources, targets = catalog.tables(sides.new, "public"), catalog.tables(sides.new, "app")
    s = spec("exclude: [other]\ntables: [{to: customer, from: customers}]\n")
    resolution = resolve(s, Direction.FORWARD, sources, targets)
    assert not resolution.problems
    [mapping] = resolution.mappings
    assert bindings.examine(sides.new, sides.new, mapping, sources, targets["customer"]).problems == ()
