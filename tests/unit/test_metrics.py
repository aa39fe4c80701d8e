"""Unknown is absent from /metrics, never zero; and one migration's samples carry its labels."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from schemas.errors import SlotLost
from stream.monitoring.metrics import Metrics
from stream.verify.preconditions import NotReady


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels but the migration's) -> value."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("migration"), labels.pop("direction")) == ("shop", "forward")
            found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found


def test_unknown_is_absent_and_becomes_so_again() -> None:
    metrics = Metrics("shop", "forward", "apply")
    assert ("slackwater_lag_seconds", ()) not in samples(metrics)
    metrics.lag(1.5, 0, 0.2)
    assert samples(metrics)["slackwater_lag_seconds", ()] == 1.5
    assert samples(metrics)["slackwater_lag_bytes", ()] == 0
    metrics.lag(2.5, None, 0.2)
    assert samples(metrics)["slackwater_lag_seconds", ()] == 2.5
    assert ("slackwater_lag_bytes", ()) not in samples(metrics)


def test_one_phase_one_writer_one_state_per_gate() -> None:
    metrics = Metrics("shop", "forward", "apply")
    for phase in ("backfilling", "streaming"):
        metrics.phase(phase)
    metrics.writes("old")
    metrics.gates([("lag", "failed"), ("armed", "unknown")])
    metrics.gates([("lag", "passed")])
    found = samples(metrics)
    assert {k: v for k, v in found.items() if k[0] == "slackwater_phase"} == {
        ("slackwater_phase", (("phase", "streaming"),)): 1
    }
    assert [v for k, v in found.items() if k[0] == "slackwater_writes"] == [1, 0, 0]
    assert {k[1]: v for k, v in found.items() if k[0] == "slackwater_gate"} == {
        (("gate", "lag"), ("state", "passed")): 1,
        (("gate", "lag"), ("state", "failed")): 0,
        (("gate", "lag"), ("state", "unknown")): 0,
    }
    metrics.writes(None)
    assert not [k for k in samples(metrics) if k[0] == "slackwater_writes"]


def test_what_roles_count() -> None:
    metrics = Metrics("shop", "forward", "apply")
    assert samples(metrics)["slackwater_errors_total", (("class", "StreamGap"),)] == 0  # so that the first one shows
    metrics.rows("apply", "u", "customer", 7)
    metrics.rows("apply", "u", "customer", 3)
    metrics.epoch("apply", 0.03)
    metrics.error(SlotLost("gone"))
    metrics.error(ZeroDivisionError())
    metrics.error(NotReady("nobody leads"))
    metrics.up("apply", True)
    found = samples(metrics)
    assert found["slackwater_rows_total", (("op", "u"), ("stage", "apply"), ("table", "customer"))] == 10
    assert found["slackwater_epoch_seconds_count", (("stage", "apply"),)] == 1
    assert found["slackwater_errors_total", (("class", "SlotLost"),)] == 1
    assert found["slackwater_errors_total", (("class", "unexpected"),)] == 1
    assert found["slackwater_errors_total", (("class", "Unavailable"),)] == 1  # the class of ours that it belongs to
    assert found["slackwater_up", (("role", "apply"),)] == 1
