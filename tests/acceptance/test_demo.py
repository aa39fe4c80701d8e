"""The demo, as a person runs it: its story, its proof, and that nothing of it is left behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from connectors import local
from connectors.postgres.session import connect
from stream.demo.compare import compare, sections, tables
from stream.demo.stage import sweep
from tests.fixtures.databases import Databases
from tests.fixtures.servers import environment_without_servers

SLACKWATER = Path(sys.executable).with_name("slackwater")
SHOP = Path(__file__).parents[2] / "stream" / "demo" / "shop"


@pytest.fixture
def elsewhere() -> Iterator[dict[str, str]]:
    """An environment whose temporary folder is ours alone, so that everything the demo makes is known."""
    folder = Path(tempfile.mkdtemp(prefix="slackwater-test-demo-"))
    folder.chmod(0o711)
    try:
        yield {**environment_without_servers(), "TMPDIR": str(folder)}
    finally:
        for stage in folder.glob("slackwater-demo-*"):
            sweep(stage)
        shutil.rmtree(folder, ignore_errors=True)


def working_in(folder: str) -> list[str]:
    """Command lines of the processes that work in, or were given, something below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if folder in line or (process.info["cwd"] or "").startswith(folder):
            found.append(line)
    return found


@pytest.mark.soak
def test_demo_tells_its_story_and_leaves_nothing(elsewhere: dict[str, str]) -> None:
    done = subprocess.run([SLACKWATER, "demo", "--json"], env=elsewhere, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["result"], told["kept"]) == ("done", None)
    for said in (
        "check",
        "plan",
        "prepare",
        "run &",
        "kill -9",
        "verify --repair",
        "gates",
        f"show customer --key {4711}",
        "every row is there",
        "cutover: done",
        "rollback: done",
        "lost 0, doubled 0",
    ):
        assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line]) < 260
    assert working_in(elsewhere["TMPDIR"]) == []
    assert list(Path(elsewhere["TMPDIR"]).iterdir()) == []


@pytest.mark.soak
def test_a_difference_fails_the_demo(elsewhere: dict[str, str]) -> None:
    """A row of new that is tampered with at the end is named, and the exit status says no."""
    demo = subprocess.Popen(
        [SLACKWATER, "demo"], env=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    said = []
    for line in demo.stdout:
        said.append(line)
        if "Writers stop" in line:
            break
    stage = next(Path(elsewhere["TMPDIR"]).glob("slackwater-demo-*"))
    running = local.find(stage / "servers")
    assert running is not None
    with connect(running.new_dsn) as new:
        new.execute("set session_replication_role = replica")
        new.execute("alter table app.countries disable trigger user")  # the fence is ALWAYS: nobody writes by accident
        new.execute("update app.countries set name = 'Atlantis' where code = 'DK'")
    out, err = demo.communicate(timeout=120)
    assert demo.returncode == 1, "".join(said) + out + err
    assert "Atlantis" in out
    assert "the two sides differ in countries" in err
    assert working_in(elsewhere["TMPDIR"]) == []


def test_an_interrupted_demo_leaves_nothing(elsewhere: dict[str, str]) -> None:
    demo = subprocess.Popen(
        [SLACKWATER, "demo", "--json"], env=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert demo.stderr is not None
    for line in demo.stderr:
        if "pgbench" in line:  # servers and the load are up
            break
    time.sleep(0.5)
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=60)
    assert demo.returncode == 4, err
    assert json.loads(out)["error"]["cause"] == "interrupted"
    assert working_in(elsewhere["TMPDIR"]) == []
    assert list(Path(elsewhere["TMPDIR"]).iterdir()) == []


def test_a_killed_demo_is_cleared_by_the_next_one(elsewhere: dict[str, str]) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        demo = subprocess.Popen(
            [SLACKWATER, "demo"], env=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert demo.stdout is not None
        for line in demo.stdout:
            if "pgbench" in line:
                break
        demo.send_signal(number)
        demo.communicate(timeout=60)
    assert working_in(elsewhere["TMPDIR"]) == []
    assert list(Path(elsewhere["TMPDIR"]).iterdir()) == []


def test_expected_names_every_table() -> None:
    named = [name for name, _ in sections((SHOP / "expected.sql").read_text())]
    assert len(named) == len(set(named))
    assert sorted(named) == sorted(
        line.split('"')[1] if '"' in line.split("(")[0] else line.split()[2]
        for line in (SHOP / "new.sql").read_text().splitlines()
        if line.startswith("create table")
    )


def test_compare_finds_what_differs(databases: Databases) -> None:
    with connect(databases.old) as old, connect(databases.new) as new:
        old.execute("create table public.t (id int, v text)")
        old.execute("insert into public.t values (1, 'a'), (2, ''), (2, ''), (3, null), (4, E'x\\ty\\\\z')")
        new.execute("create schema app; create table app.t (id int, v text)")
        new.execute("insert into app.t values (1, 'a'), (2, ''), (3, ''), (4, E'x\\ty\\\\z'), (5, 'only here')")
    assert tables(databases.new, "app") == ["t"]
    (found,) = compare(databases.old, databases.new, "-- t\nselect id, v from public.t;\n", "app")
    assert not found.equal
    assert found.rows == 5
    assert dict(found.missing) == {b'(2,"")\n': 1, b"(3,)\n": 1}
    assert dict(found.extra) == {b'(3,"")\n': 1, b'(5,"only here")\n': 1}
    told = list(found.told())
    assert told[0] == "t: new lacks 2 of 5 rows"
    with connect(databases.new) as new:
        new.execute("truncate app.t")
        new.execute("insert into app.t values (1, 'a'), (2, ''), (2, ''), (3, null), (4, E'x\\ty\\\\z')")
    (found,) = compare(databases.old, databases.new, "-- t\nselect id, v from public.t;\n", "app")
    assert found.equal
