"""Functions of users that mappings call, by name or as an operator, and those that these call: a body is a text, in
which names alone can be found.

Invariant (hazard J5): a function counts by what it is (its body, language and settings), not by its row's version, so
that a GRANT is no change; and too many are looked at rather than too few: every function of a name that is called.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from connectors.postgres.session import Connection, translated

FIRST_NORMAL_OID = 16384  # PostgreSQL's own lie below it

_WORD = re.compile(r'"((?:[^"]|"")+)"|([A-Za-z_\u0080-\uffff][\w$]*)')

_FUNCTIONS = f"""
select p.proname,
       n.nspname || '.' || p.proname || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')',
       case when e.oid is null then '' else 'e' end || pg_catalog.hashtextextended(pg_catalog.concat_ws('|',
         p.prosrc, p.probin, p.proconfig, p.prolang, p.provolatile, p.proisstrict, p.prorettype, p.proargtypes,
         p.prosqlbody, p.prosupport, e.extversion), 0)::text,
       pg_catalog.concat_ws(' ', p.prosrc, pg_catalog.pg_get_function_sqlbody(p.oid), p.proconfig::text)
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  left join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid
        and d.deptype = 'e' and d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
  left join pg_catalog.pg_extension e on e.oid = d.refobjid
 where p.proname = any(%s::name[]) and p.oid >= {FIRST_NORMAL_OID}
   and n.nspname not in ('slackwater', 'slackwater_mirror') and n.nspname !~ '^pg_temp'
"""


# One that an extension brought computes as that version of it does: it counts where it is called by name.
_OPERATORS = f"""
select o.oprname, p.proname from pg_catalog.pg_operator o join pg_catalog.pg_proc p on p.oid = o.oprcode
 where o.oprname = any(%s::name[]) and o.oid >= {FIRST_NORMAL_OID}
   and not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_operator'::pg_catalog.regclass
                      and d.objid = o.oid and d.deptype = 'e')
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """`of`: table -> signature of each function -> what it is, as a hash. `names`: what a new one could be called."""

    of: Mapping[str, Mapping[str, str]]
    names: tuple[str, ...]


def words(text: str) -> frozenset[str]:
    """Every name in a text of SQL, as the catalog would have it."""
    return frozenset(q.replace('""', '"') if q else w.lower() for q, w in _WORD.findall(text))


def read(conn: Connection, calls: Mapping[str, Collection[str]]) -> Code:
    """`calls`: table -> the names and operators in what computes its rows."""
    if not any(calls.values()):
        return Code(of={table: {} for table in calls}, names=())
    calls = _with_operators(conn, calls)
    found: dict[str, list[tuple[str, str, frozenset[str]]]] = {}
    asked: set[str] = set()
    wanted = {name for names in calls.values() for name in names}
    with translated("cannot read the functions that mappings call"):
        while missing := wanted - asked:
            asked |= missing
            rows: list[Any] = conn.execute(_FUNCTIONS.encode(), (sorted(missing),)).fetchall()
            for name, signature, what, body in rows:
                named = words(body)
                found.setdefault(name, []).append((signature, what, named))
                wanted |= named
    of = {table: _reached(found, names) for table, names in calls.items()}
    # A body names columns and types as well: only what a mapping names, or what is there, can come to be called.
    first = {name for names in calls.values() for name in names}
    return Code(of=of, names=tuple(sorted(first | found.keys())))


def _with_operators(conn: Connection, calls: Mapping[str, Collection[str]]) -> dict[str, frozenset[str]]:
    """What stands for an operator becomes the functions that users' operators of that name call."""
    every = {name for names in calls.values() for name in names}
    with translated("cannot read the operators that mappings use"):
        rows: list[Any] = conn.execute(_OPERATORS.encode(), (sorted(n for n in every if _is_operator(n)),)).fetchall()
    behind: dict[str, set[str]] = {}
    for operator, function in rows:
        behind.setdefault(operator, set()).add(function)
    return {
        table: frozenset(f for n in names for f in (behind.get(n, ()) if _is_operator(n) else (n,)))
        for table, names in calls.items()
    }


def _is_operator(name: str) -> bool:
    return not any(character.isalnum() for character in name)


def _reached(found: Mapping[str, list[tuple[str, str, frozenset[str]]]], names: Collection[str]) -> dict[str, str]:
    reached: dict[str, str] = {}
    seen: set[str] = set()
    rest = [name for name in names if name in found]
    while rest:
        if (name := rest.pop()) in seen:
            continue
        seen.add(name)
        for signature, what, named in found[name]:
            reached[signature] = what
            rest += [n for n in named if n in found]
    return reached
