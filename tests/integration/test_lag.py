"""Every stage is frozen in turn: within 30 s status names it, the lag grows meanwhile, and falls to zero afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg

from tests.fixtures.running import Program, started_with
from tests.fixtures.servers import private_kafka, private_postgres

FILE = """
migration: shop
old: {dsn: "${OLD_DSN}"}
new: {dsn: "${NEW_DSN}", schema: app}
kafka: {bootstrap: "${KAFKA}", partitions: 1}
copy: "*"
"""


def stands_still(program: Program, stage: tuple[str, ...]) -> bool:
    """It is named, and the lag grows, or is not known: a new side that is down takes that knowledge along."""
    forward = program.forward()
    named = forward["stuck"] is not None and forward["stuck"]["stage"] in stage
    return named and (forward["lag_seconds"] is None or forward["lag_seconds"] > 1)


def freeze(
    program: Program,
    stage: tuple[str, ...],
    stop: Callable[[], None],
    go_on: Callable[[], None],
    write: Callable[[], None],
) -> None:
    stop()
    try:
        write()
        program.until(lambda: stands_still(program, stage), within_s=30)
        lag = program.forward()["lag_seconds"]
        time.sleep(1)
        assert lag is None or program.forward()["lag_seconds"] > lag
    finally:
        go_on()
    program.until(lambda: program.forward()["lag_seconds"] == 0 and program.forward()["stuck"] is None)


def test_each_stage_is_named_within_half_a_minute(tmp_path: Path) -> None:
    with private_postgres({"wal_level": "logical"}) as old, private_postgres() as new, private_kafka() as kafka:
        env = {"OLD_DSN": old.dsn(), "NEW_DSN": new.dsn(), "KAFKA": kafka.bootstrap}
        with psycopg.connect(old.dsn(), autocommit=True) as conn:
            conn.execute("create table items (id int primary key, n int)")
            conn.execute("insert into items values (1, 0)")
        with psycopg.connect(new.dsn(), autocommit=True) as conn:
            conn.execute("create schema app")
            conn.execute("create table app.items (id int primary key, n int)")

        def write() -> None:
            with psycopg.connect(old.dsn(), autocommit=True) as conn:
                conn.execute("update items set n = n + 1")

        with started_with(tmp_path, FILE, env) as program:
            program.streaming()
            program.until(lambda: program.forward()["lag_seconds"] == 0)
            for role in ("capture", "apply"):
                pid = program.forward()[role]["pid"]
                freeze(
                    program,
                    (role,),
                    partial(os.kill, pid, signal.SIGSTOP),
                    partial(os.kill, pid, signal.SIGCONT),
                    write,
                )
            # Who waits for Kafka says so: capture first, being first in line.
            freeze(program, ("capture", "apply"), kafka.freeze, kafka.thaw, write)
            freeze(program, ("target",), new.freeze, new.thaw, write)
            freeze(program, ("source",), old.freeze, old.thaw, lambda: None)
            with psycopg.connect(new.dsn()) as conn:
                assert conn.execute("select n from app.items").fetchone() == (4,)
