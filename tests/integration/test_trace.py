"""`trace` on a running migration: what wrote a row last, by the stream or by a chunk, and what became of an old one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.postgres.session import connect
from schemas.direction import Direction, Side
from schemas.errors import ConfigError
from stream.cli import context
from stream.migration import prepared
from stream.runtime import process
from stream.trace import trace as traced
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, started_with

SECRET = "nobody-should-read-this"


@pytest.fixture
def program(shop: Shop, tmp_path: Path) -> Iterator[Program]:
    env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
    with started_with(tmp_path, shop.text, env) as program:
        yield program


def test_rows_are_traced_to_what_wrote_them(program: Program, shop: Shop) -> None:
    def trace(table: str, key: str, side: Side | None = None) -> Any:
        """What `trace --json` prints, without a process for each."""
        spec = shop.spec
        with connect(shop.old) as old, connect(shop.new) as new:
            document = prepared.load(new, spec.migration)
            assert document is not None
            at = process.tracing(spec, document, Direction.FORWARD, source=old, target=new, values=False)
            return json.loads(context.document(traced(at, table, key, side=side)))

    def written(table: str, key: str) -> list[Any]:
        found = trace(table, key)
        return [row.get("written_by") for row in found.get("came_from", [found])]

    run = program.streaming()

    # Before the stream has said anything: the chunk.
    found = trace("customer", "0001")
    assert (found["side"], found["key"], found["there"]) == ("new", {"id": "1"}, True)
    assert [(r["table"], r["key"], r["there"]) for r in found["came_from"]] == [("customers", {"id": "1"}, True)]
    by = found["came_from"][0]["written_by"]
    assert (by["what"], by["load"]) == ("chunk", "customer")
    assert {c["column"]: c["from"] for c in found["columns"]}["email"] == ["customers.email"]
    (account,) = [r for r in trace("account", "1")["came_from"] if r["table"] == "profiles"]
    assert account["written_by"]["load"] == "mirror:profiles"

    # The stream: epoch, commit, LSN, and a record at exactly that place.
    shop.on_old(f"update shop.customers set email = '{SECRET}' where id = 1")
    shop.on_old("insert into shop.customers values (3, 'Eve', 'e@x', 'Side')")
    shop.on_old("update shop.customers set cust_nm = 'Eva' where id = 3")
    shop.on_old("insert into shop.readings values (7, '2024-06-06', 1)")
    program.until(lambda: shop.on_new("select name from app.customer where id = 3") == [("Eva",)])
    program.until(lambda: program.forward()["lag_seconds"] == 0)
    (by,) = written("customer", "3")
    assert (by["what"], by["op"]) == ("change", "update")
    assert by["topic"] == f"{shop.prefix}.{shop.migration}.forward.shop.customers"
    ((end, extents),) = shop.on_new("select end_lsn::text, extents from slackwater.epoch where epoch = %s", by["epoch"])
    start, until = extents[by["topic"]][str(by["partition"])]
    assert start <= by["offset"] < until
    assert end >= by["lsn"]
    assert by["committed_at"] <= by["applied_at"]
    assert written("address", "3") == [by]  # one old row, two new ones
    (by,) = written("readings", "7,2024-06-06")
    assert (by["op"], by["topic"].rsplit(".", 1)[1]) == ("insert", "readings")
    assert written("customer", "2")[0]["what"] == "chunk"  # nobody has touched Bob

    # An epoch that the target has forgotten is found in its topic.
    shop.on_new("delete from slackwater.epoch")
    (again,) = written("customer", "3")
    assert again["epoch"] is not None
    assert again["applied_at"] is None

    # An old row, and what it became.
    found = trace("customers", "3")
    assert found["side"] == "old"
    assert [(r["table"], r["key"], r["there"]) for r in found["became"]] == [
        ("customer", {"id": "3"}, True), ("address", {"customer_id": "3"}, True), ("account", {"id": "3"}, True),
    ]  # fmt: skip
    assert found["written_by"]["op"] == "update"
    assert [r["key"] for r in trace("customers", "2")["became"] if r["table"] == "address"] == [None]

    # One that is gone: the key tells which old row it was, and the stream who took it.
    shop.on_old("delete from shop.customers where id = 3")
    program.until(lambda: shop.on_new("select from app.customer where id = 3") == [])
    found = trace("customer", "3")
    assert (found["there"], found["came_from"][0]["there"]) == (False, False)
    assert found["came_from"][0]["written_by"]["op"] == "delete"
    assert written("customer", "99") == [None]
    # One that slackwater never wrote: nothing is claimed for it, though a chunk holds its range of keys.
    shop.on_new(
        "alter table app.customer disable trigger slackwater_fence; insert into app.customer values (99, 'Eve')"
    )
    assert (trace("customer", "99")["there"], written("customer", "99")) == (True, [None])
    shop.on_new(
        "delete from app.customer where id = 99; alter table app.customer enable always trigger slackwater_fence"
    )

    # Both sides have readings: the new one is meant, unless it is said.
    assert trace("readings", "7,2024-06-06")["side"] == "new"
    assert trace("readings", "7,2024-06-06", Side.OLD)["became"][0]["there"] is True

    shop.on_new(
        "insert into slackwater.quarantine (migration, direction, load, source, key, error)"
        " values (%s, 'forward', 'customer', 'customers', '{\"id\": \"2\"}', 'no')",
        shop.migration,
    )
    assert trace("customer", "2")["came_from"][0]["waits_in"] == ["quarantine"]

    # Values only for those who ask.
    assert SECRET not in json.dumps([trace("customer", "1"), trace("customers", "1")])
    assert SECRET in program("trace", "customer", "1", "--show-values")
    screen = program("trace", "customer", "1")
    assert SECRET not in screen
    assert "came from customers (id = 1): there" in screen
    assert "partition " in screen
    assert "  became account (id = 1): there" in program("trace", "customers", "1")
    assert "did you mean customer?" in program("trace", "custmer", "1", code=2)
    with pytest.raises(ConfigError, match="gives 1 of 2 values"):
        trace("readings", "1")
    run.terminate()
    assert run.wait(20) == 0
