"""What each path answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.direction import Side
from schemas.errors import SlackwaterError
from stream.clock import rfc3339
from stream.heartbeat import Heartbeat
from stream.metrics import CONTENT_TYPE, Metrics
from stream.sides import Sides
from stream.web.server import Answer, Kept, View, json_answer


def views(
    *,
    heartbeat: Heartbeat,
    metrics: Metrics,
    refresh: Callable[[], None],
    sides: Sides,
    document: Callable[[], dict[str, Any]],
) -> dict[str, View]:
    """Every path of a role's process. `refresh` sets what metrics are computed when they are read, `document` is what
    `status --json` prints."""

    def ready() -> Answer:
        state = {"role": heartbeat.role, "state": heartbeat.state, "reason": heartbeat.reason}
        return json_answer(state, 200 if heartbeat.ready else 503)

    def exposition() -> Answer:
        refresh()
        metrics.up(heartbeat.role, heartbeat.ready)
        return Answer(200, CONTENT_TYPE, metrics.render())

    return {
        "/metrics": exposition,
        "/healthz": lambda: json_answer({"role": heartbeat.role, "pid": heartbeat.pid}),
        "/readyz": ready,
        "/route": Kept(lambda: json_answer(route(sides, heartbeat.migration)), 0.2),
        "/status.json": Kept(lambda: json_answer(document()), 1.0),
    }


def route(sides: Sides, migration: str) -> dict[str, Any]:
    """`slackwater.route` as the applications read it: new's row, or old's where new does not answer.

    The later turn of the two is the one that holds. Errors: SlackwaterError when neither side answers.
    """

    def read(conn: Connection) -> tuple[Any, ...] | None:
        with translated("reading the route"):
            if conn.execute("select to_regclass('slackwater.route')").fetchone() == (None,):
                return None
            return conn.execute(
                "select writes, turn, changed_at from slackwater.route where migration = %s", (migration,)
            ).fetchone()

    answers = [sides.attempt(side, read) for side in Side]
    rows = [a for a in answers if a is not None and not isinstance(a, SlackwaterError)]
    failures = [a for a in answers if isinstance(a, SlackwaterError)]
    if not rows:
        if failures:
            raise failures[0]
        return {"migration": migration, "writes": "old", "turn": 0, "changed_at": None}
    writes, turn, changed_at = max(rows, key=lambda row: (row[1], row[2]))
    return {"migration": migration, "writes": writes, "turn": turn, "changed_at": rfc3339(changed_at)}
