"""Verification from a replica, and while Kafka is down: an answer that says so, and never a clean one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors import local
from schemas.errors import Halt, Unavailable
from stream.verify import judge
from stream.verify.verdicts import Verdict
from tests.fixtures.databases import Databases, fresh_database
from tests.fixtures.filling import Filling, wait_for
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, started_with
from tests.fixtures.servers import private_kafka, private_postgres, standby_of
from tests.fixtures.verifying import corrupt, found, swept, verdict

pytestmark = pytest.mark.soak

OLD = (
    "create table t (id integer primary key, v text); insert into t select i, 'v' || i from generate_series(1, 900) i;"
)
NEW = "create table t (id integer primary key, v text);"


@pytest.fixture
def replicated(postgres_dsn: str) -> Iterator[tuple[Filling, local.Postgres]]:
    """A loaded table whose source has a physical replica."""
    with private_postgres() as primary, fresh_database(postgres_dsn, "new") as new:
        primary.create_database("shop")
        with standby_of(primary) as standby:
            made = Filling(Databases(old=primary.dsn("shop"), new=new), OLD, NEW, "copy: [t]")
            try:
                with made.streaming(), made.backfill():
                    made.filled()
                yield made, standby
            finally:
                made.close()


def test_read_from_a_replica(replicated: tuple[Filling, local.Postgres], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, standby = replicated
    replica = standby.dsn("shop")
    with loaded.streaming():
        assert found(swept(loaded, replica_dsn=replica)) == {}
        corrupt(loaded, "update app.t set v = 'x' where id = 7", "delete from app.t where id = 900")
        wrong = {"t": [("different", ("7",), ("v",)), ("missing", ("900",), ())]}
        assert found(swept(loaded, replica_dsn=replica)) == wrong
        with pytest.raises(Halt, match="no replica"):
            swept(loaded, replica_dsn=loaded.databases.old)
        # Its replay stands still, and the target goes on.
        standby.query("select pg_wal_replay_pause()")
        loaded.old.execute("update t set v = 'newer' where id between 100 and 120")
        monkeypatch.setattr(judge, "PATIENCE_S", 2.0)
        wait_for(lambda: loaded.one("select count(*) from app.t where v = 'newer'", on="new") == 21)
        with pytest.raises(Unavailable, match="has not replayed"):
            swept(loaded, replica_dsn=replica)
        assert verdict(loaded).state is Verdict.MISMATCHED
        standby.query("select pg_wal_replay_resume()")
        monkeypatch.setattr(judge, "PATIENCE_S", 60.0)
        assert found(swept(loaded, replica_dsn=replica)) == wrong
        standby.stop()
        with pytest.raises(Unavailable):
            swept(loaded, replica_dsn=replica)


def test_kafka_is_down(shop: Shop, tmp_path: Path) -> None:
    with private_kafka() as broker:
        own = shop.with_(bootstrap=broker.bootstrap)
        env = {"OLD_DSN": own.old, "NEW_DSN": own.new, "KAFKA": own.bootstrap}
        with started_with(tmp_path, own.text, env) as program:
            program("prepare", "--yes")
            program.start("run")
            program("wait", "--for", "phase=streaming", "--timeout", "60")
            program("verify")
            broker.kill()
            shop.on_old("update shop.customers set email = 'newer@x' where id = 1")
            said = program("verify", code=1)
            assert "the stream" in said
            assert "clean" not in said
            broker.start()
            program.until(lambda: settled(program), within_s=90)
            program("verify")


def settled(program: Program) -> bool:
    lag = program.forward()["lag_seconds"]
    return lag is not None and lag < 5
