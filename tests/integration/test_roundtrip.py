"""Old -> new -> old over real rows: what comes back, what does not, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from connectors.postgres import control, session
from connectors.postgres.session import Connection
from schemas.reversal import How, Loss
from schemas.roundtrip import ColumnVerdict, TableVerdict, Verdict
from schemas.spec import Spec, parse_spec
from stream.verify import roundtrip as judging
from tests.fixtures.databases import Databases

HEAD = "migration: m\nold: {dsn: '${OLD}'}\nnew: {dsn: '${NEW}', schema: app}\nkafka: {bootstrap: k}\n"


@dataclass
class Pair:
    old: Connection
    new: Connection
    dsns: Databases
    said: list[str]

    def spec(self, text: str) -> Spec:
        return parse_spec(HEAD + text, env={"OLD": self.dsns.old, "NEW": self.dsns.new})

    def judge(self, text: str) -> Verdict:
        return judging.roundtrip(self.spec(text), self.old, self.new, self.said.append)


@contextmanager
def opened(databases: Databases) -> Iterator[Pair]:
    with session.connect(databases.old) as old, session.connect(databases.new) as new:
        yield Pair(old=old, new=new, dsns=databases, said=[])


@pytest.fixture
def pair(databases: Databases) -> Iterator[Pair]:
    with opened(databases) as pair:
        pair.old.execute("set search_path = public")
        pair.new.execute("create schema app")
        pair.new.execute("set search_path = app")
        yield pair


def column(verdict: Verdict, name: str) -> ColumnVerdict:
    [found] = [c for c in verdict.columns if f"{c.table}.{c.column}" == name]
    return found


def table(verdict: Verdict, name: str) -> TableVerdict:
    [found] = [t for t in verdict.tables if t.table == name]
    return found


CUSTOMERS = """
create table customers (id integer primary key, name text not null, email text, street text, city text, fax text,
                        state smallint not null, credit double precision not null);
insert into customers select n, 'Name ' || n, case when n % 10 = 0 then 'Big@X' else 'small@x' end,
  case when n % 4 <> 0 then 'Street ' || n end, case when n % 8 <> 0 then 'City' end,
  case when n % 100 = 0 then '0' end, 1 + n % 3, n / 4.0
from generate_series(1, 1000) n;
"""
CUSTOMER = """
create type mood as enum ('good', 'bad', 'worse');
create table customer (id bigint primary key, name varchar(40) not null, email text, mood mood not null,
                       credit numeric(12, 2) not null);
create table address (customer_id integer primary key references customer, street text not null, city text);
"""
SPLIT = """
drop: [customers.fax]
tables:
  - to: customer
    select: |
      select id, name, lower(email) as email, credit::numeric(12, 2) as credit,
             case state when 1 then 'good' when 2 then 'bad' when 3 then 'worse' end as mood from customers
  - {to: address, select: "select id as customer_id, street, city from customers where street is not null"}
"""


def test_each_column_of_a_split_is_judged_on_its_rows(pair: Pair) -> None:
    pair.old.execute(CUSTOMERS)
    pair.new.execute(CUSTOMER)
    verdict = pair.judge(SPLIT)
    found = {c.column: (c.how, c.loss, c.rows) for c in verdict.columns}
    assert found == {
        "id": (How.DERIVED, Loss.LOSSLESS, 0),
        "name": (How.DERIVED, Loss.LOSSLESS, 0),
        "email": (How.DERIVED, Loss.LOSSY, 100),
        "street": (How.DERIVED, Loss.LOSSLESS, 0),
        "city": (How.DERIVED, Loss.LOSSY, 125),  # rows without a street, that have a city
        "fax": (How.NONE, Loss.LOST, 10),
        "state": (How.DERIVED, Loss.LOSSLESS, 0),
        "credit": (How.DERIVED, Loss.LOSSLESS, 0),  # the types would allow a loss; these rows have none
    }
    assert column(verdict, "customers.email").keys == tuple({"id": str(n)} for n in (10, 20, 30, 40, 50))
    assert table(verdict, "customers").rows == 1000
    assert not verdict.unjudged
    assert verdict.losses == ("customers.email", "customers.city", "customers.fax")
    accepted = pair.judge(SPLIT + "roundtrip: {accept: [customers.email, customers.city, customers.fax]}\n")
    assert accepted.passed
    assert pair.judge(SPLIT + "roundtrip: {accept: [customers]}\n").passed


def test_new_s_column_cuts_what_its_type_cuts(pair: Pair) -> None:
    """1.005 is rounded by the column's type, not by the SELECT."""
    pair.old.execute("create table t (id integer primary key, a numeric not null)")
    pair.old.execute("insert into t values (1, 1.00), (2, 1.005), (3, 1.0)")
    pair.new.execute("create table t (id integer primary key, a numeric(12, 2) not null)")
    verdict = pair.judge('copy: "*"\n')
    found = column(verdict, "t.a")
    assert (found.loss, found.rows, found.keys) == (Loss.LOSSY, 2, ({"id": "2"}, {"id": "3"}))


def test_rows_that_a_filter_left_out_are_not_lost(pair: Pair) -> None:
    pair.old.execute("create table t (id integer primary key, kind text not null, gone timestamp)")
    pair.old.execute("insert into t select n, 'k', case when n % 5 = 0 then now() end from generate_series(1, 100) n")
    pair.new.execute("create table t (id integer primary key, kind text not null)")
    text = 'drop: [t.gone]\ntables: [{to: t, select: "select id, kind from t where gone is null"}]\n'
    verdict = pair.judge(text)
    assert (table(verdict, "t").rows, table(verdict, "t").left_out, table(verdict, "t").missing) == (100, 20, 0)
    assert verdict.losses == ("t.gone",)


MERGE_OLD = """
create table users (id integer primary key, login text not null);
create table profiles (user_id integer primary key, bio text, letters char(1) not null);
insert into users select n, 'u' || n from generate_series(1, 100) n;
insert into profiles select n, case when n % 4 = 0 then 'b' || n end, case when n % 3 = 0 then 'Y' else 'N' end
from generate_series(2, 120, 2) n;
"""
MERGE = """
tables:
  - to: account
    select: |
      select u.id, u.login, p.bio, coalesce(p.letters = 'Y', false) as letters
      from users u left join profiles p on p.user_id = u.id
"""


def test_a_written_way_back_is_judged_too(pair: Pair) -> None:
    pair.old.execute(MERGE_OLD)
    pair.new.execute(
        "create table account (id integer primary key, login text not null, bio text, letters boolean not null)"
    )
    verdict = pair.judge(MERGE)
    assert {c.loss for c in verdict.columns if c.table == "users"} == {Loss.LOSSLESS}
    assert {c.loss for c in verdict.columns if c.table == "profiles"} == {Loss.LOST}
    back = """
reverse:
  - to: profiles
    select: |
      select id as user_id, bio, case when letters then 'Y' else 'N' end as letters
      from account where bio is not null or letters
"""
    verdict = pair.judge(MERGE + back)
    assert {c.loss for c in verdict.columns if c.table == "profiles"} == {Loss.LOSSLESS}
    # without a user (102 to 120), or with nothing to tell that they were there
    lost = pair.old.execute(
        "select count(*) from profiles where user_id > 100 or (bio is null and letters = 'N')"
    ).fetchone()
    assert lost is not None
    assert (table(verdict, "profiles").rows, table(verdict, "profiles").missing) == (60, lost[0])
    assert table(verdict, "profiles").missing_keys[0] == {"user_id": "2"}
    assert verdict.losses == ("profiles",)
    wrong = back.replace("'Y' else 'N'", "'N' else 'Y'").replace("where bio is not null or letters", "")
    verdict = pair.judge(MERGE + f"{wrong}roundtrip: {{accept: [profiles]}}\n")
    assert table(verdict, "profiles").extra == 50
    assert table(verdict, "profiles").extra_keys[0] == {"user_id": "1"}
    assert column(verdict, "profiles.letters").rows == 50


def test_a_table_without_a_key_is_counted(pair: Pair) -> None:
    for conn in (pair.old, pair.new):
        conn.execute("create table log (at timestamp(0), line text)")
        conn.execute("alter table log replica identity full")
    pair.old.execute("insert into log select '2026-01-01', 'x' || n % 3 from generate_series(1, 10) n")
    verdict = pair.judge('copy: "*"\n')
    assert verdict.passed
    assert table(verdict, "log").rows == 10


def test_several_chunks_are_one_verdict(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "CHUNK_ROWS", 70)
    pair.old.execute(CUSTOMERS)
    pair.old.execute("analyze customers")
    pair.new.execute(CUSTOMER)
    verdict = pair.judge(SPLIT)
    assert any("15 chunks" in line for line in pair.said)
    assert (column(verdict, "customers.city").rows, table(verdict, "customers").rows) == (125, 1000)
    assert len(column(verdict, "customers.city").keys) == 5


def test_what_cannot_be_judged_is_not_lossless(pair: Pair) -> None:
    pair.old.execute("create table t (id integer primary key, a text)")
    pair.new.execute("create table t (id integer primary key, a text)")
    pair.new.execute("create table other (id integer primary key, a text, b text)")
    text = 'copy: "*"\nreverse: [{to: t, select: "select t.id, o.b as a from t join other o on o.id = t.id"}]\n'
    verdict = pair.judge(text)
    assert "other, which no mapping writes" in table(verdict, "t").problem
    assert column(verdict, "t.a").loss is Loss.UNKNOWN
    assert not verdict.passed
    pair.new.execute("create function app.twice(text) returns text immutable language sql as 'select $1 || $1'")
    verdict = pair.judge('copy: "*"\nreverse: [{to: t, select: "select id, app.twice(a) as a from t"}]\n')
    assert "app" in table(verdict, "t").problem
    assert not verdict.passed


def test_the_verdict_is_kept_for_the_file_it_speaks_of(pair: Pair) -> None:
    pair.old.execute(CUSTOMERS)
    pair.new.execute(CUSTOMER)
    verdict, spec = pair.judge(SPLIT), pair.spec(SPLIT)
    assert not judging.keep(pair.new, spec, verdict)  # nothing is prepared: nothing is written
    assert judging.latest(pair.new, "m") is None
    with control.transaction(pair.new, "test"):
        control.install(pair.new)
    assert judging.latest(pair.new, "m") is None
    assert judging.keep(pair.new, spec, verdict)
    kept = judging.latest(pair.new, "m")
    assert kept is not None
    assert (kept.under, kept.verdict) == (spec.fingerprint, verdict)
    accepting = pair.spec(SPLIT + "roundtrip: {accept: [customers]}\n")
    assert accepting.fingerprint == spec.fingerprint
    assert kept.verdict.judged(accepting).passed
    assert pair.spec(SPLIT + "reverse: [{to: customers, set: {fax: name}}]\n").fingerprint != spec.fingerprint
