"""`make bench`: the figures, median of three rounds, beside raw limits measured in the same rounds.

make bench                      a table, then one JSON document
make bench ARGS=--quick         one round of a fifth of the size: a smoke test, not a figure
make bench ARGS=--write         and tests/bench/RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.bench import figures, turning, verifying
from tests.bench.rig import ROLES, Rig, rig

RESULTS = Path(__file__).with_name("RESULTS.md")
# figure -> (at least, at most); "x COPY | COPY" is judged by a raw limit of the same round
GOALS: dict[str, tuple[float | None, float | None]] = {
    "end to end rows/s": (40_000, None),
    "capture rows/s": (50_000, None),
    "capture, part of draining": (0.5, None),
    "apply rows/s": (60_000, None),
    "backfill, part of COPY | COPY": (0.7, None),
    "verification, part of sum(hashtext)": (0.6, None),
    "verification of other keys, part of sum(hashtext)": (0.6, None),
    "one row of millions wrong, full reads": (None, 1.1),
    "one row of millions wrong, full reads, other keys": (None, 2.1),
    "p99 beside verification, times p99 without": (None, 1.2),
    "commit to visible p50 ms": (None, 60),
    "commit to visible p99 ms": (None, 250),
    "turn: slowest write p95 ms": (None, 1_500),
    "twenty tables, times the cost of one": (None, 2.0),
    **{f"{role} peak MB": (None, 400.0) for role in ROLES},
}


def round_of(bench: Rig, size: figures.Size, turn: int) -> dict[str, float]:
    """A migration prepared, backfilled, streamed and, unless it is the last, cancelled."""
    found: dict[str, float] = {}

    def took(name: str, since: float) -> None:
        bench.say(f"  {name}: {time.monotonic() - since:.1f} s")

    bench.slackwater("prepare", "--yes")
    bench.start("capture", "apply")
    alive = "select count(*) = 1 from slackwater.role where role = 'apply' and state = 'running'"
    bench.until(lambda: bench.one(bench.new, alive), "apply", 60)
    since = time.monotonic()
    bench.start("backfill")
    found |= figures.backfill(bench)
    took("backfill", since)
    since = time.monotonic()
    found |= figures.copy_copy(bench)
    took("COPY | COPY", since)
    bench.until(
        lambda: bench.one(bench.new, "select phase = 'streaming' from slackwater.migration"), "phase streaming", 60
    )
    since = time.monotonic()
    found |= verifying.verification(bench)
    took("verification", since)
    backlog = figures.Backlog(bench, size)
    measures: tuple[tuple[str, Callable[[], dict[str, float]]], ...] = (
        ("end to end", lambda: figures.end_to_end(bench, backlog)),
        ("stages", lambda: figures.stages(bench, backlog)),
        ("latency", lambda: figures.latency(bench, size)),
        ("twenty tables", lambda: figures.twenty(bench, size, turn)),
    )
    for name, figure in measures:
        since = time.monotonic()
        found |= figure()
        took(name, since)
    found["capture, part of draining"] = found["capture rows/s"] / found["drain and drop rows/s"]
    found["backfill, part of COPY | COPY"] = found["backfill rows/s"] / found["COPY | COPY rows/s"]
    return found


def measure(size: figures.Size, rounds: int) -> dict[str, float]:
    """The median of each figure."""
    found: list[dict[str, float]] = []
    with rig(say) as bench:
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            bench.old.execute("truncate item, probe")
            bench.old.execute(
                "insert into item select (item_row(n)).* from generate_series(1, %s) n", (size.base_rows,)
            )
            bench.old.execute("vacuum analyze item")
            found.append(round_of(bench, size, turn))
            if turn < rounds - 1:
                bench.stop()
                bench.slackwater("cancel", "--yes")
                bench.new.execute("drop schema if exists app cascade")
        last = figures.large(bench, size)
        since = time.monotonic()
        last |= verifying.overhead(bench, size.windows)
        say(f"  beside verification: {time.monotonic() - since:.1f} s")
        bench.stop()
        since = time.monotonic()
        last |= verifying.many(bench, size.many_rows)
        say(f"  {size.many_rows:,} rows: {time.monotonic() - since:.1f} s")
        since = time.monotonic()
        last |= turning.turns(bench, size.turns)
        say(f"  turns: {time.monotonic() - since:.1f} s")
    return {name: statistics.median(f[name] for f in found) for name in found[0]} | last


def verdict(name: str, value: float) -> str:
    low, high = GOALS.get(name, (None, None))
    if low is None and high is None:
        return ""
    met = (low is None or value >= low) and (high is None or value <= high)
    return f"{'reached' if met else 'SHORT'} ({'at least' if low is not None else 'at most'} {low or high:,g})"


def table(result: dict[str, float]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | median | goal |", "| --- | ---: | --- |"]
    for name, value in result.items():
        shown = f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {shown} | {verdict(name, value)} |")
    return "\n".join(lines)


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory:.0f} GB, {system}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one round of a fifth of the size")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} too")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are ended on the way out
    size, rounds = (figures.QUICK, 1) if given.quick else (figures.FULL, 3)
    started = time.monotonic()
    load = os.getloadavg()[0]
    result = measure(size, rounds)
    took = f"{rounds} round{'s' if rounds > 1 else ''} in {time.monotonic() - started:.0f} s"
    shown = f"{table(result)}\n\n{machine()}; {took}; load average before it {load:.1f}"
    print(shown)
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))
    if given.write:
        RESULTS.write_text(
            f"{HEAD}\nMeasured on {datetime.now(UTC):%Y-%m-%d} by `make bench ARGS=--write`.\n\n{shown}\n"
        )
    return 0


HEAD = """# Figures

PostgreSQL 18 and Kafka 4 run on the same cores as every role; fsync is on. Rows are about 200 bytes, transactions ten
rows (half of them inserts, half updates); the mapping renames, lower-cases, casts text to numeric and filters. Rates
are changed rows a second, from thawing frozen roles to the last row's commit. `CPU us/row` is the cores' time that a
row takes end to end, by who takes it: where the time goes, however busy the machine is.
"""

if __name__ == "__main__":
    sys.exit(main())
