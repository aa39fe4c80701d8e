"""A user's SQL file, run whole inside a transaction of ours.

Invariant: nothing in it can end that transaction, so a trial run changes nothing and a real one is applied whole.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import errors, sql

from connectors.postgres.session import Connection, translate
from schemas.errors import ConfigError

# What is not code: comments, strings, quoted names and bodies.
_OPAQUE = re.compile(
    r"""--[^\n]* | /\*.*?\*/ | \$(\w*)\$.*?\$\1\$ | [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" """,
    re.DOTALL | re.VERBOSE,
)
_ENDS = re.compile(
    r"(begin(?!\s+atomic\b)|start\s+transaction|commit|rollback|abort|prepare\s+transaction)\b", re.IGNORECASE
)
_EXISTS = (
    errors.DuplicateTable,
    errors.DuplicateSchema,
    errors.DuplicateObject,
    errors.DuplicateFunction,
    errors.DuplicateColumn,
)


def run(conn: Connection, name: str, text: str, schema: str) -> bool:
    """Run the file inside the caller's transaction, with `schema` (made where it is missing) first on the search path.

    Returns False, and leaves no trace, where what it makes is there already.
    Errors: ConfigError for a file that cannot be run so; the server's, translated, with the file's name.
    """
    code = _OPAQUE.sub(" ", text)
    if any(line.lstrip().startswith("\\") for line in code.splitlines()):
        raise ConfigError(
            f"{name} holds psql's own commands (\\...)", hint="leave SQL only in it: it is run without psql"
        )
    if ends := next((found for part in code.split(";") if (found := _ENDS.match(part.strip()))), None):
        raise ConfigError(
            f"{name} holds its own {ends[1].upper()}", hint="take it out: the file is applied in one transaction"
        )
    try:
        with conn.transaction():
            if not _has_schema(conn, schema) and not re.search(r"\bcreate\s+schema\b", code, re.IGNORECASE):
                conn.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
            conn.execute(sql.SQL("set local search_path to {}, public").format(sql.Identifier(schema)))
            conn.execute("set local lock_timeout = '5s'")
            conn.execute(text.encode())
            conn.execute("set local search_path to ''")
    except _EXISTS:
        return False
    except psycopg.Error as error:
        raise translate(error, f"{name}{_line(error, text)}") from error
    return True


def _has_schema(conn: Connection, schema: str) -> bool:
    row: Any = conn.execute(
        "select exists (select from pg_catalog.pg_namespace where nspname = %s)", (schema,)
    ).fetchone()
    return bool(row[0])


def _line(error: psycopg.Error, text: str) -> str:
    """' line 12', where the server says at which character it stumbled."""
    position = error.diag.statement_position
    return f" line {text.count(chr(10), 0, int(position) - 1) + 1}" if position else ""
