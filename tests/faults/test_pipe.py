"""The whole pipe against a plain-SQL oracle: random transactions while it backfills, its roles killed at random points.

Real processes, PostgreSQL and Kafka. When the load stops, a token goes through, and every target must be its SELECT run
plainly over the source.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from connectors.postgres.session import Connection, connect
from schemas.direction import Direction
from schemas.spec import parse_spec
from stream.migration import prepared
from tests.fixtures.databases import fresh_database
from tests.fixtures.launch import Launched
from tests.fixtures.running import Program, started_with
from tests.fixtures.tape import agree
from tests.integration.test_engine import MAPPING, NEW, OLD

# What the new tables do not hold has to be made up on the way back, before anything is prepared.
REVERSE = "reverse:\n  - {to: orders, set: {customer_id: '0', status: '0'}}\n"

ROLES = ("capture", "apply", "backfill")
EXAMPLES = int(os.environ.get("SLACKWATER_PIPE_EXAMPLES", "1"))
POINTS = {
    "capture": ("capture.before_publish", "capture.after_flush", "capture.after_commit"),
    "apply": ("apply.before_write", "apply.before_checkpoint", "apply.before_commit", "apply.after_commit"),
    "backfill": ("backfill.before_commit", "backfill.after_commit"),
}

ids = st.integers(1, 400)
letters = st.sampled_from("abcdefgh")
documents = st.sampled_from(["null", "'short'", "repeat('long', 3000)", "repeat('other', 2500)"])
statements = st.one_of(
    st.builds(
        "insert into customers values ({}, 'n', 'E', 's', 'c', {}) on conflict do nothing".format, ids, documents
    ),
    st.builds("update customers set nm = '{}' where id = {}".format, letters, ids),
    st.builds("update customers set street = null, doc = {} where id = {}".format, documents, ids),
    st.builds(
        "update customers set id = {0} where id = {1} and not exists (select from customers where id = {0})".format,
        ids,
        ids,
    ),
    st.builds("delete from customers where id = {}".format, ids),
    st.builds("insert into profiles values ({}, {}, '{}') on conflict do nothing".format, ids, ids, letters),
    st.builds("delete from profiles where id = {}".format, ids),
    st.builds("insert into orders values ({}, {}, 1, {}.5, '{{1,2,3}}') on conflict do nothing".format, ids, ids, ids),
    st.builds("update orders set customer_id = {}, items = items[2:] where id between {} and 50".format, ids, ids),
    st.builds("delete from orders where id = {}".format, ids),
    st.builds("insert into events values ('{}', null, {}.0)".format, letters, st.integers(1, 3)),
    st.builds("delete from events where ctid = (select ctid from events where kind = '{}' limit 1)".format, letters),
    st.builds("update plain set c = '{{\"a\": {}}}' where a = {}".format, ids, ids),
    st.just("truncate orders"),
    st.just("savepoint s; update customers set nm = 'never'; rollback to s"),
    st.just("insert into orders select i, i, 0, i, array[i] from generate_series(401, 1400) i on conflict do nothing"),
)
transactions = st.lists(statements, min_size=1, max_size=6)
faults = st.one_of(
    st.none(),
    *(st.tuples(st.just(role), st.sampled_from(POINTS[role]), st.integers(1, 3)) for role in ROLES),
    st.tuples(st.sampled_from(ROLES), st.just("SIGKILL"), st.just(0)),
)
rounds = st.lists(st.tuples(faults, st.lists(transactions, min_size=5, max_size=25)), min_size=4, max_size=6).filter(
    lambda script: {fault[0] for fault, _ in script if fault is not None} == set(ROLES)
)  # hypothesis begins with the simplest script, which would kill nothing


class Roles:
    """The three roles as processes of their own, each started with or without a failpoint."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._running: dict[str, Launched] = {}

    def start(self, role: str, failpoints: str = "") -> None:
        self._running[role] = self._program.start("run", role, "--direction", "forward", failpoints=failpoints)

    def kill(self, role: str) -> None:
        self._running[role].send_signal(signal.SIGKILL)
        self._running[role].wait()

    def revive(self) -> None:
        """Start again what has died."""
        for role, process in self._running.items():
            if process.poll() is not None:
                self.start(role)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 10,
    phases=[Phase.explicit, Phase.generate],  # an example takes half a minute: shrinking would take hours
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(script=rounds)
def test_nothing_is_lost_doubled_or_reordered(
    postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory, script: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("pipe")
    with fresh_database(postgres_dsn, "old") as old_dsn, fresh_database(postgres_dsn, "new") as new_dsn:
        old, new = connect(old_dsn, application="test"), connect(new_dsn, application="test")
        try:
            _migrate(folder, old_dsn, new_dsn, bootstrap, old, new, script)
        finally:
            old.close()
            new.close()


def _migrate(
    folder: Path, old_dsn: str, new_dsn: str, bootstrap: str, old: Connection, new: Connection, script: list[Any]
) -> None:
    for conn, schema, ddl in ((old, "public", OLD), (new, "app", NEW)):
        with conn.transaction():
            conn.execute(f"create schema if not exists {schema}; set local search_path = {schema}; {ddl}".encode())
    old.execute("set search_path = public")
    old.execute("insert into customers select i, 'n' || i, 'E', 's', 'c', 'd' from generate_series(1, 300) i")
    old.execute("insert into orders select i, i, i % 3, i, array[i, i + 1] from generate_series(1, 300) i")
    old.execute("insert into plain select i, 'x', null, now() from generate_series(1, 300) i")
    old.execute("insert into events select 'a', null, 1.0 from generate_series(1, 50) i")
    name = "pipe" + secrets.token_hex(4)
    text = (
        f'migration: {name}\nold: {{dsn: "${{OLD_DSN}}", schema: public}}\nnew: {{dsn: "${{NEW_DSN}}", schema: app}}\n'
        f'kafka: {{bootstrap: "${{KAFKA}}", topic_prefix: {name}, partitions: 2}}\n'
        "backfill: {workers: 2, chunk_bytes: 4kB}\nepoch: {max_ms: 50, max_rows: 500}\n" + MAPPING + REVERSE
    )
    env = {"OLD_DSN": old_dsn, "NEW_DSN": new_dsn, "KAFKA": bootstrap}
    with started_with(folder, text, env) as program:
        program("prepare", "--yes")
        roles = Roles(program)
        for role in ROLES:
            roles.start(role)
        for fault, load in script:
            if fault is not None:
                role, point, hit = fault
                roles.kill(role)
                roles.start(role, "" if point == "SIGKILL" else f"{point}=kill@{hit}")
            for statements_ in load:
                with old.transaction():
                    for statement in statements_:
                        old.execute(statement.encode())
                time.sleep(0.02)
            time.sleep(0.5)
            roles.revive()
        program.until(lambda: _streaming(program, roles), within_s=120)
        token = secrets.token_hex(8)
        content = json.dumps({"migration": name, "direction": "forward", "token": token})
        old.execute("select pg_logical_emit_message(true, 'slackwater.token', %s)", (content,))
        program.until(
            lambda: new.execute("select from slackwater.token where token = %s", (token,)).fetchone() is not None
        )
        status = program.status()
        assert status["quarantine"]["rows"] == 0
        assert status["reread"]["rows"] == 0
        document = prepared.load(new, name)
        assert document is not None
        spec = parse_spec(text, env=env, folder=folder)
        agree(old, new, prepared.plan_for(spec, document, Direction.FORWARD))
        for process in program.background:
            process.send_signal(signal.SIGTERM)
        for process in program.background:
            process.wait(30)
        program("cancel", "--yes")


def _streaming(program: Program, roles: Roles) -> bool:
    roles.revive()
    assert "halted" not in program.log, program.log[-4000:]
    return bool(program.status()["phase"] == "streaming")
