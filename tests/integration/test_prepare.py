"""prepare: what it makes, in which order, that it can be killed anywhere, and what an edit changes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors.kafka.epochs import last_epoch
from connectors.kafka.topics import Topics
from connectors.postgres import session
from schemas.direction import Direction
from schemas.errors import Aborted, Refused, SlotLost
from schemas.position import ZERO, Position
from stream.migration import prepared as documents
from tests.fixtures.preparing import NEW, OLD, TABLES, NotConfirmed, Shop
from tests.fixtures.running import end, started_with


def document(shop: Shop) -> documents.Prepared:
    with session.connect(shop.new) as conn:
        found = documents.load(conn, shop.migration)
    assert found is not None
    return found


def loads(shop: Shop) -> dict[str, tuple[str, str]]:
    rows = shop.on_new("select name, source, state from slackwater.load where migration = %s", shop.migration)
    return {name: (source, state) for name, source, state in rows}


def test_prepare_makes_everything_that_the_roles_need(shop: Shop) -> None:
    outcome = shop.prepare()
    assert outcome.result == "prepared"
    found = document(shop)
    assert found == outcome.prepared
    flow = found.forward
    assert set(flow.streamed) == {"customers", "profiles", "readings"}
    assert set(flow.mirrors) == {"customers", "profiles"}
    plan = documents.plan_for(shop.spec, found, Direction.FORWARD)
    assert {m.target for m in plan.mappings} == {"customer", "address", "account", "readings"}
    assert set(plan.topics) == set(flow.streamed)
    assert loads(shop) == {
        "customer": ("customers", "pending"),
        "address": ("customers", "pending"),
        "readings": ("readings", "pending"),
        "account": ("", "asleep"),
        "mirror:customers": ("customers", "pending"),
        "mirror:profiles": ("profiles", "pending"),
    }
    # the slot, the publication, epoch 0 and the checkpoint agree
    [(plugin, confirmed)] = shop.on_old(
        "select plugin, confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", shop.slot
    )
    assert plugin == "pgoutput"
    members = shop.on_old("select tablename from pg_publication_tables where pubname = %s order by 1", shop.slot)
    assert [m[0] for m in members] == ["customers", "profiles", "readings"]
    epoch = last_epoch(shop.bootstrap, {}, shop.epochs)
    assert epoch is not None
    assert (epoch.epoch, epoch.previous, epoch.end_lsn, epoch.last) == (0, -1, flow.consistent_point, Position(ZERO, 0))
    assert epoch.slot == shop.slot
    [(number, end, offsets)] = shop.on_new(
        "select epoch, end_lsn::text, offsets from slackwater.checkpoint where migration = %s", shop.migration
    )
    assert (number, end) == (0, confirmed)
    assert offsets[shop.epochs]["0"] in (1, 2)  # after epoch 0; its transaction's marker may be there already
    assert all(offsets[topic] == {"0": 0, "1": 0} for topic in flow.topics.values())
    assert set(flow.topic_ids) == {*flow.topics.values(), shop.epochs}
    [(writes, turn)] = shop.on_old("select writes, turn from slackwater.route where migration = %s", shop.migration)
    assert (writes, turn) == ("old", 0)
    [(step,)] = shop.on_new("select step from slackwater.journal where migration = %s", shop.migration)
    assert step == "prepare"


def test_the_barrier_is_not_older_than_the_slot(shop: Shop) -> None:
    """A chunk's snapshot past the barrier shows every transaction that committed before the slot's consistent point."""
    shop.prepare()
    barriers = shop.on_new("select distinct barrier_xid, barrier_lsn::text from slackwater.load")
    assert len(barriers) == 1
    xid, lsn = barriers[0]
    [(passed,)] = shop.on_old("select pg_snapshot_xmin(pg_current_snapshot()) > %s::xid8", xid)
    assert passed
    [(later,)] = shop.on_old(
        "select %s::pg_lsn >= confirmed_flush_lsn from pg_replication_slots where slot_name = %s", lsn, shop.slot
    )
    assert later


def test_new_refuses_everybody_from_then_on(shop: Shop) -> None:
    shop.prepare()
    writes = [
        "insert into app.customer values (1, 'x')",
        "update app.settings set value = 'x'",
        "delete from app.readings",
        "truncate app.address",
        "insert into app.readings_all values (1, '2024-01-01', 1)",
        "set session_replication_role = replica; insert into app.settings values ('a', 'b')",
    ]
    for write in writes:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="slackwater: writes moved to old"):
            shop.on_new(write)
    assert shop.on_new("select * from app.customer") == []
    shop.on_old("insert into shop.profiles values (9, 'old goes on')")


def test_prepare_again_does_nothing(shop: Shop) -> None:
    first = shop.prepare()
    again = shop.prepare()
    assert (again.result, again.steps) == ("already", ())
    assert again.prepared.forward == first.prepared.forward


def watched(shop: Shop) -> list[str]:
    rows = shop.on_old(
        "select tgrelid::regclass::text from pg_trigger where tgname ~ '^slackwater_truncate' order by 1"
    )
    return [row[0] for row in rows]


def test_partitions_of_old_are_watched_for_a_truncate(shop: Shop) -> None:
    outcome = shop.prepare()
    assert "2 partitions of old watched for a TRUNCATE" in outcome.steps
    assert watched(shop) == ["shop.readings_a", "shop.readings_b"]
    shop.on_old("alter table shop.readings detach partition shop.readings_b")
    shop.on_old(
        "alter table shop.readings attach partition shop.readings_b for values from ('2024-01-01') to (maxvalue)"
    )
    shop.on_old("alter table shop.readings_a disable trigger user")
    assert "1 partition of old watched for a TRUNCATE" in shop.prepare().steps
    shop.on_old("alter table shop.readings detach partition shop.readings_b")
    shop.cancel()
    assert watched(shop) == []


def test_two_migrations_watch_the_same_partitions(shop: Shop, make_database: Callable[[str], str]) -> None:
    shop.prepare()
    other = shop.with_(new=make_database("other"), migration=f"{shop.migration}_b")
    other.on_new(NEW)
    other.prepare()
    assert len(watched(shop)) == 4
    shop.cancel()
    assert len(watched(shop)) == 2
    other.cancel()
    assert watched(shop) == []


def test_a_partition_made_later_is_fenced_by_the_next_prepare(shop: Shop) -> None:
    shop.on_new("drop table app.readings_all")
    shop.on_new("create table app.r1 partition of app.readings for values from (minvalue) to ('2024-01-01')")
    shop.prepare()
    shop.on_new("create table app.r2 partition of app.readings for values from ('2024-01-01') to (maxvalue)")
    outcome = shop.prepare()
    assert outcome.result == "already"
    assert outcome.steps == ("fence on 1 table of new",)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        shop.on_new("insert into app.r2 values (1, '2025-01-01', 1)")


def test_both_schemas_in_one_database(one_database: Shop) -> None:
    outcome = one_database.prepare()
    assert outcome.result == "prepared"
    # the mirrors use the source's own types: they are here
    [(type_,)] = one_database.on_new(
        "select format_type(atttypid, atttypmod) from pg_attribute a join pg_class c on c.oid = attrelid"
        " where c.relnamespace = 'slackwater_mirror'::regnamespace and attname = 'mood'"
    )
    assert type_ == "shop.mood"
    turns = one_database.on_new("select side, open_turn, fence_turn from slackwater.turn order by side")
    assert turns == [("new", -1, 1), ("old", 0, None)]


def test_two_migrations_side_by_side(shop: Shop) -> None:
    shop.on_new("create schema app2; create table app2.profiles (user_id integer primary key, bio text)")
    other = shop.with_(migration=shop.migration + "b", tables="copy: [profiles]\nexclude: [customers, readings]\n")
    other_text = other.text.replace("schema: app", "schema: app2")
    shop.prepare()

    class Other(Shop):
        @property
        def text(self) -> str:
            return other_text

    second = Other(**{name: getattr(other, name) for name in other.__dataclass_fields__})
    assert second.prepare().result == "prepared"
    assert shop.prepare().result == "already"
    assert second.cancel().result == "cancelled"
    assert shop.prepare().result == "already"


def test_a_name_that_is_in_use_for_another_new_database_is_refused(
    shop: Shop, make_database: Callable[[str], str]
) -> None:
    """Neither prepare nor cancel touches the slot of a migration that has the same name and another new side."""
    shop.prepare()
    elsewhere = shop.with_(new=make_database("elsewhere"), prefix=shop.prefix + "x")
    elsewhere.on_new(NEW)
    [(before,)] = shop.on_old("select confirmed_flush_lsn from pg_replication_slots where slot_name = %s", shop.slot)
    with pytest.raises(Refused) as refused:
        elsewhere.prepare()
    assert any("already feeds another new database" in reason for reason in refused.value.reasons)
    with pytest.raises(Refused, match="not this migration"):
        elsewhere.cancel()
    [(after,)] = shop.on_old("select confirmed_flush_lsn from pg_replication_slots where slot_name = %s", shop.slot)
    assert before == after
    assert shop.prepare().result == "already"


def test_a_name_that_is_in_use_in_another_old_database_is_refused(
    shop: Shop, make_database: Callable[[str], str]
) -> None:
    shop.prepare()
    elsewhere = shop.with_(old=make_database("elsewhere"), new=make_database("there"), prefix=shop.prefix + "x")
    elsewhere.on_old(OLD)
    elsewhere.on_new(NEW)
    with pytest.raises(Refused) as refused:
        elsewhere.prepare()
    assert any("of the same name in database" in reason for reason in refused.value.reasons)
    with pytest.raises(Refused, match="not this migration"):
        elsewhere.cancel()
    assert shop.prepare().result == "already"


def test_new_ddl_is_applied_once(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "new.sql").write_text(
        "-- psql needs nothing here\ncreate table extra (id integer primary key);\n"
        "create function touch() returns trigger language plpgsql as $$begin return new; end$$;\n"
    )
    given = shop.with_(ddl="new.sql", folder=tmp_path)
    given.prepare()
    assert shop.on_new("select to_regclass('app.extra') is not null") == [(True,)]
    assert "extra" in document(given).new
    [(outcome,)] = shop.on_new("select outcome from slackwater.journal where step = 'ddl'")
    assert outcome == "done"
    said: list[str] = []
    assert given.prepare(said=said).result == "already"
    (tmp_path / "new.sql").write_text("create table another (id integer primary key);")
    given.prepare(said=said)
    assert shop.on_new("select to_regclass('app.another') is null") == [(True,)]
    assert any("has changed since it was applied" in line for line in said)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("create table x (id int); commit; create table y (id int);", "COMMIT"),
        ("begin; create table x (id int); end;", "BEGIN"),
        ("\\connect other", "psql's own commands"),
        ("create table x (id int);\ncreate tabel y (id int);", "line 2"),
    ],
)
def test_a_ddl_file_that_cannot_be_applied_whole_is_refused(shop: Shop, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "new.sql").write_text(text)
    with pytest.raises(Refused) as refused:
        shop.with_(ddl="new.sql", folder=tmp_path).prepare()
    assert any(says in reason for reason in refused.value.reasons)
    assert shop.on_new("select to_regclass('app.x') is null and to_regnamespace('slackwater') is null") == [(True,)]


def test_the_slot_waits_for_open_transactions_and_says_for_whom(shop: Shop) -> None:
    with psycopg.connect(shop.old, application_name="the nightly job") as conn:
        conn.execute("insert into shop.profiles values (7, 'open')")
        said: list[str] = []
        with pytest.raises(Aborted, match=r"given up .* have not ended") as refused:
            shop.prepare(said=said, slot_timeout_s=3)
        assert any("waiting for pid" in line and "the nightly job" in line for line in said)
        assert [("the nightly job" in reason) for reason in refused.value.reasons] == [True]
        assert shop.on_old("select count(*) from pg_replication_slots where slot_name = %s", shop.slot) == [(0,)]
        threading.Timer(2.5, conn.commit).start()
        assert shop.prepare(slot_timeout_s=30).result == "prepared"


KILLED = [
    "prepare.after_control",
    "prepare.after_mirrors",
    "prepare.after_fence",
    "prepare.after_topics",
    "prepare.after_watch",
    "prepare.after_publication",
    "prepare.after_slot",
    "writer.before_commit",
    "prepare.after_epoch_0",
    "prepare.before_commit",
]


def run(shop: Shop, folder: Path, *arguments: str, failpoints: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, as a process that can be killed."""
    path = folder / "migration.yaml"
    path.write_text(shop.text)
    env = {**os.environ, "OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    code = "from stream.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "-c", str(path), *arguments],
        env={**env, **({"SLACKWATER_FAILPOINTS": failpoints} if failpoints else {})},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )


def test_killed_anywhere_the_next_run_completes_it(shop: Shop, tmp_path: Path) -> None:
    """One migration, killed at each place in turn: every run finds what the ones before it left."""
    for place in KILLED:
        killed = run(shop, tmp_path, "prepare", failpoints=f"{place}=kill")
        assert killed.returncode == -9, f"{place}: {killed.stderr}"
        assert shop.on_new("select count(*) from slackwater.load") == [(0,)], place
    outcome = shop.prepare()
    assert outcome.result == "prepared"
    epoch = last_epoch(shop.bootstrap, {}, shop.epochs)
    assert epoch is not None
    assert epoch.epoch == 0
    [(confirmed,)] = shop.on_old(
        "select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots where slot_name = %s", shop.slot
    )
    assert int(confirmed) == epoch.end_lsn == outcome.prepared.forward.consistent_point
    assert shop.prepare().result == "already"


def test_a_slot_that_is_gone_is_never_made_again(shop: Shop) -> None:
    shop.prepare()
    shop.on_old("select pg_drop_replication_slot(%s)", shop.slot)
    with pytest.raises((SlotLost, Refused)) as refused:
        shop.prepare()
    assert "gone" in str(refused.value) or "gone" in " ".join(getattr(refused.value, "reasons", ()))
    assert shop.on_old("select count(*) from pg_replication_slots where slot_name = %s", shop.slot) == [(0,)]


def test_a_topic_made_anew_is_not_taken_for_the_prepared_one(shop: Shop) -> None:
    from schemas.errors import StreamGap

    outcome = shop.prepare()
    topics = Topics(shop.bootstrap, {})
    name = outcome.prepared.forward.topics["profiles"]
    topics.delete([name])
    with pytest.raises(StreamGap, match="deleted or made anew"):
        shop.prepare()


def test_topics_of_another_life_are_refused(shop: Shop) -> None:
    """The control rows are lost (a restored backup, say): epochs already in Kafka must not be applied to this slot."""
    shop.prepare()
    for table in ("checkpoint", "load", "migration"):
        shop.on_new(f"delete from slackwater.{table}")
    shop.on_old("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", shop.slot)
    with pytest.raises(Refused, match="another life"):
        shop.prepare()


# -- after an edit ----------------------------------------------------------------------------------------------------


def test_an_edit_resets_what_it_changes_and_nothing_else(shop: Shop) -> None:
    shop.prepare()
    _pretend_loaded(shop)
    edited = shop.with_(tables=shop.tables.replace("where street is not null", "where street <> ''"))
    said: list[str] = []
    outcome = edited.prepare(said=said)
    assert outcome.result == "changed"
    assert outcome.difference.changed == ("address",)
    assert any(line.startswith("~ new table address") for line in said)
    assert loads(shop)["address"] == ("customers", "pending")
    assert loads(shop)["customer"] == ("customers", "done")
    assert loads(shop)["account"] == ("", "done")
    assert shop.on_new("select count(*) from app.address") == [(0,)]
    assert shop.on_new("select count(*) from app.customer") == [(1,)]
    assert shop.on_new("select count(*) from slackwater.pass") == [(0,)]
    assert document(shop).fingerprint == edited.spec.fingerprint
    [(start,)] = shop.on_new("select count(*) from slackwater.checkpoint where epoch = 0")
    assert start == 1
    assert edited.prepare().result == "already"
    with pytest.raises(Refused, match="not the file"):
        documents.plan_for(shop.spec, document(shop), Direction.FORWARD)


@pytest.mark.parametrize("place", ["prepare.after_topics", "prepare.after_publication", "prepare.before_commit"])
def test_an_edit_that_was_killed_is_completed(shop: Shop, tmp_path: Path, place: str) -> None:
    shop.on_old("create table shop.notes (id integer primary key, body text)")
    shop.on_new("create table app.notes (id integer primary key, body text)")
    shop.with_(tables=shop.tables + "exclude: [notes]\n").prepare()
    _pretend_loaded(shop)
    edited = shop.with_(
        tables=shop.tables.replace("copy: [readings]", "copy: [readings, notes]").replace("lower(", "upper(")
    )
    killed = run(edited, tmp_path, "prepare", "--yes", failpoints=f"{place}=kill")
    assert killed.returncode == -9, killed.stderr
    assert loads(shop)["customer"] == ("customers", "done")
    assert shop.on_new("select count(*) from app.customer") == [(1,)]
    outcome = edited.prepare()
    assert (outcome.result, outcome.difference.added, outcome.difference.changed) == (
        "changed",
        ("notes",),
        ("customer",),
    )
    assert loads(shop)["notes"] == ("notes", "pending")
    assert shop.on_new("select count(*) from app.customer") == [(0,)]


def test_an_edited_migration_streams_on(shop: Shop, tmp_path: Path) -> None:
    """The real roles: streaming, stopped, edited (one changed, one dropped, one added), prepared, streaming again."""
    shop.on_old("create table shop.notes (id integer primary key, body text); insert into shop.notes values (1, 'a')")
    shop.on_new("create table app.notes (id integer primary key, body text)")
    first = shop.with_(tables=shop.tables + "exclude: [notes]\n")
    env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    with started_with(tmp_path, first.text, env) as program:
        program("prepare")
        process = program.start("run")
        program.until(lambda: program.status()["phase"] == "streaming", within_s=90)
        shop.on_old("update shop.profiles set bio = 'physics'")
        program.until(lambda: shop.on_new("select bio from app.account where id = 1") == [("physics",)])
        end(process)
        edits = shop.tables.replace("copy: [readings]", "copy: [notes]").replace("lower(email)", "upper(email)")
        program.file.write_text(shop.with_(tables=edits + "exclude: [readings]\n").text)
        # written while nothing runs: in the WAL, and to be told apart from what the new chunks bring
        shop.on_old(
            "insert into shop.customers values (3, 'Cy', 'c@x', 'High', null, 'calm'); delete from shop.readings"
        )
        assert "prepare" in program("run", "apply", code=None)  # refuses the file that was not prepared
        program("prepare", "--yes")
        shop.on_old("insert into shop.notes values (2, 'b'); update shop.customers set email = 'Z@z' where id = 2")
        program.start("run")
        wanted = [(1, "ADA@X.ORG"), (2, "Z@Z"), (3, "C@X")]
        program.until(lambda: shop.on_new("select id, email from app.customer order by id") == wanted, within_s=90)
        program.until(lambda: shop.on_new("select id, body from app.notes order by id") == [(1, "a"), (2, "b")])
        program.until(lambda: shop.on_new("select id from app.account order by id") == [(1,), (2,), (3,)])
        program.until(lambda: program.status()["phase"] == "streaming")
        # its rows stay as they are: the mapping is gone, and what the stream still brings is nobody's
        assert shop.on_new("select count(*) from app.readings") == [(2,)]


def test_nothing_is_emptied_without_a_yes(shop: Shop) -> None:
    shop.prepare()
    _pretend_loaded(shop)
    edited = shop.with_(tables=shop.tables.replace("where street is not null", "where street <> ''"))
    with pytest.raises(NotConfirmed, match="address"):
        edited.prepare(yes=False)
    assert shop.on_new("select count(*) from app.address") == [(1,)]
    assert document(shop).fingerprint == shop.spec.fingerprint


def test_a_target_that_a_foreign_key_refers_to_is_emptied_by_delete(shop: Shop) -> None:
    shop.on_new("alter table app.address add foreign key (customer_id) references app.customer (id)")
    shop.prepare()
    _pretend_loaded(shop)
    edited = shop.with_(tables=shop.tables.replace("lower(email)", "upper(email)"))
    assert edited.prepare().difference.changed == ("customer",)
    assert shop.on_new("select count(*) from app.customer") == [(0,)]
    assert shop.on_new("select count(*) from app.address") == [(1,)]  # not this one's to empty


def test_a_table_joins_the_stream(shop: Shop) -> None:
    shop.on_old("create table shop.notes (id integer primary key, body text); insert into shop.notes values (1, 'a')")
    shop.on_new("create table app.notes (id integer primary key, body text)")
    without = shop.with_(tables=shop.tables + "exclude: [notes]\n")
    without.prepare()
    before = shop.on_new("select barrier_xid from slackwater.load where name = 'customer'")
    _pretend_loaded(shop)
    with_notes = shop.with_(tables=shop.tables.replace("copy: [readings]", "copy: [readings, notes]"))
    with psycopg.connect(shop.old) as writer:
        writer.execute("insert into shop.notes values (2, 'open while it joins')")
        threading.Timer(1.5, writer.commit).start()
        outcome = with_notes.prepare()
    assert outcome.difference.added == ("notes",)
    assert outcome.difference.streamed == ("notes",)
    assert loads(shop)["notes"] == ("notes", "pending")
    assert loads(shop)["customer"] == ("customers", "done")
    [(after,)] = shop.on_new("select barrier_xid from slackwater.load where name = 'notes'")
    assert int(after) > int(before[0][0])
    [(offsets,)] = shop.on_new("select offsets from slackwater.checkpoint")
    assert offsets[outcome.prepared.forward.topics["notes"]] == {"0": 0, "1": 0}


def test_a_table_that_nothing_reads_any_more_stays_in_the_stream(shop: Shop) -> None:
    shop.prepare()
    _pretend_loaded(shop)
    edited = shop.with_(tables=shop.tables.replace("copy: [readings]", "exclude: [readings]"))
    outcome = edited.prepare()
    assert outcome.difference.removed == ("readings",)
    assert outcome.difference.unread == ("readings",)
    assert "readings" in outcome.prepared.forward.streamed
    assert "readings" not in loads(shop)
    plan = documents.plan_for(edited.spec, document(edited), Direction.FORWARD)
    assert "readings" in plan.sources
    assert "readings" not in {m.target for m in plan.mappings}


def test_a_changed_mirror_wakes_nothing_before_it_is_copied_anew(shop: Shop) -> None:
    shop.prepare()
    _pretend_loaded(shop)
    shop.on_old("alter table shop.profiles add column link text")
    edited = shop.with_(tables=shop.tables.replace("drop: [customers.fax]", "drop: [customers.fax, profiles.link]"))
    outcome = edited.prepare()
    assert set(outcome.difference.changed) == {"mirror:profiles", "account"}
    assert loads(shop)["account"] == ("", "asleep")
    assert loads(shop)["mirror:profiles"] == ("profiles", "pending")
    assert loads(shop)["mirror:customers"] == ("customers", "done")
    [(columns,)] = shop.on_new(
        "select count(*) from pg_attribute where attrelid = to_regclass(%s) and attname = 'link'",
        f'slackwater_mirror."{shop.migration}.f.profiles"',
    )
    assert columns == 1


def test_a_table_taken_out_of_the_publication_is_loaded_anew(shop: Shop) -> None:
    shop.prepare()
    _pretend_loaded(shop)
    shop.on_old(f"alter publication {shop.slot} drop table shop.readings")
    outcome = shop.prepare()
    assert outcome.difference.changed == ("readings",)
    assert outcome.difference.streamed == ("readings",)
    assert loads(shop)["readings"] == ("readings", "pending")


def test_an_edit_waits_for_the_roles_to_stop(shop: Shop) -> None:
    shop.prepare()
    shop.on_new(
        "insert into slackwater.role (migration, direction, role, pid, host, state)"
        " values (%s, 'forward', 'apply', 42, 'a', 'running')",
        shop.migration,
    )
    edited = shop.with_(tables=shop.tables.replace("where street is not null", "where street <> ''"))
    with pytest.raises(Refused, match=r"forward apply \(pid 42 on a\)"):
        edited.prepare()
    assert shop.prepare().result == "already"  # nothing to change: nothing to stop for
    shop.on_new("update slackwater.role set seen_at = now() - interval '1 minute'")
    assert edited.prepare().result == "changed"


def test_replica_identity_is_asked_for_and_set_when_told_to(shop: Shop) -> None:
    shop.on_old("create table shop.log (line text)")
    shop.on_new("create table app.log (line text)")
    with_log = shop.with_(tables=shop.tables.replace("copy: [readings]", "copy: [readings, log]"))
    with pytest.raises(Refused) as refused:
        with_log.prepare()
    assert any('alter table "shop"."log" replica identity full' in reason for reason in refused.value.reasons)
    outcome = with_log.prepare(set_identity=True)
    assert outcome.result == "prepared"
    assert shop.on_old("select relreplident::text from pg_class where oid = 'shop.log'::regclass") == [("f",)]
    assert outcome.prepared.identity_full == {"log": ['alter table "shop"."log" replica identity default']}
    with_log.cancel()
    assert shop.on_old("select relreplident::text from pg_class where oid = 'shop.log'::regclass") == [("d",)]


def test_two_prepares_at_once(shop: Shop) -> None:
    results: list[Any] = []

    def one() -> None:
        try:
            results.append(shop.prepare().result)
        except Refused as error:
            results.append(error.cause)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert results.count("prepared") == 1
    assert all(r in ("prepared", "already") or r.startswith("somebody else is at migration") for r in results)


def _pretend_loaded(shop: Shop) -> None:
    """One row in each new table, as the applier would have left them, and every backfill done."""
    shop.on_new("update slackwater.load set state = 'done', newest_lsn = '0/1'")
    shop.on_new(
        "begin; update slackwater.turn set open_turn = 1 where side = 'new';"
        " insert into app.customer values (1, 'Ada'); insert into app.address values (1, 'Main');"
        " insert into app.account values (1); insert into app.readings values (1, '2023-05-05', 1.50);"
        " update slackwater.turn set open_turn = -1 where side = 'new'; commit"
    )


def test_an_edit_of_the_way_back_loads_nothing_anew(shop: Shop) -> None:
    shop.prepare()
    loads = shop.on_new("select name, fingerprint, state from slackwater.load order by name")
    said: list[str] = []
    edited = shop.with_(tables=TABLES + "reverse: [{to: customers, set: {fax: \"'none'\"}}]\n")
    assert edited.spec.fingerprint != shop.spec.fingerprint
    assert edited.prepare(yes=False, said=said).result == "changed"  # nothing is emptied, so nobody is asked
    assert any("no table is written differently" in line for line in said)
    assert shop.on_new("select name, fingerprint, state from slackwater.load order by name") == loads
    assert shop.on_new("select fingerprint from slackwater.migration") == [(edited.spec.fingerprint,)]
    assert edited.prepare(yes=False).result == "already"
    with pytest.raises(Refused) as refused:
        shop.with_(tables=TABLES + "reverse: [{to: customers, set: {fx: email}}]\n").prepare()
    assert "did you mean fax?" in "\n".join(refused.value.reasons)
