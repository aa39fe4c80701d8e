"""The application reaches both sides through PgBouncer in transaction mode: sessions change hands at every commit.

Needs `pgbouncer` on the PATH (`apt-get install pgbouncer`); without it, it is skipped, and fails where CI is set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from connectors.local.processes import free_port, unprivileged
from tests.fixtures.ledger import writing
from tests.fixtures.servers import state_folder
from tests.fixtures.tide import Tide

POOL = 3  # server sessions a side, fewer than there are writers
WRITERS = 12


@contextmanager
def pooler(dsns: dict[str, str]) -> Iterator[dict[str, str]]:
    """PgBouncer in front of both sides; their DSNs through it."""
    program = shutil.which("pgbouncer")
    if program is None:
        message = "pgbouncer is not installed: apt-get install pgbouncer"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    account, port = unprivileged(), free_port()
    with state_folder() as folder:
        lines = ["[databases]"]
        for side, dsn in dsns.items():
            parts = conninfo_to_dict(dsn)
            lines.append(side + " = " + " ".join(f"{k}='{parts[k]}'" for k in ("host", "port", "dbname", "user")))
            lines[-1] += f" password='{parts['password']}'"
        lines += [
            "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir =", "auth_type = any",
            "pool_mode = transaction", f"default_pool_size = {POOL}", "max_client_conn = 200",
            "ignore_startup_parameters = extra_float_digits",
        ]  # fmt: skip
        file = folder / "pgbouncer.ini"
        file.write_text("\n".join(lines) + "\n")
        if account is not None:
            os.chown(file, account.uid, account.gid)
        file.chmod(0o600)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, file],
                stdout=log,
                stderr=log,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        try:
            pooled = {side: f"postgresql://app@127.0.0.1:{port}/{side}" for side in dsns}
            answers(pooled["old"], folder / "log")
            yield pooled
        finally:
            process.terminate()
            process.wait(20)


def answers(dsn: str, log: Path) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            return


@pytest.mark.soak
def test_a_transaction_pooler_in_between(tide: Tide) -> None:
    """Queued in the pooler and at the fence, there and back; the tables are also attacked over the pooled sessions."""
    with ExitStack() as stack:
        pooled = stack.enter_context(pooler(tide.dsns))
        ledger = tide.ledger(dsns=pooled, writers=WRITERS, connecting={"prepare_threshold": None})
        stack.enter_context(writing(ledger))
        for verb, closed in (("cutover", "old"), ("rollback", "new"), ("cutover", "old")):
            time.sleep(1)
            assert tide.turn(verb)["result"] == "done"
            statement = f"update {'shop' if closed == 'old' else 'app'}.account set note = note where id = 14"
            for _ in range(2 * POOL):  # each of the pool's sessions, some of which have just been refused
                with (
                    psycopg.connect(pooled[closed], prepare_threshold=None) as conn,
                    pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="writes moved to"),
                ):
                    conn.execute(statement.encode())
        time.sleep(1)
    assert ledger.retried >= WRITERS
    assert {side for told in ledger.told for _, side in told.acknowledged} == {"old", "new"}
    tide.agree(ledger)
