"""Whether the planner knows a table: when it was last analysed, by whoever did it, and how we do it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import UNNAMED
from schemas.names import EQ, qualified, quote
from schemas.table import Table

log = logging.getLogger("slackwater")

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


def gather(conn: Connection, schema: str, table: str) -> None:
    """Gather a table's statistics; from PostgreSQL 17 on its indexes' functions run under a path of the server's own.

    Where one does not find what it names there, the columns' statistics are gathered without the indexes'; a partial
    index allows not even that. Both are said, and `check` names the function. Errors: others of the statement's.
    """
    name = qualified(schema, table)
    with translated(f"gathering statistics of {schema}.{table}"):
        try:
            conn.execute(f"analyze {name}".encode())
        except UNNAMED as error:
            why, without = error.diag.message_primary, "those of its indexes' expressions"
            rows: list[Any] = conn.execute(
                f"select a.attname from pg_catalog.pg_attribute a where a.attrelid {EQ} pg_catalog.to_regclass(%s)::oid"
                " and a.attnum operator(pg_catalog.>) 0 and not a.attisdropped order by a.attnum",
                (name,),
            ).fetchall()
            try:
                conn.execute(f"analyze {name} ({', '.join(quote(str(row[0])) for row in rows)})".encode())
            except UNNAMED:
                without = "any"
            log.warning(
                "the statistics of %s.%s lack %s: %s; `slackwater check` says which function, and what mends it",
                schema,
                table,
                without,
                why,
            )
