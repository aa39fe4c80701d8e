"""`slackwater local`: up is idempotent, survives crashes, and down ends what up started and nothing else."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from connectors import local
from connectors.local import kafka, warmup
from connectors.local.processes import Identity, until, write_identity
from tests.fixtures.servers import private_kafka, private_postgres, standby_of, state_folder

COMMAND = str(Path(sys.executable).with_name("slackwater"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with state_folder() as path:
        try:
            yield path / "state"
        finally:
            local.destroy(path / "state")


def slackwater(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def processes_of(folder: Path) -> list[str]:
    """Every process that works in the folder, or has it in its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(folder) in " ".join([process.cwd(), *process.cmdline()]):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            pass
    return found


def topics(bootstrap: str) -> set[str]:
    return set(AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).topics)


def test_the_verb_starts_says_where_and_stops(folder: Path) -> None:
    first = json.loads(slackwater("local", "up", "--dir", folder, "--json").stdout)
    again = slackwater("local", "up", "--dir", folder, "--json")
    assert json.loads(again.stdout) == first

    lines = slackwater("local", "env", "--dir", folder).stdout.splitlines()
    exported = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert exported == first["env"]
    assert list(exported) == ["OLD_DSN", "NEW_DSN", "KAFKA_BOOTSTRAP"]
    for name, database in (("OLD_DSN", "old"), ("NEW_DSN", "new")):
        with psycopg.connect(exported[name]) as connection:
            row = connection.execute("select current_database(), current_setting('wal_level')").fetchone()
            assert row == (database, "logical")
    assert topics(exported["KAFKA_BOOTSTRAP"]) == set()

    assert processes_of(folder)
    slackwater("local", "down", "--dir", folder)
    assert processes_of(folder) == []
    slackwater("local", "down", "--dir", folder)

    refused = slackwater("local", "env", "--dir", folder, code=1)
    assert refused.stdout == ""
    assert "slackwater local up" in refused.stderr
    kept = folder / "notes.txt"
    kept.write_text("not ours")
    asked = slackwater("local", "down", "--dir", folder, "--purge", code=2)
    assert f"this needs a yes: Delete the embedded PostgreSQL and Kafka in {folder}" in asked.stderr
    assert (folder / "postgres").is_dir()
    slackwater("local", "down", "--dir", folder, "--purge", "--yes")
    assert list(folder.iterdir()) == [kept]
    kept.unlink()
    slackwater("local", "down", "--dir", folder, "--purge", "--yes")
    assert not folder.exists()


def test_everything_killed_and_up_again_keeps_data_and_addresses(folder: Path) -> None:
    before = local.up(folder)
    with psycopg.connect(before.old_dsn, autocommit=True) as connection:
        connection.execute("create table kept as select 1 as n")
    admin = AdminClient({"bootstrap.servers": before.kafka_bootstrap})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result()
    before.postgres.freeze()  # backends that are stopped outlive their postmaster
    before.postgres.kill()
    before.kafka.kill()
    assert local.find(folder) is None

    after = local.up(folder)
    assert after == before
    with psycopg.connect(after.old_dsn) as connection:
        assert connection.execute("select n from kept").fetchone() == (1,)
    assert topics(after.kafka_bootstrap) == {"kept"}


def test_pids_that_now_belong_to_somebody_else(folder: Path) -> None:
    started = local.up(folder, kafka=False)
    started.postgres.kill()
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        # As after a reboot: the recorded pids are in use again.
        for server in ("postgres", "kafka"):
            (folder / server).mkdir(exist_ok=True)
            write_identity(folder / server / "process.json", Identity(pid=bystander.pid, started_at=1.0))
        lock = folder / "postgres" / "data" / "postmaster.pid"
        lines = lock.read_text().splitlines()
        lock.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")

        assert local.find(folder) is None
        local.up(folder, kafka=False)
        local.down(folder)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_server_whose_record_was_lost_is_found_and_not_started_twice(folder: Path) -> None:
    before = local.up(folder)
    for server in ("postgres", "kafka"):
        (folder / server / "process.json").unlink()
    assert local.find(folder) == before
    assert local.up(folder) == before
    local.down(folder)
    assert processes_of(folder) == []


def test_the_first_brokers_ever_start_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cached yet: one of them makes the formatted folder, the others wait for it."""
    monkeypatch.setattr(warmup, "build_folder", lambda: tmp_path)
    (tmp_path / ".formatted").mkdir()  # by a process that was killed
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: kafka.formatted_template(), range(3)))
    assert {path for path in made if (path / "meta.properties").exists()} == {tmp_path / "formatted"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["formatted", "formatted.lock"]


def test_half_an_initdb_is_begun_again(folder: Path) -> None:
    started = local.up(folder, kafka=False)
    local.down(folder)
    started.postgres.data.rename(started.postgres.data.with_name("data.new"))
    local.up(folder, kafka=False)


def test_a_taken_port_that_was_asked_for_is_an_error_and_one_that_was_not_is_replaced(folder: Path) -> None:
    first = local.up(folder, kafka=False)
    local.down(folder)
    with private_postgres() as other, pytest.raises(local.LocalFailed, match="did not start"):
        local.up(folder, kafka=False, pg_port=other.port)
    again = local.up(folder, kafka=False, pg_port=first.pg_port)
    with pytest.raises(local.LocalFailed, match="runs already"):
        local.up(folder, kafka=False, pg_port=again.pg_port + 1)


def test_settings_reach_the_server_and_change_with_a_restart() -> None:
    with private_postgres({"wal_level": "replica", "deadlock_timeout": "1234ms"}) as server:
        assert server.query("show wal_level") == [("replica",)]
        assert server.query("show deadlock_timeout") == [("1234ms",)]
        server.settings["wal_level"] = "logical"
        server.stop("immediate")
        server.start()
        assert server.query("show wal_level") == [("logical",)]


def test_a_frozen_server_answers_nothing_and_goes_on_afterwards() -> None:
    with private_postgres() as server, psycopg.connect(server.dsn()) as connection:
        server.freeze()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.dsn(), connect_timeout=2)
        server.thaw()
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_frozen_server_can_be_stopped() -> None:
    with private_postgres() as server:
        server.freeze()
        server.stop(timeout_s=5)
        assert not server.running
    with private_kafka() as broker:
        broker.kill(signal.SIGSTOP)
        broker.stop()
        assert not broker.running


def test_a_standby_follows_and_holds_up_synchronous_commits() -> None:
    with private_postgres() as primary, standby_of(primary, name="second") as standby:
        primary.query("alter system set synchronous_standby_names = 'second'")
        primary.query("select pg_reload_conf()")
        primary.query("create table t as select 1 as n")
        assert standby.query("select pg_is_in_recovery()") == [(True,)]
        standby.freeze()
        with ThreadPoolExecutor(1) as pool:
            stalled = pool.submit(primary.query, "insert into t values (2)")
            waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
            assert until(lambda: primary.query(waiting) == [(1,)], timeout_s=10)
            assert primary.query("select count(*) from t") == [(1,)]  # in the WAL, and not visible
            standby.thaw()
            stalled.result(timeout=10)
        assert primary.query("select count(*) from t") == [(2,)]
