"""What each path answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stream.monitoring import route as routes
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import CONTENT_TYPE, Metrics
from stream.monitoring.sessions import Sides
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
    """`slackwater.route` as the applications read it. Errors: SlackwaterError when neither side answers."""
    return routes.document(migration, routes.current(sides, migration))
