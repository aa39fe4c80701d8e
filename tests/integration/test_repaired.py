"""`verify --repair` and what it takes away: nothing without --delete, and whatever goes is kept, and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.plain import Pair, fresh_shop, program_on
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program

# A value of each type whose text is not what a cast to text, or JSON, would make of it.
TYPES = {
    "n": ("numeric", "1.00"),
    "m": ("numeric(12, 4)", "'NaN'"),
    "f": ("double precision", "'-Infinity'"),
    "g": ("real", "0.1"),
    "z": ("double precision", "'-0'"),
    "c": ("char(5)", "'a '"),
    "bp": ("bpchar", "'b  '"),
    "v": ("varchar(20)", "' spaces '"),
    "t": ("text", "E'line\\nbreak \\\\ \"quoted\" %s é €'"),
    "e": ("text", "''"),
    "b": ("bytea", "'\\\\x00ff'"),
    "bo": ("boolean", "true"),
    "bi": ("bit(4)", "B'1010'"),
    "bv": ("bit varying", "B'10'"),
    "d": ("date", "'infinity'"),
    "bc": ("date", "'0044-03-15 BC'"),
    "ts": ("timestamptz(3)", "'2024-02-29 23:59:59.123+05'"),
    "ti": ("time", "'24:00'"),
    "iv": ("interval", "'1 mon 30 days'"),
    "u": ("uuid", "'00000000-0000-0000-0000-00000000000a'"),
    "j": ("json", '\'{"a":1, "a":  2}\''),
    "jb": ("jsonb", "'{\"n\": 1.00}'"),
    "js": ("jsonb", "'\"text\"'"),
    "a": ("integer[]", "'[2:3]={1,NULL}'"),
    "at": ("text[]", "'{a,\"b,c\",NULL}'"),
    "r": ("int4range", "'[1,5)'"),
    "i": ("inet", "'10.0.0.1'"),
    "mo": ("money", "'12.34'"),
    "en": ("public.mood", "'calm'"),
    "co": ("public.pair", "'(,)'"),
    "dm": ("public.short", "'x'"),
    "nu": ("text", "null"),
}
TYPED = "create type public.mood as enum ('calm', 'cross'); create type public.pair as (l int, r text);"
TYPED += " create domain public.short as varchar(3);"
TABLE = TYPED + " create table {schema}.everything (id integer primary key, {columns});"


def ddl(schema: str) -> str:
    columns = ", ".join(f"{name} {kind.format(schema=schema)}" for name, (kind, _) in TYPES.items())
    return f"create schema {schema};" + TABLE.format(schema=schema, columns=columns)


def values(schema: str, key: int) -> str:
    return f"insert into {schema}.everything values ({key}, {', '.join(value for _, value in TYPES.values())})"


OLD = f"""
{ddl("shop")}
create table shop.users (id integer primary key, name text);
create table shop.profiles (user_id integer primary key, bio text);
create table shop.log (line text);
alter table shop.log replica identity full;
{values("shop", 1)};
insert into shop.users select g, 'U' || g from generate_series(1, 3) g;
insert into shop.profiles values (1, 'maths'), (2, 'music');
insert into shop.log values ('one'), ('one'), ('two');
"""
NEW = f"""
{ddl("app")}
create table app.person (
  code text primary key, name text, unmapped text, twice text generated always as (name) stored);
create table app.account (id integer primary key, name text, bio text);
create table app.log (line text);
"""
TABLES = """
copy: [everything, log]
tables:
  - {to: person, select: "select 'P' || id as code, name from users"}
  - {to: account, select: "select u.id, u.name, p.bio from users u left join profiles p on p.user_id = u.id"}
reverse:
  - {to: users, select: "select id, name from account"}
"""


@pytest.fixture(scope="module")
def streaming(postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Every role runs; each test leaves the rows as it found them."""
    with fresh_shop(postgres_dsn, bootstrap, OLD, NEW) as made:
        shop = made.with_(tables=TABLES)
        with program_on(shop, tmp_path_factory.mktemp("repaired")) as program:
            program.streaming()
            yield Pair(shop=shop, program=program)


@pytest.fixture
def shop(streaming: Pair) -> Shop:
    streaming.shop.on_new("truncate slackwater.repaired")
    return streaming.shop


@pytest.fixture
def program(shop: Shop, streaming: Pair) -> Program:
    return streaming.program


def planted(shop: Shop, *statements: str) -> None:
    """Writes to new that no fence saw."""
    for table in ("everything", "person", "account", "log"):
        shop.on_new(f"alter table app.{table} disable trigger all")
    for statement in statements:
        shop.on_new(statement)
    for table in ("everything", "person", "account", "log"):
        shop.on_new(f"alter table app.{table} enable always trigger slackwater_fence")


def verify(program: Program, *arguments: str, code: int) -> dict[str, Any]:
    return program.document("verify", *arguments, code=code)


def kept(program: Program, *arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = program.document("repaired", "list", *arguments)["rows"]
    return rows


def test_a_row_of_new_alone_stays_and_goes_only_when_that_is_said_and_comes_back(program: Program, shop: Shop) -> None:
    planted(shop, values("app", 99))
    image = shop.on_new("select t::text from app.everything t where id = 99")
    found = verify(program, code=3)
    table = found["tables"]["everything"]
    assert (table["missing"], table["extra"], table["different"]) == (0, 1, 0)
    assert found["next"].endswith(" verify --show-values")
    assert "1 row on new alone: nothing on old makes it" in program("verify", code=3)

    # Not asked to: it stays, nothing is queued, and nobody calls it repaired.
    found = verify(program, "--repair", "--yes", code=3)
    assert found["repaired"] == {
        "rows": 0, "tables": {}, "refused": {}, "left": 0, "spared": {"everything": 1}, "deleted": {}, "overwritten": {}
    }  # fmt: skip
    assert found["state"] == "mismatched"
    assert shop.on_new("select t::text from app.everything t where id = 99") == image
    assert kept(program) == []

    # Asked to: who is asked hears of which side, which table, and how many.
    said = program("verify", "--repair", "--delete", code=2)
    assert "DELETE on new: 1 row of everything" in said
    assert "--delete goes with --repair" in program("verify", "--delete", code=2)
    found = verify(program, "--repair", "--delete", "--yes", code=3)
    assert (found["state"], found["repaired"]["deleted"]) == ("repaired", {"everything": 1})
    assert shop.on_new("select from app.everything where id = 99") == []
    assert verify(program, code=0)["state"] == "clean"

    (row,) = kept(program)
    assert (row["side"], row["table"], row["action"], row["key"]) == ("new", "everything", "deleted", {"id": "99"})
    assert (row["reason"], row["restored_at"], "row" in row) == ("verify --repair", None, False)
    assert kept(program, "--show-values")[0]["row"]["n"] == "1.00"
    assert "everything" in program("repaired", "list")
    assert "not in" not in program.log

    # And back, every value as it was; verification finds it again.
    assert "--yes" in program("repaired", "restore", str(row["id"]), code=2)
    done = program.document("repaired", "restore", str(row["id"]), "--yes")
    assert [r["result"] for r in done["rows"]] == ["restored"]
    assert shop.on_new("select t::text from app.everything t where id = 99") == image
    assert program.status()["verification"]["forward"]["state"] != "clean"
    assert verify(program, code=3)["tables"]["everything"]["extra"] == 1
    assert program.document("repaired", "restore", "--all", "--yes")["rows"] == []
    again = program.document("repaired", "restore", str(row["id"]), "--yes")["rows"]
    assert [(r["result"], r["why"]) for r in again] == [("there", "it was put back before")]
    assert "no repair has kept a row 4711" in program("repaired", "restore", "4711", "--yes", code=3)

    verify(program, "--repair", "--delete", "--yes", code=3)
    assert verify(program, code=0)["state"] == "clean"


def test_what_is_written_over_is_kept_as_it_was(program: Program, shop: Shop) -> None:
    planted(
        shop,
        "update app.everything set n = 1.000, t = 'planted' where id = 1",
        "update app.person set name = 'planted', unmapped = 'ours' where code = 'P2'",
        "delete from app.person where code = 'P3'",
    )
    found = verify(program, "--repair", "--yes", code=3)
    assert found["repaired"]["overwritten"] == {"everything": 1, "person": 1}
    assert found["repaired"]["spared"] == {}
    assert verify(program, code=0)["state"] == "clean"
    rows = {r["table"]: r for r in kept(program, "--show-values")}
    assert (rows["everything"]["row"]["n"], rows["everything"]["row"]["t"]) == ("1.000", "planted")
    assert rows["person"]["row"] == {"code": "P2", "name": "planted", "unmapped": "ours"}
    assert shop.on_new("select name, unmapped from app.person where code = 'P2'") == [("U2", "ours")]
    done = program.document("repaired", "restore", str(rows["person"]["id"]), "--yes", code=3)["rows"]
    assert [r["result"] for r in done] == ["refused"]


def test_a_key_that_cannot_be_computed_back_is_no_obstacle(program: Program, shop: Shop) -> None:
    planted(
        shop, "insert into app.person values ('X', 'nobody''s', 'ours')", "delete from app.person where code = 'P1'"
    )
    found = verify(program, "--repair", "--yes", code=3)
    assert found["repaired"]["spared"] == {"person": 1}
    assert found["state"] == "mismatched"  # one row is back, the other is as wrong as before
    assert shop.on_new("select code from app.person where code in ('X', 'P1') order by 1") == [("P1",), ("X",)]
    found = verify(program, "--repair", "--delete", "--yes", code=3)
    assert found["repaired"]["refused"] == {}
    assert found["repaired"]["deleted"] == {"person": 1}
    assert verify(program, code=0)["state"] == "clean"
    (row,) = kept(program)
    program.document("repaired", "restore", str(row["id"]), "--yes")
    assert shop.on_new("select name, unmapped, twice from app.person where code = 'X'") == [
        ("nobody's", "ours", "nobody's")
    ]
    verify(program, "--repair", "--delete", "--yes", code=3)
    assert verify(program, code=0)["state"] == "clean"


def test_rows_of_a_join(program: Program, shop: Shop) -> None:
    planted(
        shop,
        "insert into app.account values (88, 'extra', 'x')",
        "update app.account set bio = 'planted' where id = 2",
        "delete from app.account where id = 3",
    )
    found = verify(program, "--repair", "--yes", code=3)
    assert found["repaired"]["left"] == 0
    assert shop.on_new("select id, bio from app.account order by 1") == [
        (1, "maths"), (2, "music"), (3, None), (88, "x")
    ]  # fmt: skip
    assert verify(program, code=3)["tables"]["account"]["extra"] == 1
    found = verify(program, "--repair", "--delete", "--yes", code=3)
    assert found["repaired"]["deleted"] == {"account": 1}
    assert verify(program, code=0)["state"] == "clean"
    assert [(r["action"], r["key"]) for r in kept(program)] == [
        ("overwritten", {"id": "2"}), ("deleted", {"id": "88"})
    ]  # fmt: skip


def test_a_table_without_a_key(program: Program, shop: Shop) -> None:
    planted(shop, "insert into app.log values ('one'), ('three')")
    found = verify(program, "--repair", "--yes", code=3)
    assert found["repaired"]["refused"] == {}
    assert found["repaired"]["spared"] == {"log": 2}
    planted(shop, "delete from app.log where line = 'two'")
    found = verify(program, "--repair", "--yes", code=3)
    assert "2 rows of log are on new alone" in found["repaired"]["refused"]["log"]
    assert shop.on_new("select count(*) from app.log") == [(4,)]
    found = verify(program, "--repair", "--delete", "--yes", code=3)
    assert found["repaired"]["deleted"] == {"log": 2}
    assert sorted(r["row"]["line"] for r in kept(program, "--show-values")) == ["one", "three"]
    program.until(lambda: program.status()["backfill"]["state"] == "done")
    assert verify(program, code=0)["state"] == "clean"


def test_nothing_of_it_is_left_after_the_end(program: Program, shop: Shop, streaming: Pair) -> None:
    """The last one: it ends the migration."""
    planted(shop, "insert into app.account values (88, 'extra', 'x')")
    verify(program, "--repair", "--delete", "--yes", code=3)
    assert len(kept(program)) == 1
    for process in program.background:
        process.terminate() if hasattr(process, "terminate") else process.send_signal(15)
        process.wait(30)
    assert "their only copy: on new 1 that a repair deleted" in program("cancel", code=2)
    program("cancel", "--yes")
    assert shop.on_new("select to_regclass('slackwater.repaired')::text") == [(None,)]
