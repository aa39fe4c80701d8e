"""Rows that only new can hold, made and taken back: each reaches old, or `roundtrip` names what becomes of it."""

from __future__ import annotations

import pytest

from connectors.postgres import session
from schemas.roundtrip import MadeVerdict, Verdict
from tests.fixtures.catalogs import catalogs
from tests.integration.test_roundtrip import Pair, pair

__all__ = ["pair"]

OLD = """
create table customers (id text primary key, name text not null, street text, city text);
insert into customers select 'C' || g, 'Name ' || g, case when g % 3 > 0 then 'Street ' || g end, 'Town'
  from generate_series(1, 30) g;
"""
NEW = """
create table customer (id text primary key, name text not null);
create table customer_address (customer_id text primary key references customer, street text, city text);
"""
SPLIT = """
tables:
  - {to: customer, select: "select id, name from customers"}
  - {to: customer_address, select: "select id as customer_id, street, city from customers"}
"""


def made(verdict: Verdict) -> dict[str, MadeVerdict]:
    assert verdict.made is not None
    return {m.name: m for m in verdict.made}


def lost(verdict: Verdict) -> set[str]:
    return {name for name, m in made(verdict).items() if m.lost}


def refused(verdict: Verdict) -> set[str]:
    return {name for name, m in made(verdict).items() if not m.lost}


@pytest.fixture
def split(pair: Pair) -> Pair:
    pair.old.execute(OLD)
    pair.new.execute(NEW)
    return pair


def test_what_is_derived_brings_a_row_without_its_child_back(split: Pair) -> None:
    verdict = split.judge(SPLIT)
    assert verdict.passed
    assert made(verdict) == {}
    assert verdict.untried == ()


COLUMNS = "customer.id, customer.name, a.street, a.city"
PLANTS = {
    "an inner join": (
        f"select {COLUMNS} from customer join customer_address a on a.customer_id = customer.id",
        {"new.customer:alone"},
    ),
    "the child is where it begins": (
        """select a.customer_id as id, customer.name, a.street, a.city
           from customer_address a left join customer on customer.id = a.customer_id""",
        {"new.customer:alone"},
    ),
    "a WHERE that leaves rows out": (
        f"""select {COLUMNS} from customer left join customer_address a on a.customer_id = customer.id
            where a.street is not null or a.city is not null""",
        {"new.customer:alone"},
    ),
    "a column is another one's": (
        """select customer.id, customer.name, a.street, a.street as city
           from customer left join customer_address a on a.customer_id = customer.id""",
        {"new.customer_address.city:null", "new.customer_address.city:other"},
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_wrong_way_back_is_found_by_rows_that_old_never_had(split: Pair, plant: str) -> None:
    """The rows that are there come back: each of them has an address."""
    split.old.execute("update customers set city = coalesce(street, 'x'), street = coalesce(street, 'x')")
    select, said = PLANTS[plant]
    verdict = split.judge(f'{SPLIT}reverse:\n  - {{to: customers, select: "{select}"}}\n')
    assert not verdict.unjudged
    assert {c.column for c in verdict.columns if c.rows} == set()
    assert [t.missing for t in verdict.tables] == [0]
    assert said <= lost(verdict)
    assert not verdict.passed
    assert set(verdict.losses) == lost(verdict)
    accept = ", ".join(verdict.losses)
    text = f'{SPLIT}reverse:\n  - {{to: customers, select: "{select}"}}\nroundtrip: {{accept: [{accept}]}}\n'
    assert split.judge(text).passed


def test_a_column_that_is_left_out_is_lost_by_name(split: Pair) -> None:
    select = "select customer.id, customer.name, a.street from customer left join customer_address a"
    select += " on a.customer_id = customer.id"
    verdict = split.judge(f'{SPLIT}reverse:\n  - {{to: customers, select: "{select}"}}\n')
    assert "customers.city" in verdict.losses


def test_a_child_without_a_foreign_key_may_stand_alone(split: Pair) -> None:
    split.new.execute("alter table customer_address drop constraint customer_address_customer_id_fkey")
    verdict = split.judge(SPLIT)
    assert verdict.losses == ("new.customer_address:alone",)
    assert "never reaches old" in made(verdict)["new.customer_address:alone"].why
    for word in ("new.customer_address:alone", "new.customer_address"):
        assert split.judge(SPLIT + f"roundtrip: {{accept: [{word}]}}\n").passed


def test_nothing_of_it_remains(split: Pair) -> None:
    """Not a row, not a type, not a number of a sequence; whoever's triggers these are, they did not fire."""
    split.new.execute(
        "create table seen (what text);"
        "create function note() returns trigger language plpgsql as"
        " $$begin insert into app.seen values ('x'); return new; end$$;"
        "create trigger note before insert on customer for each row execute function note();"
        "create sequence numbers; alter table customer add number bigint not null default nextval('numbers')"
    )
    before = catalogs(split.dsns.old), catalogs(split.dsns.new)
    verdict = split.judge(SPLIT)
    assert verdict.untried == ()
    with session.connect(split.dsns.new) as other:
        for query in ("select is_called from app.numbers", "select exists (select from app.customer)"):
            assert other.execute(query.encode()).fetchall() == [(False,)]
        assert other.execute("select count(*) from app.seen").fetchall() == [(0,)]
    split.old.close()
    split.new.close()
    assert (catalogs(split.dsns.old), catalogs(split.dsns.new)) == before


def test_a_trigger_that_would_fire_all_the_same_is_left_alone(split: Pair) -> None:
    split.new.execute(
        "create function note() returns trigger language plpgsql as $$begin return new; end$$;"
        "create trigger note before insert on customer for each row execute function note();"
        "alter table customer enable always trigger note"
    )
    verdict = split.judge(SPLIT)
    assert verdict.untried == ("customer: its trigger note would fire",)


def test_values_that_old_cannot_hold(pair: Pair) -> None:
    """Old would refuse them, so the quarantine would hold them: said, and no loss. A digit that is cut is one."""
    pair.old.execute(
        "create type mood as enum ('good', 'bad');"
        "create table t (id integer primary key, name varchar(20) not null, price numeric(8, 2), mood mood,"
        " stars smallint check (stars between 1 and 5));"
        "insert into t values (1, 'one', 1.25, 'good', 3)"
    )
    pair.new.execute(
        "create type mood as enum ('good', 'bad', 'worse');"
        "create table t (id bigint primary key, name text, price numeric(14, 4), mood mood, stars smallint)"
    )
    for conn in (pair.old, pair.new):
        conn.execute("set search_path = ''")
    verdict = pair.judge("tables: [{to: t, select: 'select id, name, price, mood::text as mood, stars from t'}]\n")
    assert verdict.untried == ()
    assert refused(verdict) == {
        "new.t.id:large", "new.t.name:null", "new.t.name:long", "new.t.price:large", "new.t.mood:label",
        "new.t.stars:other",
    }  # fmt: skip
    assert lost(verdict) == {"new.t.price:digits"}
    assert "t.name is NOT NULL" in made(verdict)["new.t.name:null"].why
    assert verdict.losses == ("new.t.price:digits",)
    assert len(verdict.refused) == 6


def test_a_case_without_an_end_loses_what_it_does_not_name(pair: Pair) -> None:
    pair.old.execute("create table t (id integer primary key, state integer); insert into t values (1, 1), (2, 2)")
    pair.new.execute("create table t (id integer primary key, state text)")
    text = "tables:\n  - to: t\n    select: select id, case state when 1 then 'open' when 2 then 'paid' end as state"
    verdict = pair.judge(text + " from t\n")
    assert lost(verdict) == {"new.t.state:other"}
    pair.new.execute("alter table t add check (state in ('open', 'paid'))")
    assert made(pair.judge(text + " from t\n")) == {}


def test_a_profile_of_which_only_the_optional_part_is_there(pair: Pair) -> None:
    """Old refuses it, which is seen; that a condition leaves it out would not be."""
    pair.old.execute(
        "create table users (id integer primary key, login text);"
        "create table profiles (user_id integer primary key, bio text, mood text not null);"
        "insert into users values (1, 'a'), (2, 'b'); insert into profiles values (1, 'bio', 'good')"
    )
    pair.new.execute("create table account (id integer primary key, login text, bio text, mood text)")
    text = "tables:\n  - to: account\n    select: select u.id, u.login, p.bio, p.mood from users u"
    text += " left join profiles p on p.user_id = u.id\n"
    verdict = pair.judge(text)
    assert (lost(verdict), refused(verdict)) == (set(), {"new.account.mood:null"})
    select = "select id as user_id, bio, mood from account where mood is not null"
    verdict = pair.judge(text + f'reverse: [{{to: profiles, select: "{select}"}}]\n')
    assert lost(verdict) == {"new.account.mood:null"}
    assert "bio" in made(verdict)["new.account.mood:null"].why


def test_two_tables_that_come_back_as_one_may_have_one_key(pair: Pair) -> None:
    pair.old.execute(
        "create table people (id integer primary key, kind text not null, name text);"
        "insert into people values (1, 'B', 'b'), (2, 'S', 's')"
    )
    pair.new.execute("create table buyer (id integer primary key, name text)")
    pair.new.execute("create table seller (id integer primary key, name text)")
    text = "tables:\n  - {to: buyer, select: \"select id, name from people where kind = 'B'\"}\n"
    text += "  - {to: seller, select: \"select id, name from people where kind = 'S'\"}\n"
    assert lost(pair.judge(text)) == {"new.buyer:same_key"}


def test_a_row_outside_the_filter_reaches_old(pair: Pair) -> None:
    pair.old.execute(
        "create table t (id integer primary key, status text, name text);"
        "insert into t select n, case when n % 2 = 0 then 'active' end, 'n' from generate_series(1, 9) n"
    )
    pair.new.execute("create table t (id integer primary key, status text, name text)")
    verdict = pair.judge("tables: [{to: t, select: \"select id, status, name from t where status = 'active'\"}]\n")
    assert made(verdict) == {}
    assert verdict.untried == ()


def test_a_table_that_nothing_is_fed_by_is_named(pair: Pair) -> None:
    pair.old.execute("create table o (id integer primary key, c integer not null); insert into o values (1, 1)")
    pair.new.execute("create table o (id integer primary key, c integer not null)")
    pair.new.execute("create table sums (c integer primary key, n bigint)")
    text = "copy: [o]\ntables: [{to: sums, select: 'select c, count(*) as n from o group by c'}]\n"
    verdict = pair.judge(text)
    assert verdict.losses == ("new.sums",)
    assert pair.judge(text + "roundtrip: {accept: [new.sums]}\n").passed


def test_an_empty_table_of_old_is_gone_by_its_types(split: Pair) -> None:
    split.old.execute("truncate customers")
    select, said = PLANTS["an inner join"]
    assert split.judge(SPLIT).untried == ()
    verdict = split.judge(f'{SPLIT}reverse:\n  - {{to: customers, select: "{select}"}}\n')
    assert said <= lost(verdict)


def test_a_locked_table_is_said_not_to_be_tried(split: Pair) -> None:
    with session.connect(split.dsns.new) as other, other.transaction():
        other.execute("lock table app.customer in share mode")
        verdict = split.judge(SPLIT)
    assert any("is locked by somebody" in said for said in verdict.untried), verdict.untried


def test_a_column_that_is_on_new_twice_is_named_and_no_loss(pair: Pair) -> None:
    """What takes the lesser copy's place is said; a row without the better one keeps what it has."""
    pair.old.execute("create table t (id integer primary key, name text not null, email text)")
    pair.old.execute("insert into t values (1, 'n', 'A@x'), (2, 'm', 'b@x')")
    pair.new.execute("create table person (id integer primary key, name text not null, email text)")
    pair.new.execute("create table login (id integer primary key references person, email text)")
    text = "tables:\n  - {to: person, select: 'select id, name, lower(email) as email from t'}\n"
    text += "  - {to: login, select: 'select id, email from t'}\n"
    verdict = pair.judge(text)
    assert made(verdict) == {}
    assert [said.partition(":")[0] for said in verdict.untried] == ["person.email"]
    assert verdict.passed


def test_a_usual_migration_loses_nothing(pair: Pair) -> None:
    """Wider types, names, enums, documents: what old would refuse is said, and nothing is called lost."""
    pair.old.execute(
        """
create type state as enum ('open', 'paid');
create table customers (id serial primary key, nm varchar(40) not null, born date, meta json, tags text[]);
create table orders (id serial primary key, customer integer not null references customers, state state not null,
  total numeric(8, 2) not null default 0, at timestamp not null default now(), paid boolean default false, ref uuid,
  raw bytea, twice numeric generated always as (total * 2) stored);
insert into customers (nm, born, tags) select 'n' || g, '2001-02-03', '{a}' from generate_series(1, 9) g;
insert into orders (customer, state) select 1 + g % 9, 'open' from generate_series(1, 30) g;
"""
    )
    pair.new.execute(
        """
create type state as enum ('open', 'paid', 'lost');
create table customer (id bigint generated by default as identity primary key, name text not null, born date,
  meta jsonb, tags text[] not null default '{}', made_at timestamptz not null default now(), vip boolean);
create table purchase (id bigint generated always as identity primary key, customer_id bigint not null
  references customer, state state not null, total numeric(8, 2) not null, at timestamptz not null, paid boolean,
  ref uuid, raw bytea, twice numeric generated always as (total * 2) stored, cents bigint);
create index on purchase (customer_id);
"""
    )
    for conn in (pair.old, pair.new):
        conn.execute("set search_path = ''")
    verdict = pair.judge(
        """
drop: [orders.twice]
tables:
  - {to: customer, from: customers, rename: {nm: name}, set: {tags: "coalesce(tags, '{}')"}}
  - to: purchase
    from: orders
    rename: {customer: customer_id}
    set: {at: "at at time zone 'UTC'", state: "state::text", cents: "(total * 100)::bigint"}
"""
    )
    assert lost(verdict) == set()
    assert refused(verdict) == {"new.customer.name:long", "new.customer.id:large", "new.purchase.id:large",
                                "new.purchase.state:label"}  # fmt: skip
    assert sorted(said.partition(":")[0] for said in verdict.untried) == ["customer.meta", "purchase.cents"]
