"""No jar runs that is not the one that was pinned."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from connectors.local import LocalFailed, jars


def test_the_lock_file_pins_everything_once() -> None:
    pinned = jars.locked()
    assert {jar.coordinate for jar in pinned} >= set(jars.ROOTS)
    assert len({jar.filename for jar in pinned}) == len(pinned) >= 44
    assert all(len(jar.sha256) == 64 for jar in pinned)


def test_a_jar_that_is_not_what_was_pinned_is_refused(tmp_path: Path) -> None:
    pinned = next(jar for jar in jars.locked() if "jspecify" in jar.coordinate)
    wrong = jars.Jar(coordinate=pinned.coordinate, sha256="0" * 64)
    with pytest.raises(LocalFailed, match="is what is pinned"):
        jars.class_path(jars=[wrong], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_jar_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    pinned = next(jar for jar in jars.locked() if "jspecify" in jar.coordinate)
    said: list[str] = []
    (path,) = jars.class_path(jars=[pinned], folder=tmp_path, progress=said.append)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    jars.class_path(jars=[pinned], folder=tmp_path)
    assert path.read_bytes() == whole
    assert said

    said.clear()
    jars.class_path(jars=[pinned], folder=tmp_path, progress=said.append)
    assert said == []


# jgo leaves the sockets of refused downloads to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_downloaded_names_the_remedy(tmp_path: Path) -> None:
    nowhere = jars.Jar(coordinate="org.slackwater:no-such-thing:1", sha256="0" * 64)
    with pytest.raises(LocalFailed) as caught:
        jars.class_path(jars=[nowhere], folder=tmp_path)
    assert "Maven" in caught.value.hint
    gc.collect()
