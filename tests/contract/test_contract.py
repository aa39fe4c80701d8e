"""The names that operators, services and scripts lean on: they may be added to, and never change.

The file's keys with their defaults, verbs with their options, the document of `status`, control tables, topics.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from connectors.postgres import control
from schemas import exits
from schemas.control import FENCE_TRIGGER, ROUTE_CHANNEL
from schemas.direction import Direction, epochs_topic, schemas_topic, slot_name
from schemas.spec import Spec, parse_spec
from stream.cli import VERBS, application, main
from stream.lifecycle.direction import row_topic
from tests.fixtures.staged import Stage

ROOT = Path(__file__).parents[2]

FILE = """
migration: shop
old: {dsn: "${OLD_DSN}", schema: public}
new: {dsn: "${NEW_DSN}", schema: app, ddl: null}
kafka:
  bootstrap: "${KAFKA_BOOTSTRAP}"
  topic_prefix: slackwater
  partitions: 4
  replication_factor: null
  retention_s: null
  registry: {url: null, options: {}}
  options: {}
http:     {listen: "127.0.0.1:0"}
log:      {format: text, level: info}
epoch:    {max_ms: 100, max_rows: 20000}
backfill: {workers: 2, chunk_bytes: 16MB, max_lag_s: 30, max_rows_per_s: null, window: null, read_from: null, after: []}
verify:   {workers: 2, max_age_s: 86400, max_rows_per_s: null, window: null, read_from: null}
cutover:  {max_pause_s: 5, max_lag_s: 5, attempts: 10, window: null, gates: {}}
roundtrip: {accept: []}
quarantine: {limit: 100}
hooks:    {before_cutover: null, after_cutover: null, before_rollback: null, after_rollback: null, on_change: null}
copy: []
exclude: []
drop: []
trust: []
tables: []
reverse: []
sequences: []
exclude_sequences: []
"""
LEAST = """
migration: shop
old: {dsn: "${OLD_DSN}"}
new: {dsn: "${NEW_DSN}", schema: app}
kafka: {bootstrap: "${KAFKA_BOOTSTRAP}"}
"""
ENVIRONMENT = {"OLD_DSN": "dbname=old", "NEW_DSN": "dbname=new", "KAFKA_BOOTSTRAP": "k:9092"}


def test_every_key_of_the_file_has_its_name_and_its_default() -> None:
    whole, least = (parse_spec(text, env=ENVIRONMENT) for text in (FILE, LEAST))
    assert whole.model_dump() == least.model_dump()
    assert whole.fingerprint == least.fingerprint


CONFIG, JSON, AS, YES = "--config", "--json", "--as", "--yes"
OPTIONS: dict[str, set[str]] = {
    "init": {"--old", "--new"},
    "check": set(),
    "plan": {"--ddl"},
    "grants": set(),
    "show": {"--key", "--limit"},
    "prepare": {AS},
    "upgrade": {"--dry-run", "--only", AS},
    "run": {"--direction", AS},
    "status": {"--watch", "--exit-code"},
    "wait": {"--for", "--timeout"},
    "pause": {"--reason", AS},
    "resume": {"--reason", AS},
    "verify": {"--direction", "--table", "--repair", "--continuous", AS, YES},
    "roundtrip": set(),
    "gates": set(),
    "arm": {AS},
    "cutover": {"--dry-run", "--max-pause", "--terminate-blockers", AS, YES},
    "rollback": {"--dry-run", "--max-pause", "--waive", "--reason", AS, YES},
    "failover": {"--to", "--accept-loss", "--source-isolated", AS, YES},
    "route": {"--wait", "--timeout", "--dsn", "--migration"},
    "foreign-writes list": set(),
    "foreign-writes accept": {AS, YES},
    "foreign-writes discard": {AS, YES},
    "quarantine list": set(),
    "quarantine retry": {AS},
    "quarantine waive": {AS},
    "journal": {"--verify"},
    "finalize": {"--drop-topics", AS, YES},
    "cancel": {AS, YES},
    "local up": {"--dir"},
    "local down": {"--dir"},
    "local env": {"--dir"},
    "demo": {"--full", "--keep"},
    "schema": set(),
}
ARGUMENTS = {
    "run": ["capture", "apply", "backfill"],
    "pause": ["backfill", "verify", "apply"],
    "resume": ["backfill", "verify", "apply"],
}
WITHOUT_A_FILE = {"init", "local", "demo", "schema"}


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_verb_has_its_options(verb: str) -> None:
    command: Any = typer.main.get_command(application(verb.split()))
    for name in verb.split():
        command = command.commands[name]
    given = {spelling for p in command.params for spelling in p.opts if spelling.startswith("-")}
    wanted = OPTIONS[verb] | {JSON} | (set() if verb.split(maxsplit=1)[0] in WITHOUT_A_FILE else {CONFIG})
    assert wanted <= given


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_what_a_verb_is_about(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == exits.DONE
    named = re.search(r"<([a-z|]+)>", capsys.readouterr().out)
    assert named is not None
    assert set(ARGUMENTS[verb]) <= set(named[1].split("|"))


ROLE = {"state": None, "pid": None, "host": None, "seen_at": None}
DIRECTION: dict[str, Any] = {
    **dict.fromkeys(("state", "lag_seconds", "lag_bytes", "freshness_seconds", "source_lsn", "applied_lsn", "epoch")),
    "rows_per_second": None,
    "capture": ROLE,
    "apply": ROLE,
    "slot": dict.fromkeys(("name", "active", "retained_bytes", "wal_status")),
    "paused": None,
    "last_error": None,
}
STATUS: dict[str, Any] = {
    **dict.fromkeys(("migration", "phase", "writes", "turn", "at", "next", "safe_to_cutover", "safe_to_rollback")),
    "directions": {"forward": DIRECTION},
    "backfill": {"state": None, "paused": None, "tables": None},
    "verification": {"forward": {"state": None, "at": None, "tables": None}},
    "quarantine": {"rows": None},
    "reread": {"rows": None},
    "foreign_writes": {"rows": None},
    "gates": None,
    "cutover": {"at": None, "pause_seconds": None},
}


def missing(wanted: dict[str, Any], found: dict[str, Any], path: str = "") -> list[str]:
    lacking = [path + key for key in wanted if key not in found]
    for key, below in wanted.items():
        if below is not None and key in found:
            assert isinstance(found[key], dict), f"{path}{key} is {found[key]!r}"
            lacking += missing(below, found[key], f"{path}{key}.")
    return lacking


def test_status_has_its_keys(running: Stage) -> None:
    running.new.execute(
        "insert into slackwater.load (migration, direction, name, source, fingerprint, state)"
        " values (%s, 'forward', 'customers', 'customers', 'f', 'running')",
        (running.migration,),
    )
    document = running.document()
    assert missing(STATUS, document) == []
    assert document["backfill"]["tables"]["customers"].keys() >= {"state", "rows", "chunks", "chunks_done"}
    assert document["verification"]["forward"]["tables"]["customers"].keys() >= {"state", "rows", "mismatched"}
    for gate in document["gates"]:
        assert gate.keys() >= {"gate", "state", "detail", "since", "remedy"}
        assert gate["state"] in ("passed", "failed", "unknown")
    assert document["writes"] in ("old", "new", "none")
    assert json.loads(json.dumps(document)) == document


RELIED_ON = (
    "checkpoint", "epoch", "journal", "quarantine", "reread", "backfill_chunk", "verification", "turn", "route",
)  # fmt: skip


def test_control_tables_that_people_may_query(stage: Stage) -> None:
    for table in RELIED_ON:
        stage.new.execute(f"select from slackwater.{table}".encode())
    stage.new.execute("select migration, writes, turn, changed_at from slackwater.route")
    assert {*RELIED_ON} <= {*control.CONTROL_TABLES}
    assert (FENCE_TRIGGER, ROUTE_CHANNEL) == ("slackwater_fence", "slackwater_route")


def test_topics_and_slots_are_named_so() -> None:
    spec: Spec = parse_spec(LEAST, env=ENVIRONMENT)
    assert row_topic(spec, Direction.FORWARD, "public", "customers") == "slackwater.shop.forward.public.customers"
    assert row_topic(spec, Direction.REVERSE, "app", "customer") == "slackwater.shop.reverse.app.customer"
    assert epochs_topic("slackwater", "shop", Direction.FORWARD) == "slackwater.shop.forward.epochs"
    assert schemas_topic("slackwater", "shop") == "slackwater.shop.schemas"
    assert slot_name("shop", Direction.REVERSE) == "slackwater_shop_reverse"


SAID = re.compile(r"[`$]\s?slackwater (?:-c \S+ )?([a-z][a-z-]*)((?: [^`\n#]*)?)", re.MULTILINE)
PLACES = ("README.md", "CONTRIBUTING.md", "deploy/**/*", "docker-compose.yml", "stream/**/*.py", "connectors/**/*.py",
          "schemas/**/*.py", "stream/**/*.md")  # fmt: skip


def test_commands_that_are_spoken_of_exist_with_their_options() -> None:
    """In documents, in remedies, in comments: whoever is told to run something can run it."""
    known: dict[str, set[str]] = {}
    for verb in VERBS:
        command: Any = typer.main.get_command(application([verb.name])).commands[verb.name]  # type: ignore[attr-defined]
        every = [command, *getattr(command, "commands", {}).values()]
        known[verb.name] = {o for c in every for p in c.params for o in p.opts} | {"-c", "--help", "-h"}
    wrong = []
    for path in sorted({p for place in PLACES for p in ROOT.glob(place) if p.is_file()}):
        for verb, rest in SAID.findall(path.read_text(errors="replace")):
            if verb not in known:
                wrong.append(f"{path.relative_to(ROOT)}: there is no verb {verb}")
                continue
            options = re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest.split("|", maxsplit=1)[0])
            wrong += [f"{path.relative_to(ROOT)}: {verb} has no {o}" for o in options if o not in known[verb]]
    assert not wrong, "\n".join(wrong)
