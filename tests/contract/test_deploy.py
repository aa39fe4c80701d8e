"""What is deployed beside the code speaks of the code as it is: metric names, runbooks, verbs, the migration files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.spec import load_spec
from stream.cli import VERBS
from stream.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ENVIRONMENT = {"OLD_DSN": "postgresql://a@b/old", "NEW_DSN": "postgresql://a@b/new", "KAFKA_BOOTSTRAP": "k:9092"}
ROLES = ("capture", "apply", "backfill")


def metric_names() -> set[str]:
    """Every name that a role can expose, a histogram's and a counter's parts included."""
    families = [family.name for family in Metrics("m", "forward", "apply").registry.collect()]
    return {name + part for name in families for part in ("", "_total", "_bucket", "_sum", "_count")}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("path", ["prometheus/rules.yml", "grafana/slackwater.json"])
def test_every_metric_exists(path: str) -> None:
    text = (DEPLOY / path).read_text()
    used = set(re.findall(r"\bslackwater_[a-z_]+\b", text))
    assert used
    assert used - metric_names() == set()


def test_every_alert_has_its_runbook() -> None:
    for rule in rules():
        assert (ROOT / rule["annotations"]["runbook"]).is_file(), rule["alert"]


def test_every_runbook_is_reached_by_an_alert() -> None:
    named = {Path(rule["annotations"]["runbook"]).name for rule in rules()}
    by_hand = {"README.md", "cutover.md", "foreign-writes.md", "rollback.md"}
    assert {path.name for path in (DEPLOY / "runbooks").glob("*.md")} - by_hand == named


def test_runbooks_run_verbs_that_exist() -> None:
    verbs = {verb.name for verb in VERBS}
    for path in (DEPLOY / "runbooks").glob("*.md"):
        for verb in re.findall(r"^\$ slackwater (?:-c \S+ )?([a-z-]+)", path.read_text(), re.MULTILINE):
            assert verb in verbs, f"{path.name}: {verb}"


def test_dashboard_is_whole() -> None:
    board = json.loads((DEPLOY / "grafana" / "slackwater.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")"), panel["title"]


@pytest.mark.parametrize("path", ["deploy/kubernetes/migration.yaml", "stream/demo/shop/migration.yaml"])
def test_migration_files_load(path: str) -> None:
    spec = load_spec(ROOT / path, {**ENVIRONMENT, "HTTP_LISTEN": "0.0.0.0:8080"})
    assert spec.http.listen == "0.0.0.0:8080"  # where the probes look


@pytest.mark.parametrize("role", ROLES)
def test_a_deployment_is_one_role_at_a_time(role: str) -> None:
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / f"{role}.yaml").read_text())
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["run", role]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_compose_runs_every_role() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for role in ROLES:
        assert services[role]["command"] == ["run", role]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    for path in mounted:
        if path.startswith("./"):
            assert (ROOT / path).exists(), path
