"""What every verb promises: help with an example, --json, exit statuses, causes with remedies, no hangs."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from schemas import exits
from stream.cli import VERBS
from tests.fixtures.launch import COMMAND, Launched, completed

PRESENT = [v for v in VERBS if importlib.util.find_spec(f"stream.cli.{v.module}") is not None]


def slackwater(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        return completed(arguments, env={"SLACKWATER_CONFIG": ""} | (env or {}), folder=Path(folder), timeout=60)


def installed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script itself."""
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "shop.yaml"
    path.write_text(
        "migration: shop\n"
        'old: {dsn: "host=127.0.0.1 port=1 password=hunter2! connect_timeout=2"}\n'
        'new: {dsn: "host=127.0.0.1 port=1 password=hunter2! connect_timeout=2"}\n'
        'kafka: {bootstrap: "127.0.0.1:1"}\n'
        'copy: "*"\n'
    )
    return str(path)


def test_the_numbers_never_change() -> None:
    named = (exits.DONE, exits.FAILED, exits.USAGE, exits.NO, exits.ABORTED, exits.AMBIGUOUS)
    assert named == (0, 1, 2, 3, 4, 5)


def test_help_lists_every_verb_that_is_there_and_starts_nothing() -> None:
    for shown in (installed(), installed("--help"), slackwater("-h")):
        assert shown.returncode == 0
        listed = {line.split()[0] for line in shown.stdout.split("Commands:")[1].splitlines() if line.strip()}
        assert {v.name for v in PRESENT} <= listed


@pytest.mark.parametrize("verb", PRESENT, ids=lambda v: v.name)
def test_help_of_a_verb_has_an_example(verb: object) -> None:
    name = verb.name  # type: ignore[attr-defined]
    shown = slackwater(name, "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"Example: {'slackwater' if name != 'local' else 'slackwater local'}" in " ".join(shown.stdout.split())
    if "Commands:" not in shown.stdout:
        assert "--json" in shown.stdout


@pytest.mark.parametrize("group", ["quarantine", "foreign-writes", "local"])
def test_every_verb_of_a_group_has_an_example_and_json(group: str) -> None:
    listed = slackwater(group, "--help").stdout.split("Commands:")[1].split("Example:")[0]
    names = [line.split()[0] for line in listed.splitlines() if line[:2] == "  " and line[2:3].strip()]
    assert len(names) >= 3
    for name in names:
        shown = slackwater(group, name, "--help").stdout
        assert "Example:" in shown
        assert shown.count("--json ") == 1


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["status", "--nonsense"], "No such option: --nonsense"),
        (["pause"], "Missing argument"),
        (["pause", "capture"], "'capture' is not"),
        (["run", "nonsense"], "'nonsense' is not"),
        (["status"], "no migration file is given"),
        (["-c", "/nowhere/shop.yaml", "status"], "/nowhere/shop.yaml"),
    ],
)
def test_a_wrong_command_line_is_exit_2_with_a_remedy(arguments: list[str], cause: str) -> None:
    done = slackwater(*arguments)
    assert done.returncode == exits.USAGE
    assert done.stderr.startswith("slackwater: ")
    assert cause in done.stderr
    assert "\n  remedy: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_the_file_may_be_named_in_three_ways(file: str, where: str) -> None:
    arguments = {"before": ["-c", file, "journal"], "after": ["journal", "-c", file], "environment": ["journal"]}[where]
    done = slackwater(*arguments, env={"SLACKWATER_CONFIG": file} if where == "environment" else {})
    assert done.returncode == exits.FAILED
    assert "cannot connect to host=127.0.0.1 port=1" in done.stderr
    assert "hunter2" not in done.stderr


TURN = ["result", "writes", "turn", "pause_seconds", "steps", "reasons", "error", "next"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["cutover"], exits.USAGE),  # nobody to ask, and no --yes
        (["rollback", "--waive", "nonsense"], exits.USAGE),
        (["failover", "--to", "old"], exits.USAGE),  # without its words
        (["arm", "--nonsense"], exits.USAGE),
        (["rollback", "--nonsense", "--reason", "verify"], exits.USAGE),
        (["arm"], exits.FAILED),
        (["cutover", "--yes"], exits.NO),
        (["cutover", "--dry-run"], exits.NO),
    ],
)
def test_a_turn_under_json_is_one_document_on_every_exit(file: str, arguments: list[str], code: int) -> None:
    done = slackwater("-c", file, *arguments, "--json")
    assert done.returncode == code, done.stderr
    told = json.loads(done.stdout)
    assert [key for key in told if key in TURN] == TURN
    assert told["result"] in ("refused", "failed")
    assert told["error"].keys() == {"cause", "remedy"}
    assert told["error"]["remedy"]
    assert (told["writes"], told["turn"], told["steps"]) == (None, None, [])
    assert told["reasons"]
    if code != exits.USAGE:
        assert told["next"].startswith(f"slackwater -c {file} ")


def test_an_error_under_json_is_one_document(file: str) -> None:
    done = slackwater("-c", file, "journal", "--json")
    assert done.returncode == exits.FAILED
    error = json.loads(done.stdout)["error"]
    assert error["cause"].startswith("cannot connect to")
    assert error["remedy"]
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments", [["status", "--nonsense"], ["nonsense"], ["pause", "capture"], ["quarantine", "list", "--nonsense"]]
)
def test_a_wrong_command_line_under_json_is_one_document(arguments: list[str]) -> None:
    done = slackwater(*arguments, "--json")
    assert done.returncode == exits.USAGE
    assert json.loads(done.stdout)["error"].keys() == {"cause", "remedy", "reasons"}


@pytest.mark.parametrize(("folder", "given"), [(".", "deploy/shop.yaml"), ("deploy", "../deploy/shop.yaml")])
def test_what_to_run_next_runs_from_where_it_is_read(file: str, folder: str, given: str) -> None:
    place = Path(file).parent
    (place / "deploy").mkdir()
    Path(file).rename(place / "deploy" / "shop.yaml")
    command = [COMMAND, "-c", given, "cutover", "--dry-run", "--json"]
    done = subprocess.run(command, cwd=place / folder, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["next"] == f"slackwater -c {given} status"


@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_a_remedy_can_be_run_as_it_stands(file: str, json_: list[str]) -> None:
    done = slackwater("-c", file, "quarantine", "waive", *json_)
    assert done.returncode == exits.USAGE
    assert f"remedy: slackwater -c {file} quarantine list\n" in done.stderr
    if json_:
        assert json.loads(done.stdout)["error"]["remedy"] == f"slackwater -c {file} quarantine list"
    assert "remedy: slackwater quarantine list\n" in slackwater("quarantine", "waive").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", [["cancel"], ["finalize"], ["foreign-writes", "list"], ["quarantine", "list"]])
def test_a_verb_that_is_told_to_stop_is_exit_4_with_its_document(
    file: str, verb: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = Path(file).read_text().replace("port=1 ", f"port={silent.getsockname()[1]} ")
        Path(file).write_text(text.replace("timeout=2", "timeout=60"))
        process = Launched(["-c", file, *verb, "--json"], env={}, folder=tmp_path)
        silent.settimeout(30)
        with silent.accept()[0]:  # it waits for an answer now, which does not come
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, json.loads(out)["error"]["cause"]) == (exits.ABORTED, "interrupted"), err


def test_a_watch_under_json_is_a_document_a_line(file: str) -> None:
    command = [COMMAND, "-c", file, "status", "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["migration"] for _ in range(2)] == ["shop", "shop"]
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def test_a_watch_has_no_exit_code_to_give(file: str) -> None:
    """It goes on until it is stopped, which says nothing of a cutover: a script would take its 0 for safe."""
    done = slackwater("-c", file, "status", "--watch", "--exit-code")
    assert (done.returncode, done.stdout) == (exits.USAGE, "")
    assert "wait --for safe_to_cutover" in done.stderr


def test_a_traceback_only_for_those_who_ask(file: str) -> None:
    assert "Traceback" not in slackwater("-c", file, "journal").stderr
    assert "Traceback" in slackwater("-c", file, "journal", "--debug").stderr


def test_the_schema_is_a_json_schema() -> None:
    schema = json.loads(slackwater("schema").stdout)
    assert "json-schema.org" in schema["$schema"]
    assert "backfill" in schema["properties"]
    assert json.loads(slackwater("schema", "--json").stdout) == schema


def test_the_version() -> None:
    assert slackwater("--version").stdout.startswith("slackwater ")


def test_status_answers_although_nobody_else_does(file: str) -> None:
    done = slackwater("-c", file, "status", "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert (document["phase"], document["writes"], document["safe_to_cutover"]) == (None, None, None)
    assert sorted(document["errors"]) == ["new", "old"]
    assert slackwater("-c", file, "status", "--exit-code").returncode == exits.NO
    assert "hunter2" not in done.stdout + done.stderr


def test_wait_gives_up_in_time_and_refuses_nonsense(file: str) -> None:
    done = slackwater("-c", file, "wait", "--for", "phase=streaming", "--timeout", "1", "--json")
    assert done.returncode == exits.NO
    assert json.loads(done.stdout)["met"] is False
    assert "cannot connect" in done.stderr
    assert slackwater("-c", file, "wait", "--for", "phase=nonsense").returncode == exits.USAGE


def test_a_waiver_needs_a_reason_and_a_retry_its_rows(file: str) -> None:
    done = slackwater("-c", file, "quarantine", "waive", "1")
    assert (done.returncode, "a waiver needs a reason" in done.stderr) == (exits.USAGE, True)
    assert slackwater("-c", file, "quarantine", "retry").returncode == exits.USAGE


QUESTION = """
import sys
from stream.cli import context
context.invocation().yes = "--yes" in sys.argv
context.stoppable()
context.confirm("drop it all?")
print("dropped")
"""
ASK = (
    "from schemas.errors import SlackwaterError\ntry:\n"
    + "".join(f"    {line}\n" for line in QUESTION.strip().splitlines())
    + "except SlackwaterError as error:\n    print(type(error).__name__)\n    sys.exit(error.exit_code)\n"
)


def test_a_question_never_hangs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (exits.USAGE, "ConfigError\n")
    done = subprocess.run(
        [sys.executable, "-c", ASK, "--yes"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "dropped\n")


@pytest.mark.parametrize(("typed", "code", "said"), [("y\n", 0, "dropped\n"), ("\n", exits.NO, "Refused\n")])
def test_a_question_on_a_terminal(typed: str, code: int, said: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ASK], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
    )
    os.write(ours, typed.encode())
    out, _ = process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, out) == (code, said)


def test_a_question_on_a_terminal_is_a_place_to_stop() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", ASK], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE)
    assert b"drop it all?" in os.read(ours, 1000)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == b""
    assert process.returncode == -signal.SIGINT
    os.close(ours)
    os.close(theirs)
