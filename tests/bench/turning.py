"""The pause of a turn, as writers see it: 500 transactions a second on 8 connections, there and back again."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import psycopg

from tests.bench.rig import Rig
from tests.fixtures.databases import fresh_database
from tests.fixtures.ledger import writing
from tests.fixtures.tide import tide_on

CONNECTIONS, TPS = 8, 500
STEPS = ("lock", "drain", "check", "sequences", "journal", "fence", "open")


def turns(rig: Rig, count: int) -> dict[str, float]:
    """`count` turns under load: the slowest write of each, and the turn's own steps. Nothing may be lost by them."""
    folder = Path(rig.folder) / "turns"
    folder.mkdir()
    server = rig.servers.old_dsn
    slowest: list[float] = []
    paused: list[float] = []
    steps: dict[str, list[float]] = {name: [] for name in STEPS}
    with (
        fresh_database(server, "turn_old") as old,
        fresh_database(server, "turn_new") as new,
        tide_on(folder, {"old": old, "new": new}, rig.servers.kafka_bootstrap) as tide,
    ):
        ledger = tide.ledger(writers=CONNECTIONS, pause_s=CONNECTIONS / TPS - 0.002)
        began = time.monotonic()
        with writing(ledger):
            time.sleep(1)
            for number in range(count):
                since = time.monotonic()
                done = tide.cutover() if number % 2 == 0 else tide.rollback()
                time.sleep(0.4)
                waits = [s for told in ledger.told for at, s in list(told.waits) if at >= since]
                slowest.append(max(waits) * 1000)
                paused.append(done["pause_seconds"] * 1000)
                for step in done["steps"]:
                    if step["step"] in steps:
                        steps[step["step"]].append(step["seconds"] * 1000)
        seconds = time.monotonic() - began
        tide.drained("old" if count % 2 == 0 else "new")
        with psycopg.connect(old) as conn:
            ledger.agrees_with([int(n) for (n,) in conn.execute("select id from shop.entry").fetchall()])
    ordered = sorted(slowest)
    figures = {
        "turn: transactions/s": len(ledger.acknowledged) / seconds,
        "turn: slowest write p50 ms": statistics.median(slowest),
        "turn: slowest write p95 ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))],
        "turn: pause p50 ms": statistics.median(paused),
    }
    return figures | {f"turn: {name} ms": statistics.median(found) for name, found in steps.items() if found}
