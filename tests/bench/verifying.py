"""Verification's figures: its rate, what it reads when one row of millions is wrong, and what the application feels.

The rate stands beside the cheapest statement that reads every row of both sides and hashes it. Both run on one core a
side, both sides at once: a verification leaves the other cores to the application.
"""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from connectors import local
from connectors.postgres.session import Connection
from tests.bench.rig import MIGRATION, Rig

HASHED = "select count(*), sum(hashtext(t::text)) from {} t"
WINDOW_S = 8
COUNTED_S = 1.5  # after which others see what a session has counted
MANY = f"""
migration: {MIGRATION}
old: {{dsn: "${{OLD_DSN}}"}}
new: {{dsn: "${{NEW_DSN}}", schema: app}}
kafka: {{bootstrap: "${{KAFKA_BOOTSTRAP}}"}}
exclude: [item, probe, "t*"]
copy: [many, many_uuid, item_uuid]
"""
UUID = "lpad(to_hex(id), 32, '0')::uuid"
ITEM_UUID = """create table item_uuid (id uuid primary key, nm text not null, email text not null, amount text not null,
    status integer not null, made timestamptz not null, note text not null)"""
# table -> what its figures are called
MANY_TABLES = {"many": "", "many_uuid": ", other keys"}


def verification(rig: Rig) -> dict[str, float]:
    """Rows of the source a second, of the one large table."""
    rate, part = rated(rig, "item")
    return {"verification rows/s": rate, "verification, part of sum(hashtext)": part}


def rated(rig: Rig, table: str) -> tuple[float, float]:
    """(rows of the source a second, part of the rate of sum(hashtext) on the slower side)."""
    rows = int(rig.one(rig.old, f"select count(*) from {table}"))
    rig.old.execute(f"vacuum analyze {table}".encode())
    rig.new.execute(f"vacuum analyze {table}".encode())
    with ThreadPoolExecutor(max_workers=2) as pool:
        seconds = max(pool.map(lambda conn: hashed_s(conn, table), (rig.old, rig.new)))
    done = json.loads(rig.slackwater("verify", "--table", table, "--fresh", "--json"))
    return rows / done["seconds"], seconds / done["seconds"]


def hashed_s(conn: Connection, table: str) -> float:
    conn.execute("set max_parallel_workers_per_gather = 0")
    began = time.monotonic()
    conn.execute(HASHED.format(table).encode())
    took = time.monotonic() - began
    conn.execute("reset max_parallel_workers_per_gather")
    return took


def many(rig: Rig, rows: int) -> dict[str, float]:
    """Millions of narrow rows, one of them wrong: how often a pass reads them all, the more of both sides. And the rate
    of a pass over keys that are no integers: of `item`'s rows, and of narrow ones, where hashing is most of the work.

    A migration of its own; the rig's roles are stopped, and its own is ended.
    """
    rig.slackwater("cancel", "--yes")
    rig.new.execute("drop schema if exists app cascade")
    rig.new.execute("create schema app")
    for conn in (rig.old, rig.new):
        conn.execute("create table many (id bigint primary key, v text not null)")
        conn.execute("create table many_uuid (id uuid primary key, v text not null)")
        conn.execute(ITEM_UUID)
    rig.old.execute("insert into many select n, 'v' || n from generate_series(1, %s) n", (rows,))
    rig.old.execute(f"insert into many_uuid select {UUID}, v from many".encode())
    rig.old.execute(
        f"insert into item_uuid select {UUID}, nm, email, amount, status, made, note from item limit %s".encode(),
        (rows // 5,),
    )
    rig.old.execute("vacuum analyze many, many_uuid, item_uuid")
    rig.file = "many.yaml"
    (rig.folder / rig.file).write_text(MANY)
    rig.slackwater("prepare", "--yes")
    rig.start("capture", "apply", "backfill")
    rig.until(
        lambda: rig.one(rig.new, "select phase = 'streaming' from slackwater.migration"),
        "phase streaming",
        60 + rows / 2e4,
    )
    found: dict[str, float] = {}
    found["verification of other keys, part of sum(hashtext)"] = rated(rig, "item_uuid")[1]
    found["verification of other keys, narrow rows, part of sum(hashtext)"] = rated(rig, "many_uuid")[1]
    for table, kind in MANY_TABLES.items():
        rig.new.execute(f"vacuum analyze {table}".encode())
        rig.new.execute(f"alter table {table} disable trigger all".encode())
        wrong = f"lpad(to_hex({rows // 3}), 32, '0')::uuid" if kind else str(rows // 3)
        rig.new.execute(f"update {table} set v = 'wrong' where id = {wrong}".encode())
        time.sleep(COUNTED_S)
        before = [read(conn, table) for conn in (rig.old, rig.new)]
        told = json.loads(rig.slackwater("verify", "--table", table, "--fresh", "--json", code=3))
        assert told["tables"][table]["mismatched"] == 1
        time.sleep(COUNTED_S)
        after = [read(conn, table) for conn in (rig.old, rig.new)]
        times = [(b - a) / rows for a, b in zip(before, after, strict=True)]
        assert min(times) >= 1
        found[f"one row of millions wrong, full reads{kind}"] = max(times)
    rig.stop()
    return found


def read(conn: Connection, table: str) -> int:
    """Rows of a table that were read so far."""
    row = conn.execute(
        "select seq_tup_read + coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relid = %s::regclass", (table,)
    ).fetchone()
    assert row is not None
    return int(row[0])


def overhead(rig: Rig, windows: int) -> dict[str, float]:
    """What 500 transactions a second feel of `run verify` at its default budget, by windows with it and without."""
    rig.start("verify")
    comparing = "select exists (select from slackwater.verify_chunk where done_at > clock_timestamp() - interval '9 s')"
    rig.until(lambda: rig.one(rig.new, comparing), "the verification", 60)
    took: dict[bool, list[float]] = {True: [], False: []}
    for n in range(windows * 2):
        beside = n % 2 == 0
        (rig.thaw if beside else rig.freeze)("verify")
        took[beside] += load_ms(rig, n)
    rig.thaw("verify")
    beside_ms, alone_ms = (sorted(t)[int(len(t) * 0.99)] for t in (took[True], took[False]))
    return {
        "p99 of 500 tps ms": alone_ms,
        "p99 of 500 tps beside verification ms": beside_ms,
        "p99 beside verification, times p99 without": beside_ms / alone_ms,
    }


def load_ms(rig: Rig, window: int) -> list[float]:
    """What pgbench's transactions took in one window, each from when it was due."""
    folder = Path(rig.folder) / f"window-{window}"
    folder.mkdir()
    done = subprocess.run(
        [
            str(local.binary("pgbench")), "-n", "-c", "4", "-R", "500", "-T", str(WINDOW_S), "-l", "--max-tries=5",
            "-f", str(Path(__file__).with_name("load.sql")), rig.servers.old_dsn,
        ],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for log in folder.glob("pgbench_log.*") for line in log.read_text().splitlines()]
    took = [int(line[2]) / 1000 for line in lines if line[2].isdigit()]  # or why it failed, five times
    assert len(took) > WINDOW_S * 400, "the load did not come about"
    return took
