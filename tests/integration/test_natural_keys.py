"""A new table named by something else than old's primary key: a unique index on old says that it identifies the row."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from connectors.postgres import catalog
from connectors.postgres.session import connect
from schemas.direction import Direction
from schemas.errors import SchemaChanged
from schemas.resolve import resolve
from schemas.spec import parse_spec
from schemas.table import Table
from tests.fixtures.capturing import Rig
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling
from tests.fixtures.tape import Tape

HEAD = "migration: m\nold: {dsn: a}\nnew: {dsn: b}\nkafka: {bootstrap: k}\n"
OLD = """
create table item (id integer primary key, code text not null, price numeric, body text, unique (code) include (price));
alter table item alter column body set storage external;
alter table item replica identity full;
create table part (id integer, maker text not null, no integer not null, name text, body text, primary key (id));
create unique index part_name on part (id, maker, no);
create unique index part_no on part (maker, no);
alter table part alter column body set storage external;
alter table part replica identity using index part_name;
"""
NEW = """
create table item (code text primary key, price numeric(12,2), body text, note text default 'ours');
create table part (maker text, no integer, name text, body text, note text default 'ours', primary key (maker, no));
create table cheap (code text primary key, price numeric(12,2));
"""
MAPPING = """
drop: [item.id, part.id]
tables:
  - {to: item, from: item}
  - {to: part, from: part}
  - {to: cheap, select: "select code, price from item where price < 50"}
"""


@pytest.fixture
def tape(databases: Databases) -> Iterator[Tape]:
    made = Tape(databases, OLD, NEW, MAPPING)
    yield made
    made.close()


def both(databases: Databases, old: str, new: str) -> tuple[dict[str, Table], dict[str, Table]]:
    found = []
    for dsn, ddl in ((databases.old, old), (databases.new, new)):
        with connect(dsn, settings={"search_path": "public"}) as conn:
            conn.execute(ddl.encode())
            found.append(catalog.tables(conn, "public"))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("index", "identifies"),
    [
        ("create unique index on t (code)", True),
        ("create unique index on t (code) include (v)", True),
        ("create unique index on t (code, n)", True),
        ("alter table t add unique (code)", True),
        ("alter table t add unique (code) deferrable", False),
        ("create unique index on t (code) where n > 0", False),
        ("create unique index on t (lower(code))", False),
        ("create unique index on t (code, v)", False),  # v may be null: two rows may then be alike
        ("create index on t (code)", False),
        ("", False),
    ],
)
def test_which_indexes_identify_a_row(databases: Databases, index: str, identifies: bool) -> None:
    ddl = "create table t (id integer primary key, code text not null, n integer not null, v text);"
    ddl += "alter table t replica identity full;"
    old, new = both(databases, ddl + index, "create table t (code text, n integer, v text, primary key (code, n))")
    spec = parse_spec(HEAD + "drop: [t.id]\ntables: [{to: t, from: t}]\n", env={})
    found = resolve(spec, Direction.FORWARD, old, new)
    assert (not found.problems) is identifies, [str(p) for p in found.problems]
    if not identifies:
        assert "unique index over NOT NULL columns" in str(found.problems[0])


def test_names_that_are_sent_are_needed(databases: Databases) -> None:
    """The primary key alone does not tell of which target row a deleted one was."""
    old, new = both(databases, OLD + "alter table item replica identity default", NEW)
    found = resolve(parse_spec(HEAD + MAPPING, env={}), Direction.FORWARD, old, new)
    assert "code, which item does not send of a changed or deleted row" in str(found.problems[0])


def test_a_name_changes_hands(tape: Tape) -> None:
    tape.old.execute("insert into item values (1, 'a', 10, %s), (2, 'b', 20, %s)", (9000 * "1", 9000 * "2"))
    tape.advance()
    tape.engine.begin(holder="test", lock="exclusive")
    tape.engine.run("update app.item set note = 'note of ' || code")
    tape.engine.commit()
    tape.old.execute(
        "update item set code = 'c' where id = 1; update item set code = 'a' where id = 2;"
        " update item set code = 'b' where id = 1"
    )
    tape.advance()
    tape.agrees()
    notes = tape.new.execute("select code, note from app.item order by code").fetchall()
    assert notes == [("a", "note of b"), ("b", "note of a")]  # they go along with their rows
    tape.old.execute("delete from item where id = 1; update item set id = 1, code = 'b' where id = 2")
    tape.advance()
    tape.agrees()
    assert tape.rereads() == []


def steps(rng: random.Random) -> list[Callable[[], str]]:
    def some() -> int:
        return rng.randrange(1, 8)

    def body() -> str:
        return f"repeat('{some()}', {rng.choice([1, 9000])})"

    # a name that is taken is an error on old as well: the statement is skipped there
    free = "where not exists (select from {t} where {w})"
    return [
        lambda: (
            f"insert into item select {some()}, x, {some()}0, {body()} from (values ('c{some()}')) v(x) "
            + free.format(t="item", w="code = x")
            + " on conflict do nothing"
        ),
        lambda: (
            f"update item set code = 'c{(c := some())}' where id = {some()} and not exists"
            f" (select from item where code = 'c{c}')"
        ),
        lambda: f"update item set price = {some()}0 where id = {some()}",
        lambda: f"update item set body = {body()} where id = {some()}",
        lambda: f"delete from item where id = {some()}",
        lambda: (
            f"update item set id = {(k := some())} where id = {some()} and not exists (select from item where id = {k})"
        ),
        lambda: f"insert into part values ({some()}, 'm{some() % 3}', {some()}, 'n', {body()}) on conflict do nothing",
        lambda: (
            f"update part p set maker = 'm{(m := some() % 3)}', no = {(n := some())} where id = {some()} and not exists"
            f" (select from part where maker = 'm{m}' and no = {n})"
        ),
        lambda: f"update part set name = 'x{some()}' where id = {some()}",
        lambda: f"update part set body = {body()} where id = {some()}",
        lambda: f"delete from part where id = {some()}",
    ]


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.soak) for n in range(3, 12))])
def test_anything_that_happens_is_what_the_selects_say(tape: Tape, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        for _ in range(rng.randrange(1, 5)):
            with tape.old.transaction():
                for _ in range(rng.randrange(1, 5)):
                    tape.old.execute(rng.choice(steps(rng))().encode())
        tape.advance()
        assert tape.rereads() == []
        tape.agrees()


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(n, marks=pytest.mark.soak) for n in range(2, 8))])
def test_while_it_is_backfilled(databases: Databases, seed: int) -> None:
    rng = random.Random(seed)
    filling = Filling(databases, OLD + LOTS, NEW, MAPPING)
    try:
        with filling.backfill(workers=2, chunk_bytes="20kB"), filling.streaming():
            while {r.state for r in filling.rows().values()} != {"done"}:
                filling.old.execute(rng.choice(steps(rng))().encode())
        with filling.backfill():
            filling.settle()
        filling.agrees()
    finally:
        filling.close()


LOTS = """
insert into item select g, 'c' || g, g, repeat('x', 300) from generate_series(1, 900) g;
insert into part select g, 'm' || g % 3, g, 'n', repeat('x', 300) from generate_series(1, 900) g;
"""


def test_a_row_in_quarantine_that_went_away_leaves_nothing(databases: Databases) -> None:
    filling = Filling(databases, OLD, NEW.replace("numeric(12,2), body", "numeric(3,0), body", 1), MAPPING)
    try:
        with filling.backfill():
            filling.filled()
        filling.old.execute("insert into item values (1, 'a', 1, 'x'), (2, 'b', 2, 'y')")
        filling.advance()
        filling.old.execute("update item set price = 10000 where id = 1")  # more than new's column takes
        filling.advance()
        assert filling.one("select count(*) from slackwater.quarantine", on="new") == 1
        filling.old.execute("update item set code = 'z' where id = 1")
        filling.advance()
        filling.old.execute("delete from item where id = 1")
        filling.advance()
        filling.new.execute("update slackwater.quarantine set state = 'retrying'")
        filling.new.execute(
            "insert into slackwater.reread (migration, direction, load, source, key, reason)"
            " select migration, direction, load, source, key, 'tried again' from slackwater.quarantine"
        )
        with filling.backfill():
            filling.settle()
        filling.agrees()
        assert filling.one("select count(*) from slackwater.quarantine", on="new") == 0
    finally:
        filling.close()


@pytest.mark.parametrize(
    "ddl",
    [
        "alter table item drop constraint item_code_price_key",
        "alter table item alter code drop not null",
        "drop index part_no",
        "alter table thing drop constraint thing_pkey",
    ],
)
def test_what_identifies_a_row_has_to_stay(
    databases: Databases, bootstrap: str, topic_prefix: str, migration_name: str, ddl: str
) -> None:
    """Two rows of old could then want one row of new: capture looks when it starts, and once a minute."""
    thing = "create table thing (id integer primary key, v text); alter table thing replica identity full;"
    old, new = both(databases, OLD + thing, NEW + "create table thing (id integer primary key, v text)")
    found = resolve(parse_spec(HEAD + "copy: [thing]\n" + MAPPING, env={}), Direction.FORWARD, old, new)
    assert not found.problems
    rig = Rig(
        dsn=databases.old,
        bootstrap=bootstrap,
        prefix=topic_prefix,
        migration=migration_name,
        tables=("item", "part", "thing"),
    ).prepare()
    rig.plan = replace(rig.plan, mappings=found.mappings)
    with rig.running() as task:
        rig.captured(task)
    with rig.connect() as conn:
        conn.execute(ddl.encode())
    error = rig.run_until_it_fails()
    assert isinstance(error, SchemaChanged)
    assert "nothing says any more that" in error.cause
