"""A way back that loses rows: verification names them, before and after a turn, and nothing deletes the last copy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.databases import Databases
from tests.fixtures.tide import Tide, tide_on

OLD = """
create schema shop;
create table shop.customers (id text primary key, name text not null, street text);
create table shop.orders (id int primary key, customer text not null references shop.customers);
insert into shop.customers select 'C' || g, 'Name ' || g, 'Street ' || g from generate_series(1, 6) g;
insert into shop.orders select g, 'C' || (1 + g % 6) from generate_series(1, 12) g;
"""
NEW = """
create schema app;
create table app.customer (id text primary key, name text not null);
create table app.customer_address (customer_id text primary key references app.customer, street text);
create table app.orders (id int primary key, customer text not null references app.customer);
"""
# The way back begins at the child: a customer without an address is in none of it.
TABLES = """
copy: [orders]
tables:
  - {to: customer, select: "select id, name from customers"}
  - {to: customer_address, select: "select id as customer_id, street from customers where street is not null"}
reverse:
  - to: customers
    select: select a.customer_id as id, c.name, a.street from customer_address a join customer c on c.id = a.customer_id
"""


GATES = (
    "cutover: {max_pause_s: 20, attempts: 8,"
    " gates: {verification: off, roundtrip: off, statistics: off, foreign_keys: off}}\n"
)


@pytest.fixture
def tide(databases: Databases, bootstrap: str, tmp_path: Path) -> Iterator[Tide]:
    dsns = {"old": databases.old, "new": databases.new}
    with tide_on(tmp_path, dsns, bootstrap, GATES, old=OLD, new=NEW, tables=TABLES) as made:
        yield made


def verify(tide: Tide, *arguments: str, code: int) -> dict[str, Any]:
    return tide.program.document("verify", *arguments, code=code)


def test_a_row_that_old_never_gets_is_named_before_and_after_the_turn(tide: Tide) -> None:
    assert verify(tide, "--direction", "reverse", code=0)["unrepresented"] == {}

    # Before the turn: a customer of old without a street, whom the way back would not bring.
    tide.on("old", "insert into shop.customers values ('B', 'Bare', null)")
    tide.drained("old")
    found = verify(tide, "--direction", "reverse", code=3)
    assert found["unrepresented"] == {"customer": {"rows": 1, "fault": True, "keys": [{"id": "B"}]}}
    assert found["tables"]["customers"]["state"] == "mismatched"
    assert found["tables"]["customers"]["mismatches"] == [{"kind": "extra", "key": {"id": "B"}, "columns": []}]
    assert found["next"].endswith(" verify --direction reverse --show-values")
    said = tide.program("verify", "--direction", "reverse", code=3)
    assert "1 row of new.customer has no counterpart on old: a rollback would leave it behind (id=B)" in said
    tide.on("old", "delete from shop.customers where id = 'B'")
    tide.drained("old")
    assert verify(tide, "--direction", "reverse", code=0)["state"] == "clean"

    # After it.
    tide.cutover()
    tide.on("new", "insert into app.customer values ('ZZ', 'Zoe')")
    tide.drained("new")
    found = verify(tide, "--direction", "reverse", code=3)
    assert found["unrepresented"] == {"customer": {"rows": 1, "fault": True, "keys": [{"id": "ZZ"}]}}
    assert found["tables"]["customers"]["mismatches"] == []
    assert found["next"].endswith(" plan")
    gates = json.loads(tide.program("gates", "--direction", "reverse", "--json", code=None))["gates_off"]
    (gate,) = [g for g in gates if g["gate"] == "verification"]
    assert "1 rows of new.customer have no counterpart on old" in gate["detail"]

    # Accepted by name.
    text = tide.program.file.read_text()
    tide.program.file.write_text(text + 'roundtrip: {accept: ["new.customer:alone"]}\n')
    found = verify(tide, "--direction", "reverse", code=0)
    assert found["unrepresented"] == {"customer": {"rows": 1, "fault": False, "keys": [{"id": "ZZ"}]}}
    tide.program.file.write_text(text)

    # Back on old, the row is on new alone: no repair deletes the last copy unasked, and an asked one keeps it.
    tide.rollback()
    tide.drained("old")
    image = tide.on("new", "select c::text from app.customer c where id = 'ZZ'")
    assert len(image) == 1
    found = verify(tide, "--repair", "--yes", code=3)
    assert found["tables"]["customer"]["mismatches"] == [{"kind": "extra", "key": {"id": "ZZ"}, "columns": []}]
    assert found["repaired"]["spared"] == {"customer": 1}
    assert tide.on("new", "select c::text from app.customer c where id = 'ZZ'") == image
    assert "DELETE on new: 1 row of customer" in tide.program("verify", "--repair", "--delete", code=2)
    verify(tide, "--repair", "--delete", "--yes", code=3)
    assert tide.on("new", "select from app.customer where id = 'ZZ'") == []
    assert verify(tide, code=0)["state"] == "clean"

    # Put back while new is closed it differs again; while new is open it is the application's own.
    tide.program("repaired", "restore", "--all", "--yes")
    assert tide.on("new", "select c::text from app.customer c where id = 'ZZ'") == image
    assert verify(tide, code=3)["tables"]["customer"]["extra"] == 1
    verify(tide, "--repair", "--delete", "--yes", code=3)
    assert verify(tide, code=0)["state"] == "clean"
    tide.cutover()
    rows = tide.program.document("repaired", "list")["rows"]
    told = tide.program.document("repaired", "restore", str(rows[-1]["id"]), "--yes")
    assert [r["result"] for r in told["rows"]] == ["restored"]
    assert tide.on("new", "select c::text from app.customer c where id = 'ZZ'") == image
    tide.on("new", "insert into app.customer_address values ('ZZ', 'At last')")
    tide.drained("new")
    assert tide.on("old", "select name, street from shop.customers where id = 'ZZ'") == [("Zoe", "At last")]
