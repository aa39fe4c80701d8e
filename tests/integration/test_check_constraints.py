"""`check` counts the rows of old that new will refuse, and says what of new nothing fills or fires."""

from __future__ import annotations

from stream import preflight
from stream.preflight import Finding, Severity
from tests.fixtures.preparing import Shop

LONG = "(select string_agg(sha512(i::text::bytea)::text, '') from generate_series(1, 55) i)"


def found(shop: Shop, name: str) -> list[Finding]:
    return [f for f in preflight.check(shop.spec) if f.name == name]


def test_rows_that_constraints_of_new_refuse_are_counted(shop: Shop) -> None:
    assert found(shop, "constraints") == []
    shop.on_old("insert into shop.customers (id, cust_nm, email) select i, 'n', 'none' from generate_series(11, 13) i")
    shop.on_old("alter table shop.readings add constraint sound check (v > 0)")
    shop.on_new("alter table app.readings add constraint sound check (v > 0)")  # old says the same: not counted
    shop.on_new("alter table app.readings add constraint small check (v < 2)")
    shop.on_new("alter table app.customer add constraint mail_ck check (email like '%@%') not valid")
    shop.on_new("alter table app.customer alter mood set not null; update app.customer set mood = 'calm'")
    shop.on_old("update shop.customers set mood = null where id = 11")
    said = {(f.severity, f.where): f.cause for f in found(shop, "constraints")}
    by_cause = sorted(f.cause.partition(":")[0] for f in found(shop, "constraints"))
    assert by_cause == [
        "1 row of old breaks NOT NULL of mood",
        "1 row of old breaks the CHECK small",
        "3 rows of old break the CHECK mail_ck (NOT VALID)",
    ]
    assert {severity for severity, _ in said} == {Severity.WARNING}
    tight = found(shop.with_(options="quarantine: {limit: 2}\n"), "constraints")
    [worst] = [f for f in tight if f.severity is Severity.PROBLEM]
    assert "mail_ck" in worst.cause
    assert "quarantine.limit is 2" in worst.cause
    assert "drop the constraint" in worst.remedy
    shop.on_old("delete from shop.customers where id > 10; update shop.readings set v = 1")
    assert found(shop, "constraints") == []


def test_rows_that_no_partition_of_new_takes(shop: Shop) -> None:
    shop.on_new("drop table app.readings_all; create table app.readings_b (like app.readings)")
    [none] = found(shop, "constraints")
    assert none.cause.startswith("2 rows of old break the bounds of every partition")
    shop.on_new(
        "alter table app.readings attach partition app.readings_b for values from ('2024-01-01') to ('2025-01-01')"
    )
    [one] = found(shop, "constraints")
    assert one.cause.startswith("1 row of old breaks the bounds of every partition")
    assert "partition of" in one.remedy
    shop.on_new("create table app.readings_rest partition of app.readings default")
    assert found(shop, "constraints") == []


def test_what_cannot_be_counted_is_said(shop: Shop) -> None:
    shop.on_new("create function app.known(v numeric) returns boolean immutable language sql as 'select v is not null'")
    shop.on_new("alter table app.readings add constraint known check (app.known(v))")
    [note] = found(shop, "constraints")
    assert note.severity is Severity.NOTE
    assert "could not be counted" in note.cause
    assert "known" in note.cause


def test_values_that_an_index_of_new_does_not_take(shop: Shop) -> None:
    shop.on_new("create index bios on app.account (bio)")
    shop.on_old(f"update shop.profiles set bio = {LONG}")
    [warning] = found(shop, "constraints")
    assert "1 row of old may be too long for the index bios" in warning.cause
    assert "expression" in warning.remedy
    shop.on_old("update shop.profiles set bio = 'short'")
    assert found(shop, "constraints") == []


def test_what_nothing_fills_or_fires_is_named(shop: Shop) -> None:
    shop.on_new("alter table app.customer add column remark text, add column since date default current_date")
    shop.on_new("create function app.f() returns trigger language plpgsql as 'begin return new; end'")
    shop.on_new("create trigger audit before insert on app.customer for each row execute function app.f()")
    causes = {f.where: f.cause for f in found(shop, "unfilled")}
    assert "settings" in causes["new"]
    assert "nothing fills remark" in causes["new.customer"]
    [silent] = found(shop, "silent_triggers")
    assert "trigger audit will not fire" in silent.cause
