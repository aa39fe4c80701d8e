"""Sessions whose text output cannot be bent by a role's or a database's settings, and whose errors are ours.

Invariant: every value read or written passes through a session with the same pins (hazard A17), set at connect, before
anything else can run. A secret never appears in an error: DSNs are only ever shown redacted.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import conninfo, errors

from schemas.errors import (
    Contended,
    Halt,
    PrivilegeMissing,
    RowRejected,
    SlackwaterError,
    StatementRefused,
    Unavailable,
)

_QUOTED = re.compile(r'"[^"]*"')
_RAISED_IN = re.compile(r"^PL/pgSQL function (\S+?)\(", re.MULTILINE)
_BYTES = re.compile(r"0x[0-9a-f]{2}(?: 0x[0-9a-f]{2})*")
Connection = psycopg.Connection[tuple[Any, ...]]

ENCODINGS = ("22021", "22P05")
"""A character that an encoding does not have: the message holds its bytes."""

PINS: Mapping[str, str] = {
    "DateStyle": "ISO,MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "lc_monetary": "C",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "array_nulls": "on",  # else NULL inside an array arrives as a text of four letters
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",  # else types and definitions read otherwise than on the other side
    "search_path": '""',
    "row_security": "off",  # a policy must raise, never hide rows from us
    "default_transaction_isolation": "read\\ committed",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
NEWER_PINS: Mapping[str, tuple[int, str]] = {  # an older server refuses a session that names one of them
    "transaction_timeout": (17_00_00, "0"),  # a walsender has it, too, for each transaction that it decodes
}


# Classes of SQLSTATE that say nothing of a row: transactions and sessions, locks and states of objects, resources,
# the system, a damaged file.
NO_ROWS_FAULT = frozenset(
    {"08", "0B", "0L", "0P", "0Z", "24", "25", "26", "28", "2B", "2D", "34", "3B", "3D"}
    | {"40", "53", "55", "57", "58", "72", "F0", "XX"}
)
NAMES = frozenset({"42P01", "42703", "42704", "42883", "42P02", "3F000"})  # quoted is the name of what is missing
SPOKEN_BY_POSTGRES = frozenset({"0A", "21", "23", "42", "54"})  # classes in which PostgreSQL chooses the words

FREE_SPACE = "free space on that server; the work goes on by itself from where it stopped"


def redact(dsn: str) -> str:
    """A DSN as it may be shown: host, port, database and user, never a password or an option."""
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "(a DSN that libpq cannot read)"
    shown = {k: str(parts[k]) for k in ("host", "port", "dbname", "user") if parts.get(k)}
    return " ".join(f"{k}={v}" for k, v in shown.items()) or "(libpq's defaults)"


def secrets(dsn: str) -> tuple[str, ...]:
    """What a DSN holds that must never be shown, for whoever takes it out of texts."""
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return ()
    return tuple(str(parts[k]) for k in ("password", "sslpassword") if parts.get(k))


def pinned(dsn: str, *, application: str, settings: Mapping[str, str] | None = None) -> str:
    """`dsn` with the pins (and `settings`, which win) as startup options, after any options of its own."""
    parts = conninfo.conninfo_to_dict(dsn)
    pins = {**PINS, **(settings or {})}
    options = " ".join([str(parts.get("options") or ""), *(f"-c {k}={v}" for k, v in pins.items())]).strip()
    defaults = {"connect_timeout": "10", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
    merged = {**defaults, **{k: v for k, v in parts.items() if v is not None}}
    merged.update(options=options, application_name=application, client_encoding="UTF8")
    return conninfo.make_conninfo("", **merged)


def connect(
    dsn: str, *, application: str = "slackwater", autocommit: bool = True, settings: Mapping[str, str] | None = None
) -> Connection:
    """A pinned session. Values of our settings must not hold spaces unless escaped with a backslash.

    Errors: Unavailable (refused, unreachable, starting up), PrivilegeMissing (authentication), Halt (a pooler that
    refuses startup options).
    """
    with translated(f"cannot connect to {redact(dsn)}"):
        conn = psycopg.connect(
            pinned(dsn, application=application, settings=settings), autocommit=True, prepare_threshold=None
        )
        pin_newer(conn)
        conn.autocommit = autocommit
    return conn


def pin_newer(conn: psycopg.Connection[Any]) -> None:
    """The pins that only newer servers know, in a session that has just begun; closed where that fails."""
    version = conn.info.server_version
    known = [f"set {name} = {value}" for name, (since, value) in NEWER_PINS.items() if version >= since]
    if not known:
        return
    try:
        conn.execute("; ".join(known).encode())
    except BaseException:
        conn.close()
        raise


def cancel(conn: Connection) -> None:
    """From another thread: end what the session runs. One that is gone, or does not answer, has nothing to end."""
    with suppress(psycopg.Error):
        conn.cancel_safe(timeout=5)


def sever(conn: Connection) -> None:
    """From another thread: cut the session without a word. Whoever waits for an answer is told that none will come."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(conn.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


@contextmanager
def translated(doing: str, *, rows: bool = False) -> Iterator[None]:
    """Turns psycopg's errors into ours. `doing` opens the message; DETAIL, which can hold row values, is dropped.

    `rows`: the statements write rows, and what is no more than a Halt otherwise may be one row's fault.
    """
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, doing, rows=rows) from error


def translate(error: psycopg.Error, doing: str, *, rows: bool = False) -> SlackwaterError:
    """What a driver error means for us; see `translated`."""
    state = error.sqlstate
    message = error.diag.message_primary or _first_line(str(error))
    if state in ENCODINGS:
        message = _BYTES.sub("...", message)  # what it quotes are the encodings
    elif state is not None and state[:2] == "22":
        message = _QUOTED.sub('"..."', message)  # a data exception quotes the value that it could not use
    cause = f"{doing}: {message}" + (f" (SQLSTATE {state})" if state else "")
    match error:
        case errors.DeadlockDetected() | errors.SerializationFailure() | errors.LockNotAvailable():
            return Contended(
                cause,
                hint="it is tried again by itself; if it persists, look for long transactions in pg_stat_activity",
            )
        case errors.InsufficientPrivilege():
            return PrivilegeMissing(cause, hint="`slackwater grants` prints what each role needs")
        case errors.InvalidPassword() | errors.InvalidAuthorizationSpecification():
            return PrivilegeMissing(cause, hint="check the user and password of the DSN, and pg_hba.conf")
        case errors.IdleInTransactionSessionTimeout():
            return Unavailable(cause, hint="this process was stopped in the middle of a transaction, which is undone")
        case errors.DiskFull() | errors.OutOfMemory():
            return Unavailable(cause, hint=FREE_SPACE)
    if error.diag.message_hint == "Check free disk space.":  # a quota, or a limit: no SQLSTATE of its own
        return Unavailable(cause, hint=FREE_SPACE)
    if state is None and "unsupported startup parameter" in message:
        return Halt(cause, hint="this looks like a connection pooler: give a DSN that reaches PostgreSQL itself")
    if state is None and ("password" in message or "authentication" in message or "pg_hba" in message):
        return PrivilegeMissing(cause, hint="check the user and password of the DSN, and pg_hba.conf")
    if state is not None and state[:2] in ("22", "23"):
        return RowRejected(cause, sqlstate=state, constraint=error.diag.constraint_name)
    if state is None or state[:2] in ("08", "57", "53"):  # connection, operator intervention, resources
        return Unavailable(cause, hint="check that the server is up and reachable; it is tried again by itself")
    hint = "see the server's log for this statement"
    if rows and state[:2] not in NO_ROWS_FAULT:
        of_row = _without_values(error, state, doing)
        return StatementRefused(cause if state in NAMES else of_row, hint=hint, sqlstate=state, of_row=of_row)
    return Halt(cause, hint=hint)


def _without_values(error: psycopg.Error, state: str, doing: str) -> str:
    """What PostgreSQL's own message says but for what it quotes; of one that somebody raised, who did."""
    message = _QUOTED.sub('"..."', error.diag.message_primary or "")
    if state[:2] == "54":  # a limit: it quotes an index, or nothing
        message = error.diag.message_primary or ""
    elif state[:2] not in SPOKEN_BY_POSTGRES:
        raised = _RAISED_IN.search(error.diag.context or "")
        message = f"{raised[1]} has raised an error" if raised else "a trigger or a function has raised an error"
    return f"{doing}: {message} (SQLSTATE {state})"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "unknown error")
