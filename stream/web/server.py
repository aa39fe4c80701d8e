"""The HTTP server of a process: read-only, no row data, on the loopback unless the file says otherwise.

GET /metrics      Prometheus' text format
GET /healthz      200 while the process lives
GET /readyz       200 while the role does its work or waits its turn, else 503
GET /route        where the application writes: old, new or none
GET /status.json  what `slackwater status --json` prints
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from schemas.errors import ConfigError, SlackwaterError

log = logging.getLogger("slackwater.web")

JSON = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes


View = Callable[[], Answer]


def json_answer(value: object, status: int = 200) -> Answer:
    return Answer(status, JSON, (json.dumps(value, ensure_ascii=False) + "\n").encode())


class Kept:
    """A view whose answer is kept for a while, so that no crowd of readers reaches the databases."""

    def __init__(self, view: View, keep_s: float) -> None:
        self._view = view
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._until = 0.0

    def __call__(self) -> Answer:
        with self._lock:
            if self._answer is None or time.monotonic() >= self._until:
                self._answer = self._view()
                self._until = time.monotonic() + self._keep_s
            return self._answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("a client at %s went away", client_address)


def serve(listen: str, views: Mapping[str, View]) -> tuple[_Server, str]:
    """Listens on `host:port` (port 0: a free one) and answers in threads of its own; returns the address it got.

    Errors: ConfigError when the address cannot be had.
    """
    host, _, port = listen.rpartition(":")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            view = views.get(self.path.partition("?")[0])
            try:
                answer = view() if view else json_answer({"paths": sorted(views)}, 404)
            except SlackwaterError as error:
                answer = json_answer({"error": {"cause": error.cause, "remedy": error.hint}}, 503)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            log.debug("%s %s", self.address_string(), format % args)

    try:
        server = _Server((host.strip("[]") or "0.0.0.0", int(port)), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"http.listen: cannot listen on {listen}: {error}", hint="another port, or port 0 for any free one"
        ) from error
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    bound_host, bound_port = server.server_address[:2]
    return server, f"{_shown(bound_host)}:{bound_port}"


def _shown(host: object) -> str:
    text = host.decode() if isinstance(host, bytes) else str(host)
    return f"[{text}]" if ":" in text else text
