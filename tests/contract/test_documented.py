"""Every metric stands in the README's table, and everything in that table exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from schemas.errors import Halt
from schemas.gates import NAMES
from stream.cli import VERBS
from stream.monitoring.metrics import Metrics

ROOT = Path(__file__).parents[2]


def shown() -> dict[str, set[str]]:
    """Every metric of a process that has measured everything, with its labels."""
    metrics = Metrics("shop", "forward", "apply")
    metrics.lag(0.1, 1, 0.1)
    metrics.rows("apply", "u", "customer", 1)
    metrics.epoch("apply", 0.1)
    metrics.slot_retained(1)
    metrics.backfill_rows(1)
    metrics.backfill_chunks({"done": 1})
    metrics.verify_rows(1)
    metrics.verification(1.0, 0)
    metrics.quarantined(0)
    metrics.reread(0)
    metrics.foreign_writes(0)
    metrics.canary_age(1.0)
    metrics.error(Halt("x"))
    metrics.safe_to_cutover(False)
    metrics.safe_to_rollback(False)
    metrics.gates([("lag", "passed")])
    metrics.phase("streaming")
    metrics.writes("old")
    metrics.pause(1, 0.5)
    assert all(family.samples for family in metrics.registry.collect())
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)\{(.*)\} ", metrics.render().decode(), re.MULTILINE):
        family = re.sub(r"_seconds_(bucket|sum|count)$", "_seconds", name)  # a histogram is one name
        named = set(re.findall(r'(\w+)="', labels)) - {"migration", "direction", "le"}
        assert found.setdefault(family, named) == named, name
    return found


def documented() -> dict[str, set[str]]:
    table = re.findall(r"^\| `(slackwater_\w+)` \|([^|]*)\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in table}


def test_every_metric_is_in_the_readme_with_its_labels() -> None:
    assert documented() == shown()


def test_the_outer_contract_names_them_so() -> None:
    assert set(shown()) <= {
        "slackwater_lag_seconds", "slackwater_lag_bytes", "slackwater_freshness_seconds", "slackwater_rows_total",
        "slackwater_epochs_total", "slackwater_epoch_seconds", "slackwater_slot_retained_bytes",
        "slackwater_backfill_rows_total", "slackwater_backfill_chunks", "slackwater_verify_rows_total",
        "slackwater_verification_age_seconds", "slackwater_mismatched_rows", "slackwater_quarantined_rows",
        "slackwater_reread_rows", "slackwater_foreign_writes", "slackwater_canary_age_seconds",
        "slackwater_errors_total", "slackwater_up", "slackwater_info", "slackwater_safe_to_cutover",
        "slackwater_safe_to_rollback", "slackwater_gate", "slackwater_phase", "slackwater_writes",
        "slackwater_pause_seconds",
    }  # fmt: skip


def test_every_gate_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.split("| gate | passes when |")[1].split("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(NAMES)


def test_alerts_and_dashboards_read_what_exists() -> None:
    known = {name + suffix for name in shown() for suffix in ("", "_bucket", "_sum", "_count")}
    for path in (p for p in (ROOT / "deploy").rglob("*") if p.suffix in (".yml", ".yaml", ".json") and p.is_file()):
        text = path.read_text()
        used = set(
            re.findall(
                r"\b(slackwater_(?:lag|freshness|rows|epoch|slot|backfill|quarantined|reread|errors|foreign|canary|up|info|safe|gate|phase|writes)\w*)\s*[{\[)]",
                text,
            )
        )
        assert used <= known, f"{path}: {used - known}"


@pytest.mark.parametrize("package", ["stream", "connectors/postgres", "connectors/kafka", "schemas"])
def test_the_readme_of_a_package_knows_its_modules(package: str) -> None:
    """Whoever follows the data through it finds every stage."""
    text = (ROOT / package.split("/", maxsplit=1)[0] / "README.md").read_text()
    names = {p.stem for p in (ROOT / package).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert sorted(name for name in names - {"__init__"} if f"`{name}`" not in text and f"`{name}/`" not in text) == []


ROOMS = sorted(p.parent.name for p in (ROOT / "stream").glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_the_words_of_a_room_know_its_modules(room: str) -> None:
    """In its README or in its docstring; of `cli`, what is no verb."""
    folder = ROOT / "stream" / room
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    if (folder / "README.md").exists():
        text += (folder / "README.md").read_text()
    names = {p.stem for p in folder.glob("*.py")} - {"__init__"}
    if room == "cli":
        names -= {verb.module for verb in VERBS}
    assert sorted(name for name in names if not re.search(rf"`{name}`|^{name}\b", text, re.MULTILINE)) == []
