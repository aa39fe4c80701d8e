"""What an upgrade finds in the way, and what it leaves as it is then: other programs, other logins, a dead side."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.postgres import control_version, lease
from connectors.postgres.session import connect
from schemas import control_steps
from schemas.direction import Direction, Side
from schemas.errors import Contended, OtherVersion, Outdated, PrivilegeMissing, Refused, Unavailable
from stream.lifecycle import upgrade as upgrading
from stream.migration import prepared, prepared_steps
from stream.migration.paths import Paths
from stream.verify.verdicts import Verdict, latest
from tests.fixtures.preparing import ACTOR, Shop

NOWHERE = "host=127.0.0.1 port=1 connect_timeout=2"


def aged(shop: Shop) -> None:
    """As if the first version had prepared it: no record of a version, a document without what is asked for since."""
    for on in (shop.on_old, shop.on_new):
        on("drop table if exists slackwater.version")
    document = json.loads(shop.on_new("select prepared::text from slackwater.migration")[0][0])
    document["version"] = prepared_steps.FIRST
    for table in (*document["old"].values(), *document["new"].values()):
        table.pop("references", None)
    shop.on_new("update slackwater.migration set prepared = %s::jsonb", json.dumps(document))


def upgrade(shop: Shop, **options: Any) -> upgrading.Outcome:
    return upgrading.upgrade(shop.spec, actor=lambda _: ACTOR, say=lambda _: None, **options)


def versions(shop: Shop) -> tuple[int | None, int | None, int]:
    """(old's control schema, new's, the document)"""
    with connect(shop.old) as old, connect(shop.new) as new:
        document = control_version.document(new, shop.migration)
        assert document is not None
        return control_version.of(old), control_version.of(new), prepared_steps.version(document)


OLDEST = (0, 0, prepared_steps.FIRST)
NEWEST = (control_steps.VERSION, control_steps.VERSION, prepared_steps.VERSION)


@pytest.fixture
def old_one(shop: Shop) -> Shop:
    """A migration that an older program prepared; no role lives."""
    shop.prepare()
    aged(shop)
    return shop


def test_the_document_is_what_this_version_would_have_written(shop: Shop) -> None:
    before = shop.prepare().prepared
    aged(shop)
    with connect(shop.new) as conn, pytest.raises(Outdated):
        prepared.load(conn, shop.migration)
    assert upgrade(shop, dry_run=True).result == "ready"
    assert versions(shop) == OLDEST
    done = upgrade(shop)
    assert done.result == "done"
    assert done.versions == {
        "old": (0, control_steps.VERSION),
        "new": (0, control_steps.VERSION),
        "document": (prepared_steps.FIRST, prepared_steps.VERSION),
    }
    with connect(shop.new) as conn:
        kept = prepared.load(conn, shop.migration)
    assert kept == replace(before, paths=Paths())  # the older version knew of none, and what is in force stays so
    assert upgrade(shop).result == "already"
    assert shop.prepare().result == "already"


def test_one_database_for_both_sides(one_database: Shop) -> None:
    one_database.prepare()
    aged(one_database)
    assert upgrade(one_database).result == "done"
    assert versions(one_database) == NEWEST


def test_a_newer_slackwater_was_here(shop: Shop) -> None:
    shop.prepare()
    shop.on_old("update slackwater.version set version = version + 1")
    for verb in (upgrade, Shop.prepare, Shop.cancel):
        with pytest.raises(OtherVersion, match="was upgraded by a newer slackwater") as refused:
            verb(shop)
        assert not isinstance(refused.value, Outdated)
        assert "--version" in refused.value.hint
    shop.on_old("update slackwater.version set version = version - 1")
    shop.on_new("update slackwater.migration set prepared = prepared || '{\"version\": 99}'")
    for verb in (upgrade, Shop.prepare, Shop.cancel):
        with pytest.raises(OtherVersion, match="was upgraded by a newer slackwater"):
            verb(shop)


BEAT = """
insert into slackwater.role (migration, direction, role, pid, host, state)
values (%s, 'forward', 'apply', 7, 'away', 'running')
"""


def test_roles_of_another_migration_in_the_same_database(old_one: Shop) -> None:
    old_one.on_old("insert into slackwater.turn (migration, side, open_turn) values ('neighbour', 'old', 0)")
    old_one.on_old(BEAT, "neighbour")
    with pytest.raises(Refused) as refused:
        upgrade(old_one)
    assert refused.value.reasons == ("migration neighbour: forward apply (pid 7 on away)",)
    assert versions(old_one) == OLDEST
    old_one.on_old("update slackwater.role set state = 'stopped'")
    done = upgrade(old_one)
    assert (done.result, done.others) == ("done", ("neighbour",))
    # Of this version now: nothing of it is in the way of a document that is to be upgraded alone.
    old_one.on_old("update slackwater.role set state = 'running', seen_at = clock_timestamp()")
    old_one.on_new("update slackwater.migration set prepared = prepared || '{\"version\": 1}'")
    assert upgrade(old_one).versions == {"document": (1, prepared_steps.VERSION)}


def test_a_verb_of_another_migration_and_a_session_that_outlived_its_heartbeat(old_one: Shop) -> None:
    old_one.on_new("insert into slackwater.turn (migration, side, open_turn) values ('neighbour', 'new', 0)")
    with connect(old_one.new, application="slackwater cutover neighbour") as turning:
        turning.execute("select pg_advisory_lock(hashtextextended(%s, 0))", (lease.key("neighbour"),))
        stopped = connect(old_one.old, application=f"slackwater apply {old_one.migration}.reverse")
        with stopped, pytest.raises(Refused) as refused:
            upgrade(old_one)
    session, verb = refused.value.reasons
    assert session.startswith(f"session slackwater apply {old_one.migration}.reverse (pid ")
    assert verb.startswith("migration neighbour: slackwater cutover neighbour (user ")
    assert versions(old_one) == OLDEST


def test_a_role_that_begins_meanwhile(old_one: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    bring = control_version.bring

    def slowly(conn: Any, sides: Any) -> Any:
        old_one.on_old(BEAT, old_one.migration)
        return bring(conn, sides)

    monkeypatch.setattr(control_version, "bring", slowly)
    with pytest.raises(Refused, match="do not know this version"):
        upgrade(old_one)
    assert versions(old_one) == OLDEST


def test_a_control_table_that_somebody_holds(old_one: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrading, "PATIENCE_S", 0.1)
    with psycopg.connect(old_one.new) as reader:
        reader.execute("select from slackwater.migration")
        with pytest.raises(Contended, match="cannot upgrade new") as held:
            upgrade(old_one)
    assert "slackwater upgrade" in held.value.hint
    assert versions(old_one) == (control_steps.VERSION, 0, prepared_steps.FIRST)  # and the next one goes on
    assert upgrade(old_one).result == "done"
    assert versions(old_one) == NEWEST


def test_another_login_than_the_one_that_prepared(old_one: Shop) -> None:
    name = f"other_{secrets.token_hex(4)}"
    old_one.on_old(f"create role {name} login password 'pw'")
    try:
        theirs = old_one.with_(old=make_conninfo(old_one.old, user=name, password="pw"))
        with pytest.raises(PrivilegeMissing, match="may not alter the control schema on old") as refused:
            upgrade(theirs)
        assert "the login that ran `slackwater prepare`" in refused.value.hint
        assert versions(old_one) == OLDEST
    finally:
        old_one.on_old(f"drop role {name}")


def test_another_file_than_the_prepared_one(old_one: Shop) -> None:
    edited = old_one.with_(tables=old_one.tables.replace("lower(email)", "upper(email)"))
    with pytest.raises(Refused, match="is not the file"):
        upgrade(edited)
    assert versions(old_one) == OLDEST


def test_a_mapping_that_this_version_does_not_take(old_one: Shop) -> None:
    old_one.on_new("alter table app.account drop column bio")
    with pytest.raises(Refused, match="does not take the mappings") as refused:
        upgrade(old_one)
    assert all(reason.startswith("forward: ") for reason in refused.value.reasons)
    assert versions(old_one) == OLDEST


def test_a_side_that_does_not_answer(old_one: Shop) -> None:
    """Nothing is changed, unless one asks for the side that a failover needs; the other one follows when it is back."""
    document = old_one.on_new("select prepared::text from slackwater.migration")[0][0]
    old_one.on_old("insert into slackwater.spare values (%s, %s::jsonb)", old_one.migration, document)
    dead = old_one.with_(new=NOWHERE)
    with pytest.raises(Unavailable):
        upgrade(dead)
    assert versions(old_one) == OLDEST
    half = upgrade(dead, only=Side.OLD)
    assert (half.result, set(half.versions)) == ("done", {"old", "document"})
    assert versions(old_one) == (control_steps.VERSION, 0, prepared_steps.FIRST)
    with connect(old_one.old) as conn:
        kept = control_version.spare(conn, old_one.migration)
    assert kept is not None
    assert prepared.Prepared.from_json(kept).migration == old_one.migration
    assert upgrade(old_one).result == "done"
    assert versions(old_one) == NEWEST
    with connect(old_one.old) as old, connect(old_one.new) as new:
        assert control_version.spare(old, old_one.migration) == control_version.document(new, old_one.migration)


def test_nothing_to_upgrade(shop: Shop) -> None:
    with pytest.raises(Refused, match="nothing to upgrade"):
        upgrade(shop)


def test_verdicts_of_the_older_version_count_for_nothing(old_one: Shop) -> None:
    old_one.on_new(
        "insert into slackwater.verification (migration, direction, load, state, fingerprint, at, rows, pass_began_at,"
        " pass_fingerprint) select migration, 'forward', 'customer', 'clean', fingerprint, now(), 2, now(), fingerprint"
        " from slackwater.migration"
    )
    upgrade(old_one)
    with connect(old_one.new) as conn:
        document = prepared.load(conn, old_one.migration)
        assert document is not None
        found = latest(conn, old_one.migration, Direction.FORWARD, fingerprint=document.fingerprint)
    assert found.tables["customer"].state is Verdict.PENDING
    assert not found.tables["customer"].running
    assert "slackwater was upgraded" in str(found.tables["customer"].void)
