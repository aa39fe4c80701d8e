"""Emptying target tables that are to be filled anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import sql

from connectors.postgres import survey, user_path
from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import Path

Relation = tuple[str, str]
"""(schema, name)."""


def may_be_replica(conn: Connection) -> bool:
    """Whether this role may set session_replication_role. Not to be asked inside a transaction."""
    return survey.role(conn).replica


def empty(conn: Connection, relations: Iterable[Relation], *, replica: bool, path: Path) -> None:
    """Empty the tables, inside the caller's transaction.

    TRUNCATE where no foreign key of another table refers to them; else DELETE, with foreign keys unchecked where the
    role may (`replica`): the rows that refer to them stay, and what they refer to comes back with the backfill.
    `path`: the user's, for triggers.
    """
    wanted = sorted(set(relations))
    referred = _referred(conn, wanted)
    whole = [relation for relation in wanted if relation not in referred]
    if whole:
        with user_path.within(conn, path):
            conn.execute(sql.SQL("truncate {}").format(sql.SQL(", ").join(sql.Identifier(*r) for r in whole)))
    if not referred:
        return
    if replica:
        conn.execute("set local session_replication_role = replica")
    with user_path.within(conn, path):
        for relation in referred:
            conn.execute(sql.SQL("delete from {}").format(sql.Identifier(*relation)))
    if replica:
        conn.execute("set local session_replication_role = origin")


def _referred(conn: Connection, relations: Sequence[Relation]) -> list[Relation]:
    """Those that a foreign key from outside of `relations` refers to, and those that such a one then refers to."""
    with translated("cannot read the foreign keys of new"):
        rows: list[Any] = conn.execute(
            "select n.nspname, c.relname, fn.nspname, fc.relname from pg_catalog.pg_constraint k"
            " join pg_catalog.pg_class c on c.oid = k.conrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " join pg_catalog.pg_class fc on fc.oid = k.confrelid"
            " join pg_catalog.pg_namespace fn on fn.oid = fc.relnamespace where k.contype = 'f'"
        ).fetchall()
    referring = [((schema, table), (to_schema, to_table)) for schema, table, to_schema, to_table in rows]
    truncated = set(relations)
    while True:
        deleted = {to for table, to in referring if to in truncated and table not in truncated}
        if not deleted:
            break
        truncated -= deleted
    # children first, so that a role that cannot skip the checks passes them where they can be passed
    left = [relation for relation in relations if relation not in truncated]
    order: list[Relation] = []
    while left:
        free = [r for r in left if not any(to == r and t in left and t != r for t, to in referring)] or left[:1]
        order += free
        left = [r for r in left if r not in free]
    return order
