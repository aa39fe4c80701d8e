"""Joins both ways: mirrors follow the other direction's writes, so that each direction is right after every turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schemas.direction import Direction, Side
from tests.fixtures import plain
from tests.fixtures.plain import Pair, program_on, rows_applied
from tests.fixtures.preparing import Shop
from tests.fixtures.running import end
from tests.fixtures.turning import drain, turn_to

OLD = """
create schema shop;
create table shop.users (id integer primary key, email text not null);
create table shop.profiles (user_id integer primary key, bio text);
create table shop.people (id integer primary key, name text not null, street text, memo text);
insert into shop.users select n, 'u' || n from generate_series(1, 50) n;
insert into shop.profiles select n, 'bio ' || n from generate_series(1, 40) n;
insert into shop.people select n, 'p' || n, case when n % 2 = 0 then 's' || n end, repeat('m' || n, 2000)
  from generate_series(1, 50) n;
"""

NEW = """
create schema app;
create table app.account (id integer primary key, email text not null, bio text);
create table app.person (id integer primary key, name text not null, memo text);
create table app.address (person_id integer primary key, street text not null);
"""

FILE = """
tables:
  - to: account
    select: select u.id, u.email, p.bio from users u left join profiles p on p.user_id = u.id
  - {to: person, select: "select id, name, memo from people"}
  - {to: address, select: "select id as person_id, street from people where street is not null"}
reverse:
  - {to: users, select: "select id, email from account"}
  - {to: profiles, select: "select id as user_id, bio from account where bio is not null"}
  - to: people
    select: select p.id, p.name, a.street, p.memo from person p left join address a on a.person_id = p.id
"""

# What each side must be, by the other, in plain SQL.
FORWARD = {
    "account": "select u.id, u.email, p.bio from shop.users u left join shop.profiles p on p.user_id = u.id",
    "person": "select id, name, memo from shop.people",
    "address": "select id, street from shop.people where street is not null",
}
REVERSE = {
    "users": "select id, email from app.account",
    "profiles": "select id, bio from app.account where bio is not null",
    "people": "select p.id, p.name, a.street, p.memo from app.person p left join app.address a on a.person_id = p.id",
}


APART = pytest.mark.parametrize("shared", ["two databases"], indirect=True)  # where one database is no other matter


@pytest.fixture(scope="module", params=["two databases", "one database"])
def shared(
    request: pytest.FixtureRequest, postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    one = request.param == "one database"
    with plain.fresh_shop(postgres_dsn, bootstrap, OLD, NEW, one_database=one) as made:
        shop = made.with_(tables=FILE, options="epoch: {max_rows: 300}\n")
        with program_on(shop, tmp_path_factory.mktemp("joined")) as program:
            program.armed()
            yield Pair(shop=shop, program=program)


@pytest.fixture
def pair(shared: Pair) -> Pair:
    """Armed, old open, whatever rows the test before it left."""
    plain.come_home(shared)
    return shared


def settled(shop: Shop, direction: Direction) -> None:
    """The direction's stream is drained, and its targets are what plain SQL makes of its source."""
    drain(shop, direction)
    wanted, schema = (FORWARD, "app") if direction is Direction.FORWARD else (REVERSE, "shop")
    from_, to = (shop.on_old, shop.on_new) if direction is Direction.FORWARD else (shop.on_new, shop.on_old)
    for table, query in wanted.items():
        assert sorted(to(f"select t::text from {schema}.{table} t")) == sorted(
            from_(f"select (q.*)::text from ({query}) q")
        ), table


def mirrored(shop: Shop, direction: Direction) -> None:
    """Every mirror holds what its source holds."""
    drain(shop, direction)
    schema = "shop" if direction is Direction.FORWARD else "app"
    source, target = (shop.on_old, shop.on_new) if direction is Direction.FORWARD else (shop.on_new, shop.on_old)
    prefix = f"{shop.migration}.{direction.value[0]}."
    names = target(
        "select relname from pg_class where relnamespace = 'slackwater_mirror'::regnamespace and relkind = 'r'"
        " and starts_with(relname, %s)",
        prefix,
    )
    assert names
    for (name,) in names:
        table = str(name).removeprefix(prefix)
        assert sorted(target(f'select t::text from slackwater_mirror."{name}" t')) == sorted(
            source(f"select t::text from {schema}.{table} t")
        ), name


def test_joins_are_exact_after_every_turn(pair: Pair) -> None:
    """Fails where mirrors do not see what the other direction wrote: a join would bring back what new had changed."""
    shop = pair.shop
    shop.on_old("update shop.users set email = 'first' where id = 1; delete from shop.people where id = 3")
    settled(shop, Direction.FORWARD)
    mirrored(shop, Direction.REVERSE)

    turn_to(shop, Side.NEW)
    shop.on_new("update app.account set bio = 'by new' where id in (1, 45); delete from app.account where id = 2")
    shop.on_new("insert into app.account values (100, 'hundred', 'b'), (101, 'no bio', null)")
    shop.on_new("update app.person set name = 'renamed' where id = 4; delete from app.address where person_id = 6")
    shop.on_new("update app.account set id = 77 where id = 7; update app.person set id = 78 where id = 8")
    shop.on_new("update app.address set person_id = 78 where person_id = 8")
    settled(shop, Direction.REVERSE)
    mirrored(shop, Direction.FORWARD)
    mirrored(shop, Direction.REVERSE)

    turn_to(shop, Side.OLD)
    # Each of these recomputes a join of which the other half was last written by new.
    shop.on_old("update shop.users set email = 'by old' where id in (1, 45, 100, 77)")
    shop.on_old("insert into shop.profiles values (101, 'late bio'); insert into shop.users values (2, 'again')")
    shop.on_old("update shop.people set street = 'moved' where id in (4, 6, 78)")
    settled(shop, Direction.FORWARD)
    mirrored(shop, Direction.REVERSE)
    mirrored(shop, Direction.FORWARD)

    turn_to(shop, Side.NEW)
    shop.on_new("update app.person set name = 'once more' where id in (4, 78); truncate app.address")
    settled(shop, Direction.REVERSE)
    mirrored(shop, Direction.FORWARD)


@APART
def test_an_echo_larger_than_an_epoch(pair: Pair) -> None:
    shop, program = pair.shop, pair.program
    turn_to(shop, Side.NEW)
    shop.on_new("insert into app.account select n, 'n' || n, 'b' from generate_series(1000, 2500) n")
    shop.on_new("update app.person set name = name || '!'")
    settled(shop, Direction.REVERSE)
    mirrored(shop, Direction.FORWARD)
    turn_to(shop, Side.OLD)
    shop.on_old("update shop.users set email = email || '?' where id % 3 = 0")
    settled(shop, Direction.FORWARD)
    end(program.background.pop())
    program.start("run")
    shop.on_old("update shop.profiles set bio = 'after' where user_id % 2 = 0")
    settled(shop, Direction.FORWARD)
    mirrored(shop, Direction.REVERSE)


@APART
def test_the_target_is_not_touched_by_an_echo(pair: Pair) -> None:
    """Old is open: what forward writes on new comes back for reverse's mirrors, and no row of old is written by it."""
    shop = pair.shop
    drain(shop, Direction.FORWARD)
    drain(shop, Direction.REVERSE)
    before = shop.on_old("select ctid::text, xmin::text, id from shop.people order by id")
    carried = rows_applied(shop, Direction.REVERSE)
    shop.on_old("update shop.people set name = 'x' where id = 10")
    drain(shop, Direction.FORWARD)
    mirrored(shop, Direction.REVERSE)
    after = shop.on_old("select ctid::text, xmin::text, id from shop.people order by id")
    assert [r for r in after if r not in before] == [r for r in after if r[2] == 10]
    assert 0 < rows_applied(shop, Direction.REVERSE) - carried <= 3
