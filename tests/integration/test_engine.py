"""The engine against a plain-SQL oracle: after every epoch, each target is its SELECT run over the source."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from schemas.errors import RowRejected
from schemas.position import Lsn, format_lsn
from stream.lifecycle.direction import NOTHING_SEEN
from tests.fixtures.databases import Databases
from tests.fixtures.tape import Tape, folded

OLD = """
create table customers (id integer primary key, nm text not null, email text, street text, city text, doc text);
alter table customers alter column doc set storage external;
create table profiles (id bigint primary key, user_id integer not null unique, bio text);
alter table profiles replica identity full;
create table orders (id integer primary key, customer_id integer not null, status integer not null,
                     total double precision, items integer[] not null default '{}');
alter table orders replica identity full;
create table "Odd ""x"" Name" ("Key" text primary key, "select" numeric, "Date" text);
create table events (kind text, at timestamptz, amount numeric);
alter table events replica identity full;
create table plain (a integer, b text, c jsonb, d timestamptz, e interval, f bytea, g real, h numeric(10,2),
                    primary key (b, a));
"""
NEW = """
create type status as enum ('new', 'paid', 'sent');
create table customer (id bigint primary key, name text not null, email text, doc text, note text default 'mine');
create table address (customer_id integer primary key, street text not null, city varchar(40));
create table account (id integer primary key, name text, bio text);
create table spending (customer_id integer primary key, orders bigint not null, total numeric(20,4));
create table "order" (id integer primary key, status status not null, total numeric(12,4), customer_name text);
create table order_item (order_id integer, line_no integer, item integer, primary key (order_id, line_no));
create table "Odd ""x"" Name" ("Key" text primary key, "select" numeric, "When" date);
create table events (kind text, at timestamptz, amount numeric);
create table plain (a integer, b text, c jsonb, d timestamptz, e interval, f bytea, g real, h numeric(10,2),
                    surrogate bigint generated always as identity, primary key (b, a));
"""
MAPPING = """
copy: [events, plain]
tables:
  - {to: customer, from: customers, rename: {nm: name}, set: {email: lower(email)}, drop: [street, city]}
  - to: address
    select: select id as customer_id, street, city from customers where street is not null
  - to: account
    select: select c.id, c.nm as name, p.bio from customers c left join profiles p on p.user_id = c.id and p.id >= 0
    feeds: {customers: id, profiles: user_id}
  - to: spending
    select: select customer_id, count(*) as orders, sum(total::numeric) as total from orders group by customer_id
  - to: order
    select: >
      select o.id, case o.status when 0 then 'new' when 1 then 'paid' else 'sent' end as status,
             o.total::numeric(12,4) as total, c.nm as customer_name
      from orders o left join customers c on c.id = o.customer_id
    feeds:
      orders: id
      customers: select o.id from orders o join customers on customers.id = o.customer_id
  - to: order_item
    select: select o.id as order_id, i.n as line_no, i.item from orders o, unnest(o.items) with ordinality as i(item, n)
  - {to: 'Odd "x" Name', from: 'Odd "x" Name', rename: {Date: When}, set: {When: 'to_date("Date", ''YYYYMMDD'')'}}
"""


@pytest.fixture
def tape(databases: Databases) -> Iterator[Tape]:
    made = Tape(databases, OLD, NEW, MAPPING)
    yield made
    made.close()


def big(n: int) -> str:
    """A value that PostgreSQL stores out of line and therefore does not send when it stays as it is."""
    return f"{n:04d}" * 1500


def test_inserts_updates_deletes_of_every_form(tape: Tape) -> None:
    old = tape.old
    old.execute(
        "insert into customers values (1, 'Ann', 'ANN@X', 'Elm 1', 'York', %s), (2, 'Bob', 'B@X', null, null, 'short')",
        (big(1),),
    )
    old.execute("insert into profiles values (10, 1, 'likes tea')")
    old.execute("insert into orders values (7, 1, 0, 10.5, '{5,6}'), (8, 1, 1, 0.1, '{}'), (9, 2, 2, 3, '{1}')")
    old.execute("""insert into "Odd ""x"" Name" values ('k', 1.50, '20240229')""")
    old.execute("insert into events values ('a', now(), 1.0), ('a', null, 1.00), ('a', null, 1.0)")
    old.execute("insert into plain values (1, 'x', '{\"a\": 1.0}', now(), '1 mon 30 days', '\\x00ff', 0.1, 1.5)")
    tape.advance()
    tape.agrees()
    old.execute("update customers set nm = 'Anna', street = null where id = 1")
    old.execute("update customers set id = 20 where id = 2")
    old.execute("update profiles set user_id = 20")
    old.execute("update orders set items = '{9}', customer_id = 20 where id = 7")
    old.execute("delete from orders where id = 9")
    old.execute("delete from events where ctid in (select ctid from events where amount::text = '1.00' limit 1)")
    old.execute("update plain set b = 'y', c = null")
    old.execute("""update "Odd ""x"" Name" set "Key" = 'K2'""")
    tape.advance()
    tape.agrees()
    old.execute("truncate orders; delete from customers where id = 1; truncate events; insert into events values ('z')")
    tape.advance()
    tape.agrees()
    assert tape.rereads() == []


def test_a_table_without_a_key_leaves_out_what_it_was_loaded_with_and_nothing_else(tape: Tape) -> None:
    """Ids of transactions come round again: by its id alone, one of next week may look like one of long ago."""
    tape.unlike = "one change is applied again and again"
    tape.old.execute("insert into events values ('a', null, 1)")
    (change,) = tape.read()
    before, after = Lsn(change.position.commit_lsn - 1), Lsn(change.position.commit_lsn + 1)

    def applied(snapshot: str, newest: Lsn | None, xid: int) -> bool:
        tape.new.execute(
            "update slackwater.load set snapshot = %s, newest_lsn = %s::pg_lsn where name = 'events'",
            (snapshot, newest and format_lsn(newest)),
        )
        tape.engine.begin(holder="test", lock="exclusive")
        tape.engine.keyless.apply("events", [change._replace(xid=xid)])
        tape.engine.commit()
        return tape.engine.written > 0

    half, wrap = 1 << 31, 1 << 32
    # On the way back every row is there already, and no load has shown any of the stream.
    for xid in (3, 742, half - 1, half + 3, half + 4, half + 5, wrap - 1):
        assert applied(NOTHING_SEEN, None, xid)
    loaded = "740:745:740,743"
    assert [xid for xid in range(738, 748) if not applied(loaded, after, xid)] == [738, 739, 741, 742, 744]
    for xid in (739, 742, half + 744, half + 746, wrap - 1):
        assert applied(loaded, before, xid), "it committed after the load"


def test_a_value_that_was_not_sent_is_left_alone(tape: Tape) -> None:
    tape.old.execute("insert into customers values (1, 'A', null, 's', 'c', %s)", (big(1),))
    tape.advance()
    tape.old.execute("update customers set nm = 'B' where id = 1")
    assert tape.advance()[0].missing == ("doc",)
    tape.agrees()
    assert tape.rereads() == []


def test_a_key_change_carries_unsent_and_unmapped_values(tape: Tape) -> None:
    tape.old.execute(
        "insert into customers values (1, 'A', null, 's', 'c', %s), (2, 'B', null, 't', 'd', %s)", (big(1), big(2))
    )
    tape.advance()
    tape.engine.begin(holder="test", lock="exclusive")
    tape.engine.run("update app.customer set note = 'note of ' || id")
    tape.engine.commit()
    tape.old.execute(  # a swap through a third key
        "update customers set id = -1 where id = 1; update customers set id = 1 where id = 2; "
        "update customers set id = 2 where id = -1"
    )
    tape.advance()
    tape.agrees()
    notes = tape.new.execute("select id, note from app.customer order by id").fetchall()
    assert notes == [(1, "note of 2"), (2, "note of 1")]
    assert tape.rereads() == []


def test_an_unsent_value_of_a_row_that_is_not_here_is_read_again(tape: Tape) -> None:
    tape.old.execute("insert into customers values (1, 'A', null, 's', 'c', %s)", (big(1),))
    tape.read()  # never applied, as if its chunk had not come yet
    tape.old.execute("update customers set nm = 'B' where id = 1")
    tape.advance()
    assert ("customer", {"id": "1"}) in tape.rereads()
    assert tape.actual("customer") == []
    assert tape.actual("address") == [("1", "s", "c")]  # its columns were all sent


def test_images_are_compared_not_values(tape: Tape) -> None:
    tape.old.execute("insert into plain values (1, 'x', null, null, '1 day', null, null, null)")
    tape.old.execute("""insert into "Odd ""x"" Name" values ('k', 1.0, null)""")
    tape.advance()
    tape.old.execute("update plain set e = '24:00:00'")
    tape.old.execute("""update "Odd ""x"" Name" set "select" = 1.00""")
    tape.advance()
    tape.agrees()


def test_a_replay_writes_nothing(tape: Tape) -> None:
    tape.old.execute("insert into customers select i, 'n' || i, 'e', 's', 'c', 'd' from generate_series(1, 50) i")
    tape.old.execute("insert into orders select i, i, 0, i, array[i] from generate_series(1, 50) i")
    changes = tape.read()
    for expected in (True, False):
        tape.engine.begin(holder="test", lock="exclusive")
        tape.engine.apply(folded(tape.engine, changes), applied_lsn=Lsn(1 << 60))
        assert (tape.engine.written > 0) is expected
        tape.engine.commit()
    tape.agrees()


def test_unique_values_that_move_between_rows(databases: Databases) -> None:
    tape = Tape(
        databases,
        "create table t (id integer primary key, u integer unique deferrable initially deferred)",
        "create table t (id integer primary key, u integer unique, mine text default 'x')",
        "copy: [t]\n",
    )
    tape.old.execute("insert into t values (1, 1), (2, 2), (3, 3)")
    tape.advance()
    tape.old.execute("update t set u = u % 3 + 1")
    batch = folded(tape.engine, tape.read())
    tape.engine.begin(holder="test", lock="exclusive")
    with pytest.raises(RowRejected) as caught:
        tape.engine.apply(batch, applied_lsn=Lsn(0))
    tape.engine.abandon()
    assert caught.value.sqlstate == "23505"
    tape.engine.begin(holder="test", lock="exclusive")
    tape.engine.apply(batch, swap={"t"}, applied_lsn=Lsn(0))
    tape.engine.commit()
    tape.agrees()
    tape.close()


def steps(rng: random.Random) -> list[Callable[[], str]]:
    def some() -> int:
        return rng.randrange(1, 9)

    def maybe(text: str) -> str:
        return rng.choice(["null", f"'{text}'"])

    def doc() -> str:
        return f"repeat('{some()}', {rng.choice([1, 6000])})"

    return [
        lambda: (
            f"insert into customers values ({some()}, 'n{some()}', 'E{some()}', {maybe('s')}, 'c', "
            f"{doc()}) on conflict do nothing"
        ),
        lambda: f"update customers set nm = 'n{some()}' where id = {some()}",
        lambda: f"update customers set street = {maybe('s2')} where id = {some()}",
        lambda: f"update customers set doc = {doc()} where id = {some()}",
        lambda: f"update customers set id = {some()} where id = {some()}",
        lambda: f"delete from customers where id = {some()}",
        lambda: f"insert into profiles values ({some()}, {some()}, 'b{some()}') on conflict do nothing",
        lambda: f"delete from profiles where id = {some()}",
        lambda: (
            f"insert into orders values ({some()}, {some()}, {rng.randrange(3)}, {some()}.5, '{{{some()},{some()}}}') "
            "on conflict do nothing"
        ),
        lambda: f"update orders set customer_id = {some()}, items = items[1:1] where id = {some()}",
        lambda: f"update orders set id = {some()} where id = {some()}",
        lambda: f"delete from orders where id = {some()}",
        lambda: f"insert into events values ('k{rng.randrange(2)}', null, {rng.choice(['1', '1.0'])})",
        lambda: f"delete from events where ctid = (select ctid from events where kind = 'k{rng.randrange(2)}' limit 1)",
        lambda: f"update events set amount = {rng.choice(['2', '2.00'])} where ctid = (select min(ctid) from events)",
        lambda: rng.choice(["truncate orders", "truncate customers", "truncate events", "select 1", "select 1"]),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_random_epochs_equal_the_oracle(tape: Tape, seed: int) -> None:
    """Random transactions, some rolled back, folded into epochs of random length."""
    rng = random.Random(seed)
    choices = steps(rng)
    for _ in range(25):
        for _ in range(rng.randrange(1, 6)):
            try:
                with tape.old.transaction():
                    for _ in range(rng.randrange(1, 6)):
                        try:
                            with tape.old.transaction():
                                tape.old.execute(rng.choice(choices)().encode())
                                if rng.random() < 0.1:
                                    raise ZeroDivisionError  # a savepoint rolled back
                        except ZeroDivisionError:
                            pass
                        except Exception as error:
                            if getattr(error, "sqlstate", None) != "23505":  # a key that is taken
                                raise
                    if rng.random() < 0.1:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
        tape.advance()
        waiting = tape.rereads()
        assert waiting == [], waiting
        tape.agrees()
