"""The open side dies: what Kafka has is applied, the other side opens, and what is lost is named and is no more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.fixtures.ledger import writing
from tests.fixtures.servers import private_postgres
from tests.fixtures.tide import STATE, tide_on

WORDS = ("--accept-loss", "--source-isolated")


def test_new_dies_and_old_takes_over(make_database: Callable[[str], str], bootstrap: str, tmp_path: Path) -> None:
    with (
        private_postgres() as server,
        tide_on(tmp_path, {"old": make_database("old"), "new": server.dsn()}, bootstrap) as tide,
    ):
        assert tide.cutover()["result"] == "done"
        ledger = tide.ledger()
        with writing(ledger):
            time.sleep(2)
        tide.drained("new")
        known = {n for n, _ in tide.on("new", STATE["new"])}
        tide.turn("failover", "--to", "old", code=2)
        tide.turn("failover", "--to", "old", WORDS[0], code=2)
        server.kill()
        assert tide.rollback(code=3)["result"] == "refused"
        done = tide.turn("failover", "--to", "old", *WORDS)
        assert (done["result"], done["writes"], done["turn"]) == ("done", "old", 2)
        assert any("everything that committed on new up to" in note for note in done["notes"])
        assert {n for n, _ in tide.on("old", STATE["old"])} == known
        tide.on("old", "insert into shop.entry values (800001, 0, 'after')")
        assert tide.turn("failover", "--to", "old", *WORDS)["result"] == "already"
        # New comes back and believes itself open: it is closed before anything else.
        server.start()
        again = tide.turn("failover", "--to", "old", *WORDS)
        assert (again["result"], again["writes"]) == ("done", "old")
        tide.dsns["new"] = server.dsn()
        assert tide.open_sides() == ["old"]
