"""What stands at the fence, what comes too late, and what must not fail because somebody turns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.databases import major
from tests.fixtures.launch import COMMAND
from tests.fixtures.ledger import writing
from tests.fixtures.tide import Tide

CLOSED = "25006"

# Every kind of write that may stand in the queue when a side closes.
ATTACKS = (
    "insert into shop.entry values (900001, 0, 'x')",
    "update shop.account set note = 'late' where id = 14",
    "delete from shop.account where id = 14",
    "truncate shop.event",
    "copy shop.entry from program 'echo 900002,0,x' with (format csv)",
    "merge into shop.account a using (values (14)) v(id) on a.id = v.id when matched then update set note = 'late'",
    "insert into shop.event_a values (900003, '2023-01-01')",
    "insert into shop.event values (900004, '2025-01-01')",
    "with w as (insert into shop.entry values (900005, 0, 'x') returning id) select * from w",
)


class Queued:
    """A statement that waits in a session of its own; what it was told."""

    def __init__(self, dsn: str, statement: str, *, before: str = "", begin: str = "begin") -> None:
        self.told: str | None = None
        self._conn = psycopg.connect(dsn, autocommit=True, application_name="queued")
        self._conn.execute(begin.encode())
        if before:
            self._conn.execute(before.encode())
        self._thread = threading.Thread(target=self._run, args=(statement,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self, statement: str) -> None:
        try:
            self._conn.execute(statement.encode())
            self._conn.execute("commit")
            self.told = "done"
        except psycopg.Error as error:
            self.told = error.sqlstate or str(error)

    def end(self) -> str | None:
        self._thread.join(30)
        self._conn.close()
        return self.told


def test_writers_of_every_kind_at_the_fence(tide: Tide) -> None:
    """They come while the tables are held, and are refused when they are let go; none writes."""
    known = [a for a in ATTACKS if not a.startswith("merge") or major(tide.dsns["old"]) >= 15]
    queue = [Queued(tide.dsns["old"], statement) for statement in known]
    queue += [Queued(tide.dsns["old"], s, before="set local session_replication_role = replica") for s in ATTACKS[:4]]
    # A snapshot from before the turn does not see the turn's row; it sees the fence all the same.
    queue += [
        Queued(
            tide.dsns["old"], s, begin="begin isolation level repeatable read", before="select count(*) from shop.event"
        )
        for s in ATTACKS[:3]
    ]
    before = {t: tide.on("old", f"select * from shop.{t} order by 1") for t in ("entry", "account", "event")}
    turning = tide.start("cutover", failpoints="turn.after_hold=sleep:2")
    held = "select count(*) from pg_locks where mode = 'ShareRowExclusiveLock' and granted"
    tide.program.until(lambda: tide.on("old", held)[0][0] > 0)
    for one in queue:
        one.start()
    out, _ = turning.communicate(timeout=60)
    assert json.loads(out)["result"] == "done"
    assert [one.end() for one in queue] == [CLOSED] * len(queue)
    assert {t: tide.on("old", f"select * from shop.{t} order by 1") for t in before} == before


def test_over_the_pause_it_gives_up_and_nobody_is_refused(tide: Tide, tmp_path: Path) -> None:
    """Then: a hook that fails stops it, a terminal that goes away does not, and a hook afterwards is only reported."""
    turns, ledger = tide.turns, tide.ledger()
    with writing(ledger):
        given_up = tide.cutover("--max-pause", "4", failpoints="turn.after_token=sleep:4.5", code=4)
        assert (given_up["result"], given_up["writes"]) == ("aborted", "old")
        assert "longer than 4 s" in given_up["error"]["cause"]
        assert ledger.retried == 0
        assert tide.program.status()["phase"] == "armed"
        interrupted = tide.start("cutover", failpoints="turn.after_hold=sleep:1")
        time.sleep(0.1)
        tide.program.until(lambda: b"S" in proc_state(interrupted.pid) and held_by_us(tide))
        interrupted.send_signal(signal.SIGINT)
        interrupted.communicate(timeout=30)
        assert interrupted.returncode == 4
        assert tide.open_sides() == ["old"]

        file = tide.program.file
        told = tmp_path / "told"
        plain = file.read_text()
        file.write_text(plain + "hooks: {before_cutover: 'echo no room; exit 7'}\n")
        refused = tide.cutover(code=4)
        assert refused["error"]["cause"] == "the hook before_cutover exited with 7"
        file.write_text(plain + f"hooks: {{on_change: 'env | grep ^SLACKWATER_ > {told}', after_cutover: 'exit 9'}}\n")
        gone, terminal = os.pipe()
        os.close(gone)
        command = [COMMAND, "-c", str(file), "cutover", "--yes", "--json"]
        subprocess.run(command, stdout=terminal, stderr=terminal, env=os.environ | tide.program.env, timeout=60)
        os.close(terminal)
        tide.program.until(lambda: tide.open_sides() == ["new"])
    said = dict(line.split("=", 1) for line in told.read_text().splitlines())
    assert said["SLACKWATER_WRITES"] == "new"
    assert said["SLACKWATER_TURN"] == str(turns + 1)
    assert (said["SLACKWATER_FROM"], said["SLACKWATER_TO"]) == ("old", "new")
    assert float(said["SLACKWATER_PAUSE_SECONDS"]) > 0
    done = [e for e in tide.entries() if (e["step"], e["outcome"]) == ("cutover", "done")]
    assert "the hook after_cutover exited with 9; the turn stands" in done[-1]["detail"]["notes"]
    tide.agree(ledger)


def proc_state(pid: int) -> bytes:
    return Path(f"/proc/{pid}/stat").read_bytes()


def held_by_us(tide: Tide) -> bool:
    query = "select count(*) from pg_locks where mode = 'ShareRowExclusiveLock' and granted"
    return bool(tide.on("old", query)[0][0])


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_many_operators_at_once(tide: Tide, count: int) -> None:
    """One turns; the others are told who, or that it is done already."""
    query = "select count(*)::int from slackwater.journal where step = 'cutover' and outcome = 'done'"
    ((before,),) = tide.on("new", query)
    started = [tide.start("cutover") for _ in range(count)]
    answers = [json.loads(p.communicate(timeout=120)[0]) for p in started]
    codes = sorted(p.wait() for p in started)
    assert [a["result"] for a in answers].count("done") == 1
    assert set(codes) <= {0, 3}
    for answer in answers:
        if answer["result"] == "refused":
            assert "slackwater cutover by " in answer["error"]["cause"]
    assert tide.open_sides() == ["new"]
    assert tide.on("new", query) == [(before + 1,)]


def test_no_transaction_is_ever_the_victim_of_a_deadlock_with_us(tide: Tide) -> None:
    """Transactions take the tables in both orders, while attempt after attempt takes and releases its locks."""
    stop = threading.Event()
    failures: list[str] = []
    ended: list[int] = []

    def crossing(number: int, first: str, second: str) -> Callable[[], None]:
        def run() -> None:
            n = 0
            with psycopg.connect(tide.dsns["old"], autocommit=True) as conn:
                while not stop.is_set():
                    try:
                        with conn.transaction():
                            conn.execute(first.encode(), (number,))
                            time.sleep(0.02)
                            conn.execute(second.encode(), (number,))
                        n += 1
                    except psycopg.Error as error:
                        failures.append(f"{error.sqlstate}: {error}")
                        break
            ended.append(n)

        return run

    account = "update shop.account set note = 'b' where id = %s"
    event = "insert into shop.event values (%s + 1000 * (random() * 1000000)::int, '2025-01-01') on conflict do nothing"
    threads = [
        threading.Thread(target=crossing(n, *((account, event) if n % 2 else (event, account))), daemon=True)
        for n in range(4, 12)
    ]
    before = tide.on("old", "select deadlocks from pg_stat_database where datname = current_database()")
    for thread in threads:
        thread.start()
    with psycopg.connect(tide.dsns["old"], application_name="stuck") as stuck:
        # Young at each attempt, so that each one takes its locks, and gives them up.
        turning = tide.start("cutover")
        while turning.poll() is None:
            stuck.execute("update shop.entry set nm = 'x' where false")
            time.sleep(1.2)
            stuck.rollback()
    out = turning.communicate()[0]
    stop.set()
    for thread in threads:
        thread.join(30)
    refused = [f for f in failures if not f.startswith(CLOSED)]
    assert not refused, refused[:2]
    assert sum(ended) > 50
    assert json.loads(out)["result"] in ("aborted", "done")
    time.sleep(1.5)  # statistics come late
    after = tide.on("old", "select deadlocks from pg_stat_database where datname = current_database()")
    assert after == before


@pytest.mark.parametrize("role", ["apply", pytest.param("capture", marks=pytest.mark.soak)])
def test_a_role_is_killed_under_the_hold(tide: Tide, role: str) -> None:
    """It is started again in time, or the turn gives up; either way nothing is lost."""
    ledger = tide.ledger()
    with writing(ledger):
        time.sleep(0.5)
        turning = tide.start("cutover", failpoints="turn.after_hold=sleep:0.3")
        tide.program.until(lambda: held_by_us(tide))
        pid: Any = tide.program.forward()[role]["pid"]
        os.kill(pid, signal.SIGKILL)
        done = json.loads(turning.communicate(timeout=120)[0])
        assert done["result"] in ("done", "aborted")
        if done["result"] == "aborted":
            assert done["writes"] == "old"
            tide.program.until(lambda: tide.program.status()["safe_to_cutover"] is True)
            assert tide.cutover()["result"] == "done"
        time.sleep(0.5)
    tide.agree(ledger)
