"""Both sides of the shop, row by row, by plain SQL that knows nothing of the engine.

Invariant: a row that differs in one byte of its text, is missing, or is there twice, is found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from connectors.postgres.session import Connection, connect, translated
from schemas.names import qualified

NAMED = 3  # differing rows of a table that are shown
SHOWN = 100  # characters of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One table of the new schema. `missing` and `extra` are rows as text, with how often: what new lacks, and has
    too much."""

    table: str
    rows: int
    missing: Counter[bytes]
    extra: Counter[bytes]

    @property
    def equal(self) -> bool:
        return not self.missing and not self.extra

    def told(self) -> Iterator[str]:
        """The differences, a line each; the demo's shop holds nobody's real data."""
        for rows, what in ((self.missing, "new lacks"), (self.extra, "only new has")):
            if rows:
                yield f"{self.table}: {what} {rows.total():,} of {self.rows:,} rows"
            for row in list(rows)[:NAMED]:
                yield f"    {row.decode().rstrip()[:SHOWN]}"


def compare(old_dsn: str, new_dsn: str, expected: str, new_schema: str) -> Iterator[Compared]:
    """Every table that `expected` names, one after the other. Errors: those of `connectors.postgres.session`."""
    with connect(old_dsn, application="shop audit") as old, connect(new_dsn, application="shop audit") as new:
        for table, query in sections(expected):
            should = fetch(old, query)
            has = fetch(new, f"select * from {qualified(new_schema, table)}")
            yield Compared(table=table, rows=should.total(), missing=should - has, extra=has - should)


def tables(dsn: str, schema: str) -> list[str]:
    """Every table of a schema: what `expected` has to name."""
    with connect(dsn, application="shop audit") as conn, translated("listing the tables"):
        rows = conn.execute("select tablename from pg_tables where schemaname = %s order by 1", (schema,)).fetchall()
    return [str(name) for (name,) in rows]


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(table, query) for each `-- table` line that has a query below it."""
    for name, query in re.findall(r"^-- ([^\n]+)\n((?:(?!--)[^\n]*\n)+)", text, re.MULTILINE):
        if query.strip():
            yield name, query.strip().removesuffix(";")


def fetch(conn: Connection, query: str) -> Counter[bytes]:
    """Rows as COPY prints their text, with how often each is there."""
    text = f"copy (select q::text from ({query}) q) to stdout"
    with translated("reading a table whole"), conn.cursor() as cursor, cursor.copy(text.encode()) as copy:
        return Counter(bytes(block) for block in copy)
