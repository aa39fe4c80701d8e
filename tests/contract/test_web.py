"""What a process answers over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from connectors.postgres import control
from connectors.postgres.session import connect
from schemas.direction import Side
from schemas.errors import ConfigError, Unavailable
from stream.monitoring.heartbeat import Heartbeat
from stream.monitoring.metrics import Metrics
from stream.monitoring.sessions import Sides
from stream.web.server import serve
from stream.web.views import route, views
from tests.fixtures.databases import Databases


class Site:
    def __init__(self, old: str, new: str) -> None:
        self.heartbeat = Heartbeat(dsn="", migration="shop", direction="forward", role="apply")
        self.metrics = Metrics("shop", "forward", "apply")
        self.sides = Sides({Side.OLD: old, Side.NEW: new}, application="test")
        self.looks = 0
        self.server, self.address = serve(
            "127.0.0.1:0",
            views(
                heartbeat=self.heartbeat,
                metrics=self.metrics,
                refresh=lambda: self.metrics.lag(3.0, None, None),
                sides=self.sides,
                document=self.document,
            ),
        )

    def document(self) -> dict[str, Any]:
        self.looks += 1
        return {"migration": "shop"}

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.sides.close()


@pytest.fixture
def site(databases: Databases) -> Iterator[Site]:
    site = Site(databases.old, databases.new)
    yield site
    site.close()


def test_alive_is_not_ready(site: Site) -> None:
    assert site.get("/healthz")[0] == 200
    assert site.get("/readyz")[0] == 503  # starting
    site.heartbeat.waiting("the reverse direction is not armed")
    status, body = site.get("/readyz")
    assert (status, json.loads(body)["reason"]) == (200, "the reverse direction is not armed")
    site.heartbeat.halted("the slot is gone")
    assert site.get("/readyz")[0] == 503
    assert site.get("/healthz")[0] == 200
    assert 'slackwater_up{direction="forward",migration="shop",role="apply"} 0.0' in site.get("/metrics")[1]


def test_metrics_are_computed_when_they_are_read(site: Site) -> None:
    assert 'slackwater_lag_seconds{direction="forward",migration="shop"} 3.0' in site.get("/metrics")[1]


def test_status_is_kept_for_a_moment_so_that_no_crowd_reaches_the_databases(site: Site) -> None:
    assert json.loads(site.get("/status.json")[1]) == {"migration": "shop"}
    site.get("/status.json")
    assert site.looks == 1


def test_only_reading_and_only_these_paths(site: Site) -> None:
    status, body = site.get("/")
    assert status == 404
    assert json.loads(body)["paths"] == ["/healthz", "/metrics", "/readyz", "/route", "/status.json"]
    request = urllib.request.Request(f"http://{site.address}/route", method="POST", data=b"")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    assert refused.value.code == 501


def test_the_route_is_the_later_turn_of_the_two(site: Site, databases: Databases) -> None:
    nowhere = {"migration": "shop", "writes": None, "turn": None, "changed_at": None}
    assert json.loads(site.get("/route")[1]) == nowhere  # not prepared, or ended with the writes on either side
    for dsn, side, turn in ((databases.old, Side.OLD, 0), (databases.new, Side.NEW, 1)):
        with connect(dsn) as conn, control.transaction(conn, "preparing"):
            control.install(conn)
            control.put_route(conn, "shop", writes=side, turn=turn)
    found = route(site.sides, "shop")
    assert (found["writes"], found["turn"]) == ("new", 1)
    assert route(site.sides, "another")["writes"] is None


def test_the_route_needs_one_side_only(databases: Databases) -> None:
    down = "host=127.0.0.1 port=1 connect_timeout=2"
    with connect(databases.new) as conn, control.transaction(conn, "preparing"):
        control.install(conn)
        control.put_route(conn, "shop", writes=Side.OLD, turn=2)
    site = Site(down, databases.new)
    try:
        assert json.loads(site.get("/route")[1])["turn"] == 2
    finally:
        site.close()
    site = Site(down, down)
    try:
        assert site.get("/route")[0] == 503
        with pytest.raises(Unavailable):
            route(site.sides, "shop")
    finally:
        site.close()


def test_an_address_that_cannot_be_had_is_a_configuration_error(site: Site) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        serve(site.address, {})
    with pytest.raises(ConfigError):
        serve("127.0.0.1:99999", {})
