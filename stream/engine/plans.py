"""How the statements of a session are planned: once for few rows, anew and otherwise for many.

Small batches are most of them: their plans are cached, and made of nested loops over indexes, so that none reads a
table whole. A plan made while a table was small does that all the same, for each row, and its cache does not see the
table grow; and joins of many owners with one another are quadratic without hashing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

MANY_ROWS = 2_000

SESSION = (
    "set plan_cache_mode = force_generic_plan; set enable_hashjoin = off; set enable_mergejoin = off; "
    "set temp_buffers = '32MB'; set work_mem = '64MB'"
)


class Post(Protocol):
    """Executes one statement whose answer nobody needs."""

    def __call__(self, sql: str, *, prepare: bool = False) -> None: ...


class Plans:
    """Those of one session, which begins with SESSION."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._planned_for = 0  # rows since the statements were last planned

    def suit(self, rows: int) -> bool:
        """Whether `rows` are many. Then nothing is planned as it was for fewer, nor will the next be as these."""
        many = rows >= MANY_ROWS
        self._planned_for += rows
        if self._planned_for >= MANY_ROWS:
            self._post("discard plans")
            self._planned_for = MANY_ROWS if many else 0
        return many

    @contextmanager
    def hashing(self, *, on: bool) -> Iterator[None]:
        """Joins may hash. Of few rows they would read mirrors whole."""
        if on:
            self._post("set local enable_hashjoin = on")
        yield
        if on:
            self._post("set local enable_hashjoin = off")

    @contextmanager
    def by_index(self) -> Iterator[None]:
        """An empty table would be planned to be read whole for each row, and grows while it is."""
        self._post("set local enable_seqscan = off", prepare=True)
        yield
        self._post("set local enable_seqscan = on", prepare=True)
