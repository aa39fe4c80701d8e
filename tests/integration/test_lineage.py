"""The analysis of a text against what PostgreSQL makes of it: random SELECTs, random rows, random changes.

Lineage: a column that an output does not depend on can change without the output changing. Feeds: a changed row finds
every owner whose rows differ, and an owner's rows can be computed from what its restrictions let through.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.postgres import session
from connectors.postgres.session import Connection
from schemas.bind import bound
from schemas.lineage import Reader
from schemas.mapping import Mapping
from schemas.names import quote
from schemas.sql_text import parse
from schemas.table import Table
from tests.fixtures.databases import fresh_database
from tests.unit.tables import resolved, table

USERS = table("users", "id integer!, email, level integer, tags integer[]")
PROFILES = table("profiles", "user_id integer!, bio, rank integer", key="user_id")
ORDERS = table("orders", "id integer!, uid integer, amount integer, kind")
TABLES = {t.name: t for t in (USERS, PROFILES, ORDERS)}
NUMBER = st.one_of(st.none(), st.integers(0, 4))
WORD = st.one_of(st.none(), st.sampled_from(["a", "b", "c"]))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "integer": NUMBER,
    "text": WORD,
    "integer[]": st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=3)),
}
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def conn(postgres_dsn: str) -> Iterator[Connection]:
    with fresh_database(postgres_dsn, "old") as dsn, session.connect(dsn) as conn:
        for t in TABLES.values():
            columns = ", ".join(f"{quote(c.name)} {c.type}" for c in t.columns)
            conn.execute(f"create temp table {t.name} ({columns}, primary key ({', '.join(t.key)}))".encode())
        yield conn


@st.composite
def rows_of(draw: st.DrawFn, t: Table) -> list[tuple[Any, ...]]:
    keys = draw(st.lists(st.integers(0, 4), unique=True, max_size=5))
    return [tuple(k if c.name in t.key else draw(VALUES[c.type]) for c in t.columns) for k in keys]


def fill(conn: Connection, t: Table, rows: list[tuple[Any, ...]]) -> None:
    marks = ", ".join("%s" for _ in t.columns)
    for row in rows:
        conn.execute(f"insert into {t.name} values ({marks})".encode(), row)


def fetched(conn: Connection, query: str) -> Counter[tuple[object, ...]]:
    return Counter(tuple(str(v) for v in row) for row in conn.execute(query.encode()).fetchall())


# SELECTs.

SCALARS = [
    "u.id", "u.email", "u.level + 1", "coalesce(u.email, 'x')", "case when u.level > 2 then u.email end",
    "(select count(*) from orders s1 where s1.uid = u.id)", "(select max(kind) from orders s2 where amount = u.level)",
    "(select string_agg(t::text, ',' order by t) from unnest(u.tags) t where t > u.level)", "u.tags[1]",
    "exists (select 1 from profiles s3 where s3.user_id = u.id and s3.rank > 1)", "array_length(u.tags, 1)",
    "u.level in (select rank from profiles)", "row_number() over (partition by u.level order by u.id)",
    "sum(u.level) over ()", "row(u.*)::text", "u::text", "upper(email)", "cardinality(tags)",
]  # fmt: skip
FROMS = [
    ("users u", []),
    ("users u left join profiles p on p.user_id = u.id", ["p.bio", "p.rank", "bio"]),
    ("users u join profiles p on p.user_id = u.id and p.rank > 0", ["p.bio", "rank"]),
    (("users u left join (select uid, count(*) as n, max(kind) as k from orders where amount > 1 group by uid) o"
     " on o.uid = u.id"), ["o.n", "k"]),
    ("users u cross join lateral unnest(u.tags) with ordinality as t(tag, no)", ["t.tag", "no"]),
    ("users u left join lateral (select max(amount) as m from orders x where x.uid = u.id) l on true", ["l.m"]),
    ("profiles p right join users u on u.id = p.user_id", ["p.bio", "coalesce(p.user_id, u.id)"]),
    ("users u full join (select user_id as id, bio as b from profiles) p using (id)", ["id", "b"]),
    ("(select id, email, level, tags from users where level > 0) u", []),
    ("(select * from users) u join orders o on o.uid = u.id", ["o.kind", "o.amount"]),
    (("(select distinct on (uid) uid as id, kind as email, amount as level, array[1] as tags from orders"
     " order by uid, amount) u"), []),
    ("(select id, email, level, tags from users union all select uid, kind, amount, null from orders) u", []),
    ("users u cross join lateral (values (1, u.email), (2, u.level::text)) v(n, w)", ["v.n", "w"]),
]  # fmt: skip
CONDITIONS = [
    "", "where u.level > 1", "where u.email is not null and u.level < 4", "where u.id in (select uid from orders)",
    "where not exists (select from profiles z where z.user_id = u.id and z.bio = 'a')",
]  # fmt: skip


@st.composite
def selects(draw: st.DrawFn) -> str:
    source, extra = draw(st.sampled_from(FROMS))
    outputs = draw(st.lists(st.sampled_from([*SCALARS, *extra, *extra]), min_size=1, max_size=3))
    if "using (id)" in source:
        outputs = [o for o in outputs if "row(" not in o] or ["id"]
    listed = ", ".join(f"{o} as c{i}" for i, o in enumerate(outputs))
    text = f"select {listed} from {source} {draw(st.sampled_from(CONDITIONS))}"
    match draw(st.integers(0, 5)):
        case 0:
            return text.replace("select", "select distinct", 1)
        case 1:
            return f"with q as ({text}) select c0 as c0 from q"
        case 2 if "over" not in text:
            return f"select g.c0 as c0, count(*) as c1 from ({text}) g group by g.c0"
        case _:
            return text


@SETTINGS
@given(data=st.data())
def test_what_an_output_does_not_depend_on_does_not_change_it(conn: Connection, data: st.DataObject) -> None:
    text = data.draw(selects())
    parsed = parse(text)
    assert parsed.query is not None
    assert not parsed.faults
    reader = Reader(TABLES)
    shape = reader.read(parsed.query)
    assert not reader.faults, (text, reader.faults)
    with conn.transaction(force_rollback=True):
        for each in TABLES.values():
            fill(conn, each, data.draw(rows_of(each)))
        for t, column in [(e, c) for e in TABLES.values() for c in e.columns if c.name not in e.key]:
            ref = (t.name, column.name)
            unmoved = [o for o in shape.outputs if ref not in o.deps | shape.row_deps]
            if not unmoved:
                continue
            before = [fetched(conn, f"select {o.name} from (\n{text}\n) q") for o in unmoved]
            with conn.transaction(force_rollback=True):
                for key in conn.execute(f"select {', '.join(t.key)} from {t.name}".encode()).fetchall():
                    conn.execute(
                        f"update {t.name} set {column.name} = %s where {t.key[0]} = %s".encode(),
                        (data.draw(VALUES[column.type]), key[0]),
                    )
                after = [fetched(conn, f"select {o.name} from (\n{text}\n) q") for o in unmoved]
            assert before == after, (text, ref)


# Feeds.

KINDS = ["join", "left join", "right join", "full join"]


WHERES = ["", "where u.level > 1", "where exists (select 1 from orders w where w.uid = u.id)"]


def merges(kind: str, second: str, where: str) -> list[tuple[str, str]]:
    """(SELECT, key columns) of mappings over several tables."""
    return [
        (f"select u.id as k, p.bio as v from users u {second} profiles p on p.user_id = u.id {where}", "k"),
        (("select coalesce(u.id, p.user_id) as k, bio as v, email as w from users u full join profiles p"
         " on p.user_id = u.id"), "k"),
        ((f"select u.id as k, o.n as v from users u {second} (select uid, count(*) as n from orders where amount > 1"
         f" group by uid) o on o.uid = u.id {where}"), "k"),
        ((f"select o.id as k, u.email as v, p.bio as w from orders o {second} users u on u.id = o.uid"
         f" {second} profiles p on p.user_id = u.id"), "k"),
        ("select uid as k, sum(amount) as v, count(*) as w from orders where uid is not null group by uid", "k"),
        ((f"select u.id as k, (select sum(amount) from orders s where s.uid = u.id and s.kind = 'a') as v from users u"
         f" {where}"), "k"),
        ((f"select id as k, b as v, email as w from users u {kind} (select user_id as id, bio as b from profiles) p"
         " using (id)"), "k"),
        (("select o.uid as k, o.id as l, rank() over (partition by o.uid order by o.amount, o.id) as v from orders o"
         " where o.uid is not null"), "k,l"),
        ("select id as k, email as v from users union all select user_id, bio from profiles", "k"),
        ("select u.id as k, o.id as l, u.email as v from users u join orders o on o.uid = u.id", "k,l"),
        ("select distinct on (uid) uid as k, kind as v from orders where uid > 0 order by uid, amount desc, id", "k"),
        ((f"select u.id as k, x.m as v from users u left join lateral (select max(o.amount) as m from orders o"
         f" where o.uid = u.id) x on true {where}"), "k"),
        ("select a.id as k, b.email as v from users a join users b on b.id = a.id", "k"),
        ("select a.id as k, b.email as v from users a left join users b on b.id = a.level", "k"),
        ("select u.id as k, max(o.amount) as v from users u left join orders o on o.uid = u.id group by u.id", "k"),
        ((f"select u.id as k, q.bio as v, q.n as w from users u {second} (select p.user_id, p.bio, count(o.id) as n"
         " from profiles p left join orders o on o.uid = p.user_id group by 1, 2) q on q.user_id = u.id"), "k"),
        ("select p.user_id as k, u.email as v from profiles p left join users u on u.id = user_id and u.level = rank",
         "k"),
        (("select o.uid as k, u.email as v, o.id as l from orders o left join users u on u.id = uid and level = amount"
         " where o.uid is not null"), "k,l"),
        (("with n as (select uid, count(*) as n from orders group by uid), m as (select u.id, n.n from users u"
         " left join n on n.uid = u.id) select m.id as k, m.n as v from m join profiles p on p.user_id = m.id"), "k"),
        ("select u.id as k, u.email as v from users u where u.level in (select rank from profiles)", "k"),

        ("select a.id as k, c.email as v from users a, users b, users c where b.id = a.level and c.id = b.level", "k"),
        (
            ("select u.id as k, o.amount as v, p.bio as w from users u left join profiles p on p.user_id = u.id"
            " and p.user_id = u.level left join orders o on o.uid = u.level"),
            "k",
        ),
        (
            ("select coalesce(u.id, user_id) as k, o.amount as v from users u full join profiles p on p.user_id = u.id"
            " and p.user_id = u.level left join orders o on o.uid = u.level"),
            "k",
        ),
        ("select o.id as k, rank() over (partition by o.uid order by o.amount, o.id) as v from orders o", "k"),
        (
            ("select u.id as k, x.v from users u join (select uid, sum(amount) over (partition by kind) as v"
            " from orders) x on x.uid = u.id"),
            "k",
        ),
        ("select distinct on (uid) id as k, kind as v from orders order by uid, amount desc, id", "k"),
        ("select u.id as k, u.email as v from users u where u.id not in (select user_id from profiles)", "k"),
        (("select u.id as k, p.bio as v, o.kind as w from users u left join (profiles p join orders o on o.id = p.rank)"
         " on p.user_id = u.id"), "k"),
    ]  # fmt: skip


MERGES = sorted({m for k, s, w in itertools.product(KINDS, KINDS[:2], WHERES) for m in merges(k, s, w)})


def mapped(text: str, key: str) -> Mapping | None:
    """The mapping, or None where the analysis asks for feeds instead of deriving them."""
    names = "k integer, l integer" if "l" in key.split(",") else "k integer"
    outputs = [o for o in ("v", "w") if f" as {o}" in text]
    new = table("x", ", ".join([names, *outputs]), key=key)
    read = [t for t in TABLES.values() if t.name in text]
    drop = "[" + ", ".join(f"{t.name}.{c.name}" for t in read for c in t.columns) + "]"
    r = resolved(f"drop: {drop}\ntables:\n  - to: x\n    key: [{key}]\n    select: |\n      {text}\n", read, [new])
    if r.problems:
        assert all("does not say which of its rows" in p.cause for p in r.problems), r.problems
        return None
    return r.mappings[0]


ASKED = {
    "select u.id as k, u.email as v from users u where u.id not in (select user_id from profiles)",
    "select o.id as k, rank() over (partition by o.uid order by o.amount, o.id) as v from orders o",
    (
        "select u.id as k, x.v from users u join (select uid, sum(amount) over (partition by kind) as v"
        " from orders) x on x.uid = u.id"
    ),
    "select distinct on (uid) id as k, kind as v from orders order by uid, amount desc, id",
}
"""Where the text does not decide, and feeds are asked for; everything else is derived."""

CHOICES: dict[str, list[Any]] = {
    "integer": [None, 0, 1, 2, 3, 4],
    "text": [None, "a", "b", "c"],
    "integer[]": [None, [], [1], [2, 0, 2]],
}


def some_row(dice: random.Random, t: Table, key: int) -> tuple[Any, ...]:
    return tuple(key if c.name in t.key else dice.choice(CHOICES[c.type]) for c in t.columns)


@pytest.mark.parametrize(("text", "key"), [pytest.param(t, k, id=t[:60]) for t, k in MERGES])
def test_a_changed_row_finds_every_owner_whose_rows_differ(conn: Connection, text: str, key: str) -> None:
    m = mapped(text, key)
    if m is None:
        assert text in ASKED
        return
    dice = random.Random(text)
    for _ in range(4):
        with conn.transaction(force_rollback=True):
            for t in TABLES.values():
                fill(conn, t, [some_row(dice, t, k) for k in range(5) if dice.random() < 0.8])
            for _ in range(6):
                _one_change(conn, m, dice)


def _one_change(conn: Connection, m: Mapping, dice: random.Random) -> None:
    """Replace, insert or delete one row, and ask its feed before and after."""
    t = TABLES[dice.choice(m.sources)]
    owner = ", ".join(m.owner)
    by_owner = f"select ({owner})::text, q::text from (\n{m.text}\n) q"
    key_value = dice.randrange(5)
    image = f"select * from {t.name} where {t.key[0]} = {key_value}"
    before, fed = fetched(conn, by_owner), fetched(conn, owners(m, t, image))
    conn.execute(f"delete from {t.name} where {t.key[0]} = %s".encode(), (key_value,))
    if dice.random() < 0.7:
        fill(conn, t, [some_row(dice, t, key_value)])
    after = fetched(conn, by_owner)
    fed += fetched(conn, owners(m, t, image))
    changed = {str(row[0]) for row in ((before - after) + (after - before))} - {"None"}
    found = {str(row[0]) for row in fed}
    assert changed <= found, (m.text, t.name)
    _recomputed(conn, m, m.text, owner, found)


def owners(m: Mapping, t: Table, image: str) -> str:
    """The feed of `t` over one row of it; every other relation is the whole table."""
    names = ", ".join(f"o{i}" for i in range(len(m.owner)))
    relations = {s: f"select * from pg_temp.{s}" for s in m.sources} | {
        t.name: image.replace(" from ", " from pg_temp.")
    }
    query = m.feeds[t.name].query.replace(f'"slackwater_mirror"."m.f.{t.name}"', f"pg_temp.{t.name}")
    return f"select ({names})::text from (\n{bound(query, relations)}\n) x({names})"


def _recomputed(conn: Connection, m: Mapping, text: str, owner: str, found: set[str]) -> None:
    """What the restrictions let through is enough for the owners in question."""
    some = [f for f in itertools.islice(sorted(found), 3) if f and f != "None"]
    wanted = ", ".join("'" + f + "'" for f in some)
    if not some:
        return
    relations = {
        s: f"select * from pg_temp.{s}"
        + (f" where ({', '.join(f.restrict)})::text in ({wanted})" if (f := m.feeds[s]).restrict else "")
        for s in m.sources
    }
    whole = fetched(conn, f"select q::text from (\n{text}\n) q where ({owner})::text in ({wanted})")
    part = fetched(conn, f"select q::text from (\n{bound(text, relations)}\n) q where ({owner})::text in ({wanted})")
    assert whole == part, (text, m.feeds)
