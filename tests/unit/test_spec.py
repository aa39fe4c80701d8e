"""The file: every mistake is named with its line, and no secret is ever shown."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from schemas.gates import Gates
from schemas.spec import Spec, json_schema, load_spec, parse_spec
from schemas.values import Window, parse_size

SECRET = "hunter2"
ENV = {"OLD_DSN": f"host=a dbname=old password={SECRET}", "NEW_DSN": "dbname=new", "KAFKA_BOOTSTRAP": "localhost:9092"}
BASE = """\
migration: shop
old: {dsn: "${OLD_DSN}", schema: public}
new: {dsn: "${NEW_DSN}", schema: app}
kafka: {bootstrap: "${KAFKA_BOOTSTRAP}"}
"""


def spec(more: str = "", env: dict[str, str] | None = None) -> Spec:
    return parse_spec(BASE + more, env=ENV if env is None else env)


def refusal(more: str = "", env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(more, env)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return str(caught.value)


def test_defaults_are_the_contracts() -> None:
    s = spec()
    assert (s.kafka.topic_prefix, s.kafka.partitions, s.kafka.replication_factor) == ("slackwater", 4, None)
    assert (s.epoch.max_ms, s.epoch.max_rows) == (100, 20_000)
    assert (s.backfill.workers, s.backfill.chunk_bytes, s.backfill.max_lag_s) == (2, 16 << 20, 30)
    assert (s.verify.max_age_s, s.cutover.max_pause_s, s.cutover.attempts) == (86_400, 5, 10)
    assert s.quarantine.limit == 100
    assert s.http.listen == "127.0.0.1:0"
    assert (s.copy_, s.exclude, s.drop, s.trust, s.tables, s.reverse) == ([], [], [], [], [], [])


def test_the_contracts_example_is_read_whole() -> None:
    s = spec("""
backfill: {workers: 3, chunk_bytes: 16MB, window: "22:00-05:00 Europe/Berlin", read_from: "dbname=r", after: []}
verify: {workers: 2, max_age_s: 86400, max_rows_per_s: null, window: null, read_from: null}
cutover: {max_pause_s: 5, max_lag_s: 5, attempts: 10, window: null, gates: {}}
hooks: {before_cutover: null, on_change: ./told.sh}
copy: "*"
exclude: [audit_2019, "tmp_*"]
drop: [customers.fax]
tables:
  - {to: customer, from: customers, rename: {cust_nm: name}, drop: [fax],
     set: {email: lower(email), active: true, n: 0, x: null}}
  - to: address
    key: [customer_id]
    select: select id as customer_id, street, city, zip from customers where street is not null
  - to: account
    select: select u.id, u.email, p.bio from users u left join profiles p on p.user_id = u.id
    feeds: {users: id, profiles: user_id}
reverse:
  - {to: customers, select: "select 1 as id"}
""")
    assert s.copy_ == ["*"]
    assert s.tables[0].set_ == {"email": "lower(email)", "active": "true", "n": "0", "x": "null"}
    assert s.tables[1].key == ["customer_id"]
    assert s.tables[2].feeds == {"users": "id", "profiles": "user_id"}
    assert s.tables[1].place == "migration.yaml line 16, tables: address"
    assert str(s.backfill.window) == "22:00-05:00 Europe/Berlin"
    assert s.hooks.on_change == "./told.sh"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("cpy: []\n", ["line 5", "'cpy'", "'copy'"]),
        ("epoch:\n  max_ms: 1\n  max_row: 2\n", ["line 7", "'epoch.max_row'", "'max_rows'"]),
        ("tables:\n  - to: a\n    form: b\n", ["line 7", "'from'"]),
        ("kafka: {bootstrap: x}\n", ["line 5", "'kafka' is given twice", "line 4"]),
        ("tables: [{to: a, from: b, select: select 1}]\n", ["line 5", "exactly one", "from and select"]),
        ("tables: [{to: a}]\n", ["line 5", "exactly one", "none of them"]),
        ("tables: [{to: a, select: select 1, rename: {a: b}}]\n", ["line 5", "`rename` and `set` go with `from`"]),
        ("tables: [{to: a, select: select 1, key: [b, b]}]\n", ["line 5", "`key`"]),
        ("drop: [fax]\n", ["line 5", "table.column"]),
        ("backfill: {chunk_bytes: 16XB}\n", ["line 5", "16MB"]),
        ("backfill: {window: 22-5}\n", ["line 5", "Europe/Berlin"]),
        ("backfill: {window: 22:00-05:00 Europe/Atlantis}\n", ["line 5", "Europe/Atlantis is not a time zone"]),
        ("backfill: {window: 25:00-05:00 UTC}\n", ["line 5", "23:59"]),
        ("backfill: {workers: 0}\n", ["line 5", "backfill.workers"]),
        ("log: {level: loud}\n", ["line 5", "'info'"]),
        ("http: {listen: here}\n", ["line 5", "http.listen"]),
        ("epoch: 3\n", ["line 5", "epoch"]),
        ("copy: [\n", ["line 6"]),
        ("tables: [{to: a, sql: nowhere.sql}]\n", ["line 5", "nowhere.sql", "cannot be read", "relative"]),
        ("x: &a [*a]\n", ["line 5", "contains itself"]),
        ("? [a]\n: b\n", ["line 5", "plain word"]),
    ],
)
def test_mistakes_are_named_with_their_line(more: str, said: list[str]) -> None:
    message = refusal(more)
    for words in said:
        assert words in message, message


def test_every_mistake_is_listed_at_once() -> None:
    message = refusal("cpy: []\nepoch: {max_ms: x}\nlog: {level: loud}\n")
    assert "3 mistakes" in message
    assert [message.index(f"line {n}") for n in (5, 6, 7)] == sorted(message.index(f"line {n}") for n in (5, 6, 7))


def test_a_missing_part_is_named() -> None:
    with pytest.raises(ConfigError, match=r"old is missing"):
        parse_spec("migration: a\n", env={})


@pytest.mark.parametrize("name", ["Shop", "1shop", "shop-a", "a" * 32, ""])
def test_a_migration_name_is_checked(name: str) -> None:
    with pytest.raises(ConfigError, match="lower-case letter"):
        parse_spec(BASE.replace("migration: shop", f"migration: '{name}'"), env=ENV)


def test_an_unset_variable_is_named_with_its_line() -> None:
    message = refusal(env={"OLD_DSN": "x", "KAFKA_BOOTSTRAP": "x"})
    assert "line 3" in message
    assert "NEW_DSN" in message
    assert "${NEW_DSN:-default}" in message


def test_variables_and_defaults() -> None:
    s = spec('epoch: {max_ms: "${MS:-250}"}\nlog: {level: "${LEVEL:-info}"}\n', {**ENV, "LEVEL": "debug", "MS": ""})
    assert s.epoch.max_ms == 250
    assert s.log.level == "debug"
    assert s.old.dsn == ENV["OLD_DSN"]


def test_a_variable_is_never_read_as_yaml() -> None:
    dsn = "host=a password='}: {#&*!'"
    assert spec(env={**ENV, "OLD_DSN": dsn}).old.dsn == dsn


def test_no_secret_is_shown() -> None:
    options = f"kafka: {{options: {{sasl.password: {SECRET}, security.protocol: SASL_SSL}}, "
    text = BASE.replace("kafka: {", options) + f"backfill: {{read_from: password={SECRET}}}\n"
    s = parse_spec(text, env=ENV)
    assert s.kafka.options["sasl.password"] == SECRET
    record = logging.LogRecord("x", 20, "x", 1, "%r", (s,), None)
    for shown in (repr(s), repr(s.old.dsn), str(s.model_dump()), s.model_dump_json(), record.getMessage(), f"{s}"):
        assert SECRET not in shown
    assert "SASL_SSL" in repr(s)
    with pytest.raises(ConfigError) as caught:
        parse_spec(text + f"epoch: {{max_ms: {SECRET}}}\n", env=ENV)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_broken_yaml_does_not_quote_the_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(f'old: {{dsn: "password={SECRET}" x}}\n', env={})
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "line 1" in str(caught.value)


def test_files_are_read_beside_the_migration_file(tmp_path: Path) -> None:
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "ledger.sql").write_text("select id from ledger\n")
    (tmp_path / "new.sql").write_text("create table x ()")
    file = tmp_path / "migration.yaml"
    file.write_text(
        BASE.replace("schema: app", "schema: app, ddl: new.sql") + "tables: [{to: ledger, sql: mappings/ledger.sql}]\n"
    )
    s = load_spec(file, ENV)
    assert s.tables[0].text == "select id from ledger\n"
    assert s.new.ddl_text == "create table x ()"
    assert s.path == file
    before = s.fingerprint
    (tmp_path / "mappings" / "ledger.sql").write_text("select id from ledger where true\n")
    assert load_spec(file, ENV).fingerprint != before
    with pytest.raises(ConfigError, match="cannot be read"):
        load_spec(tmp_path / "absent.yaml", ENV)


def test_the_fingerprint_is_of_what_is_written_and_nothing_else() -> None:
    base = spec("copy: [a, b]\n").fingerprint
    assert spec("copy: [b, a]\nepoch: {max_ms: 5}\nbackfill: {workers: 9}\n").fingerprint == base
    assert spec("copy: [a, b]\n", {**ENV, "OLD_DSN": "elsewhere"}).fingerprint == base
    for more in (
        "copy: [a]\n",
        "copy: [a, b]\nexclude: [c]\n",
        "copy: [a, b]\ntrust: [f]\n",
        "copy: [a, b]\ndrop: [a.b]\n",
    ):
        assert spec(more).fingerprint != base
    one = spec("tables: [{to: a, select: select 1}]\n").fingerprint
    assert spec("tables: [{to: a, select: select 2}]\n").fingerprint != one
    assert spec("tables: [{to: a, select: select 1, key: [b]}]\n").fingerprint != one


def test_the_json_schema_knows_every_key() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == {
        "migration", "old", "new", "kafka", "http", "log", "epoch", "backfill", "verify", "cutover", "roundtrip",
        "quarantine", "finalize", "hooks", "copy", "exclude", "drop", "trust", "tables", "reverse",
        "sequences", "exclude_sequences",
    }  # fmt: skip
    assert {"to", "from", "set", "select", "sql"} <= set(schema["$defs"]["TableEntry"]["properties"])
    assert schema["additionalProperties"] is False
    json.dumps(schema)


@pytest.mark.parametrize(
    ("text", "size"), [("16MB", 16 << 20), ("512kB", 512 << 10), ("1GB", 1 << 30), (7, 7), ("1.5 MB", 3 << 19)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("window", "at", "inside"),
    [
        ("22:00-05:00 Europe/Berlin", "2026-01-10T22:30", True),  # 23:30 there
        ("22:00-05:00 Europe/Berlin", "2026-01-10T04:30", False),  # 05:30 there
        ("22:00-05:00 Europe/Berlin", "2026-07-10T20:30", True),  # summer: 22:30 there
        ("09:00-17:00 UTC", "2026-01-10T17:00", False),
        ("09:00-17:00 UTC", "2026-01-10T09:00", True),
        ("00:00-00:00 UTC", "2026-01-10T09:00", True),
    ],
)
def test_windows(window: str, at: str, inside: bool) -> None:
    assert Window.parse(window).contains(datetime.fromisoformat(at).replace(tzinfo=UTC)) is inside


def gates(text: str) -> Gates:
    return spec(f"cutover: {{gates: {text}}}\n").cutover.gates


def test_gates_are_switched_off_and_set() -> None:
    given = gates("{grants: off, statistics: false, foreign_keys: {max_age_s: 60, except: [orders.fk]}, fence: true}")
    assert not given.grants.on
    assert not given.settings("statistics").on
    assert (given.foreign_keys.max_age_s, given.foreign_keys.except_) == (60, ["orders.fk"])
    assert given.fence.on
    assert gates("{}").grants.on


@pytest.mark.parametrize("name", ["fence", "lag", "backfill", "armed", "reread", "quarantine", "prepared"])
def test_gates_that_rows_depend_on_stay_on(name: str) -> None:
    for off in ("off", "false", "{on: false}"):
        with pytest.raises(ConfigError, match=f"{name}: this gate cannot be switched off"):
            gates(f"{{{name}: {off}}}")


def test_a_misspelt_gate_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'foreign_keys'"):
        gates("{foriegn_keys: off}")
