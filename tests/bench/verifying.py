"""Verification's figure, beside the cheapest statement that reads every row of both sides and hashes it.

Both run on one core a side, both sides at once: a verification leaves the other cores to the application.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

from connectors.postgres.session import Connection
from tests.bench.rig import Rig

HASHED = "select count(*), sum(hashtext(t::text)) from item t"


def verification(rig: Rig) -> dict[str, float]:
    """Rows of the source a second, of the one large table."""
    rows = int(rig.one(rig.old, "select count(*) from item"))
    rig.old.execute("vacuum analyze item")
    rig.new.execute("vacuum analyze item")
    with ThreadPoolExecutor(max_workers=2) as pool:
        seconds = max(pool.map(hashed_s, (rig.old, rig.new)))
    done = json.loads(rig.slackwater("verify", "--table", "item", "--fresh", "--json"))
    return {
        "verification rows/s": rows / done["seconds"],
        "verification, part of sum(hashtext)": seconds / done["seconds"],
    }


def hashed_s(conn: Connection) -> float:
    conn.execute("set max_parallel_workers_per_gather = 0")
    began = time.monotonic()
    conn.execute(HASHED)
    took = time.monotonic() - began
    conn.execute("reset max_parallel_workers_per_gather")
    return took
