"""What is deployed beside the code speaks of the code as it is: metric names, runbooks, verbs, the migration files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas import errors
from schemas.gates import NAMES
from schemas.spec import load_spec
from stream.cli import VERBS
from stream.migration.phases import Phase
from stream.monitoring.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ENVIRONMENT = {"OLD_DSN": "postgresql://a@b/old", "NEW_DSN": "postgresql://a@b/new", "KAFKA_BOOTSTRAP": "k:9092"}
ROLES = ("capture", "apply", "backfill", "verify")
DIRECTIONS = {"forward": (), "reverse": ("--direction=reverse",)}


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


def test_every_metric_is_looked_at_somewhere() -> None:
    """By an alert or on the dashboard: what nobody looks at says nothing."""
    text = "".join((DEPLOY / path).read_text() for path in ("prometheus/rules.yml", "grafana/slackwater.json"))
    used = set(re.findall(r"\bslackwater_[a-z_]+\b", text))
    for family in Metrics("m", "forward", "apply").registry.collect():
        assert {family.name + part for part in ("", "_total", "_bucket")} & used, family.name


def test_alerts_name_gates_and_phases_and_errors_that_exist() -> None:
    said = "".join(rule["expr"] for rule in rules())
    for label, known in (
        ("gate", set(NAMES)),
        ("phase", {p.value for p in Phase}),
        ("side", {"old", "new", "none"}),
        ("class", {c.__name__ for c in vars(errors).values() if isinstance(c, type)}),
        ("role", set(ROLES)),
    ):
        for values in re.findall(rf'\b{label}!?=~?"([^"]+)"', said):
            assert set(values.split("|")) <= known, f"{label}: {values}"


def test_every_alert_has_its_runbook() -> None:
    for rule in rules():
        assert (ROOT / rule["annotations"]["runbook"]).is_file(), rule["alert"]


def test_every_runbook_is_reached_by_an_alert() -> None:
    named = {Path(rule["annotations"]["runbook"]).name for rule in rules()}
    by_hand = {"README.md", "rollback.md", "upgrade.md"}
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
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / "roles" / f"{role}.yaml").read_text())
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["run", role]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_kubernetes_runs_every_role_in_both_directions() -> None:
    kustomization = {
        path.parent.name: yaml.safe_load(path.read_text())
        for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml")
    }
    assert set(DIRECTIONS) <= set(kustomization["kubernetes"]["resources"])
    assert kustomization["roles"]["resources"] == [f"{role}.yaml" for role in ROLES]
    for direction in DIRECTIONS:
        assert kustomization[direction]["resources"] == ["../roles"]
        (label,) = kustomization[direction]["labels"]
        assert label["pairs"] == {"slackwater/direction": direction}
    (patch,) = kustomization["reverse"]["patches"]
    (change,) = yaml.safe_load(patch["patch"])
    assert [change["value"]] == list(DIRECTIONS["reverse"])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl to build the manifests with")
def test_the_manifests_build() -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=True, timeout=60
    )
    pods = [o["spec"]["template"]["spec"] for o in yaml.safe_load_all(built.stdout) if o["kind"] == "Deployment"]
    found = sorted(pod["containers"][0]["args"] for pod in pods)
    assert found == sorted(["run", role, *more] for role in ROLES for more in DIRECTIONS.values())
    names = {v["configMap"]["name"] for pod in pods for v in pod["volumes"] if "configMap" in v}
    job = yaml.safe_load((DEPLOY / "kubernetes" / "prepare-job.yaml").read_text())
    names |= {v["configMap"]["name"] for v in job["spec"]["template"]["spec"]["volumes"] if "configMap" in v}
    made = {o["metadata"]["name"] for o in yaml.safe_load_all(built.stdout) if o["kind"] == "ConfigMap"}
    assert names == made, "the job mounts another file than the roles"


def test_compose_runs_every_role_and_all_are_scraped() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    wanted = {
        role + ("" if direction == "forward" else "-reverse"): ["run", role, *more]
        for role in ROLES
        for direction, more in DIRECTIONS.items()
    }
    assert {name: services[name]["command"] for name in wanted if name in services} == wanted
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    scraped = [t for job in prometheus["scrape_configs"] for one in job["static_configs"] for t in one["targets"]]
    assert sorted(scraped) == sorted(f"{name}:8080" for name in wanted)
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    for path in mounted:
        if path.startswith("./"):
            assert (ROOT / path).exists(), path
