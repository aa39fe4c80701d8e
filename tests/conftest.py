"""Fixtures come from `tests/fixtures/`, one module per concern."""

from __future__ import annotations

pytest_plugins = ["tests.fixtures.names", "tests.fixtures.services", "tests.fixtures.databases", "tests.fixtures.stream"]
