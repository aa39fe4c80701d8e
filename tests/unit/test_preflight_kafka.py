"""What `check` says of a cluster, by the number of its brokers."""

from __future__ import annotations

import pytest

from connectors.kafka.topics import BrokerFacts
from schemas.spec import parse_spec
from stream.preflight.finding import Findings
from stream.preflight.kafka import judge

FILE = """
migration: shop
old: {{dsn: "host=old"}}
new: {{dsn: "host=new"}}
kafka: {{bootstrap: "kafka:9092", replication_factor: {wanted}}}
copy: "*"
"""


def cluster(brokers: int, default: int | None) -> BrokerFacts:
    return BrokerFacts(
        brokers=brokers,
        cluster_id="c",
        transaction_max_timeout_ms=900_000,
        message_max_bytes=100_000_000,
        socket_request_max_bytes=200_000_000,
        min_insync_replicas=2,
        default_replication_factor=default,
        unclean_leader_election=False,
    )


@pytest.mark.parametrize(
    ("brokers", "default", "wanted", "objects"),
    [
        (3, 3, "null", False),
        (3, 1, "null", True),
        (3, 1, "3", False),
        (3, 3, "1", True),  # also where somebody wrote it down
        (5, 3, "2", True),
        (2, 1, "2", False),
        (1, 1, "1", False),
        (2, 1, "3", True),  # more than there are
        (3, None, "null", False),  # the broker does not say
    ],
)
def test_fewer_than_three_replicas_on_three_brokers_stop_a_migration(
    brokers: int, default: int | None, wanted: str, objects: bool
) -> None:
    found = Findings("slackwater")
    judge(parse_spec(FILE.format(wanted=wanted), env={}), cluster(brokers, default), found)
    assert [finding.name for finding in found] == (["replication_factor"] if objects else [])
    assert [finding.remedy.startswith("set kafka.replication_factor") for finding in found.problems] == [True] * objects
