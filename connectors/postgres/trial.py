"""One row of a table inserted, updated and deleted as the applier will write it, and undone.

Invariant: nothing stays, and nobody waits long. Every column is given, so that no default (no sequence) is evaluated;
a statement waits a tenth of a second for a lock at most; a row of the table's own is deleted and put back, rather than
one made up that could meet another's key. No stream sees any of it.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors

from connectors.postgres import fence, fired, user_path
from connectors.postgres.fired import Row, Unnamed
from connectors.postgres.session import Connection, translate
from connectors.postgres.user_path import Path
from schemas.direction import Side
from schemas.errors import Contended
from schemas.names import qualified, quote
from schemas.table import Table

LOCK_MS = 100
ATTEMPTS = 5
STATEMENT_S = 5
HOLDER = "trial"
_BUSY = (errors.LockNotAvailable, errors.DeadlockDetected, errors.QueryCanceled)
# What a row's values are refused for, or a passing state of the server: neither tells of names.
_OTHERWISE = ("08", "22", "23", "25", "40", "44", "53", "55", "57")


def tried(
    conn: Connection, table: Table, rows: Sequence[Row], *, migration: str, side: Side, replica: bool, path: Path
) -> Unnamed | None:
    """What the row's way into the table fails in. `rows` are tried in turn where the table holds none of its own.

    Values that the table refuses end a try, and say nothing. Errors: Contended while others hold the table.
    """

    @contextmanager
    def begun() -> Iterator[None]:
        with conn.transaction(force_rollback=True):
            conn.execute(
                f"set local lock_timeout = {LOCK_MS}; set local statement_timeout = '{STATEMENT_S}s'"
                + ("; set local session_replication_role = replica" if replica else "")
            )
            _pass(conn, migration, side)
            user_path.enter(conn, path)
            yield

    own: list[bool] = []

    def again() -> None:
        with begun():
            own.append(_there_and_back(conn, table))

    error = _patiently(again, table)
    if error is None and own and own[-1]:
        return None
    if error is not None:
        return _told(conn, table, error, own=True)
    for row in rows:

        def fresh(row: Row = row) -> None:
            with begun():
                _come_and_go(conn, table, row)

        error = _patiently(fresh, table)
        if error is None:
            return None
        if (found := _told(conn, table, error, own=False)) is not None:
            return found
    return None


def _told(conn: Connection, table: Table, error: psycopg.Error, *, own: bool) -> Unnamed | None:
    """A row that was made up can be refused by whatever a trigger checks; one of the table's own cannot."""
    state = error.sqlstate or ""
    if state[:2] in _OTHERWISE or not (own or fired.about_names(error)):
        return None
    return fired.explained(conn, table, "a trigger, rule or constraint", error)


def _patiently(attempt: Callable[[], None], table: Table) -> psycopg.Error | None:
    """The error, if any. Errors: Contended."""
    for number in range(1, ATTEMPTS + 1):
        try:
            attempt()
        except _BUSY as error:
            if number == ATTEMPTS:
                doing = f"trying one row of {table.schema}.{table.name}"
                raise Contended(
                    translate(error, doing).cause,
                    hint="others hold the table or its rows: see pg_stat_activity, then run this again",
                ) from error
            time.sleep(0.2 * number * random.uniform(0.5, 1.5))
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            return error
        else:
            return None
    raise AssertionError("unreachable")


def _pass(conn: Connection, migration: str, side: Side) -> None:
    """Through a fence that may stand already; undone with the rest."""
    row: Any = conn.execute("select pg_catalog.to_regclass('slackwater.pass') is not null").fetchone()
    if row == (True,):
        secret = secrets.token_hex(32)
        fence.give_pass(conn, migration, side, HOLDER, secret)
        fence.show_pass(conn, secret)


# -- the statements ---------------------------------------------------------------------------------------------------


def _there_and_back(conn: Connection, table: Table) -> bool:
    """A row of the table's own: deleted, inserted as it was, updated. False where there is none that is free."""
    columns = fired.given(table)
    name = qualified(table.schema, table.name)
    texts = ", ".join(f"t.{quote(c.name)}::text" for c in columns)
    row = conn.execute(
        f"delete from {name} t where (t.tableoid, t.ctid) operator(pg_catalog.=) any"
        f" (select tableoid, ctid from {name} limit 1 for update skip locked) returning {texts}".encode()
    ).fetchone()
    if row is None:
        return False
    values = dict(zip((c.name for c in columns), row, strict=True))
    _update(conn, table, values, _insert(conn, table, values))
    return True


def _come_and_go(conn: Connection, table: Table, row: Row) -> None:
    """A row that is made up: inserted, updated, deleted."""
    at = _update(conn, table, row, _insert(conn, table, row))
    conn.execute(f"delete from {qualified(table.schema, table.name)} where {at}".encode())


def _insert(conn: Connection, table: Table, row: Row) -> str:
    """A condition that finds the row."""
    columns = fired.given(table)
    names = ", ".join(quote(c.name) for c in columns)
    found: Any = conn.execute(
        f"insert into {qualified(table.schema, table.name)} ({names}) overriding system value"
        f" values ({', '.join(fired.typed(columns, row))}) returning tableoid::bigint, ctid::text".encode()
    ).fetchone()
    return _at(found)


def _update(conn: Connection, table: Table, row: Row, at: str) -> str:
    columns = [c for c in fired.given(table) if c.identity != "a"]
    if not columns:
        return at
    values = zip(columns, fired.typed(columns, row), strict=True)
    found: Any = conn.execute(
        f"update {qualified(table.schema, table.name)} set {', '.join(f'{quote(c.name)} = {v}' for c, v in values)}"
        f" where {at} returning tableoid::bigint, ctid::text".encode()
    ).fetchone()
    return _at(found)


def _at(place: tuple[int, str] | None) -> str:
    """Of a row that a trigger has sent elsewhere, or nowhere, nothing more can be asked."""
    if place is None:
        return "false"
    return f"tableoid operator(pg_catalog.=) {place[0]}::oid and ctid operator(pg_catalog.=) '{place[1]}'::tid"
