"""Whether the planner knows a table: when it was last analysed, by whoever did it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.table import Table

# A crash of the server resets these counters: then nobody knows when, and an ANALYZE is cheap.
_ANALYSED = """
select c.relname, greatest(s.last_analyze, s.last_autoanalyze)
  from pg_catalog.unnest(%s::oid[]) t(oid) join pg_catalog.pg_class c on c.oid = t.oid
  left join pg_catalog.pg_stat_all_tables s on s.relid = t.oid
"""


def analysed(conn: Connection, tables: Iterable[Table]) -> Mapping[str, datetime | None]:
    """Table -> when its statistics were gathered; None: never, or not known any more."""
    with translated("cannot read when the tables were analysed"):
        rows: list[Any] = conn.execute(_ANALYSED, ([t.oid for t in tables],)).fetchall()
    return dict(rows)
