"""Capture from a real slot into a real Kafka: what arrives, in which order, and what stops it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from connectors.kafka.topics import Kind, Topics, TopicSpec
from connectors.postgres import slots, truncation
from connectors.postgres.session import connect
from schemas import wire_version
from schemas.errors import Halt, SchemaChanged, SlotLost, StreamGap, Unavailable
from schemas.position import parse_lsn
from stream.capture.role import Capture
from tests.fixtures.capturing import DIRECTION, Rig, until
from tests.fixtures.databases import Databases

MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(databases: Databases, bootstrap: str, topic_prefix: str, migration_name: str) -> MakeRig:
    """`rig(ddl, *tables)`: the tables made, published, and their slot."""

    def make(ddl: str, *tables: str, partitions: int = 3) -> Rig:
        with psycopg.connect(databases.old, autocommit=True) as conn:
            conn.execute(ddl)
        return Rig(
            dsn=databases.old,
            bootstrap=bootstrap,
            prefix=topic_prefix,
            migration=migration_name,
            tables=tables,
            partitions=partitions,
        ).prepare()

    return make


ITEM = "create table item (id int primary key, name text, body text); alter table item alter body set storage external;"


def test_every_kind_of_change_arrives_once_and_in_order(rig: MakeRig) -> None:
    r = rig(ITEM + "create table note (id int, word text); alter table note replica identity full", "item", "note")
    with r.connect() as conn, r.running() as task:
        conn.execute("insert into item values (1, 'a', repeat('x', 9000)), (2, 'b', null)")
        with conn.transaction():
            conn.execute("update item set name = 'c' where id = 1")
            conn.execute("update item set id = 3 where id = 1")
            conn.execute("insert into note values (1, 'n'), (1, 'n')")
            conn.execute("update note set word = 'm' where ctid = (select min(ctid) from note)")
            conn.execute("delete from item where id = 2")
            with conn.transaction(force_rollback=True):
                conn.execute("insert into item values (99, 'never', '')")
        conn.execute("truncate item, note")
        conn.execute("insert into item values (4, '', '')")
        r.captured(task)
    found = r.published()
    assert found.ops == [
        ("c", "item"), ("c", "item"), ("u", "item"), ("u", "item"), ("c", "note"), ("c", "note"), ("u", "note"),
        ("d", "item"), ("t", "item"), ("t", "note"), ("c", "item"),
    ]  # fmt: skip
    first, second, update, move, _, _, noted, gone, *_, last = found.changes
    assert first.after == {"id": 1, "name": "a", "body": "x" * 9000}
    assert second.after == {"id": 2, "name": "b", "body": None}
    assert (update.missing, update.before) == (("body",), None)
    assert (move.before or {})["id"] == 1
    assert (move.after or {})["id"] == 3
    assert move.missing == ("body",)
    assert noted.before == {"id": 1, "word": "n"}
    assert gone.before == {"id": 2, "name": None, "body": None}
    assert gone.before_missing == ("name", "body")
    assert last.after == {"id": 4, "name": "", "body": ""}
    assert [c.position.seq for c in found.changes] == [0, 1, 0, 1, 2, 3, 4, 5, 0, 1, 0]
    assert len({c.xid for c in found.changes[2:8]}) == 1


def test_restarts_carry_on_where_kafka_stands(rig: MakeRig) -> None:
    r = rig(ITEM, "item")
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        with r.connect() as conn:
            while not stop.is_set():
                conn.execute("insert into item select %s + g, 'x' from generate_series(1, 7) g", (written,))
                written += 7

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(4):
            with r.running():
                time.sleep(0.4)
    finally:
        stop.set()
        writer.join()
    with r.running() as task:
        r.captured(task)
    found = r.published()
    assert [(c.after or {})["id"] for c in found.changes] == list(range(1, written + 1))
    assert r.confirmed() <= found.epochs[-1].end_lsn


def test_a_transaction_larger_than_an_epoch_is_a_run_of_parts(rig: MakeRig) -> None:
    r = rig(ITEM, "item")
    with r.connect() as conn, r.running(max_rows=100) as task:
        conn.execute("insert into item values (0, 'before')")
        conn.execute("insert into item select g, 'x' from generate_series(1, 1050) g")
        conn.execute("insert into item values (2000, 'after')")
        r.captured(task)
    found = r.published()
    assert [(c.after or {})["id"] for c in found.changes] == [0, *range(1, 1051), 2000]
    parts = [e for e in found.epochs if not e.complete]
    assert len(parts) >= 10
    first = parts[0].epoch
    assert [e.epoch for e in parts] == list(range(first, first + len(parts))), "something stands between the parts"
    assert max(sum(e.rows.values()) for e in found.epochs) <= 100
    before = found.epochs[first - 1]
    assert {e.end_lsn for e in parts} == {before.end_lsn}, "a part must not move the position that is confirmed"
    assert found.epochs[first + len(parts)].complete


def test_echoes_of_our_other_direction_are_dropped_and_nobody_elses(rig: MakeRig) -> None:
    r = rig(ITEM, "item")

    def marked(conn: psycopg.Connection[Any], content: str, key: int, *, first: bool = True) -> None:
        mark = "select pg_logical_emit_message(true, 'slackwater.echo', %s)"
        with conn.transaction():
            if first:
                conn.execute(mark, (content,))
            conn.execute("insert into item values (%s, 'x')", (key,))
            if not first:
                conn.execute(mark, (content,))

    with r.connect() as conn, r.running() as task:
        marked(conn, f"{r.migration}.reverse", 1)
        marked(conn, f"{r.migration}.forward", 2)
        marked(conn, "other.reverse", 3)
        marked(conn, f"{r.migration}.reverse", 4, first=False)
        r.captured(task)
    assert [(c.after or {})["id"] for c in r.published().changes] == [2, 3, 4]


def test_messages_of_ours_travel_in_their_transactions_epoch(rig: MakeRig) -> None:
    r = rig(ITEM, "item")
    token = f'{{"migration": "{r.migration}", "direction": "forward", "token": "t1"}}'
    with r.connect() as conn, r.running() as task:
        with conn.transaction():
            conn.execute("insert into item values (1, 'x')")
            conn.execute("select pg_logical_emit_message(true, 'slackwater.token', %s)", (token,))
            conn.execute("insert into item values (2, 'x')")
        for other in (token.replace(r.migration, "other"), token.replace("forward", "reverse"), "not json"):
            conn.execute("select pg_logical_emit_message(true, 'slackwater.token', %s)", (other,))
        conn.execute("select pg_logical_emit_message(false, 'slackwater.token', %s)", (token,))
        r.captured(task)
    found = r.published()
    messages = [m for e in found.epochs for m in e.messages]
    assert [(m.prefix, m.content, m.position.seq) for m in messages] == [("slackwater.token", token, 1)]
    assert [c.position.seq for c in found.changes] == [0, 2]


def test_hostile_settings_bend_no_text(rig: MakeRig) -> None:
    r = rig(
        "create table t (id int primary key, d date, i interval, b bytea, r real, n numeric[], ts timestamptz)", "t"
    )
    with r.connect() as conn:
        name = conn.info.dbname
        for setting in (
            "DateStyle to 'SQL, DMY'",
            "IntervalStyle to 'iso_8601'",
            "bytea_output to 'escape'",
            "extra_float_digits to 0",
            "TimeZone to 'Asia/Kathmandu'",
        ):
            conn.execute(f'alter database "{name}" set {setting}')
    with r.connect() as conn, r.running() as task:
        conn.execute(
            "insert into t values (1, '2024-02-01', '1 day 02:00', '\\x00ff', 0.3, '{1.50,NaN}', '2024-02-01 00:00+00')"
        )
        r.captured(task)
    (change,) = r.published().changes
    after = change.after or {}
    assert (after["d"], after["i"], after["b"]) == ("2024-02-01", "1 day 02:00:00", "\\x00ff")
    assert (after["n"], after["ts"]) == ("{1.50,NaN}", "2024-02-01 00:00:00+00")


def test_partitions_arrive_as_their_root(rig: MakeRig) -> None:
    r = rig(
        "create table p (id int primary key, v text) partition by range (id);"
        "create table p1 partition of p for values from (0) to (100);"
        "create table p2 partition of p for values from (100) to (200)",
        "p",
    )
    with r.connect() as conn, r.running() as task:
        conn.execute("insert into p values (1, 'a'), (150, 'b')")
        conn.execute("update p set id = 160 where id = 1")
        conn.execute("truncate p")
        r.captured(task)
    # moving a row to another partition is a delete and an insert to PostgreSQL itself
    assert r.published().ops == [("c", "p"), ("c", "p"), ("d", "p"), ("c", "p"), ("t", "p")]


def test_a_new_column_is_a_new_schema(rig: MakeRig) -> None:
    r = rig(ITEM, "item")
    with r.connect() as conn, r.running() as task:
        conn.execute("insert into item values (1, 'x')")
        conn.execute("create type mood as enum ('sad', 'ok'); alter table item add m mood default 'ok', drop name")
        conn.execute("insert into item (id, m) values (2, 'sad')")
        r.captured(task)
    before, after = r.published().changes
    assert before.after == {"id": 1, "name": "x", "body": None}
    assert after.after == {"id": 2, "body": None, "m": "sad"}


@pytest.mark.parametrize(
    ("ddl", "says"),
    [
        ("alter table item replica identity nothing", "no replica identity"),
        ("alter table item rename to thing", "renamed to public.thing|also has public.thing"),
        ("alter table item rename id to ident", "lost or renamed id"),
        ("create table extra (id int primary key); alter publication {p} add table extra", "public.extra"),
        ("alter publication {p} set (publish = 'insert')", "was altered"),
        ("drop publication {p}", "publication"),
        ("drop table item; " + ITEM + "alter publication {p} add table only item", "dropped and created anew"),
    ],
)
def test_drift_stops_the_stream_and_loses_nothing(rig: MakeRig, ddl: str, says: str) -> None:
    r = rig(ITEM, "item")
    with r.connect() as conn:
        conn.execute(ddl.format(p=r.slot))
        row: Any = conn.execute("select relname from pg_class where relname in ('item', 'thing')").fetchone()
        key = "ident" if "ident" in ddl and "rename id" in ddl else "id"
        conn.execute(f"insert into {row[0]} ({key}) values (1)")
    error = r.run_until_it_fails()
    assert isinstance(error, SchemaChanged)
    with pytest.raises(SchemaChanged, match=says):
        raise error
    assert error.hint
    assert len(r.published().epochs) == 1


def test_a_table_that_left_the_publication_and_came_back_is_noticed(rig: MakeRig) -> None:
    r = rig(ITEM, "item")
    with r.connect() as conn:
        with r.running() as task:
            conn.execute("insert into item values (1)")
            r.captured(task)
        conn.execute(f"alter publication {r.slot} drop table item")
        conn.execute("insert into item values (2)")
        conn.execute(f"alter publication {r.slot} add table item")
    error = r.run_until_it_fails()
    assert isinstance(error, SchemaChanged)
    assert "got it back" in error.cause


@pytest.mark.parametrize(
    ("change", "said", "halts"),
    [
        ("alter table p detach partition p2", "detached or dropped", False),
        ("drop table p2", "detached or dropped", False),
        (
            (
                "create table q (id int primary key, v text); insert into q values (201); "
                "alter table p attach partition q for values from (200) to (300)"
            ),
            "was attached",
            False,
        ),
        ("create table p3 partition of p for values from (200) to (300)", "", False),
        ("alter table p2 set unlogged", "partition public.p2 of p is unlogged", True),
        ("create unlogged table p3 partition of p for values from (200) to (300)", "p3 of p is unlogged", True),
        (
            (
                "create unlogged table q (id int primary key, v text); "
                "alter table p attach partition q for values from (200) to (300)"
            ),
            "partition public.q of p is unlogged",
            True,
        ),
    ],
)
def test_rows_that_come_or_go_with_their_partition_are_told_of(
    rig: MakeRig, change: str, said: str, halts: bool
) -> None:
    """What can be compared and read again is kept for that, and the stream goes on; rows in no stream halt it."""
    r = rig(
        "create table p (id int primary key, v text) partition by range (id);"
        "create table p1 partition of p for values from (0) to (100);"
        "create table p2 partition of p for values from (100) to (200)",
        "p",
    )
    with r.connect() as conn:
        with r.running() as task:
            conn.execute("insert into p values (1), (101)")
            r.captured(task)
        for statement in change.split("; "):
            conn.execute(statement.encode())
        conn.execute("insert into p values (2)")
        if not halts:
            with r.running() as task:
                r.captured(task)
        else:
            error = r.run_until_it_fails()
            assert isinstance(error, SchemaChanged)
            assert said in error.cause
            assert "slackwater prepare" in error.hint
        kept = [cause for (cause,) in conn.execute("select cause from slackwater.silent_change where kind <> 'file'")]
        assert [said in cause for cause in kept] == ([True] if said else [])


TREE = (
    "create table p (id int primary key, v text) partition by range (id);"
    "create table p1 partition of p for values from (0) to (100);"
    "create table p2 partition of p for values from (100) to (300) partition by range (id);"
    "create table p2a partition of p2 for values from (100) to (200);"
)


@pytest.mark.parametrize(("emptied", "told"), [("p1", "p1"), ("p2", "p2a"), ("only p2a", "p2a")])
def test_a_truncate_of_one_partition_halts(rig: MakeRig, emptied: str, told: str) -> None:
    r = rig(TREE, "p")
    with r.connect() as conn:
        conn.execute("insert into p values (1), (101)")
        with r.running() as task:
            r.captured(task)
        conn.execute("insert into p values (2)")
        with conn.transaction():
            conn.execute("insert into p values (3)")
            conn.execute(f"truncate {emptied}".encode())
            conn.execute("insert into p values (4)")
    for _ in range(2):  # it does not go away by starting again
        error = r.run_until_it_fails()
        assert isinstance(error, SchemaChanged)
        assert f"public.{told} was truncated by itself" in error.cause
        assert "slackwater cancel" in error.hint
    assert [c.after and c.after["id"] for c in r.published().changes][:2] == [1, 101]
    assert not {3, 4} & {c.after and c.after["id"] for c in r.published().changes}


def test_a_truncate_of_one_partition_halts_in_a_transaction_larger_than_an_epoch(rig: MakeRig) -> None:
    r = rig(TREE, "p")
    with r.connect() as conn, conn.transaction():
        conn.execute("truncate p1")
        conn.execute("insert into p select g from generate_series(0, 99) g")
    for _ in range(2):
        error = r.run_until_it_fails(max_rows=10)
        assert "p1 was truncated by itself" in str(error)
    assert not any(e.complete for e in r.published().epochs[1:])


def test_a_truncate_of_the_whole_table_is_streamed_and_of_none_is_not(rig: MakeRig) -> None:
    r = rig(TREE, "p")
    with r.connect() as conn, r.running() as task:
        conn.execute("insert into p values (1), (101)")
        conn.execute("truncate p")
        with conn.transaction():
            conn.execute("truncate p1, p cascade")
            conn.execute("insert into p values (5)")
        with conn.transaction(), conn.transaction(force_rollback=True):  # a savepoint, rolled back
            conn.execute("truncate p1")
        with conn.transaction():
            conn.execute("truncate p2")
            conn.execute("truncate p")
        r.captured(task)
    assert r.published().ops == [("c", "p")] * 2 + [("t", "p")] * 2 + [("c", "p"), ("t", "p")]


def test_a_partition_made_while_capture_runs_is_watched(rig: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "slackwater.capture")
    r = rig(TREE, "p")
    with r.connect() as conn:
        with r.running() as task:
            conn.execute("create table p3 partition of p for values from (300) to (400)")
            conn.execute("insert into p values (301)")  # describes the partition, so capture looks at once
            r.captured(task)
            until(lambda: "p3 is watched" in caplog.text, 10)
            assert task.heartbeat.figures["unwatched"] == []
        conn.execute("truncate p3")
    assert "p3 was truncated by itself" in str(r.run_until_it_fails())


def test_a_partition_that_may_have_been_emptied_before_it_was_watched_halts(rig: MakeRig) -> None:
    r = rig(TREE, "p")
    with r.connect() as conn:
        conn.execute("create table p3 partition of p for values from (300) to (400)")
        conn.execute("insert into p values (301)")
        conn.execute("truncate p3")
        for _ in range(2):  # it does not go away by starting again
            error = r.run_until_it_fails()
            assert isinstance(error, SchemaChanged)
            assert "public.p3 was truncated, rewritten or moved" in error.cause
            assert "slackwater prepare" in error.hint
            assert "slackwater verify --repair" in error.hint
        with connect(r.dsn) as session:  # what `prepare` does
            assert truncation.ensure(session, r.migration, DIRECTION, r.plan.sources.values()) == [("public", "p3")]
        with r.running() as task:
            r.captured(task)
    assert [c.after and c.after["id"] for c in r.published().changes] == [301]


def test_a_partition_in_use_is_watched_when_it_is_free(rig: MakeRig) -> None:
    r = rig(TREE, "p")
    with r.connect() as conn, r.connect() as writer:
        conn.execute("create table p3 partition of p for values from (300) to (400)")
        with writer.transaction():
            writer.execute("insert into p values (301)")
            with r.running() as task:
                until(lambda: task.heartbeat.figures.get("unwatched") == ["public.p3"], 10)
        with r.running() as task:
            until(lambda: task.heartbeat.figures.get("unwatched") == [], 10)


def test_a_narrower_replica_identity_stops_the_stream(rig: MakeRig) -> None:
    r = rig(ITEM + "alter table item replica identity full", "item")
    with r.connect() as conn:
        conn.execute("alter table item replica identity default")
        conn.execute("insert into item values (1)")
    error = r.run_until_it_fails()
    assert isinstance(error, SchemaChanged)
    assert "no longer holds name, body" in error.cause


def drop_slot(conn: psycopg.Connection[Any], r: Rig) -> None:
    slots.drop_slot(conn, r.slot)


def recreate_slot(conn: psycopg.Connection[Any], r: Rig) -> None:
    slots.drop_slot(conn, r.slot)
    slots.create_slot(r.dsn, r.slot, waiting=lambda _: None)


def advance_slot(conn: psycopg.Connection[Any], r: Rig) -> None:
    conn.execute("insert into item values (10)")
    conn.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", (r.slot,))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (drop_slot, "does not exist"),
        (recreate_slot, "dropped and created again"),
        (advance_slot, "advanced"),
    ],
)
def test_a_slot_that_is_not_ours_any_more_halts(
    rig: MakeRig, harm: Callable[[psycopg.Connection[Any], Rig], None], says: str
) -> None:
    r = rig(ITEM, "item")
    with r.connect() as conn:
        with r.running() as task:
            conn.execute("insert into item values (1)")
            r.captured(task)
        until(lambda: r.active_pid() is None, 5)
        harm(conn, r)
        conn.execute("insert into item values (2)")
    epochs = len(r.published().epochs)
    error = r.run_until_it_fails()
    assert isinstance(error, SlotLost)
    assert says in error.cause
    assert "prepare anew" in error.hint
    assert len(r.published().epochs) == epochs, "something was published over the hole"


def test_a_slot_older_than_its_publication_is_refused(rig: MakeRig) -> None:
    """Hazard A1: up to 17 the server fails, 18 only warns and drops the rows."""
    r = rig(ITEM, "item")
    with r.connect() as conn:
        conn.execute(f"drop publication {r.slot}")
        conn.execute("insert into item values (1)")
        slots.ensure_publication(conn, r.slot, [("public", "item")])
        conn.execute("insert into item values (2)")
    error = r.run_until_it_fails()
    assert isinstance(error, SchemaChanged)
    assert r.slot in error.cause
    assert r.published().changes == []


def test_only_one_capture_has_the_slot(rig: MakeRig) -> None:
    r = rig(ITEM, "item")
    with r.running() as task:
        r.captured(task)
        with pytest.raises(Unavailable, match=r"active for PID \d+"):
            Capture(r.task()).run(threading.Event())


def test_an_idle_slot_moves_on_while_another_database_writes(rig: MakeRig, make_database: Callable[[str], str]) -> None:
    r = rig(ITEM, "item")
    other = make_database("other")
    with psycopg.connect(other, autocommit=True) as conn, r.running() as task:
        conn.execute("create table noise (v text)")
        for _ in range(3):
            conn.execute("insert into noise select repeat(md5(g::text), 30) from generate_series(1, 20000) g")
        wanted = r.lsn()
        until(lambda: r.confirmed() + (17 << 20) >= wanted, 15)
        until(lambda: parse_lsn(task.heartbeat.figures["captured_lsn"]) >= wanted, 15)
    found = r.published()
    assert found.changes == []
    assert len(found.epochs) > 1
    assert all(not e.rows and e.complete for e in found.epochs[1:])


def test_captured_lsn_never_runs_ahead_of_kafka(rig: MakeRig) -> None:
    """It stands still while the publisher does, and says for what it waits."""
    r = rig(ITEM, "item")
    with r.connect() as conn, r.running() as task:
        r.captured(task)
        frozen = threading.Event()
        publish = task.writer.publish

        def slow(*arguments: Any) -> None:
            frozen.wait(20)
            publish(*arguments)

        task.writer.publish = slow  # type: ignore[method-assign,assignment]
        conn.execute("insert into item values (1)")
        lsn = r.lsn()
        until(lambda: task.heartbeat.figures["waits_for"] is not None, 5)
        assert task.heartbeat.figures["waits_for"].startswith("waits for Kafka")
        assert task.heartbeat.state == "waiting"
        assert parse_lsn(task.heartbeat.figures["captured_lsn"]) < lsn
        frozen.set()
        r.captured(task)
        until(lambda: task.heartbeat.state == "running", 5)


@pytest.mark.parametrize(("which", "made_anew"), [("rows", False), ("epochs", False), ("epochs", True)])
def test_topics_that_are_gone_halt(rig: MakeRig, which: str, made_anew: bool) -> None:
    """(A row topic that was made anew is found out by apply, which knows its id.)"""
    r = rig(ITEM, "item")
    name = r.plan.topics["item"] if which == "rows" else r.epochs_topic
    topics = Topics(r.bootstrap, {})
    topics.delete([name])
    if made_anew:
        topics.ensure([TopicSpec(name=name, kind=Kind.EPOCHS)])
    error = r.run_until_it_fails()
    assert isinstance(error, StreamGap)
    assert "prepare anew" in error.hint


def test_partitions_may_be_added(rig: MakeRig) -> None:
    r = rig(ITEM, "item", partitions=1)
    with r.connect() as conn:
        with r.running() as task:
            conn.execute("insert into item select g from generate_series(1, 50) g")
            r.captured(task)
        admin = AdminClient({"bootstrap.servers": r.bootstrap})
        for future in admin.create_partitions([NewPartitions(r.plan.topics["item"], 4)]).values():
            future.result()
        with r.running() as task:
            conn.execute("update item set name = 'x'")
            r.captured(task)
    found = r.published()
    assert len(found.changes) == 100
    assert {p for e in found.epochs for x in e.extents.values() for p in x} == {0, 1, 2, 3}


def test_a_message_of_an_earlier_version_is_carried_and_one_of_a_later_halts(rig: MakeRig) -> None:
    """A message that says `closed` in words that this program does not know must not go by unread."""
    r = rig(ITEM, "item")
    told = {"migration": r.migration, "direction": "forward", "token": "t1"}
    emit = "select pg_logical_emit_message(true, 'slackwater.token', %s)"
    with r.connect() as conn:
        with r.running() as task:
            for version in ({}, {"version": wire_version.VERSION}):
                conn.execute(emit, (json.dumps(told | version),))
            r.captured(task)
        assert sum(len(e.messages) for e in r.published().epochs) == 2
        conn.execute(emit, (json.dumps(told | {"version": wire_version.VERSION + 1}),))
    error = r.run_until_it_fails()
    assert isinstance(error, Halt)
    assert f"a message in the WAL of version {wire_version.VERSION + 1}" in error.cause
    assert "a newer one" in error.hint
