"""The path of the user's functions: indexes, checks, generated columns and domains whose functions name others bare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.databases import major
from tests.fixtures.hostile import BARE, TABLE, overloads
from tests.fixtures.plain import fresh_shop, program_on
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program

OLD = f"""
create schema shop;
{BARE.format(s="shop")}
{TABLE.format(s="shop")}
insert into shop.note values ('one'), ('one');
"""
SEEDED = """
set search_path = shop;
insert into shop.item select 'c' || g, 'Name ' || g, 'Tag ' || g, 'calm', g, repeat(md5(g::text), 200)
  from generate_series(1, 20) g;
insert into shop.line select 'c' || g, 1, 'cross' from generate_series(1, 20) g;
"""
NEW = f"""
create schema app;
{BARE.format(s="app")}
{TABLE.format(s="app")}
"""
GATES = "cutover: {max_pause_s: 20, attempts: 8, gates: {statistics: off}}\n"
ROWS = {
    "item": "select code, name, tag::text, mood::text, amount, md5(wide), slugged from {s}.item order by 1",
    "line": "select item, n, mood::text from {s}.line order by 1, 2",
    "note": "select said from {s}.note order by 1",
}


@pytest.fixture
def shop(postgres_dsn: str, bootstrap: str) -> Iterator[Shop]:
    with fresh_shop(postgres_dsn, bootstrap, OLD + SEEDED, NEW) as made:
        yield made.with_(tables="copy: [item, line, note]\nexclude: [seen]\n", options=GATES)


def rows(shop: Shop) -> tuple[dict[str, list[tuple[Any, ...]]], dict[str, list[tuple[Any, ...]]]]:
    return (
        {t: shop.on_old(q.format(s="shop")) for t, q in ROWS.items()},
        {t: shop.on_new(q.format(s="app")) for t, q in ROWS.items()},
    )


def write(shop: Shop, side: str, n: int) -> None:
    """Rows of each form, under the application's own path."""
    s, on = ("shop", shop.on_old) if side == "old" else ("app", shop.on_new)

    def having(column: str, value: str) -> str:
        return f"{column} operator(pg_catalog.=) '{value}'::text"

    gone = f"c{n + 10}"
    on(
        f"""begin; set local search_path = {s};
        insert into item values ('n{n}', ' New {n} ', 'T', 'cross', 1.50, repeat('x', 5000));
        insert into line values ('n{n}', 1, 'calm');
        update item set name = 'Other {n}', mood = 'cross' where {having("code", f"c{n}")};
        update line set item = 'n{n}', n = 2 where {having("item", f"c{n}")};
        delete from line where {having("item", gone)}; delete from item where {having("code", gone)};
        update item set code = 'm{n}' where {having("code", f"c{n}")};
        insert into note values ('of {side}'); commit"""
    )


def taken_away(program: Program, shop: Shop) -> list[int]:
    """Two rows of new alone, deleted and kept: their numbers."""
    rows = ", ".join(f"('z{n}', 'Kept', 'T', 'calm', 1)" for n in (1, 2))
    shop.on_new(
        f"select pg_logical_emit_message(true, 'slackwater.echo', '{shop.migration}.forward');"
        "alter table app.item disable trigger all; set search_path = app;"
        f"insert into item (code, name, tag, mood, amount) values {rows};"
        "alter table app.item enable trigger all; alter table app.item enable always trigger slackwater_fence"
    )
    program("verify", "--repair", "--delete", "--yes", code=3)
    program("verify")
    return [row["id"] for row in program.document("repaired", "list")["rows"] if row["key"]["code"] in ("z1", "z2")]


def put_back(program: Program, number: int) -> None:
    done = program.document("repaired", "restore", str(number), "--yes")
    assert [row["result"] for row in done["rows"]] == ["restored"], done


def equal(shop: Shop) -> bool:
    old, new = rows(shop)
    return old == new


def test_there_and_back_with_bare_names_amid_hostile_overloads(shop: Shop, tmp_path: Path) -> None:
    shop.on_old(overloads("shop"))
    shop.on_new(overloads("app"))
    with program_on(shop, tmp_path) as program:
        program.armed()
        write(shop, "old", 1)
        program.until(lambda: equal(shop))
        program("verify")  # 0: clean
        assert program.document("roundtrip")["result"] == "lossless"
        first, second = taken_away(program, shop)
        put_back(program, first)
        program("verify", "--repair", "--delete", "--yes", code=3)
        program("verify")
        # A trigger that fires on what is applied names the others bare as well.
        for s, on in (("shop", shop.on_old), ("app", shop.on_new)):
            on(
                f"create function {s}.see() returns trigger language plpgsql as"
                " $$ begin insert into seen values (tidy(new.name)); return new; end $$;"
                f"create trigger see after insert or update on {s}.item for each row execute function {s}.see();"
                f"alter table {s}.item enable always trigger see"
            )
        write(shop, "old", 2)
        program.until(lambda: equal(shop))
        program("gates", "--recheck", code=None)
        assert program.document("cutover", "--yes")["result"] == "done"
        write(shop, "new", 3)
        put_back(program, second)  # as the application would: CHECKs, indexes and the trigger find what they name
        assert shop.on_new("select name from app.item where code = 'z2'") == [("Kept",)]
        program.until(lambda: equal(shop))
        assert ("other 3",) in shop.on_old("select what from shop.seen")
        program("verify", "--direction", "reverse")
        program("gates", "--recheck", code=None)
        assert program.document("rollback", "--yes")["result"] == "done"
        write(shop, "old", 4)
        program.until(lambda: equal(shop))
        program("verify")  # 0: clean
    assert ("other 4",) in shop.on_new("select what from app.seen")


def in_file(shop: Shop, **paths: str) -> str:
    """The file with `search_path` of the sides that are named."""
    text = shop.text
    for side, path in paths.items():
        schema = "shop" if side == "old" else "app"
        text = text.replace(f"schema: {schema}}}", f"schema: {schema}, search_path: {path}}}")
    return text


def built(shop: Shop) -> list[tuple[Any, ...]]:
    query = "select nspname from pg_namespace where nspname like 'slackwater%'"
    return shop.on_old(query) + shop.on_new(query)


def test_what_does_not_find_its_names_is_refused_before_anything_is_built(shop: Shop, tmp_path: Path) -> None:
    with program_on(shop, tmp_path) as program:
        program.file.write_text(in_file(shop, new="[]"))
        said = program("prepare", code=3)
        assert "index item_slug cannot be evaluated as rows are written" in said
        assert "function tidy(text) does not exist" in said
        assert "new.search_path: [app] in the file; or: alter function app.slug(text) set search_path = app" in said
        program.file.write_text(in_file(shop, old="[]"))
        assert "old.search_path: [shop]" in program("check", code=3)
        assert "old.search_path: [shop]" in program("prepare", code=3)
        assert not built(shop)
        # Found by the row that is tried alone: a domain has no expression of the table's.
        shop.on_new(
            "alter table app.item drop column slugged, drop constraint item_name_check;"
            "drop index app.item_slug, app.item_some"
        )
        program.file.write_text(in_file(shop, new="[]"))
        assert "does not exist" not in program("check", code=None).split("Warnings")[0]
        said = program("prepare", code=3)
        assert "function tidy(text) does not exist" in said
        assert not built(shop)
        assert shop.on_new("select count(*) from app.item") == [(0,)]


def test_a_schema_in_which_others_may_create_is_refused(shop: Shop, tmp_path: Path) -> None:
    shop.on_new("grant create on schema app to public")
    with program_on(shop, tmp_path) as program:
        said = program("prepare", code=3)  # without a word in the file the path stays empty
        assert "revoke create on schema app from public; then new.search_path: [app]" in said
        program.file.write_text(in_file(shop, new="[app]"))
        said = program("check", code=3)
        assert "others may create objects (public in app)" in said
        assert "remedy: revoke create on schema app from public" in said
        program.file.write_text(in_file(shop, new="[app, nowhere]"))
        assert "names the schema nowhere, which is not there" in program("check", code=3)


def test_check_names_what_the_server_itself_evaluates(shop: Shop, tmp_path: Path) -> None:
    if major(shop.new) < 17:
        pytest.skip("from PostgreSQL 17 on")
    with program_on(shop, tmp_path) as program:
        found = program.document("check")["findings"]
        named = {f["where"]: f for f in found if f["name"] == "server_path"}
        assert "ANALYZE" in named["new.item"]["cause"]
        mended = [f["remedy"] for f in found if f["name"] == "server_path" and f["where"] == "new.item"]
        for statement in mended:
            shop.on_new(statement)
        shop.on_new("analyze app.item")
        found = program.document("check")["findings"]
        assert not [f for f in found if f["name"] == "server_path" and f["where"] == "new.item"]


def test_init_proposes_what_functions_need(shop: Shop, tmp_path: Path) -> None:
    shop.on_new("create schema lib; alter function app.tidy(text) set schema lib")
    with program_on(shop, tmp_path) as program:
        said = program("init", "--old", shop.old, "--new", shop.new, "--old-schema", "shop", "--new-schema", "app")
    assert "schema: shop}" in said
    assert "schema: app, search_path: [app, lib]}" in said
