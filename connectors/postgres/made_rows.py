"""Made rows, put into new's tables for a moment and taken back: whether new takes them, and how it prints them.

Invariant: nothing remains, and nothing else happens. It is one transaction that is rolled back; every column is given,
so no sequence moves; no trigger of the user's fires (replica role), and a table that has one which would fire all the
same is left alone. CHECKs, NOT NULL, unique keys and domains are asked; foreign keys are for whoever makes the rows to
keep.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from connectors.postgres import control, fence, user_path
from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import Path
from schemas.direction import Side
from schemas.names import qualified, quote
from schemas.table import Table

LOCK_MS = 100
STATEMENT_MS = 2_000

Row = Mapping[str, str | None]
"""Column -> its value as PostgreSQL prints it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a row was refused for: SQLSTATE, and the names that PostgreSQL gives with it. Never a value."""

    state: str
    table: str = ""
    column: str = ""
    constraint: str = ""

    @property
    def of_the_row(self) -> bool:
        """Whether it is the row's own fault (a value, a constraint), so that another one may pass."""
        return self.state[:2] in ("22", "23")

    @property
    def said(self) -> str:
        where = f"{self.table}.{self.column}" if self.column else self.constraint or self.table
        what = {
            "23502": "is NOT NULL", "23514": "refuses it (a CHECK)", "23505": "is there already",
            "22001": "is too short for it", "22003": "is too small for it", "42501": "may not be written by this login",
            "55P03": "is locked by somebody", "57014": "took too long", "40P01": "is locked by somebody",
        }.get(self.state, f"does not take it (SQLSTATE {self.state})")  # fmt: skip
        return f"{where} {what}" if where else what


class Unmade(Exception):
    """No row could be made, and why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.said)
        self.refusal = refusal


@contextmanager
def making(table: str) -> Iterator[None]:
    """Errors: Unmade, where PostgreSQL refuses what is in it; those of a connection that is lost."""
    try:
        yield
    except psycopg.Error as error:
        raise Unmade(refusal(error, table)) from error


def refusal(error: psycopg.Error, table: str) -> Refusal:
    """Errors: Unavailable where the connection is gone."""
    if error.sqlstate is None or error.sqlstate[:2] == "08" or error.sqlstate in ("57P01", "57P02", "57P03"):
        with translated("the connection was lost while made rows were tried"):
            raise error
    diag = error.diag
    return Refusal(
        state=error.sqlstate,
        table=table,
        column=diag.column_name or "",
        constraint=diag.constraint_name or "",
    )


@contextmanager
def trying(conn: Connection, migration: str) -> Iterator[bool]:
    """The transaction that is rolled back; yields whether triggers and foreign keys are out of it (replica role)."""
    with translated("cannot try made rows"), conn.transaction(force_rollback=True):
        bounded(conn)
        replica = False
        with suppress(errors.InsufficientPrivilege), conn.transaction():
            conn.execute("set local session_replication_role = replica")
            replica = True
        if control.installed(conn):
            secret = secrets.token_hex(16)
            fence.give_pass(conn, migration, Side.NEW, "roundtrip", secret)
            fence.show_pass(conn, secret)
        yield replica


def bounded(conn: Connection) -> None:
    """For this transaction alone: nobody is waited for, and no statement runs on."""
    conn.execute(f"set local lock_timeout = {LOCK_MS}".encode())
    conn.execute(f"set local statement_timeout = {STATEMENT_MS}".encode())


_OBSTACLES = """
select 'its trigger ' || t.tgname from pg_catalog.pg_trigger t
 where t.tgrelid in (select %(oid)s::oid union all select p.relid from pg_catalog.pg_partition_tree(%(oid)s::oid) p)
   and not t.tgisinternal and t.tgname not like 'slackwater\\_%%'
   and (t.tgtype & 4) <> 0
   and t.tgenabled = any(case when %(replica)s then '{A,R}'::"char"[] else '{O,A}'::"char"[] end)
union all
select 'its rule ' || r.rulename from pg_catalog.pg_rewrite r
 where r.ev_class = %(oid)s::oid and r.ev_type = '3' and r.ev_enabled <> 'D'
union all
select 'a foreign key, checked at once by this login' from pg_catalog.pg_constraint k
 where not %(replica)s and k.conrelid = %(oid)s::oid and k.contype = 'f'
 limit 1
"""


def obstacle(conn: Connection, table: Table, *, replica: bool) -> str | None:
    """What would happen besides, were a row inserted; None: nothing."""
    row: Any = conn.execute(_OBSTACLES, {"oid": table.oid, "replica": replica}).fetchone()
    return None if row is None else str(row[0])


def insert(conn: Connection, table: Table, row: Row, path: Path) -> dict[str, str | None] | Refusal:
    """The row as new would hold it, taken back at once; or why new does not take it. `path`: the user's."""
    names = [c for c in row if not table.column(c).generated]
    values = sql.SQL(", ").join(
        sql.SQL("cast({} as {})").format(sql.Literal(row[c]), sql.SQL(table.column(c).type)) for c in names
    )
    columns = ", ".join(map(quote, names))
    query = sql.SQL("insert into {} ({}) overriding system value values ({}) returning {}").format(
        sql.SQL(qualified(table.schema, table.name)),
        sql.SQL(columns),
        values,
        sql.SQL(", ".join(f"{quote(c.name)}::text" for c in table.columns)),
    )
    try:
        with conn.transaction(force_rollback=True):
            user_path.enter(conn, path)
            found: Any = conn.execute(query).fetchone()
    except psycopg.Error as error:
        return refusal(error, table.name)
    return dict(zip(table.column_names, found, strict=True))
