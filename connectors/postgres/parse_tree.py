"""What a text calls and reads, as PostgreSQL itself parsed it.

A temporary view over the text has its parse tree in the catalog: every function and operator by oid (so an overload is
not mistaken for another), and in pg_depend every column. This is the authority; what was read from the text by sqlglot
must agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import errors

from connectors.postgres import user_path
from connectors.postgres.session import Connection
from connectors.postgres.user_path import Path
from schemas import functions
from schemas.direction import Side
from schemas.mapping import Mapping
from schemas.names import quote, readable

_CALLS = re.compile(r":(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)")
_MEANT = re.compile(r":(?:opno|funcid|aggfnoid|winfnoid) (\d+)")
_AGGREGATES = re.compile(r"\{AGGREF :aggfnoid (\d+)")
_SETS_IN_LIST = re.compile(r"(?<!:funcexpr )\{FUNCEXPR :funcid (\d+) :funcresulttype \d+ :funcretset true")
_VALUE = "{SQLVALUEFUNCTION "
VIEW = "slackwater_probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    schema: str
    name: str
    volatility: str  # i, s, v
    kind: str  # f, a, w
    reads: tuple[str, ...]  # relations that a body in standard SQL reads

    @property
    def own(self) -> bool:
        """PostgreSQL's own, as against a user's or an extension's."""
        return self.schema == "pg_catalog"

    @property
    def shown(self) -> str:
        return self.name if self.own else f"{self.schema}.{self.name}"


_FUNCTIONS = """
select p.oid::bigint, n.nspname, p.proname, p.provolatile, p.prokind,
       coalesce((select array_agg(distinct c.relname::text) from pg_catalog.pg_depend d
                   join pg_catalog.pg_class c on c.oid = d.refobjid
                  where d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid
                    and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and c.relkind <> 'c'), '{}')
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where p.oid = any(%s::oid[])
 order by n.nspname, p.proname
"""

_READS = """
select n.nspname, c.relname, a.attname
  from pg_catalog.pg_rewrite r
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.oid
   and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid <> r.ev_class
  join pg_catalog.pg_class c on c.oid = d.refobjid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid and d.refobjsubid > 0
 where r.ev_class = %s::oid and c.relkind <> 'c'
"""


def faults(
    conn: Connection,
    mapping: Mapping,
    trust: Collection[str],
    path: Path = (),
    *,
    side: Side = Side.NEW,
    schema: str = "",
) -> Iterator[tuple[str, str]]:
    """(cause, remedy) of everything that makes a row depend on more than the old rows. Call it inside a transaction
    in which temporary tables of the sources' names stand; the transaction is to be rolled back. `path`: the user's,
    on this `side`, whose tables are in `schema`.
    """
    view, tree, temp = _parsed(conn, mapping, path, VIEW)
    yield from _relations(conn, mapping, view, temp)
    yield from _elsewhere(conn, mapping, tree, temp, (path, side, schema))
    if _VALUE in tree:
        yield (
            f"the mapping of {mapping.target} asks for the time or the user, which are not the row's",
            "use a column of the old row, or leave the column out and give the new table a default",
        )
    called = {int(oid) for oid in _CALLS.findall(tree)}
    rows: list[Any] = conn.execute(_FUNCTIONS, (sorted(called),)).fetchall()
    known = {r[0]: Function(schema=r[1], name=r[2], volatility=r[3], kind=r[4], reads=tuple(r[5])) for r in rows}
    for each in known.values():
        yield from _function(mapping, each, trust)
    for oid in dict.fromkeys(int(o) for o in _SETS_IN_LIST.findall(tree)):
        if (function := known.get(oid)) is not None and not function.own:
            yield (
                f"{function.shown}() in the mapping of {mapping.target} gives any number of rows in the output list",
                f"move it to FROM: `cross join lateral {function.shown}(...) as x`",
            )


def _parsed(conn: Connection, mapping: Mapping, path: Path, name: str) -> tuple[int, str, str]:
    """(the view's oid, the parse tree, the schema of the session's temporary tables) of the text under a path."""
    with user_path.within(conn, ("pg_temp", *path)):
        conn.execute(f"create temp view {quote(name)} as\n{mapping.text}".encode())
    row: Any = conn.execute(
        "select c.oid::bigint, r.ev_action::text, pg_catalog.pg_my_temp_schema()::regnamespace::text from"
        " pg_catalog.pg_class c join pg_catalog.pg_rewrite r on r.ev_class = c.oid"
        " where c.relnamespace = pg_catalog.pg_my_temp_schema() and c.relname = %s",
        (name,),
    ).fetchone()
    return row[0], row[1], row[2]


def _elsewhere(
    conn: Connection, mapping: Mapping, tree: str, temp: str, at: tuple[Path, Side, str]
) -> Iterator[tuple[str, str]]:
    """Operators and functions of the columns' own types that the path does not lead to, where others do instead.

    The text means the same under a path that leads to them, or it is not plain what it means.
    """
    path, side, schema = at
    types = user_path.base_types(conn, temp)
    homes = [home for home in user_path.homes(conn, types) if home not in path]
    if not homes:
        return
    try:
        with conn.transaction():
            _, other, _ = _parsed(conn, mapping, (*path, *homes), f"{VIEW}_elsewhere")
    except errors.AmbiguousFunction:
        return
    if _MEANT.findall(tree) == _MEANT.findall(other):
        return
    wider = (*path, *homes)
    remedy = f"{side}.search_path: [{', '.join(wider)}] in the file"
    if makers := user_path.makers(conn, homes, schema):
        remedy = f"run on {side}: {user_path.revoked(makers)}; then {remedy}"
    used = ", ".join(sorted(name for _, name in types))
    led = ", ".join(path) or "empty"
    cause = (
        f"the mapping of {mapping.target} uses operators or functions of {used} that the search_path ({led}) does not"
        " lead to: PostgreSQL would take those of another type, text as a rule, and give other rows"
    )
    meant = f"x operator({readable(homes[0])}.=) y, or x::text = y::text"
    yield cause, f"{remedy}; or say in the SELECT what is meant: {meant}"


def _relations(conn: Connection, mapping: Mapping, view: int, temp: str) -> Iterator[tuple[str, str]]:
    """Only what is bound is read, and all of it was seen by the analysis of the text."""
    read: list[Any] = conn.execute(_READS, (view,)).fetchall()
    for schema, name, column in read:
        if schema != temp or name not in mapping.reads:
            yield (
                f"the mapping of {mapping.target} reads {schema}.{name}, which is not one of the old tables",
                "read old tables only; what must come from elsewhere, copy into old first",
            )
        elif column is not None and column not in mapping.reads[name]:
            yield (
                f"PostgreSQL says that the mapping of {mapping.target} reads {name}.{column}, and the analysis did not",
                "qualify the columns with their table, and write the SELECT more plainly",
            )


def _function(mapping: Mapping, function: Function, trust: Collection[str]) -> Iterator[tuple[str, str]]:
    text = f"{function.shown}() in the mapping of {mapping.target}"
    if function.own:
        row_only = function.volatility == "i" or (
            function.volatility == "s" and functions.stable_of_the_row(function.name)
        )
        if not row_only or functions.refused(function.name):
            yield (
                f"{text} depends on more than its arguments (on a setting, the time or the session)",
                "use a form of it that takes everything as an argument, or a column of the old row",
            )
        return
    trusted = function.shown in trust or function.name in trust
    if function.kind != "f":
        yield (
            f"{text} is an aggregate or window function of your own, which the analysis of the text cannot follow",
            f"gather with array_agg, and give the array to a plain function: f(array_agg(x)), not {function.name}(x)",
        )
    elif function.volatility != "i" and not trusted:
        declared = "stable" if function.volatility == "s" else "volatile (PostgreSQL's default)"
        yield (
            f"{text} is declared {declared}, so it may depend on more than its arguments",
            f"where it does not: `alter function {function.shown}(...) immutable`, or `trust: [{function.shown}]`",
        )
    if function.reads:
        yield (
            f"{text} reads {', '.join(function.reads)}: a change there would change new rows unseen",
            "join the table in the SELECT instead",
        )
