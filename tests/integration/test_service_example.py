"""The service that the README shows, as it stands there, through a cutover and back."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

from tests.fixtures.tide import BALANCE, ENTRY, WRITERS, Tide

README = Path(__file__).parents[2] / "README.md"


def example() -> str:
    """The block that defines `write`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = [b for b in blocks if "def write(" in b]
    return str(found)


def test_the_services_writes_follow_the_route(tide: Tide) -> None:
    code = example().replace("migration = 'shop'", f"migration = '{tide.migration}'")
    urls = {side: dsn.replace("postgresql://", "postgresql+psycopg://") for side, dsn in tide.dsns.items()}
    service: dict[str, Any] = {"OLD_URL": urls["old"], "NEW_URL": urls["new"]}
    exec(compile(code, "README.md", "exec"), service)
    stop = threading.Event()
    acknowledged: list[int] = []

    def entry(number: int) -> Any:
        def work(conn: Any, side: str) -> None:
            conn.exec_driver_sql(ENTRY[side], (number, (number - 1) % WRITERS))
            conn.exec_driver_sql(BALANCE[side], ((number - 1) % WRITERS,))

        return work

    def serve() -> None:
        number = 1
        while not stop.is_set():
            service["write"](entry(number))
            acknowledged.append(number)
            number += 1
            time.sleep(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    time.sleep(1)
    assert tide.cutover()["result"] == "done"
    time.sleep(1)
    assert tide.rollback()["result"] == "done"
    time.sleep(1)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    for engine in service["engines"].values():
        engine.dispose()
    tide.drained("old")
    for side, table in (("old", "shop.entry"), ("new", "app.ledger_entry")):
        assert [n for (n,) in tide.on(side, f"select id from {table} order by 1")] == acknowledged
