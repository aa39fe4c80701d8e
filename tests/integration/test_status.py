"""`status` on real databases: every key of the contract, unknown as null; a side that is down takes only its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from connectors.postgres import control
from connectors.postgres.session import connect
from schemas.direction import Direction, Side, slot_name
from schemas.position import format_lsn
from schemas.spec import parse_spec
from stream.cli.screen import screen
from stream.monitoring.sessions import Sides
from stream.status.document import Watch
from tests.fixtures.databases import Databases
from tests.fixtures.launch import completed
from tests.fixtures.staged import FILE, Stage, gate, until

DOWN = "host=127.0.0.1 port=1 connect_timeout=2"


def test_before_prepare_there_is_a_plan_and_nothing_else(unprepared: Stage) -> None:
    document = unprepared.document()
    # After `finalize` nothing is there either, and the writes may be on new: old would be a guess.
    assert (document["phase"], document["writes"], document["turn"]) == ("planned", None, None)
    assert document["next"] == "slackwater -c migration.yaml prepare"
    assert document["gates"] == []
    assert document["safe_to_cutover"] is False
    assert document["backfill"]["seconds_left"] is None
    shown = screen(document)
    assert shown.startswith("WRITES unknown  PHASE planned  CUTOVER no  NEXT slackwater -c migration.yaml prepare\n")
    assert "it is not prepared yet, or it was finalized or cancelled" in shown


def test_no_side_is_named_where_nothing_can_tell(unprepared: Stage, tmp_path: Path) -> None:
    """A cutover script that reads `route` after `finalize`, or before `prepare`, must not be told old."""
    path = tmp_path / "shop.yaml"
    path.write_text(unprepared.text())
    for options in ([], ["--wait", "old", "--timeout", "60"]):
        asked = completed(["-c", str(path), "route", *options], env={}, folder=tmp_path)
        assert (asked.returncode, asked.stdout) == (3, "")
        assert "it is not prepared yet, or it was finalized or cancelled" in asked.stderr
    asked = completed(["-c", str(path), "route", "--json"], env={}, folder=tmp_path)
    told = {"migration": unprepared.migration, "writes": None, "turn": None, "changed_at": None, "met": False}
    assert (asked.returncode, json.loads(asked.stdout)) == (3, told)


def test_every_key_of_the_contract(running: Stage) -> None:
    document = until(running.document, lambda d: d["directions"]["forward"]["state"] == "running")
    assert {
        "migration", "phase", "writes", "turn", "at", "directions", "backfill", "verification", "quarantine", "reread",
        "foreign_writes", "gates", "safe_to_cutover", "safe_to_rollback", "cutover", "next",
    } <= document.keys()  # fmt: skip
    forward = document["directions"]["forward"]
    assert {
        "state", "lag_seconds", "lag_bytes", "freshness_seconds", "source_lsn", "applied_lsn", "epoch",
        "rows_per_second", "capture", "apply", "slot", "paused", "last_error",
    } <= forward.keys()  # fmt: skip
    assert {"state", "pid", "host", "seen_at"} <= forward["capture"].keys()
    assert {"name", "active", "retained_bytes", "wal_status"} <= forward["slot"].keys()
    assert all({"gate", "state", "detail", "since", "remedy"} <= g.keys() for g in document["gates"])
    assert forward["capture"]["pid"] == os.getpid()
    assert document["at"].endswith("Z")


def test_lag_is_zero_once_proven(running: Stage) -> None:
    document = until(running.document, lambda d: d["directions"]["forward"]["lag_seconds"] is not None)
    forward = document["directions"]["forward"]
    assert forward["lag_seconds"] == 0
    assert forward["freshness_seconds"] < 5
    assert forward["lag_bytes"] == 0
    assert gate(document, "lag")["state"] == "passed"


def test_lag_is_unknown_where_nothing_was_ever_proven(stage: Stage) -> None:
    forward = stage.document()["directions"]["forward"]
    assert forward["lag_seconds"] is None
    assert forward["lag_bytes"] > 0
    assert (forward["state"], forward["stuck"]["cause"]) == ("stopped", "capture has never run")
    assert gate(stage.document(), "lag")["state"] == "unknown"


def test_a_role_that_was_stopped_is_named(running: Stage) -> None:
    until(running.document, lambda d: d["directions"]["forward"]["state"] == "running")
    backfill = running.heartbeat("backfill")
    backfill.start()
    backfill.running()
    until(running.document, lambda d: (d["backfill"]["role"] or {}).get("state") == "running")
    backfill.stop()
    assert running.document()["backfill"]["role"]["state"] == "stopped"


def test_a_dead_capture(stage: Stage) -> None:
    stage.old.execute(
        "insert into slackwater.role (migration, direction, role, pid, host, state, seen_at, figures) values "
        "(%s, 'forward', 'capture', 4711, 'a', 'running', clock_timestamp() - interval '40 seconds', %s::jsonb)",
        (stage.migration, json.dumps({"captured_lsn": format_lsn(stage.start), "captured_epoch": 0})),
    )
    stage.new.execute(
        "insert into slackwater.role (migration, direction, role, pid, host, state, figures) values (%s, 'forward', "
        "'apply', 1, 'a', 'running', jsonb_build_object('lag', jsonb_build_object('passed_at', "
        "extract(epoch from clock_timestamp()) - 40)))",
        (stage.migration,),
    )
    document = stage.document()
    forward = document["directions"]["forward"]
    assert 39 < forward["lag_seconds"] < 60
    assert forward["state"] == "stopped"
    assert forward["capture"]["state"] == "dead"
    assert forward["stuck"]["cause"].startswith("capture has not been heard of for 4")
    assert gate(document, "roles")["state"] == "failed"
    assert gate(document, "lag")["state"] == "failed"
    assert "capture has not been heard of" in gate(document, "lag")["detail"]
    later = stage.document()["directions"]["forward"]
    assert later["lag_seconds"] > forward["lag_seconds"]


@pytest.mark.parametrize("side", [Side.OLD, Side.NEW])
def test_a_side_that_is_down_takes_only_what_it_knows(running: Stage, side: Side) -> None:
    until(running.document, lambda d: d["directions"]["forward"]["state"] == "running")
    document = running.document(**{side.value: DOWN})
    assert list(document["errors"]) == [side.value]
    assert "127.0.0.1" in document["errors"][side.value]["cause"]
    forward = document["directions"]["forward"]
    assert forward["state"] == "unknown"
    assert forward["stuck"]["stage"] == ("source" if side is Side.OLD else "target")
    assert forward["lag_bytes"] is None
    assert document["turn"] is None
    if side is Side.OLD:
        assert document["phase"] == "prepared"
        assert document["writes"] is None  # new's row says that new is closed; old's would say the rest
        assert (forward["slot"], forward["source_lsn"], forward["capture"]) == (None, None, None)
        assert forward["apply"]["state"] == "running"
        assert document["quarantine"]["rows"] == 0
        assert gate(document, "slot_headroom")["state"] == "unknown"
        assert document["safe_to_cutover"] is False
    else:
        assert document["phase"] is None
        assert document["writes"] == "old"  # old's own row says that it is open
        assert (document["quarantine"]["rows"], document["reread"]["rows"]) == (None, None)
        assert document["backfill"]["state"] is None
        assert document["safe_to_cutover"] is None


def test_both_sides_down(unprepared: Stage) -> None:
    document = unprepared.document(old=DOWN, new=DOWN)
    assert (document["phase"], document["writes"], document["turn"]) == (None, None, None)
    assert document["directions"]["forward"]["lag_seconds"] is None


@pytest.mark.parametrize(
    ("old", "new", "writes", "turn"),
    [
        ((0, None), (-1, 1), "old", 0),
        ((0, 2), (-1, 1), "none", 0),  # fenced, and new not opened yet
        ((0, 2), (1, 1), "new", 1),
        ((0, 2), (1, 3), "none", 1),
        ((2, 2), (1, 3), "old", 2),
        ((2, 2), (3, 3), None, 3),  # never: but if it were so, nobody is told a side
        (None, (-1, 1), "old", 0),  # a cancel that was killed: old's rows go first, after its fence
        (None, (1, 3), "old", 1),  # a finalize, after a rollback
        (None, (1, 1), "new", 1),
        (None, None, None, None),
    ],
)
def test_writes_come_from_the_turn_rows_alone(
    stage: Stage,
    old: tuple[int, int | None] | None,
    new: tuple[int, int | None] | None,
    writes: str | None,
    turn: int | None,
) -> None:
    for conn, row in ((stage.old, old), (stage.new, new)):
        if row is None:
            conn.execute("delete from slackwater.turn")
        else:
            conn.execute("update slackwater.turn set open_turn = %s, fence_turn = %s", row)
    document = stage.document()
    assert (document["writes"], document["turn"]) == (writes, turn)


def test_what_nobody_mapped_and_what_nobody_fenced_fails_a_gate(stage: Stage) -> None:
    assert gate(stage.document(), "unmapped_columns")["state"] == "passed"
    assert gate(stage.document(), "fence")["state"] == "passed"
    stage.old.execute("alter table public.customers add column fax text")
    stage.old.execute("create table public.orders (id int primary key)")
    stage.new.execute("drop trigger slackwater_fence on app.customers")
    document = stage.document()
    assert gate(document, "unmapped_columns")["detail"] == "nothing reads column customers.fax, table orders"
    assert gate(document, "fence")["detail"] == "no fence on app.customers"
    # A trigger of somebody else's under our name: it cannot be read as a fence, and nothing is claimed.
    stage.new.execute(
        "create trigger slackwater_fence before insert on app.customers execute function slackwater.refuse()"
    )
    document = stage.document()
    assert document["safe_to_cutover"] is not True
    assert document["errors"] or gate(document, "fence")["state"] == "failed"


def test_a_lost_slot(stage: Stage) -> None:
    stage.old.execute("select pg_drop_replication_slot(%s)", (slot_name(stage.migration, Direction.FORWARD),))
    document = stage.document()
    assert document["directions"]["forward"]["state"] == "halted"
    assert document["directions"]["forward"]["stuck"]["cause"] == "the replication slot is gone from the source"
    assert gate(document, "slot_headroom")["state"] == "failed"


def test_backfill_queues_and_pauses_show(stage: Stage) -> None:
    for name, how, rows in (("customers", "running", 40), ("mirror:users", "done", 7)):
        stage.new.execute(
            "insert into slackwater.load (migration, direction, name, source, fingerprint, state, rows, rows_estimate, "
            "started_at) values (%s, 'forward', %s, 'x', 'f', %s, %s, 100, clock_timestamp() - interval '10 s')",
            (stage.migration, name, how, rows),
        )
    for chunk, how in enumerate(("done", "done", "pending")):
        stage.new.execute(
            "insert into slackwater.backfill_chunk (migration, direction, load, chunk, state) "
            "values (%s, 'forward', 'customers', %s, %s)",
            (stage.migration, chunk, how),
        )
    stage.new.execute(
        "insert into slackwater.quarantine (migration, direction, load, source, key, error, state) "
        "select %s, 'forward', 'customers', 'customers', jsonb_build_object('id', i), 'no', s "
        "from (values (1, 'open'), (2, 'retrying'), (3, 'waived')) v(i, s)",
        (stage.migration,),
    )
    stage.new.execute(
        "insert into slackwater.pause (migration, what, by) values (%s, 'backfill', 'dba')", (stage.migration,)
    )
    document = stage.document()
    backfill = document["backfill"]
    assert backfill["state"] == "paused"
    assert backfill["paused"]["by"] == "dba"
    customers = backfill["tables"]["customers"]
    assert (customers["rows"], customers["chunks"], customers["chunks_done"]) == (40, 3, 2)
    assert 10 < customers["seconds_left"] < 30
    assert backfill["tables"]["mirror:users"]["seconds_left"] == 0
    assert document["quarantine"]["rows"] == 2
    assert gate(document, "quarantine")["state"] == "failed"
    assert gate(document, "backfill")["detail"] == "1 of 2 not done: customers"


def test_a_cutover_is_never_safe_without_the_way_back(running: Stage) -> None:
    running.new.execute("update slackwater.migration set phase = 'streaming'")
    document = until(
        running.document, lambda d: gate(d, "lag")["state"] == "passed" and gate(d, "roles")["state"] == "passed"
    )
    failing = [g["gate"] for g in document["gates"] if g["state"] != "passed"]
    assert failing == ["verification", "roundtrip", "armed"]
    assert document["safe_to_cutover"] is False


def test_since_when_a_gate_is_as_it_is(stage: Stage) -> None:
    spec = stage.spec()
    sides = Sides({Side.OLD: spec.old.dsn, Side.NEW: spec.new.dsn}, application="test")
    watch = Watch(spec, sides)
    first = gate(watch.document(), "fence")
    time.sleep(0.01)
    assert gate(watch.document(), "fence") == first
    stage.new.execute("drop trigger slackwater_fence on app.customers")
    assert gate(watch.document(), "fence")["since"] > first["since"]
    # The applier keeps it on new, so that one-shot commands know it too; of another state it says nothing.
    kept = "insert into slackwater.gate values (%s, 'forward', %s, %s, '2026-01-01 00:00:00+00')"
    stage.new.execute(kept, (stage.migration, "fence", "failed"))
    stage.new.execute(kept, (stage.migration, "lag", "passed"))
    assert gate(stage.document(), "fence")["since"] == "2026-01-01T00:00:00.000Z"
    assert gate(stage.document(), "lag")["since"] > "2026-01-01T00:00:00.000Z"
    sides.close()


def test_one_database_for_both_sides(databases: Databases, migration_name: str) -> None:
    with connect(databases.old) as conn:
        conn.execute("create schema app")
        with control.transaction(conn, "preparing"):
            control.install(conn)
            control.put_turn(conn, migration_name, Side.OLD, open_turn=0, fence_turn=None)
            control.put_turn(conn, migration_name, Side.NEW, open_turn=-1, fence_turn=1)
        spec = parse_spec(FILE.format(migration=migration_name, old=databases.old, new=databases.old), env={})
        sides = Sides({Side.OLD: spec.old.dsn, Side.NEW: spec.new.dsn}, application="test")
        assert Watch(spec, sides).document()["writes"] == "old"
        sides.close()


def test_the_verb(running: Stage, tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(FILE.format(migration=running.migration, old=running.databases.old, new=running.databases.new))

    def status(*options: str) -> subprocess.CompletedProcess[str]:
        return completed(["-c", str(path), "status", *options], env={}, folder=tmp_path)

    shown = status()
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0].startswith("WRITES old  PHASE prepared  CUTOVER no (")
    assert "capture running" in shown.stdout
    asked = status("--json", "--exit-code")
    assert asked.returncode == 3
    assert json.loads(asked.stdout)["directions"]["forward"]["lag_seconds"] == 0
