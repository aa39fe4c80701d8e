"""A migration that the program of 78ec18f prepared, brought to this one while its application writes.

The older program is unpacked from the repository's history and really run: its verbs, its roles, its turn.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from stream.migration import prepared_steps
from tests.fixtures.databases import Databases
from tests.fixtures.ledger import writing
from tests.fixtures.older import Older
from tests.fixtures.running import end, started_with
from tests.fixtures.tide import NEW, OLD, TABLES, Tide

GATES = "cutover: {max_pause_s: 20, attempts: 8, gates: {verification: off, roundtrip: off, statistics: off}}\n"
# A join, for mirrors on new.
JOIN = """  - {to: statement, select: "select e.id, e.nm, o.name from entry e left join owner o on o.id = e.writer"}
"""
OWNER = "create table %s.owner (id int primary key, name text not null);"
OWNED = "insert into shop.owner select i, 'o' from generate_series(0, 2) i;"
STATEMENT = "create table app.statement (id bigint primary key, nm text not null, name text);"
JOINED = (
    "select e.id, e.nm, o.name from shop.entry e left join shop.owner o on o.id = e.writer",
    "select id, nm, name from app.statement",
)
SAME = (
    ("select id, writer, nm from shop.entry order by 1", "select id, writer, name from app.ledger_entry order by 1"),
    ("select id, balance, note from shop.account order by 1", "select id, balance, note from app.account order by 1"),
    ("select id, at from shop.event order by 1, 2", "select id, at from app.event order by 1, 2"),
    ("select id, name from shop.owner order by 1", "select id, name from app.owner order by 1"),
)

pytestmark = pytest.mark.timeout(900)  # of two programs, and most of their verbs in processes of their own


class Carried(Tide):
    """One migration, and both programs."""

    older: Older

    def equal(self) -> None:
        """Whole tables of both sides, in plain SQL, once what is committed has come through."""
        (writes,) = self.open_sides()
        self.drained(writes)
        for old, new in SAME:
            assert self.on("old", old) == self.on("new", new), new

    def joined(self) -> None:
        """What old's rows are joined to now is on new, while more of them come."""
        rows = set(self.on("old", JOINED[0]))
        self.drained("old")
        assert rows - set(self.on("new", JOINED[1])) == set()

    def more(self, side: str, first: int) -> None:
        """Rows of every table that no writer writes."""
        schema = "shop" if side == "old" else "app"
        event = f"select i, date '2023-12-25' + i % 20 from generate_series({first}, {first + 50}) i"
        self.on(side, f"insert into {schema}.event {event}")
        self.on(side, f"update {schema}.account set note = 'n{first}' where id > 7")
        self.on(side, f"update {schema}.owner set name = 'o{first}' where id > 0")

    def refused(self, *arguments: str, code: int = 3) -> str:
        """What this program says where the older one's migration stands."""
        said = self.program(*arguments, code=code)
        assert f"slackwater -c {self.program.file} upgrade" in said
        return said


@pytest.fixture
def carried(
    older_tree: Path, databases: Databases, bootstrap: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Carried]:
    """With the mapping that the parameter adds."""
    dsns = {"old": databases.old, "new": databases.new}
    with carried_on(older_tree, dsns, bootstrap, tmp_path, request.param) as made:
        yield made


@contextmanager
def carried_on(tree: Path, dsns: dict[str, str], bootstrap: str, folder: Path, join: str) -> Iterator[Carried]:
    """Prepared by the older program, its roles at work, every row there."""
    name = "u" + secrets.token_hex(5)
    for side, ddl in (("old", OLD + OWNER % "shop" + OWNED), ("new", NEW + OWNER % "app" + STATEMENT)):
        with psycopg.connect(dsns[side], autocommit=True) as conn:
            conn.execute(ddl.encode())
    tables = TABLES.replace("[account", "[owner, account") + join
    text = (
        f'migration: {name}\nold: {{dsn: "${{OLD_DSN}}", schema: shop}}\nnew: {{dsn: "${{NEW_DSN}}", schema: app}}\n'
        f'kafka: {{bootstrap: "${{KAFKA}}", topic_prefix: {name}, partitions: 2}}\n{GATES}{tables}'
    )
    env = {"OLD_DSN": dsns["old"], "NEW_DSN": dsns["new"], "KAFKA": bootstrap}
    with started_with(folder, text, env) as program:
        made = Carried(program=program, dsns=dsns, migration=name)
        made.older = Older(tree=tree, file=program.file, env=env)
        try:
            made.older("prepare", "--yes")
            made.older.start("run")
            made.older("wait", "--for", "phase=streaming", "--timeout", "120")
            yield made
        finally:
            for process in made.older.background:
                end(process)


def versions(carried: Carried) -> dict[str, Any]:
    found = {
        side: carried.on(side, "select coalesce(max(version), -1) from slackwater.version")[0][0]
        for side in carried.dsns
    }
    query = "select (prepared ->> 'version')::int from slackwater.migration where migration = %s"
    return {**found, "document": carried.on("new", query, carried.migration)[0][0]}


def upgraded(carried: Carried) -> None:
    """Refused while older roles live; then, killed between the sides, completed; the new roles go on by themselves."""
    refusal = carried.refused("upgrade")
    for role in ("capture", "apply", "backfill"):
        assert f"forward {role} (pid " in refusal
    for verb in (["pause", "apply"], ["prepare"], ["cancel", "--yes"], ["journal"]):
        assert "older slackwater" in carried.refused(*verb)
    assert "older slackwater" in carried.refused("verify", code=1)
    assert carried.program.status()["next"] == f"slackwater -c {carried.program.file} upgrade"
    carried.older.stop()
    run = carried.program.start("run")
    carried.program.until(lambda: "waits for: slackwater" in carried.program.log)
    assert carried.program.document("upgrade", "--dry-run")["result"] == "ready"
    assert carried.on("new", "select to_regclass('slackwater.version') is null") == [(True,)]
    killed = carried.program.launch("upgrade", failpoints="upgrade.after_side=kill")
    killed.wait(60)
    assert killed.returncode == -9
    assert carried.on("new", "select to_regclass('slackwater.version') is null") == [(True,)]
    done = carried.program.document("upgrade", "--as", "friday's release")
    assert (done["result"], sorted(done["versions"])) == ("done", ["document", "new"])
    assert done["steps"]
    after = versions(carried)
    assert (after["old"], after["document"]) == (after["new"], prepared_steps.VERSION)
    assert carried.program.document("upgrade")["result"] == "already"
    told = [(e["outcome"], e["remark"]) for e in carried.entries() if e["step"] == "upgrade"]
    assert told == [("intent", None), ("intent", "friday's release"), ("done", "friday's release")]
    assert "prepared by another version" in carried.older("plan", code=None) + carried.older("arm", code=1)
    carried.program.until(lambda: carried.program.forward()["state"] == "running")
    assert run.poll() is None


@pytest.mark.parametrize("carried", [JOIN], indirect=True, ids=["join"])
def test_a_migration_that_streams(carried: Carried) -> None:
    ledger = carried.ledger(pause_s=0.2)
    with writing(ledger):
        carried.more("old", 1)
        upgraded(carried)
        carried.more("old", 100)
        with carried.program.file.open("a") as file:  # this version asks for it, by name
            file.write("roundtrip: {accept: [new.statement]}\n")
        carried.program("arm", "--timeout", "120")
        carried.joined()
        carried.program("verify")
        assert carried.turn_until_done("cutover")["turn"] == 1
        carried.more("new", 200)
    carried.agree(ledger)
    carried.equal()
    carried.program("verify", "--direction", "reverse")


# Without the join: what comes to new through it, an application that writes to new has to write itself.
@pytest.mark.parametrize("carried", [""], indirect=True, ids=["copies"])
def test_a_migration_that_has_turned(carried: Carried) -> None:
    ledger = carried.ledger(pause_s=0.2)
    with writing(ledger):
        carried.older("arm", "--timeout", "120")
        assert carried.older.document("cutover", "--yes")["writes"] == "new"
        carried.more("new", 1)
        upgraded(carried)
        carried.more("new", 100)
        carried.program("verify", "--direction", "reverse")
        assert carried.turn_until_done("rollback")["turn"] == 2
        carried.more("old", 200)
    carried.agree(ledger)
    carried.equal()
    carried.program("verify")
