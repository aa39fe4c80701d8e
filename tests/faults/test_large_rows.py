"""Hazard C9: rows of 1, 20 and 200 MB through the whole pipe; one that its topic does not take halts, and the halt's
own remedy, done to the letter, carries on from where it stopped.

No row is cut: a consumer of Debezium's envelope would have to know of the cut, or take a part for the whole.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.fixtures.databases import Databases
from tests.fixtures.preparing import Shop
from tests.fixtures.running import started_with
from tests.fixtures.servers import private_kafka

MB = 1 << 20
WHAT = "select id, length(body), md5(encode(body, 'hex')), note from"


@pytest.mark.soak  # most of a minute; what a row does that its topic does not take, tests/integration has on its own
def test_rows_of_1_20_and_200_mb(databases: Databases, topic_prefix: str, migration_name: str, tmp_path: Path) -> None:
    with private_kafka({"socket.request.max.bytes": "400000000"}) as kafka:
        shop = Shop(
            old=databases.old,
            new=databases.new,
            bootstrap=kafka.bootstrap,
            prefix=topic_prefix,
            migration=migration_name,
            tables="copy: '*'\n",
        )
        ddl = "create table {}.doc (id integer primary key, body bytea, note text)"
        shop.on_old("create schema shop; " + ddl.format("shop"))
        shop.on_new("create schema app; " + ddl.format("app"))
        env = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": shop.bootstrap}
        with started_with(tmp_path, shop.text, env) as program:
            program("prepare", "--yes")
            run = program.start("run")
            program.until(lambda: program.status()["phase"] == "streaming", within_s=60)

            def insert(key: int, size: int) -> None:
                """A row of `size` bytes in the stream, which carries bytea as hex; no compression makes it smaller."""
                shop.on_old("insert into shop.doc values (%s, %s, 'as it was')", key, os.urandom(size // 2))

            def same() -> bool:
                return shop.on_new(f"{WHAT} app.doc order by id") == shop.on_old(f"{WHAT} shop.doc order by id")

            insert(1, MB)
            insert(2, 20 * MB)
            shop.on_old("update shop.doc set note = 'small change'")  # their bodies are unchanged TOAST
            program.until(same, within_s=60)
            insert(3, 200 * MB)
            shop.on_old("update shop.doc set note = 'after it' where id = 1")
            program.until(lambda: program.forward()["capture"]["state"] == "halted", within_s=90)
            error = program.forward()["last_error"]
            assert re.search(r"a row of 2\d\d,\d{3},\d{3} bytes does not fit into topic .*shop\.doc", error["cause"])
            assert "socket.request.max.bytes" not in error["remedy"]  # these brokers take that much
            assert not same()
            [(topic, limit)] = re.findall(r"--entity-name (\S+) --add-config max.message.bytes=(\d+)", error["remedy"])
            raise_limit(kafka.bootstrap, topic, limit)
            run.send_signal(signal.SIGTERM)
            run.wait(30)
            program.start("run")
            program.until(same, within_s=120)
            shop.on_old("delete from shop.doc where id = 3")
            program.until(same, within_s=60)


def raise_limit(bootstrap: str, topic: str, limit: str) -> None:
    entry = ConfigEntry("max.message.bytes", limit, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
