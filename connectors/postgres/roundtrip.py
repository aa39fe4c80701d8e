"""`slackwater.roundtrip` on new: the newest verdict on the way back, one row per migration."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from connectors.postgres.control import install, transaction
from connectors.postgres.session import Connection, translated


def read(conn: Connection, migration: str) -> tuple[str, datetime, dict[str, Any]] | None:
    """(the file's fingerprint, when, the verdict's document); None where none was kept."""
    with translated("cannot read the verdict on the way back"):
        there = conn.execute("select pg_catalog.to_regclass('slackwater.roundtrip') is not null").fetchone()
        if there != (True,):
            return None
        row: Any = conn.execute(
            "select fingerprint, at, result from slackwater.roundtrip where migration = %s", (migration,)
        ).fetchone()
    return None if row is None else (str(row[0]), row[1], row[2])


def write(conn: Connection, migration: str, fingerprint: str, result: dict[str, Any]) -> None:
    """Replace the migration's verdict."""
    with transaction(conn, "cannot keep the verdict on the way back"):
        install(conn)
        conn.execute(
            "insert into slackwater.roundtrip (migration, fingerprint, at, result)"
            " values (%s, %s, clock_timestamp(), %s::jsonb) on conflict (migration) do update"
            " set fingerprint = excluded.fingerprint, at = excluded.at, result = excluded.result",
            (migration, fingerprint, json.dumps(result)),
        )
