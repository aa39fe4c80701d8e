"""What stands in the way of a turn: each is named, the application carries on, and the same verb succeeds later."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from connectors.local.processes import unprivileged
from tests.fixtures.databases import Databases
from tests.fixtures.launch import COMMAND
from tests.fixtures.ledger import writing
from tests.fixtures.servers import private_kafka
from tests.fixtures.tide import Tide, resume, state_of, tide_on

HELD = "select count(*) from pg_locks where mode = 'ShareRowExclusiveLock' and granted"


def test_a_native_subscription_into_either_side_blocks(tide: Tide) -> None:
    """Its worker writes past statement triggers: on the side that closes nothing would hold it back."""
    tide.on("old", "create publication feed for table shop.event")
    for side, table in (("old", "shop.event_a"), ("new", "app.account")):
        subscription = f"feeds_{side}"
        tide.on(
            side,
            f"create subscription {subscription} connection 'host=127.0.0.1 port=1' publication feed"
            " with (connect = false, slot_name = none, enabled = false)",
        )
        tide.on(
            side,
            f"insert into pg_subscription_rel select oid, '{table}'::regclass, 'r', null from pg_subscription"
            f" where subname = '{subscription}'",
        )
        for arguments in ((), ("--dry-run",)):
            told = tide.cutover(*arguments, code=3)
            assert [r for r in told["reasons"] if f"subscription {subscription} writes {table}" in r], told
        assert tide.open_sides() == ["old"]
        tide.on(side, f"drop subscription {subscription}")
    assert tide.cutover()["result"] == "done"


def test_the_operators_terminal_is_gone(tide: Tide) -> None:
    """SIGHUP, as a shell's end or a cut connection sends it: before the fence it is given up, after it is finished."""
    known, ledger = len(cutovers(tide)), tide.ledger()
    with writing(ledger):
        for point, expected in (("after_hold", "old"), ("after_close", "new")):
            turning, terminal = on_a_terminal(tide, "cutover", failpoints=f"turn.{point}=sleep:1.5")
            if point == "after_hold":
                tide.program.until(lambda: tide.on("old", HELD)[0][0] > 0)
            else:
                tide.program.until(lambda: tide.open_sides() == [])
            os.close(terminal)
            code = turning.wait(60)
            assert (code, tide.open_sides()) == (4 if expected == "old" else 0, [expected])
        time.sleep(0.3)
    assert tide.program.status()["phase"] == "switched"
    assert cutovers(tide)[known:] == ["aborted", "intent", "done"]
    tide.agree(ledger)


def cutovers(tide: Tide) -> list[str]:
    """What the journal says of cutovers, its chain verified."""
    entries = json.loads(tide.program("journal", "--json", "--verify"))["entries"]
    return [e["outcome"] for e in entries if e["step"] == "cutover"]


def on_a_terminal(tide: Tide, *arguments: str, failpoints: str) -> tuple[subprocess.Popen[bytes], int]:
    """A verb as the leader of a session on a terminal of its own; closing the terminal's other end hangs it up."""
    ours, its = pty.openpty()
    env = os.environ | tide.program.env | {"SLACKWATER_FAILPOINTS": failpoints}
    process = subprocess.Popen(
        ["setsid", "--ctty", COMMAND, "-c", str(tide.program.file), *arguments, "--yes"],
        stdin=its,
        stdout=its,
        stderr=its,
        env=env,
    )
    os.close(its)
    tide.program.background.append(process)
    return process, ours


@contextlib.contextmanager
def small_tablespace(dsn: str, size: str = "8m") -> Iterator[str]:
    """A tablespace on a disk of its own that is nearly nothing. Needs root: it is a tmpfs."""
    account = unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="slackwater-small-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder], check=True)
    name = re.sub(r"\W", "_", folder.name)
    try:
        if account is not None:
            os.chown(folder, account.uid, account.gid)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"create tablespace {name} location '{folder}'".encode())
        yield name
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("alter table slackwater.journal set tablespace pg_default; drop table if exists fill")
            conn.execute("alter index slackwater.journal_pkey set tablespace pg_default")
            conn.execute(f"drop tablespace {name}".encode())
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def fill(conn: psycopg.Connection[tuple[object, ...]], statement: str) -> None:
    """Again and again, until there is no room left."""
    with contextlib.suppress(psycopg.errors.DiskFull):
        for _ in range(100_000):
            conn.execute(statement.encode())
        pytest.fail("the disk does not fill up")


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="root may mount the small disk that this fills; nobody else")
def test_the_disk_is_full_at_the_journal(tide: Tide) -> None:
    """The intent cannot be written down: nothing is closed, and with room again the same verb succeeds."""
    ledger = tide.ledger()
    with small_tablespace(tide.dsns["new"]) as small, writing(ledger):
        with psycopg.connect(tide.dsns["new"], autocommit=True) as conn:
            for what in ("table slackwater.journal", "index slackwater.journal_pkey"):
                conn.execute(f"alter {what} set tablespace {small}".encode())
            conn.execute(f"create unlogged table fill (t text) tablespace {small}".encode())
            conn.execute("alter table fill alter t set storage external")
            fill(conn, "insert into fill select repeat('x', 7000) from generate_series(1, 50)")
            fill(conn, "insert into fill values ('x')")
            # What is left of the journal's own last page is taken as well.
            fill(
                conn,
                "insert into slackwater.journal select 'other', coalesce(max(seq), 0) + 1, now(), 'a', null, 'h',"
                " repeat('s', 300), 'done', '{}', '', '' from slackwater.journal where migration = 'other'",
            )
        told = tide.cutover(code=4)
        assert (told["result"], told["writes"], tide.open_sides()) == ("aborted", "old", ["old"])
        assert "No space left on device" in told["error"]["cause"], told
        assert "free space" in told["error"]["remedy"]
        assert any("the journal could not be written" in note for note in told["notes"])
        assert ledger.retried == 0
        with psycopg.connect(tide.dsns["new"], autocommit=True) as conn:
            conn.execute("drop table fill")
            conn.execute("delete from slackwater.journal where migration = 'other'")
            assert tide.turn_until_done("cutover")["writes"] == "new"
        time.sleep(0.3)
    tide.agree(ledger)
    tide.program("journal", "--verify")


@pytest.mark.soak
def test_kafka_is_down(databases: Databases, tmp_path: Path) -> None:
    """Before the verb begins, and under its hold."""
    with (
        private_kafka() as broker,
        tide_on(tmp_path, {"old": databases.old, "new": databases.new}, broker.bootstrap) as tide,
    ):
        ledger = tide.ledger()
        with writing(ledger):
            time.sleep(1)
            broker.kill()
            time.sleep(1)
            for arguments in ((), ("--dry-run",)):
                told = tide.cutover("--max-pause", "3", *arguments, code=None)
                assert (told["result"], told["writes"]) in (("refused", "old"), ("aborted", "old")), told
                assert told["reasons"]
            assert ledger.retried == 0
            assert ledger.slowest_s < 6
            broker.start()
            assert tide.turn_until_done("cutover")["writes"] == "new"
            assert tide.turn_until_done("rollback")["writes"] == "old"

            tide.turn_until_done("cutover", "--dry-run")
            turning = tide.start("cutover", "--max-pause", "4", failpoints="turn.after_hold=stop")
            tide.program.until(lambda: state_of(turning.pid) == "T")
            broker.kill()
            resume(turning)
            out, err = turning.communicate(timeout=60)
            told = json.loads(out)
            assert (turning.returncode, told["result"], told["writes"]) == (4, "aborted", "old"), err
            assert any("forward capture, Kafka, or forward apply" in r for r in told["reasons"]), told
            broker.start()
            assert tide.turn_until_done("cutover")["writes"] == "new"
            time.sleep(0.3)
        tide.agree(ledger)


@pytest.mark.soak
def test_an_anti_wraparound_vacuum_is_named(tide: Tide) -> None:
    """No lock request makes it leave, so it is refused by name; an ordinary vacuum leaves, and holds nothing up."""
    with psycopg.connect(tide.dsns["old"], autocommit=True) as conn:
        conn.execute("insert into shop.entry select i, 0, 'x' from generate_series(1000000, 1080000) i")
        tide.drained("old")
        conn.execute("set synchronous_commit = off")
        burn = "do $$ begin for i in 1..100100 loop perform pg_current_xact_id(); commit; end loop; end $$"
        conn.execute(burn)
        conn.execute("alter system set autovacuum_naptime = '1s'")
        conn.execute("select pg_reload_conf()")
        conn.execute(
            "alter table shop.entry set (autovacuum_freeze_max_age = 100000, autovacuum_vacuum_cost_delay = 100,"
            " autovacuum_vacuum_cost_limit = 20)"
        )
        try:
            seen = "select count(*) from pg_stat_activity where query like '%shop.entry (to prevent wraparound)'"
            tide.program.until(lambda: tide.on("old", seen) == [(1,)], 90)
            told = tide.cutover(code=3)
            assert [r for r in told["reasons"] if "an anti-wraparound vacuum by pid" in r and "shop.entry" in r], told
            assert tide.open_sides() == ["old"]
            conn.execute("alter table shop.entry reset (autovacuum_freeze_max_age)")
            conn.execute("alter table shop.entry set (autovacuum_enabled = off)")
            conn.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where query like '%(to prevent wraparound)' and pid <> pg_backend_pid()"
            )
            assert tide.turn_until_done("cutover")["writes"] == "new"
        finally:
            conn.execute("alter system reset autovacuum_naptime")
            conn.execute("select pg_reload_conf()")
