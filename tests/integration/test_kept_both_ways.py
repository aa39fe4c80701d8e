"""Through the command line, there and back: what only the target holds of a row stays, however its changes come."""

from __future__ import annotations

from pathlib import Path

from schemas.direction import Direction
from tests.fixtures.plain import fresh_shop, program_on
from tests.fixtures.turning import drain

OLD = """
create schema shop;
create table shop.t (id int primary key, v text, fax text default 'none', doc text);
alter table shop.t alter doc set storage external;
create table shop.p (id int, region text, v text, fax text default 'none', primary key (id, region))
  partition by list (region);
create table shop.p_a partition of shop.p for values in ('a');
create table shop.p_b partition of shop.p for values in ('b', 'c');
create table shop.ticket (id int primary key, ticket bigint not null);
insert into shop.t select i, 'v', 'fax ' || i, repeat(i::text, 9000) from generate_series(1, 4) i;
insert into shop.p select i, 'a', 'v', 'fax ' || i from generate_series(1, 4) i;
insert into shop.ticket select i, i * 10 from generate_series(1, 4) i;
"""
NEW = """
create schema app;
create table app.t (id int primary key, v text, doc text, mine text default 'd',
                    no bigint generated always as identity);
alter table app.t alter doc set storage external;
create table app.p (id int, region text, v text, mine text default 'd', no bigint generated always as identity,
                    primary key (id, region)) partition by list (region);
create table app.p_a partition of app.p for values in ('a');
create table app.p_b partition of app.p for values in ('b');
create table app.ticket (id int primary key, ticket bigint not null generated always as identity unique);
"""
TABLES = """
drop: [t.fax, p.fax]
copy: [ticket]
tables:
  - {to: t, select: "select id, v, doc from t"}
  - {to: p, select: "select id, region, v from p"}
roundtrip: {accept: [t.fax, p.fax]}
cutover: {max_pause_s: 20, attempts: 8, gates: {statistics: off, verification: off, roundtrip: off}}
"""
NUMBERS = "select id, no from app.{} where id <= 4 order by 1"


def test_there_and_back(postgres_dsn: str, bootstrap: str, tmp_path: Path) -> None:
    with fresh_shop(postgres_dsn, bootstrap, OLD, NEW) as plain:
        shop = plain.with_(tables=TABLES)
        with program_on(shop, tmp_path) as program:
            program.streaming()
            before = {table: shop.on_new(NUMBERS.format(table)) for table in ("t", "p")}
            # one transaction each
            shop.on_old("delete from shop.t where id = 1; insert into shop.t values (1, 'again', 'fax 1', 'x')")
            shop.on_old("update shop.p set region = 'b' where id < 3")
            shop.on_old("update shop.ticket set ticket = 50 - ticket")
            shop.on_old("insert into shop.p values (9, 'c', 'v')")  # new has no partition for it
            drain(shop, Direction.FORWARD)
            assert {table: shop.on_new(NUMBERS.format(table)) for table in ("t", "p")} == before
            assert shop.on_new("select ticket from app.ticket order by id") == [(40,), (30,), (20,), (10,)]
            assert "no partition" in program("quarantine", "list")
            shop.on_new("create table app.p_c partition of app.p for values in ('c')")
            program.until(lambda: shop.on_new("select count(*) from app.p where id = 9") == [(1,)])
            program.until(lambda: "nothing is in quarantine" in program("quarantine", "list"))
            program("verify")
            program("arm", "--timeout", "90")
            program("cutover", "--yes")
            shop.on_new("delete from app.t where id = 2; insert into app.t (id, v, doc) values (2, 'new', 'x')")
            shop.on_new("update app.p set region = 'c' where id > 2; update app.ticket set id = id + 10")
            drain(shop, Direction.REVERSE)
            assert shop.on_old("select id, v, fax from shop.t order by 1") == [
                (1, "again", "fax 1"), (2, "new", "fax 2"), (3, "v", "fax 3"), (4, "v", "fax 4"),
            ]  # fmt: skip
            assert shop.on_old("select id, region, fax from shop.p order by 1") == [
                (1, "b", "fax 1"), (2, "b", "fax 2"), (3, "c", "fax 3"), (4, "c", "fax 4"), (9, "c", "none"),
            ]  # fmt: skip
            program("verify", "--direction", "reverse")
