"""check on what types, collations and extensions one side has and the other lacks: named, with what mends it."""

from __future__ import annotations

import pytest

from connectors.postgres import catalog, session, user_path
from schemas.spec import Spec, parse_spec
from stream import preflight
from stream.planning import ddl
from stream.preflight import Finding, Severity
from tests.fixtures.databases import major
from tests.fixtures.preparing import Shop


def problems(shop: Shop) -> list[Finding]:
    return list(preflight.check(shop.spec).problems)


@pytest.fixture
def own(shop: Shop) -> Shop:
    """With one table of each side's own beside the shop's."""
    return shop.with_(tables=shop.tables + "  - {to: word, select: 'select id, upper(w) as w, v as v from word'}\n")


def test_a_collation_that_new_lacks_or_has_otherwise(own: Shop) -> None:
    own.on_old("create schema sorts; create collation sorts.plain (provider = libc, locale = 'C')")
    own.on_old("create table shop.word (id int primary key, w text collate sorts.plain, v text collate sorts.plain)")
    own.on_new("create table app.word (id int primary key, w text, v text)")
    [found] = problems(own)
    assert found.name == "collation"
    assert 'computes with word.w under the collation "sorts"."plain", which new lacks' in found.cause
    own.on_new(found.remedy.removeprefix("run on new: "))
    assert problems(own) == []
    if major(own.new) >= 17:
        own.on_new("drop collation sorts.plain; create collation sorts.plain (provider = builtin, locale = 'C.UTF-8')")
        [found] = problems(own)
        assert "which is defined otherwise on new" in found.cause
        assert "create collation" in found.remedy


def test_a_column_that_is_only_copied_needs_no_collation(own: Shop) -> None:
    own.on_old("create schema sorts; create collation sorts.plain (provider = libc, locale = 'C')")
    own.on_old("create table shop.word (id int primary key, w text, v text collate sorts.plain)")
    own.on_new("create table app.word (id int primary key, w text, v text)")
    assert problems(own) == []


def test_operators_that_the_search_path_does_not_lead_to(own: Shop) -> None:
    own.on_old("create schema ext; create extension citext schema ext; grant usage on schema ext to public")
    own.on_new("create schema ext; create extension citext schema ext; grant usage on schema ext to public")
    own.on_old("create table shop.word (id int primary key, w text, v ext.citext)")
    own.on_new("create table app.word (id int primary key, w text, v boolean)")
    asking = own.with_(tables=own.tables.replace("v as v", "v = ''ABC'' as v"))
    assert problems(asking) == []  # by itself the path leads there
    found = [f for f in preflight.check(_narrow(asking)).problems if f.where == "tables: word" or "word" in f.cause]
    assert "uses operators or functions of citext that the search_path (app) does not lead to" in found[0].cause
    assert "new.search_path: [app, ext] in the file" in found[0].remedy
    meant = asking.with_(tables=asking.tables.replace("v = ''ABC''", "v operator(ext.=) ''ABC''"))
    assert list(preflight.check(_narrow(meant)).problems) == []
    meant = asking.with_(tables=asking.tables.replace("v = ''ABC''", "v::text = ''ABC''"))
    assert list(preflight.check(_narrow(meant)).problems) == []


def _narrow(shop: Shop) -> Spec:
    """With a path of new that holds its own schema alone."""
    text = shop.text.replace("schema: app}", "schema: app, search_path: [app]}")
    assert text != shop.text
    env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    return parse_spec(text, env=env)


def test_tables_of_an_extension_are_left_alone(shop: Shop) -> None:
    everything = shop.with_(tables="copy: '*'\nexclude: [customers, profiles]\n")
    before = problems(everything)
    shop.on_old("create extension citext; create table shop.its_own (id int primary key)")
    shop.on_old("alter extension citext add table shop.its_own")
    assert problems(everything) == before
    assert not [f for f in preflight.check(everything.spec).of(Severity.PROBLEM) if "its_own" in str(f)]


def test_an_extension_that_lives_in_another_schema(own: Shop) -> None:
    own.on_old("create schema ext; create extension citext schema ext")
    own.on_new("create schema lib; create extension citext schema lib")
    own.on_old("create table shop.word (id int primary key, w text, v ext.citext)")
    own.on_new("create table app.word (id int primary key, w text, v lib.citext)")
    assert problems(own) == []
    with session.connect(own.old) as old, session.connect(own.new) as new:
        tables = [*catalog.tables(old, "shop").values(), *catalog.tables(new, "app").values()]
        assert user_path.named(old, ("shop",), tables) == ["ext", "shop"]  # what `grants` opens to the roles
        assert user_path.named(new, (), tables) == ["lib"]
    assert not [f for f in preflight.check(own.spec) if "no cast from lib.citext" in f.cause]
    asking = own.with_(tables=own.tables.replace("v as v", "coalesce(v, w::text) as v"))
    assert problems(asking) == []


def test_new_tables_are_proposed_with_their_collations(shop: Shop) -> None:
    shop.on_old("create schema sorts; create collation sorts.plain (provider = libc, locale = 'C')")
    shop.on_old("create table shop.word (w text collate sorts.plain primary key, v varchar(9) collate sorts.plain)")
    shop.on_old("create table shop.said (w text collate sorts.plain primary key, v text collate sorts.plain)")
    asking = shop.with_(
        tables="copy: [word]\ntables:\n  - {to: told, from: said, rename: {w: x}, set: {v: 'lower(v)'}}\n"
    )
    with session.connect(asking.old) as old:
        made = {p.table: p.sql or "" for p in ddl.proposals(asking.spec, old, catalog.tables(old, "shop"), {})}
    assert "w text COLLATE sorts.plain" in made["word"]
    assert "v character varying(9) COLLATE sorts.plain" in made["word"]
    assert "x text COLLATE sorts.plain" in made["told"]
    assert "v text COLLATE" not in made["told"]
    asking.on_new("create schema sorts; create collation sorts.plain (provider = libc, locale = 'C')")
    asking.on_new(made["word"] + made["told"])
