"""The demo's shop, there and back: what its file accepts is all that is lost, and nothing is accepted for nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

from connectors.local import binary
from connectors.postgres import catalog, session
from schemas.reversal import Loss
from schemas.spec import load_spec
from stream.migration import paths
from stream.preflight import Findings, reverse_checks
from stream.verify import roundtrip
from tests.fixtures.databases import Databases

SHOP = Path(__file__).parents[2] / "stream" / "demo" / "shop"


def test_the_demo_s_shop_comes_back(databases: Databases) -> None:
    for file in ("old.sql", "rows.sql"):
        command = [str(binary("psql")), databases.old, "-qX", "-v", "ON_ERROR_STOP=1", "-v", "scale=1"]
        subprocess.run([*command, "-f", str(SHOP / file)], check=True, capture_output=True)
    env = {"OLD_DSN": databases.old, "NEW_DSN": databases.new, "KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    spec = load_spec(SHOP / "migration.yaml", env)
    with session.connect(databases.old) as old, session.connect(databases.new) as new:
        new.execute("create schema app")
        new.execute("set search_path = app")
        new.execute((SHOP / "new.sql").read_bytes())
        new.execute("set search_path = ''")
        found = Findings(spec.command)
        sources, targets = catalog.tables(old, "public"), catalog.tables(new, "app")
        reverse_checks.examine(spec, old, new, sources, targets, paths.found(spec, old, new), found)
        verdict = roundtrip.roundtrip(spec, old, new, lambda _: None)
    assert not found.problems, "\n".join(map(str, found))
    assert not verdict.unjudged
    lossy = {f"{c.table}.{c.column}": c.rows for c in verdict.columns if c.loss is not Loss.LOSSLESS}
    assert not verdict.losses, lossy
    assert {*lossy, "new.customer_sales"} == set(spec.roundtrip.accept)
