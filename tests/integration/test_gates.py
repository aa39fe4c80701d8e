"""Gates on real databases: what each finds, that it lets go once it is mended, and that unknown never passes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.postgres import catalog, orphans
from connectors.postgres.session import Connection, connect
from schemas.direction import Direction, Side
from stream.cli.screen import screen
from stream.gates import Look, State, gate_table, orphan_scan
from stream.migration.prepared import load
from stream.monitoring.sessions import Sides
from stream.status.document import Seen, Watch
from stream.verify.verdicts import Kind, Mismatch, Store, Verdict
from tests.fixtures.databases import Databases
from tests.fixtures.launch import completed
from tests.fixtures.staged import Stage, gate, until


@pytest.fixture
def role(databases: Databases) -> Iterator[Callable[[], str]]:
    """Makes roles, which a whole server shares; they and what they were granted are gone afterwards."""
    made: list[str] = []
    with connect(databases.old) as old, connect(databases.new) as new:

        def make() -> str:
            made.append(f"web_{secrets.token_hex(4)}")
            old.execute(f"create role {made[-1]}".encode())
            return made[-1]

        yield make
        for name in made:
            new.execute(f"drop owned by {name}".encode())
            old.execute(f"drop owned by {name}; drop role {name}".encode())


@pytest.fixture
def seen(stage: Stage) -> Iterator[Callable[[], Seen]]:
    """Looks of a watch of its own each, as every verb takes them."""
    with ExitStack() as stack:

        def look() -> Seen:
            spec = stage.spec()
            sides = Sides({Side.OLD: spec.old.dsn, Side.NEW: spec.new.dsn}, application="test")
            stack.callback(sides.close)
            return Watch(spec, sides).look()

        yield look


# -- foreign keys


def counted(new: Connection, *tables: str) -> dict[str, int | None]:
    there = catalog.tables(new, "app")
    keys = orphans.foreign_keys(new, [there[name] for name in tables])
    return {o.key: o.rows for o in orphans.look(new, keys, lambda: False, timeout_s=60)}


def test_orphans_of_every_form_of_key(databases: Databases) -> None:
    with connect(databases.new) as new:
        new.execute("create schema app")
        new.execute(
            """
            create table app.p (id bigint primary key, a text, b int, unique (a, b));
            create table app.one (id int constraint one_fk references app.p (id));
            create table app.two (a text, b int, constraint two_fk foreign key (a, b) references app.p (a, b));
            create table app.whole (a text, b int, constraint whole_fk foreign key (a, b) references app.p (a, b)
                                    match full);
            create table app.self (id int primary key, up int constraint self_fk references app.self);
            create table app.parts (id bigint constraint parts_fk references app.p (id), k int) partition by list (k);
            create table app.parts_1 partition of app.parts for values in (1);
            create table app.later (id bigint);
            insert into app.later values (99);
            alter table app.later add constraint later_fk foreign key (id) references app.p (id) not valid;
            insert into app.p values (1, 'x', 1), (2, null, 2);
            set session_replication_role = replica;
            insert into app.one values (1), (null), (7), (8);
            insert into app.two values ('x', 1), ('x', null), (null, 7), ('x', 2), ('y', 1);
            insert into app.whole values ('x', 1), (null, null), ('x', null), (null, 1), ('y', 1);
            insert into app.self values (1, 1), (2, 3), (4, null);
            insert into app.parts values (1, 1), (5, 1);
            reset session_replication_role;
            """
        )
        found = counted(new, "one", "two", "whole", "self", "parts", "later")
        assert found == {
            "one.one_fk": 2, "two.two_fk": 2, "whole.whole_fk": 3, "self.self_fk": 1, "parts.parts_fk": 1,
            "later.later_fk": 1,  # rows have come past it since
        }  # fmt: skip
        assert counted(new, "p").keys() == found.keys() - {"self.self_fk"}  # those that refer to a table of ours count
        # PostgreSQL's own judgement of the same rows: it refuses each of these keys, and takes them once mended.
        new.execute("set session_replication_role = replica")
        new.execute("delete from app.one where id > 2; delete from app.two where a = 'y' or b = 2")
        new.execute(
            "delete from app.whole where (a is null) <> (b is null) or a = 'y'; delete from app.self where id=2"
        )
        new.execute("delete from app.parts where id = 5; reset session_replication_role")
        assert set(counted(new, "one", "two", "whole", "self", "parts").values()) == {0}
        for table, key in (("one", "one_fk"), ("two", "two_fk"), ("whole", "whole_fk"), ("self", "self_fk")):
            definition = new.execute(
                "select pg_get_constraintdef(oid) from pg_constraint where conname = %s", (key,)
            ).fetchone()
            assert definition is not None
            new.execute(f"alter table app.{table} drop constraint {key}".encode())
            new.execute(f"alter table app.{table} add constraint {key} {definition[0]}".encode())


def test_a_key_that_cannot_be_looked_at_is_never_counted_as_whole(
    stage: Stage, role: Callable[[], str], seen: Callable[[], Seen]
) -> None:
    web = role()
    stage.new.execute("create table app.orders (id int primary key, customer int references app.customers)")
    stage.new.execute(f"grant usage on schema app to {web}; grant select on app.customers to {web}".encode())
    there = catalog.tables(stage.new, "app")
    keys = orphans.foreign_keys(stage.new, [there["customers"]])
    stage.new.execute(f"set role {web}".encode())
    found = orphans.look(stage.new, keys, lambda: False, timeout_s=60)
    stage.new.execute("reset role")
    assert [(o.rows, "permission denied" in (o.why or "")) for o in found] == [(None, True)]
    gate_table.put(
        stage.new, stage.migration, Direction.FORWARD, found, fingerprint=orphans.fingerprint(keys), seconds=0.1
    )
    assert gate(seen().document, "foreign_keys")["state"] == "unknown"
    assert "permission denied" in gate(seen().document, "foreign_keys")["detail"]


def test_foreign_keys_by_a_look_that_is_kept(stage: Stage, seen: Callable[[], Seen]) -> None:
    assert gate(seen().document, "foreign_keys")["detail"] == "new has none"
    stage.new.execute("create table app.orders (id int primary key, customer int references app.customers)")
    document = load(stage.new, stage.migration)
    assert document is not None
    never = gate(seen().document, "foreign_keys")
    assert (never["state"], never["detail"]) == ("unknown", "1 keys, not looked at yet")
    stage.new.execute("set session_replication_role = replica")
    stage.new.execute("insert into app.orders select i, i from generate_series(1, 3) i")
    stage.new.execute("reset session_replication_role")
    orphan_scan.take(stage.new, document, lambda: False)
    found = gate(seen().document, "foreign_keys")
    assert found["state"] == "failed"
    assert "3 rows of app.orders refer to no row of app.customers (orders.orders_customer_fkey)" in found["detail"]
    stage.more = "cutover: {gates: {foreign_keys: {except: [orders.orders_customer_fkey]}}}\n"
    assert gate(seen().document, "foreign_keys")["state"] == "passed"
    stage.more = ""
    stage.new.execute("set slackwater.pass = ''; drop trigger slackwater_fence on app.customers")
    stage.new.execute("insert into app.customers select i from generate_series(1, 3) i")
    assert gate(seen().document, "foreign_keys")["state"] == "failed"  # nothing is looked at by looking
    orphan_scan.take(stage.new, document, lambda: False)
    assert gate(seen().document, "foreign_keys")["state"] == "passed"
    stage.new.execute("update slackwater.finding set at = at - interval '25 hours'")
    assert gate(seen().document, "foreign_keys")["state"] == "unknown"
    orphan_scan.take(stage.new, document, lambda: False)
    stage.new.execute("alter table app.orders add column other int references app.customers")
    assert "the keys have changed" in gate(seen().document, "foreign_keys")["detail"]
    assert orphan_scan.take(stage.new, document, lambda: True) is None
    assert "the keys have changed" in gate(seen().document, "foreign_keys")["detail"]


def test_when_the_next_look_is_due() -> None:
    def look(rows: int | None, age_s: float, *, current: bool = True, seconds: float = 0.1) -> Look:
        one = orphans.Orphans(key="a.fk", child="a", parent="b", rows=rows)
        return Look(orphans=(one,), at=datetime.now(UTC), age_s=age_s, current=current, seconds=seconds)

    assert orphan_scan.due(None, 100, [])
    assert orphan_scan.due(look(0, 1, current=False), 100, [])
    assert not orphan_scan.due(look(0, 49), 100, [])
    assert orphan_scan.due(look(0, 51), 100, [])
    assert not orphan_scan.due(look(3, 30), 10_000, [])
    assert orphan_scan.due(look(3, 61), 10_000, [])
    assert not orphan_scan.due(look(3, 61), 10_000, ["a.fk"])
    assert not orphan_scan.due(look(0, 299), 10_000, [], closed=True)
    assert orphan_scan.due(look(0, 301), 10_000, [], closed=True)
    assert not orphan_scan.due(look(0, 301, seconds=60), 10_000, [], closed=True)
    assert orphan_scan.due(look(0, 51), 100, [], closed=True)


# -- grants, statistics, identities


def test_roles_that_write_on_old_can_write_on_new(
    stage: Stage, role: Callable[[], str], seen: Callable[[], Seen]
) -> None:
    web, group, reader = role(), role(), role()
    assert gate(seen().document, "grants")["state"] == "passed"
    stage.old.execute(f"grant select on public.customers to {reader}".encode())
    stage.old.execute(f"grant select, insert on public.customers to {web}".encode())
    stage.old.execute(f"grant update (name), delete on public.customers to {group}; grant {group} to {web}".encode())
    stage.new.execute("create sequence app.ids; alter table app.customers alter id set default nextval('app.ids')")
    facts = seen().facts
    assert set(facts.lacking or ()) == {
        f"grant usage on schema app to {web}",
        f'grant insert, update, delete on "app"."customers" to {web}',
        f"grant usage on sequence app.ids to {web}",
        f"grant usage on schema app to {group}",
        f'grant update, delete on "app"."customers" to {group}',
    }
    found = gate(seen().document, "grants")
    assert (found["state"], found["detail"]) == ("failed", "5 grants are missing on new")
    stage.more = f'cutover: {{gates: {{grants: {{except: [{web}, "{group} on customers"]}}}}}}\n'
    assert gate(seen().document, "grants")["state"] == "passed"
    stage.more = ""
    for statement in facts.lacking or ():  # the remedy is what it says it is
        stage.new.execute(statement.encode())
    assert gate(seen().document, "grants")["state"] == "passed"


def test_tables_without_statistics(stage: Stage, seen: Callable[[], Seen]) -> None:
    def loaded(rows: int) -> None:
        stage.new.execute("delete from slackwater.load")
        stage.new.execute(
            "insert into slackwater.load (migration, direction, name, source, fingerprint, state, rows, done_at)"
            " values (%s, 'forward', 'customers', 'customers', 'f', 'done', %s, clock_timestamp())",
            (stage.migration, rows),
        )

    loaded(10)
    assert gate(seen().document, "statistics")["state"] == "passed"
    loaded(5000)
    found = gate(seen().document, "statistics")
    assert (found["state"], found["remedy"]) == ("failed", 'analyze "app"."customers"')
    stage.new.execute('analyze "app"."customers"')
    until(lambda: seen().document, lambda d: gate(d, "statistics")["state"] == "passed")
    loaded(5000)  # anew
    assert gate(seen().document, "statistics")["state"] == "failed"


def test_a_file_that_was_not_prepared(stage: Stage, seen: Callable[[], Seen]) -> None:
    stage.more = "exclude: [nothing]\n"
    document = seen().document
    assert gate(document, "prepared")["state"] == "failed"
    assert gate(document, "grants")["state"] == "unknown"


# -- verification


def test_only_a_whole_clean_and_young_pass_of_this_file_counts(stage: Stage, seen: Callable[[], Seen]) -> None:
    store, fingerprint = Store(stage.new, stage.migration, Direction.FORWARD), stage.spec().fingerprint

    def passes(*, mismatches: int = 0, of: str = fingerprint) -> Verdict:
        began, _, _ = store.begin("customers", of, resume=False)
        wrong = [Mismatch(kind=Kind.DIFFERENT, key={"id": str(i)}) for i in range(mismatches)]
        return store.conclude("customers", began, of, rows=10, mismatches=wrong, total=mismatches)

    def state() -> tuple[str, str]:
        found = gate(seen().document, "verification")
        return found["state"], found["detail"]

    def mismatched() -> list[int | None]:
        found = seen().document["verification"]["forward"]
        return [found["mismatched"], found["tables"]["customers"]["mismatched"]]

    assert state() == ("unknown", "not compared under this file: customers")
    assert mismatched() == [None, None]
    began, _, _ = store.begin("customers", fingerprint, resume=False)
    assert state()[1].endswith("a pass is under way")
    assert mismatched() == [None, None]
    store.found("customers", began, [], 2)
    assert mismatched() == [2, 2]
    passes(of="another file's")
    assert state()[0] == "unknown"
    assert mismatched() == [None, None]
    passes()
    assert mismatched() == [0, 0]
    assert state()[0] == "passed"
    verification = seen().document["verification"]["forward"]
    assert (verification["state"], verification["tables"]["customers"]["rows"]) == ("clean", 10)
    stage.new.execute("update slackwater.verification set at = at - interval '25 hours'")
    assert state()[0] == "failed"
    stage.more = "verify: {max_age_s: 100000}\n"
    assert state()[0] == "passed"
    passes(mismatches=3)
    assert state() == ("failed", "not as they should be: 3 rows of customers")
    store.repaired("customers")
    assert state() == ("failed", "repaired, and not compared since: customers")
    passes()
    assert state()[0] == "passed"
    # Loaded anew since: two edits of a file can end in the first one.
    stage.new.execute(
        "insert into slackwater.load (migration, direction, name, source, fingerprint, state, rows, done_at)"
        " values (%s, 'forward', 'customers', 'customers', 'f', 'done', 1, clock_timestamp())",
        (stage.migration,),
    )
    assert state()[0] == "failed"
    assert state()[1].startswith("not verified since it was loaded anew (")


# -- the whole


def test_a_gate_that_is_switched_off_is_shown(stage: Stage, seen: Callable[[], Seen]) -> None:
    stage.more = "cutover: {gates: {verification: off}}\n"
    document = seen().document
    assert "verification" not in [g["gate"] for g in document["gates"]]  # whose states are three
    (found,) = document["gates_off"]
    assert (found["gate"], found["state"]) == ("verification", "unknown")
    assert "  off     verification: switched off in" in screen(document)
    assert found["detail"].startswith("switched off in migration.yaml line 7; it would be unknown: not compared")
    assert "verification" not in [g.gate for g in seen().gates[Direction.FORWARD] if g.stops]


def test_since_when_is_kept_on_new_when_it_changes(stage: Stage) -> None:
    def keep(*judged: tuple[str, State]) -> dict[str, tuple[State, datetime]]:
        gate_table.keep(stage.new, stage.migration, [(Direction.FORWARD, g, s) for g, s in judged])
        return {g: found for (_, g), found in gate_table.since(stage.new, stage.migration).items()}

    first = keep(("lag", State.PASSED), ("fence", State.FAILED))
    again = keep(("lag", State.PASSED), ("fence", State.PASSED))
    assert again["lag"] == first["lag"]
    assert again["fence"][0] is State.PASSED
    assert again["fence"][1] > first["fence"][1]


def test_the_verb(running: Stage, tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(running.text())

    def gates(*options: str, code: int = 0) -> Any:
        done = completed(["-c", str(path), "gates", *options], env={}, folder=tmp_path)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if "--json" in options else done.stdout

    running.new.execute("create table app.orders (id int primary key, customer int references app.customers)")
    document = gates("--json")
    assert (document["direction"], document["safe"]) == ("forward", False)
    assert all({"gate", "state", "detail", "since", "remedy", "blocks"} == g.keys() for g in document["gates"])
    assert gate(document, "foreign_keys")["state"] == "unknown"
    assert gate(document, "lag")["state"] == "passed"
    shown = gates("--recheck")
    assert "\n  remedy:" not in shown.splitlines()[0]
    assert "safe to cut over: no (" in shown.splitlines()[-1]
    assert gate(gates("--json"), "foreign_keys")["state"] == "passed"
    back = gates("--direction", "reverse", "--json")
    assert {g["gate"] for g in back["gates"] if g["blocks"]} == {
        "roles",
        "lag",
        "quarantine",
        "reread",
        "silent_changes",
    }
    assert back["safe"] is False  # no way back was built
    running.new.execute("delete from slackwater.migration")
    gates(code=3)
