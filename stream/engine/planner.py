"""How the statements of a session are planned: once for few rows, anew and otherwise for many.

Small batches are most of them: their plans are cached, and made of nested loops over indexes, so that none reads a
table whole. A plan made while a table was small does that all the same, for each row, and its cache does not see the
table grow; and joins of many owners with one another are quadratic without hashing.

A table that was analysed while it was empty, and has been filled since, is taken for empty until it is analysed again:
nested loops over it are quadratic or worse, minutes for a thousand rows. Until then its joins hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from connectors.postgres.session import Connection, translated
from schemas.names import EQ

MANY_ROWS = 2_000

# Before PostgreSQL 18 a plan of a kind that is ruled out, and is taken all the same, counts as immensely dear: it would
# be compiled each time, for longer than it runs.
SESSION = (
    "set jit = off; set plan_cache_mode = force_generic_plan; set enable_hashjoin = off; set enable_mergejoin = off; "
    "set temp_buffers = '32MB'; set work_mem = '64MB'"
)


# Whether the planner takes one of these tables (by oid) for empty although it has pages.
MISLED = (
    f"select exists (select from pg_catalog.pg_class where oid {EQ} any(%s::oid[])"
    f" and reltuples {EQ} 0 and relpages operator(pg_catalog.>) 0)"
)
_TREES = """
select coalesce(array_agg(coalesce(p.relid::oid, r.oid)), '{}')
  from (select pg_catalog.to_regclass(n)::oid as oid from unnest(%s::text[]) n) r
  left join lateral pg_catalog.pg_partition_tree(r.oid) p on true
 where r.oid is not null
"""


def trees(conn: Connection, names: Sequence[str]) -> list[int]:
    """The oids of these tables (quoted names), and of their partitions."""
    with translated("reading which tables there are"):
        row = conn.execute(_TREES, (list(names),)).fetchone()
    assert row is not None
    return list(row[0])


class Post(Protocol):
    """Executes one statement whose answer nobody needs."""

    def __call__(self, sql: str, *, prepare: bool = False) -> None: ...


class Plans:
    """Those of one session, which begins with SESSION."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._planned_for = 0  # rows since the statements were last planned
        self._misled = False

    def suit(self, rows: int) -> bool:
        """Whether `rows` are many. Then nothing is planned as it was for fewer, nor will the next be as these."""
        many = rows >= MANY_ROWS
        self._planned_for += rows
        if self._planned_for >= MANY_ROWS:
            self._post("discard plans")
            self._planned_for = MANY_ROWS if many else 0
        return many

    def begin(self, *, misled: bool) -> None:
        """A transaction has begun. `misled`: the statistics say that a table is empty which may not be."""
        self._misled = misled
        if misled:
            self._post(
                "set local plan_cache_mode = force_custom_plan; set local enable_nestloop = off;"
                " set local enable_hashjoin = on"
            )

    @contextmanager
    def hashing(self, *, on: bool = True) -> Iterator[None]:
        """Joins may hash. Of few rows they would read mirrors whole."""
        if on and not self._misled:
            self._post("set local enable_hashjoin = on")
        yield
        if on and not self._misled:
            self._post("set local enable_hashjoin = off")

    @contextmanager
    def by_index(self) -> Iterator[None]:
        """An empty table would be planned to be read whole for each row, and grows while it is."""
        self._post("set local enable_seqscan = off", prepare=True)
        yield
        self._post("set local enable_seqscan = on", prepare=True)

    @contextmanager
    def by_range(self) -> Iterator[None]:
        """What a range of an index holds is hashed, and joined at once."""
        with self.by_index(), self.hashing():
            self._post("set local enable_nestloop = off")
            yield
            if not self._misled:
                self._post("set local enable_nestloop = on")
