"""Fixtures come from `tests/fixtures/`, one module per concern."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.fixtures.tape")
pytest_plugins = [
    "tests.fixtures.names",
    "tests.fixtures.services",
    "tests.fixtures.databases",
    "tests.fixtures.preparing",
    "tests.fixtures.stream",
]
