"""Ids of transactions beyond the half of their 32 bits, on both sides: PostgreSQL counts in a circle, and so must we.

A table without a key is told what to leave out by ids, so it goes there and back.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from connectors import local
from tests.fixtures.servers import private_postgres
from tests.fixtures.tide import GATES, NEW, OLD, TABLES, tide_on

pytestmark = pytest.mark.soak

LOG = "create table {}.log (v text); alter table {}.log replica identity full; insert into {}.log values ('there');"
SEGMENT_XIDS = 32 * 8192 * 4  # of a file in pg_xact
SEGMENT_BYTES = 32 * 8192


def count_from(server: local.Postgres, xid: int) -> None:
    """The server's next transaction is `xid`: nothing that it holds may refer to one before."""
    for database in ("postgres", "template1"):
        server.query("vacuum (freeze)", database)
    server.stop()
    server.run("pg_resetwal", "-x", str(xid), "-u", str(xid), server.data)
    segment = server.data / "pg_xact" / f"{xid // SEGMENT_XIDS:04X}"
    segment.write_bytes(bytes(SEGMENT_BYTES))
    owner = server.data.stat()
    os.chown(segment, owner.st_uid, owner.st_gid)
    server.start()


@pytest.mark.parametrize("xid", [3_000_000_000, (1 << 32) - 100], ids=["upper half", "about to come round"])
def test_there_and_back(xid: int, bootstrap: str, tmp_path: Path) -> None:
    with private_postgres({"autovacuum": "off"}) as server:
        count_from(server, xid)
        for name in ("old", "new"):
            server.create_database(name)
        dsns = {name: server.dsn(name) for name in ("old", "new")}
        options = TABLES.replace("[account, event]", "[account, event, log]")
        old, new = OLD + LOG.format(*["shop"] * 3), NEW + LOG.format(*["app"] * 3).partition("insert")[0]
        with tide_on(tmp_path, dsns, bootstrap, GATES, old=old, new=new, tables=options) as tide:
            for side, table, verb in (("old", "shop.log", "cutover"), ("new", "app.log", "rollback")) * 2:
                for n in range(60):
                    tide.on(side, f"insert into {table} values ('{side} {n}')")
                tide.on(side, f"delete from {table} where v like '% 7'")
                assert tide.turn(verb)["result"] == "done"
                rows = {s: sorted(tide.on(s, f"select v from {t}.log")) for s, t in (("old", "shop"), ("new", "app"))}
                assert rows["old"] == rows["new"]
                assert len(rows["old"]) >= 60
            assert int(tide.on("old", "select pg_current_xact_id()::text")[0][0]) > xid
