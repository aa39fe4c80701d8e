"""Functions of users that mappings call, and those that these call: by name, for a text in quotes names nothing else.

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
       pg_catalog.hashtextextended(pg_catalog.concat_ws('|', p.prosrc, p.probin, p.proconfig, p.prolang, p.provolatile,
         p.proisstrict, p.prorettype, p.proargtypes, p.prosqlbody, p.prosupport, e.extversion), 0)::text,
       pg_catalog.concat_ws(' ', p.prosrc, pg_catalog.pg_get_function_sqlbody(p.oid), p.proconfig::text)
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  left join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid
        and d.deptype = 'e' and d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
  left join pg_catalog.pg_extension e on e.oid = d.refobjid
 where p.proname = any(%s::name[]) and p.oid >= {FIRST_NORMAL_OID}
   and n.nspname not in ('slackwater', 'slackwater_mirror') and n.nspname !~ '^pg_temp'
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
    """`calls`: table -> the names in what computes its rows."""
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
    return Code(of=of, names=tuple(sorted(first | found.keys())) if first else ())


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
