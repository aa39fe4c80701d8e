"""Fixtures come from `tests/fixtures/`, one module per concern; here is the order in which tests run."""

from __future__ import annotations

import signal

import pytest

pytest.register_assert_rewrite("tests.fixtures.oracle", "tests.fixtures.tape")
pytest_plugins = [
    "tests.fixtures.names",
    "tests.fixtures.services",
    "tests.fixtures.databases",
    "tests.fixtures.icu",
    "tests.fixtures.preparing",
    "tests.fixtures.stream",
    "tests.fixtures.tide",
    "tests.fixtures.staged",
    "tests.fixtures.older",
]

# The longest first, so that no worker is left with one of them when the others have nothing more to do.
ORDER = ("faults", "acceptance", "integration", "contract", "unit")


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would every program that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is made once is made by one worker: a module's own, and the armed pair that the tests of a room share."""
    for item in items:
        assert isinstance(item, pytest.Function)
        used = item._fixtureinfo.name2fixturedefs
        if any(definitions[-1].scope == "module" for definitions in used.values()):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        elif "mooring" in used:
            item.add_marker(pytest.mark.xdist_group(f"tide_{item.path.parent.name}"))
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[int, bool]:
    room = next((n for n, room in enumerate(ORDER) if room in item.path.parts), len(ORDER))
    return room, item.get_closest_marker("xdist_group") is None
