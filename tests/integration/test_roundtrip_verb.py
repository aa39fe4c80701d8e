"""The verb: its exits, its document, and that it shows keys and never a value."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.postgres import session
from tests.fixtures.databases import Databases

FILE = """
migration: m
old: {{dsn: "{old}"}}
new: {{dsn: "{new}", schema: app}}
kafka: {{bootstrap: "127.0.0.1:1"}}
tables: [{{to: t, select: "select id, lower(name) as name from t"}}]
"""


@pytest.fixture
def file(databases: Databases, tmp_path: Path) -> Path:
    with session.connect(databases.old) as old, session.connect(databases.new) as new:
        old.execute("create table public.t (id integer primary key, name text not null)")
        old.execute("insert into public.t values (1, 'low'), (2, 'SECRET')")
        new.execute("create schema app")
        new.execute("create table app.t (id integer primary key, name text not null, more text)")
    path = tmp_path / "m.yaml"
    path.write_text(FILE.format(old=databases.old, new=databases.new))
    return path


def ran(file: Path, *more: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "slackwater")
    return subprocess.run([program, "-c", str(file), "roundtrip", *more], capture_output=True, text=True, timeout=60)


def test_a_loss_is_no_and_an_accepted_one_is_yes(file: Path) -> None:
    done = ran(file)
    assert done.returncode == 3, done.stderr
    assert "t.name  lossy in 1 rows (such as id=2): lower() forgets capital letters" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr
    document = json.loads(ran(file, "--json").stdout)
    assert (document["result"], document["losses"]) == ("lossy", ["t.name"])
    file.write_text(file.read_text() + "roundtrip: {accept: [t.name]}\n")
    done = ran(file, "--json")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, "accepted")


def test_what_could_not_be_judged_is_a_failure(file: Path) -> None:
    file.write_text(file.read_text() + "reverse: [{to: t, select: 'select id, more as name from t'}]\n")
    done = ran(file)
    assert done.returncode == 1
    assert "reads t.more, which no mapping gives" in done.stdout
    file.write_text(file.read_text().replace("lower(name)", "lower(gone)"))
    done = ran(file)
    assert done.returncode == 1
    assert "the mappings cannot be used as they are" in done.stderr
