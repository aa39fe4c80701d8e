"""What is measured, each beside the raw limit that it can be judged by.

Roles are frozen (SIGSTOP) while a backlog is made and thawed at the clock's start, so that no figure holds the time
that a program takes to start. Rates are changed rows a second.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from connectors import local
from connectors.postgres.session import connect
from tests.bench.rig import ROLES, SELECT, SLOT, Rig

WORKERS = 2
EXISTING = 100_000  # rows of `item` that updates choose from


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything; rows, transactions and seconds."""

    base_rows: int
    transactions: int
    latency_s: float
    spread: int
    large_rows: int
    turns: int
    many_rows: int
    windows: int


FULL = Size(base_rows=1_000_000, transactions=40_000, latency_s=12, spread=4_000, large_rows=1_000_000, turns=20,
            many_rows=5_000_000, windows=6)  # fmt: skip
QUICK = Size(base_rows=200_000, transactions=6_000, latency_s=5, spread=1_500, large_rows=150_000, turns=6,
             many_rows=400_000, windows=2)  # fmt: skip


def backfill(rig: Rig) -> dict[str, float]:
    """From the first chunk's commit to the last one's, by the target's clock; the other roles run already.

    What comes before the first chunk (the role's start, and that it waits until the lag is known) is no rate.
    """
    rig.until(
        lambda: rig.one(rig.new, "select state in ('indexing', 'done') from slackwater.load where name = 'item'"),
        "the backfill",
    )
    rate = rig.one(
        rig.new,
        "select (sum(rows) - min(rows) filter (where place = 1))::float8"
        " / extract(epoch from max(done_at) - min(done_at))"
        " from (select rows, done_at, row_number() over (order by done_at) as place"
        " from slackwater.backfill_chunk where load = 'item') c",
    )
    return {"backfill rows/s": rate}


def copy_copy(rig: Rig) -> dict[str, float]:
    """The same table through as many plain `COPY ... TO | COPY ... FROM` pipes, the same SELECT in them."""
    rig.new.execute("create table copied (like item including indexes)")
    top = rig.one(rig.old, "select max(id) from item")
    psql = str(local.binary("psql"))

    def pipe(worker: int) -> None:
        low, high = top * worker // WORKERS, top * (worker + 1) // WORKERS
        copy_to = f"copy (select * from ({SELECT}) q where id > {low} and id <= {high}) to stdout"
        with subprocess.Popen([psql, rig.servers.old_dsn, "-qc", copy_to], stdout=subprocess.PIPE) as source:
            subprocess.run(
                [psql, rig.servers.new_dsn, "-qc", "copy app.copied from stdin"], stdin=source.stdout, check=True
            )

    started = time.monotonic()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(pipe, range(WORKERS)))
    seconds = time.monotonic() - started
    rows = rig.one(rig.old, "select count(*) from item")
    rig.new.execute("drop table copied")
    return {"COPY | COPY rows/s": rows / seconds}


class Backlog:
    """Transactions of ten rows, half of them new and half of them updates."""

    def __init__(self, rig: Rig, size: Size) -> None:
        self._rig = rig
        self._next = 10_000_000
        self._transactions = size.transactions
        self.rows = size.transactions * 10

    def make(self) -> str:
        """Write it; the LSN at which it is through."""
        self._rig.old.execute("set synchronous_commit = off")
        self._rig.old.execute("call work(%s, %s, %s)", (self._transactions, self._next, EXISTING))
        self._rig.old.execute("reset synchronous_commit")
        self._next += self._transactions * 5
        return self._rig.commit_mark()


def end_to_end(rig: Rig, backlog: Backlog) -> dict[str, float]:
    rig.freeze(*ROLES)
    end = backlog.make()
    before = rig.cpu_s()
    started = time.monotonic()
    rig.thaw(*ROLES)
    rig.until(lambda: rig.applied(end), "the end of the backlog")
    seconds = time.monotonic() - started
    spent = {name: (now - before.get(name, 0.0)) * 1e6 / backlog.rows for name, now in rig.cpu_s().items()}
    figures = {"end to end rows/s": backlog.rows / seconds}
    # What the machine's load cannot distort: the cores' time that one row takes, and who takes it.
    figures |= {f"CPU us/row: {name}": microseconds for name, microseconds in sorted(spent.items())}
    return figures | {"CPU us/row: all of them": sum(spent.values())}


def stages(rig: Rig, backlog: Backlog) -> dict[str, float]:
    """One backlog three times: read and dropped; captured while nothing is applied; applied with nothing captured."""
    rig.one(rig.old, "select pg_create_logical_replication_slot('bench_drain', 'pgoutput')")
    rig.freeze(*ROLES)
    end = backlog.make()
    drained = drain(rig, end)
    rig.one(rig.old, "select pg_drop_replication_slot('bench_drain')")
    started = time.monotonic()
    rig.thaw("capture")
    rig.until(lambda: rig.captured(end), "the capture of the backlog")
    captured = time.monotonic() - started
    rig.freeze("capture")
    started = time.monotonic()
    rig.thaw("apply")
    rig.until(lambda: rig.applied(end), "the application of the backlog")
    applied = time.monotonic() - started
    rig.thaw(*ROLES)
    return {
        "drain and drop rows/s": backlog.rows / drained,
        "capture rows/s": backlog.rows / captured,
        "apply rows/s": backlog.rows / applied,
    }


def drain(rig: Rig, end: str) -> float:
    """Seconds that PostgreSQL's own pg_recvlogical takes to read the same changes and drop them."""
    started = time.monotonic()
    subprocess.run(
        [
            str(local.binary("pg_recvlogical")), "-d", rig.servers.old_dsn, "--slot=bench_drain", "--start",
            "-o", "proto_version=1", "-o", f"publication_names={SLOT}", "-o", "messages=true",
            f"--endpos={end}", "--no-loop", "--fsync-interval=0", "--file=/dev/null",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return time.monotonic() - started


def latency(rig: Rig, size: Size) -> dict[str, float]:
    """Commit to visible, at 500 transactions of ten rows a second: probes of one row, looked for in the target.

    The clock starts when the commit has returned to its client. What the millions of changes before have left to be
    vacuumed and written out is none of this load's, and is done first.
    """
    for conn in (rig.old, rig.new):
        conn.execute("vacuum analyze")
        conn.execute("checkpoint")
    load = subprocess.Popen(
        [
            str(local.binary("pgbench")), "-n", "-c", "4", "-R", "500", "-T", str(int(size.latency_s + 4)),
            "-f", str(__file__).replace("figures.py", "load.sql"), rig.servers.old_dsn,
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    sent: dict[int, float] = {}
    seen: dict[int, float] = {}
    first = int(rig.one(rig.old, "select coalesce(max(id), 0) + 1 from probe"))
    ended = threading.Event()

    def write() -> None:
        with connect(rig.servers.old_dsn, application="bench probe") as conn:
            n = first
            while not ended.wait(0.02):
                conn.execute("insert into public.probe values (%s, 0)", (n,), prepare=True)
                sent[n] = time.monotonic()
                n += 1

    try:
        time.sleep(2)  # the load is at its pace
        writer = threading.Thread(target=write)
        writer.start()
        until = time.monotonic() + size.latency_s
        top = first - 1
        while time.monotonic() < until or (top + 1 in sent and time.monotonic() < until + 20):
            if time.monotonic() >= until:
                ended.set()
            newest = rig.new.execute("select max(id) from app.probe", prepare=True).fetchone()
            now = time.monotonic()
            newest_id = int(newest[0]) if newest and newest[0] is not None else top
            for n in range(top + 1, newest_id + 1):
                seen[n] = now
            top = max(top, newest_id)
            time.sleep(0.003)
        ended.set()
        writer.join()
    finally:
        load.terminate()
        load.wait()
    took = sorted((seen[n] - sent[n]) * 1000 for n in sent if n in seen)
    if len(took) < len(sent) - 1:
        raise TimeoutError(f"{len(sent) - len(took)} probes of {len(sent)} never came through")
    return {
        "commit to visible p50 ms": statistics.median(took),
        "commit to visible p99 ms": took[int(len(took) * 0.99)],
    }


def twenty(rig: Rig, size: Size, turn: int) -> dict[str, float]:
    """The same rows into one table, and spread over twenty, in transactions of twenty rows; small epochs.

    Each table was written to before: what its first row costs (a schema, statements) is no cost of an epoch.
    """
    figures = {}
    spreads = (("one table", 0, 1), ("twenty tables", 1, 20))
    for _, first_table, tables in spreads:
        rig.old.execute("call spread(20, %s, %s, %s)", (turn * 10_000_000 + 5_000_000, first_table, tables))
    touched = rig.commit_mark()
    rig.until(lambda: rig.applied(touched), "the first rows of each table")
    for name, first_table, tables in spreads:
        rig.freeze(*ROLES)
        rig.old.execute("set synchronous_commit = off")
        rig.old.execute("call spread(%s, %s, %s, %s)", (size.spread, turn * 10_000_000, first_table, tables))
        rig.old.execute("reset synchronous_commit")
        end = rig.commit_mark()
        started = time.monotonic()
        rig.thaw(*ROLES)
        rig.until(lambda end=end: rig.applied(end), "the end of the spread")  # type: ignore[misc]
        figures[f"{name} rows/s"] = size.spread * 20 / (time.monotonic() - started)
    figures["twenty tables, times the cost of one"] = figures["one table rows/s"] / figures["twenty tables rows/s"]
    return figures


def large(rig: Rig, size: Size) -> dict[str, float]:
    """One transaction of many rows, after everything else: the peak of each role's memory over the whole run."""
    before = dict(rig.peak_bytes)
    rig.old.execute(
        "insert into item select (item_row(n)).* from generate_series(900000000, %s) n",
        (900000000 + size.large_rows - 1,),
    )
    end = rig.commit_mark()
    started = time.monotonic()
    rig.until(lambda: rig.applied(end), "the large transaction", timeout_s=300)
    seconds = time.monotonic() - started
    figures = {"large transaction rows/s": size.large_rows / seconds}
    for role in ROLES:
        figures[f"{role} peak MB"] = rig.peak_bytes[role] / 1e6
        figures[f"{role} peak MB before the large transaction"] = before[role] / 1e6
    return figures
