"""What a chunk may be read from: commits in the WAL that are not visible, replicas that lag, tables being rewritten.

A commit that waits for a synchronous standby is decoded by slots before any snapshot shows it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from connectors import local
from connectors.postgres import catalog
from connectors.postgres.chunks import Barrier, Reader, TooEarly, barrier_wait, record_barrier
from connectors.postgres.session import Connection, connect
from schemas.errors import Contended, Halt, SlotLost
from schemas.position import Lsn
from schemas.table import Table
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling, background, wait_for
from tests.fixtures.servers import private_postgres, standby_of

OLD = """
create table t (id integer primary key, v text);
insert into t select i, 'v' || i from generate_series(1, 500) i;
create table late (id integer primary key, v text);
insert into late values (1, 'v');
create table log (v text);
alter table log replica identity full;
insert into log values ('there');
"""
NEW = """
create table t (id integer primary key, v text);
create table late (id integer primary key, v text);
create table log (v text);
"""
PAST = Lsn(0)


class Cluster:
    """A primary of its own for old, with a standby; new is on the shared server."""

    def __init__(self, primary: local.Postgres, standby: local.Postgres, new: str) -> None:
        self.primary = primary
        self.standby = standby
        self.filling = Filling(Databases(old=primary.dsn("shop"), new=new), OLD, NEW, "copy: [t, late, log]")

    def commits_wait(self) -> None:
        """From now on a commit returns when the standby has it; the standby answers nothing."""
        self.primary.query("alter system set synchronous_standby_names = 'standby'")
        self.primary.query("select pg_reload_conf()")
        self.filling.old.execute("set synchronous_commit = local")  # ours need not wait
        wait_for(lambda: self.primary.query("show synchronous_standby_names") == [("standby",)])
        wait_for(lambda: self.primary.query("select sync_state from pg_stat_replication") == [("sync",)])
        self.standby.freeze()

    @contextmanager
    def stalled(self, statement: str) -> Iterator[None]:
        """A transaction that has written its commit record and is not visible, until the block ends."""
        with connect(self.primary.dsn("shop"), settings={"search_path": "public"}) as conn:
            thread = threading.Thread(target=conn.execute, args=(statement.encode(),))
            thread.start()
            try:
                waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
                wait_for(lambda: self.primary.query(waiting) == [(1,)])
                yield
            finally:
                self.standby.thaw()
                thread.join(20)
                assert not thread.is_alive()


@pytest.fixture
def cluster(make_database: Callable[[str], str]) -> Iterator[Cluster]:
    with private_postgres() as primary:
        primary.create_database("shop")
        with standby_of(primary) as standby:
            made = Cluster(primary, standby, make_database("new"))
            yield made
            made.filling.close()


def test_a_commit_that_is_stalled_while_its_chunk_is_read_survives(cluster: Cluster) -> None:
    filling = cluster.filling
    cluster.commits_wait()
    with filling.streaming():
        with cluster.stalled("update t set v = 'new' where id = 7"), filling.backfill():
            filling.filled()
            assert filling.one("select v from app.t where id = 7", on="new") == "v7"  # no snapshot shows it yet
        wait_for(lambda: bool(filling.one("select v from app.t where id = 7", on="new") == "new"))
    filling.agrees()


def test_a_commit_that_is_in_no_stream_is_waited_for(cluster: Cluster) -> None:
    """It wrote to a table before the publication held it, and was stalled while the table was added."""
    filling = cluster.filling
    filling.old.execute("alter publication tape drop table late")
    cluster.commits_wait()
    with cluster.stalled("insert into late values (2, 'stalled')"):
        filling.old.execute("alter publication tape add table late")
        filling.reset()  # the barrier is recorded meanwhile: its own commit does not wait
        with filling.backfill():
            said = "waits for transactions that are older than the slot: 1 open"
            wait_for(lambda: str(filling.heartbeat.reason).startswith(said))
            assert filling.heartbeat.state == "waiting"
            assert filling.one("select count(*) from slackwater.backfill_chunk where state = 'done'", on="new") == 0
            cluster.standby.thaw()
            filling.filled()
    assert filling.one("select count(*) from app.late", on="new") == 2
    assert [c for c in filling.advance() if c.table == "late"] == []  # the stream does not have it
    filling.agrees()


def test_the_snapshot_that_is_used_is_judged_itself(databases: Databases) -> None:
    with connect(databases.old) as other, table(databases.old) as (source, t):
        other.execute("begin; insert into public.t values (1000, 'open')")
        barrier = record_barrier(source)
        assert "1 open, the oldest in process" in str(barrier_wait(source, barrier))
        with reading(databases.old) as reader:
            with pytest.raises(TooEarly), reader.snapshot(t, barrier, PAST):
                pytest.fail("a snapshot that does not show an older transaction was used")
            other.execute("commit")
            assert reader.wait_reason(barrier, PAST) is None
            with reader.snapshot(t, barrier, PAST):
                assert copied(reader) == 501


@pytest.mark.parametrize("slots", [10, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_commit_while_a_slot_is_made_is_in_the_chunk_or_in_the_stream(databases: Databases, slots: int) -> None:
    """Hazard B2: between a commit's place in the WAL and its being visible, a slot is made, and a snapshot taken."""
    with table(databases.old) as (source, t), reading(databases.old) as reader:
        source.execute("create publication racing for table public.t")
        committed: list[int] = []
        with (
            background(lambda stop: commits(databases.old, 1000, committed, stop)),
            background(lambda stop: commits(databases.old, 5_000_000, committed, stop)),
        ):
            for n in range(slots):
                source.execute("select pg_create_logical_replication_slot('racing', 'pgoutput')")
                barrier = record_barrier(source)
                while reader.wait_reason(barrier, PAST) is not None:
                    time.sleep(0.001)
                with reader.snapshot(t, barrier, PAST):
                    shown = {i for (i,) in reader.rows.execute("select id from public.t").fetchall()}
                there = list(committed)
                rows = source.execute(
                    "select data from pg_logical_slot_peek_binary_changes('racing', null, null,"
                    " 'proto_version', '1', 'publication_names', 'racing')"
                ).fetchall()
                sent = {first_column(data) for (data,) in rows if data[:1] == b"I"}
                assert not set(there) - shown - sent, f"slot {n}: in neither"
                source.execute("select pg_drop_replication_slot('racing')")
                source.execute("delete from public.t where id = any(%s)", (there,))
                del committed[: len(there)]


def commits(dsn: str, first: int, committed: list[int], stop: threading.Event) -> None:
    """Transaction after transaction of one row; `committed` grows once each has been answered."""
    with connect(dsn) as conn:
        while not stop.is_set():
            conn.execute("insert into public.t values (%s, 'x')", (first,))
            committed.append(first)
            first += 1


def first_column(insert: bytes) -> int:
    """`I`, the relation's number, `N`, the count of columns, `t`, and the first one's length and text."""
    length = int.from_bytes(insert[9:13], "big")
    return int(insert[13 : 13 + length])


def test_a_prepared_transaction_is_named(databases: Databases) -> None:
    with table(databases.old) as (source, _):
        source.execute("begin; insert into public.t values (1000, 'x'); prepare transaction 'two'")
        barrier = record_barrier(source)
        assert str(barrier_wait(source, barrier)).endswith("1 prepared")
        source.execute("commit prepared 'two'")
        assert barrier_wait(source, barrier) is None


@contextmanager
def table(dsn: str) -> Iterator[tuple[Connection, Table]]:
    """A table `t` of 500 rows, and its barrier's session."""
    with connect(dsn) as conn:
        conn.execute("create table public.t (id integer primary key, v text)")
        conn.execute("insert into public.t select i, 'v' || i from generate_series(1, 500) i")
        yield conn, catalog.tables(conn, "public")["t"]


@contextmanager
def reading(dsn: str, replica: str | None = None) -> Iterator[Reader]:
    with connect(dsn) as conn:
        at = catalog.server(conn)
    reader = Reader(dsn, replica_dsn=replica, system_id=at.system_id, timeline=at.timeline, application="test")
    try:
        yield reader
    finally:
        reader.close()


def copied(reader: Reader) -> int:
    blocks: list[bytes] = []
    rows, size = reader.copy("select * from only public.t", lambda b: blocks.append(bytes(b)))
    data = b"".join(blocks)
    assert (data.count(b"\n"), len(data)) == (rows, size)
    return rows


def test_a_rewrite_cannot_come_between_snapshot_and_copy(databases: Databases) -> None:
    with table(databases.old) as (source, t), reading(databases.old) as reader:
        barrier = record_barrier(source)
        with connect(databases.old) as other, reader.snapshot(t, barrier, PAST):
            other.execute("set lock_timeout = '200ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("alter table public.t alter column id type bigint")
            assert copied(reader) == 500


def test_a_rewrite_that_commits_while_the_lock_is_waited_for_empties_nothing(databases: Databases) -> None:
    """A snapshot from before the lock was granted would show the rewritten table as empty, without an error."""
    with table(databases.old) as (source, t), reading(databases.old) as reader:
        barrier = record_barrier(source)
        with connect(databases.old) as other:
            other.execute("begin; alter table public.t alter column id type bigint")

            def commit() -> None:
                wait_for(lambda: source.execute("select from pg_locks where not granted").fetchone() is not None)
                other.execute("commit")

            thread = threading.Thread(target=commit)
            thread.start()
            with reader.snapshot(t, barrier, PAST):
                assert copied(reader) == 500
            thread.join()


def test_a_table_that_stays_locked_is_tried_again(databases: Databases) -> None:
    with table(databases.old) as (source, t), reading(databases.old) as reader:
        barrier = record_barrier(source)
        with connect(databases.old) as other:
            other.execute("begin; lock table public.t in access exclusive mode")
            began = time.monotonic()
            with pytest.raises(Contended), reader.snapshot(t, barrier, PAST):
                pytest.fail("the table was locked")
            assert time.monotonic() - began < 3  # the applier stands still meanwhile
        with reader.snapshot(t, barrier, PAST):
            assert copied(reader) == 500


def test_a_read_that_is_given_up_leaves_the_session_usable(databases: Databases) -> None:
    with table(databases.old) as (source, t), reading(databases.old) as reader:
        barrier = record_barrier(source)

        def refuse(block: bytearray) -> None:
            raise RuntimeError("the target is gone")

        with pytest.raises(RuntimeError, match="the target is gone"), reader.snapshot(t, barrier, PAST):
            reader.copy("select i, repeat('x', 1000) from generate_series(1, 1000000) i", refuse)
        with reader.snapshot(t, barrier, PAST):
            assert copied(reader) == 500


def test_chunks_are_read_from_a_replica_that_has_replayed_enough(cluster: Cluster) -> None:
    filling = cluster.filling
    replica = cluster.standby.dsn("shop")
    with (
        connect(replica) as standby,
        connect(filling.databases.old, settings={"search_path": "public"}) as late,
        filling.streaming(),
    ):
        late.execute("begin; insert into log values ('open while its table was loaded')")
        standby.execute("select pg_wal_replay_pause()")
        filling_at = filling.checkpoint().epoch
        with connect(filling.databases.old, settings={"search_path": "public"}) as writer:
            writer.execute("update t set v = 'new' where id % 2 = 0; delete from t where id % 5 = 0")
        wait_for(lambda: filling.checkpoint().epoch > filling_at + 1)
        with filling.backfill(read_from=replica):
            wait_for(lambda: str(filling.heartbeat.reason).startswith("waits for the replica to replay"))
            assert filling.one("select count(*) from slackwater.backfill_chunk where state = 'done'", on="new") == 0
            standby.execute("select pg_wal_replay_resume()")
            filling.filled()
            reads = cluster.standby.query("select count(*) from pg_stat_activity where application_name ~ 'backfill'")
            assert reads[0][0] > 0
        # A replica's snapshot does not name who runs: with it the stream could not tell that this one was not loaded.
        late.execute("commit")
    filling.advance()
    filling.agrees()


def test_a_replica_that_was_promoted_is_refused(cluster: Cluster) -> None:
    filling = cluster.filling
    with reading(filling.databases.old, cluster.standby.dsn("shop")) as reader:
        t = filling.plan.sources["t"]
        cluster.standby.query("select pg_promote()")
        with pytest.raises(Halt, match="no longer follows the source"), reader.snapshot(t, Barrier("3", PAST), PAST):
            pytest.fail("rows of a server that has its own history were read")
    with (
        pytest.raises(Halt, match="is not a replica"),
        reading(filling.databases.old, cluster.standby.dsn("shop")),
    ):
        pytest.fail("it was opened again")


def test_another_cluster_is_refused(cluster: Cluster) -> None:
    with (
        pytest.raises(SlotLost, match="another cluster"),
        reading(cluster.primary.dsn("shop"), cluster.filling.databases.new),
    ):
        pytest.fail("rows of another cluster were read")


def test_a_read_only_replica_as_source_is_refused(cluster: Cluster) -> None:
    at = catalog.server(cluster.filling.old)
    with pytest.raises(Halt, match="is a replica"):
        Reader(
            cluster.standby.dsn("shop"),
            replica_dsn=None,
            system_id=at.system_id,
            timeline=at.timeline,
            application="test",
        )


def test_the_role_waits_for_a_lock_and_goes_on(databases: Databases) -> None:
    filling = Filling(databases, OLD, NEW, "copy: [t, late, log]")
    try:
        with connect(databases.old) as other:
            other.execute("begin; lock table public.t in access exclusive mode")
            role = filling.role(workers=1)
            with background(role.run), filling.streaming():
                wait_for(lambda: "lock timeout" in str(filling.heartbeat.reason))
                epoch = filling.checkpoint().epoch
                wait_for(lambda: filling.checkpoint().epoch > epoch)  # the stream goes on between the tries
                other.execute("rollback")
                filling.filled()
        filling.agrees()
    finally:
        filling.close()
