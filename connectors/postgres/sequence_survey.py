"""The sequences of one side, and the columns that they feed, as they are at this moment.

Invariant: definitions and positions are read from the catalogs and from the sequences themselves, never from a
statistics view; what the role may not read is left out, and never taken for a sequence that has given nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from connectors.postgres import catalog
from connectors.postgres.session import Connection, translated
from schemas.names import qualified, quote
from schemas.sequence_check import Column, Standing, Surveyed
from schemas.sequence_links import Fed, Known
from schemas.sequences import Sequence

_OURS = "pg_catalog.to_regnamespace(%(quoted)s)"
_CLASS = "'pg_catalog.pg_class'::pg_catalog.regclass"
_DEFAULT = "'pg_catalog.pg_attrdef'::pg_catalog.regclass"
_PROC = "'pg_catalog.pg_proc'::pg_catalog.regclass"
_REL = f"select c.oid from pg_catalog.pg_class c where c.relnamespace = {_OURS} and c.relkind in ('r', 'p')"

# Owned (serial, identity), or named by a default: as a dependency, or as text that is looked up when it is used. What a
# function, a trigger or the default of a domain draws from is not seen here: it feeds no column. Of a partition, the
# root is told. Each part is computed once: joined as they are, these parts would be read again for every sequence.
_FED = rf"""
with rel as materialized ({_REL}), seq as materialized (
  select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
   where c.relkind = 'S' and (n.oid = {_OURS} or n.nspname || '.' || c.relname = any(%(also)s))
), fed as materialized (
  select p.objid as seq, p.refobjid as rel, p.refobjsubid as num, true as owned from pg_catalog.pg_depend p
   where p.classid = {_CLASS} and p.refclassid = {_CLASS} and p.refobjsubid > 0 and p.deptype in ('a', 'i')
     and (p.objid in (select oid from seq) or p.refobjid in (select oid from rel))
  union all
  select p.refobjid, d.adrelid, d.adnum, false
    from pg_catalog.pg_depend p join pg_catalog.pg_attrdef d on d.oid = p.objid
   where p.classid = {_DEFAULT} and p.refclassid = {_CLASS}
     and (p.refobjid in (select oid from seq) or d.adrelid in (select oid from rel))
  union all
  select pg_catalog.to_regclass(m[1])::oid, d.adrelid, d.adnum, false
    from pg_catalog.pg_attrdef d
   cross join lateral
      pg_catalog.regexp_matches(pg_catalog.pg_get_expr(d.adbin, d.adrelid), 'nextval\(+''([^'']+)''', 'g') m
   where d.adrelid in (select oid from rel) and pg_catalog.strpos(d.adbin::text,
           ':funcid ' || 'pg_catalog.nextval(regclass)'::pg_catalog.regprocedure::oid::text || ' ') > 0
)
select f.seq::bigint, n.nspname, t.relname, a.attname, pg_catalog.bool_or(f.owned)
  from fed f join pg_catalog.pg_class c on c.oid = f.rel
  join pg_catalog.pg_class t
    on t.oid = case when c.relispartition then pg_catalog.pg_partition_root(c.oid)::oid else c.oid end
  join pg_catalog.pg_namespace n on n.oid = t.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = f.rel and a.attnum = f.num and not a.attisdropped
 where f.seq is not null group by 1, 2, 3, 4 order by 1, 2, 3, 4
"""

# Of other schemas, and feeding no column: what a function of the schema speaks of, or one that its triggers and
# defaults call; and schemas that hold sequences and no table.
_OUTSIDE = rf"""
with called as materialized (
  select p.oid, p.prosrc from pg_catalog.pg_proc p where p.pronamespace = {_OURS}
  union
  select p.oid, p.prosrc from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid
   where t.tgrelid in ({_REL}) and not t.tgisinternal and t.tgname not like 'slackwater\_%%'
  union
  select p.oid, p.prosrc from pg_catalog.pg_attrdef d
    join pg_catalog.pg_depend e on e.classid = {_DEFAULT} and e.objid = d.oid and e.refclassid = {_PROC}
    join pg_catalog.pg_proc p on p.oid = e.refobjid where d.adrelid in ({_REL})
), outside as materialized (
  select c.oid, c.relname, c.relnamespace
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
   where c.relkind = 'S' and c.relpersistence <> 't' and n.nspname !~ '^(pg_|slackwater)'
     and n.nspname <> 'information_schema' and n.oid is distinct from {_OURS}
     and not exists (select from pg_catalog.pg_depend d
                      where d.classid = {_DEFAULT} and d.refclassid = {_CLASS} and d.refobjid = c.oid)
     and not exists (select from pg_catalog.pg_depend d
                      where d.classid = {_CLASS} and d.objid = c.oid and d.deptype in ('a', 'i', 'e'))
)
select * from (
  select o.oid::bigint, exists (select from called p
                  where pg_catalog.strpos(p.prosrc, o.relname) > 0 and p.prosrc ~ (
                    '\m' || pg_catalog.regexp_replace(o.relname, '([^a-zA-Z0-9_])', '.', 'g') || '\M'))
         or exists (select from pg_catalog.pg_depend e join called p on p.oid = e.objid
                     where e.classid = {_PROC} and e.refclassid = {_CLASS} and e.refobjid = o.oid) as spoken_of,
         not exists (select from pg_catalog.pg_class t
                      where t.relnamespace = o.relnamespace and t.relkind in ('r', 'p')) as alone
    from outside o) x where spoken_of or alone
"""

_KNOWN = f"""
select c.oid::bigint, n.nspname, c.relname, pg_catalog.format_type(q.seqtypid, null),
       pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_sequence q on q.seqrelid = c.oid
 where c.relkind = 'S' and c.relpersistence <> 't'
   and (n.oid = {_OURS} or c.oid = any(%(oids)s::oid[]) or n.nspname || '.' || c.relname = any(%(also)s))
   and not exists (select from pg_catalog.pg_depend e
                    where e.classid = {_CLASS} and e.objid = c.oid and e.deptype = 'e')
 order by n.nspname, c.relname
"""

_USERS = """
select c.oid::bigint, pg_catalog.array_agg(r.rolname::text order by r.rolname)
  from pg_catalog.pg_class c, pg_catalog.pg_roles r
 where c.oid = any(%s::oid[]) and not r.rolsuper and r.rolname !~ '^(pg_|slackwater_)'
   and pg_catalog.has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
   and pg_catalog.has_sequence_privilege(r.oid, c.oid, 'USAGE, UPDATE')
 group by c.oid
"""

_DEFINED = """
select seqrelid::bigint, seqincrement, seqmin, seqmax, seqstart, seqcache, seqcycle from pg_catalog.pg_sequence
 where seqrelid = any(%s::oid[])
"""

# A domain is what it is a domain of. An extreme that an index gives at once; a scan is not for when writers wait.
_COLUMNS = """
select w.ord, c.relkind = 'p', t.typname, b.mod, pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'),
       exists (select from pg_catalog.pg_index i join pg_catalog.pg_class x on x.oid = i.indexrelid
                 join pg_catalog.pg_am m on m.oid = x.relam
                where i.indrelid = a.attrelid and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null
                  and m.amname = 'btree')
  from unnest(%s::text[], %s::text[], %s::text[]) with ordinality w(schema, rel, col, ord)
  join pg_catalog.pg_namespace n on n.nspname = w.schema
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.rel
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = w.col and a.attnum > 0 and not a.attisdropped
 cross join lateral (
   with recursive d(type, mod, depth) as (
     select a.atttypid, a.atttypmod, 0 union all
     select y.typbasetype, y.typtypmod, d.depth + 1
       from d join pg_catalog.pg_type y on y.oid = d.type and y.typtype = 'd')
   select type, mod from d order by depth desc limit 1) b
  join pg_catalog.pg_type t on t.oid = b.type
"""

_NAMES = {"int2": "smallint", "int4": "integer", "int8": "bigint", "float4": "real", "float8": "double precision"}
_NUMBERS = frozenset({*_NAMES, "numeric"})


def survey(conn: Connection, schema: str, also: Collection[str] = ()) -> Surveyed:
    """The sequences of one side, and the columns that they feed, as far as indexes tell. Three statements."""
    found = known(conn, schema, also)
    fed = columns(conn, [fed for one in found for fed in one.feeds], scan=False)
    server = catalog.server(conn)
    return Surveyed(
        known=tuple(found),
        standing=standing(conn, found, fed),
        database=(server.system_id, server.database_oid),
    )


def known(conn: Connection, schema: str, also: Collection[str] = ()) -> list[Known]:
    """Every sequence of the schema, every other one that feeds a column of its tables, and those named in `also`.

    Those of extensions and temporary ones are left out. `also`: schema and name, as one word.
    """
    named: dict[str, Any] = {"quoted": quote(schema), "also": list(also)}
    fed: dict[int, list[Fed]] = {}
    owned: set[int] = set()
    with translated("looking up the sequences"):
        found: list[Any] = conn.execute(_FED, named).fetchall()
        for oid, of, table, column, own in found:
            fed.setdefault(oid, []).append((of, table, column))
            if own:
                owned.add(oid)
        outside: dict[int, bool] = {oid: spoken_of for oid, spoken_of, _ in conn.execute(_OUTSIDE, named).fetchall()}
        rows: list[Any] = conn.execute(_KNOWN, {**named, "oids": [*fed, *outside]}).fetchall()
        free = [oid for oid, *_ in rows if oid not in fed]
        users: dict[int, list[str]] = dict(conn.execute(_USERS, (free,)).fetchall()) if free else {}
    return [
        Known(
            oid=oid,
            schema=of,
            name=name,
            type=type_,
            owned=oid in owned,
            feeds=tuple(fed.get(oid, ())),
            readable=readable,
            outside=oid in outside and of != schema,
            spoken_of=outside.get(oid, False),
            users=tuple(users.get(oid, ())),
        )
        for oid, of, name, type_, readable in rows
    ]


def columns(conn: Connection, wanted: Iterable[Fed], *, scan: bool) -> dict[Fed, Column]:
    """Those of the columns that there are. `scan`: read every row for the extremes that no index gives."""
    listed = list(dict.fromkeys(wanted))
    if not listed:
        return {}
    with translated("looking up the columns that sequences feed"):
        rows: list[Any] = conn.execute(_COLUMNS, tuple(map(list, zip(*listed, strict=True)))).fetchall()
        found = {}
        for at, partitioned, type_, modifier, may_read, indexed in rows:
            number = type_ in _NUMBERS and may_read
            digits = None
            if type_ == "numeric" and modifier >= 4:  # ((precision << 16) | scale) + 4, the scale of 11 bits, signed
                scale = ((modifier - 4) & 0x7FF ^ 1024) - 1024
                digits = max(0, (modifier - 4 >> 16) - scale)
            column = Column(
                at=listed[at - 1],
                type=_NAMES.get(type_, type_),
                digits=digits,
                partitioned=partitioned,
                indexed=number and indexed,
            )
            if number and not indexed and scan:  # of what is no number (an order's code), the sequence alone can tell
                ((low, high),) = _extremes(conn, [column])
                column = replace(column, scanned=True, low=low, high=high)
            found[column.at] = column
    return found


def standing(conn: Connection, sequences: Iterable[Known], columns: Mapping[Fed, Column]) -> Standing:
    """Where the sequences stand, and the extremes that an index gives, all live, in two statements.

    A sequence that may not be read, or is gone, is left out.
    """
    may = {s.oid: s for s in sequences if s.readable}
    indexed = [c for c in columns.values() if c.indexed]
    with translated("reading the sequences"):
        defined: list[Any] = conn.execute(_DEFINED, (list(may),)).fetchall() if may else []
        there = [row for row in defined if row[0] in may]
        names = [qualified(may[row[0]].schema, may[row[0]].name) for row in there]
        queries = [f"select last_value, is_called::int from {name}" for name in names]
        rows = _rows(conn, [*queries, *map(_extreme, indexed)])
    states = {}
    for (oid, increment, minimum, maximum, start, cache, cycle), (value, called) in zip(there, rows, strict=False):
        states[oid] = Sequence(
            increment=increment,
            minimum=minimum,
            maximum=maximum,
            start=start,
            cache=cache,
            cycle=cycle,
            last=value if called else None,
            first=None if called else value,
        )
    read = {c.at: replace(c, low=low, high=high) for c, (low, high) in zip(indexed, rows[len(there) :], strict=True)}
    return Standing(sequences=states, columns={**columns, **read})


def _extreme(column: Column) -> str:
    """Lowest and highest value."""
    name = quote(column.at[2])
    return f"select min({name})::numeric, max({name})::numeric from {column.relation}"


def _extremes(conn: Connection, wanted: list[Column]) -> list[tuple[int | None, int | None]]:
    return _rows(conn, list(map(_extreme, wanted)))


def _rows(conn: Connection, queries: list[str]) -> list[tuple[int | None, int | None]]:
    if not queries:
        return []
    union = " union all ".join(f"(select {n}, * from ({q}) q{n}(a, b))" for n, q in enumerate(queries))
    rows: list[Any] = conn.execute(f"select a::text, b::text from ({union}) u(n, a, b) order by n".encode()).fetchall()
    return [(_whole(a, up=False), _whole(b, up=True)) for a, b in rows]


def _whole(text: str | None, *, up: bool) -> int | None:
    """A number as a whole one at or past it; None for none, and for NaN and infinities, which no sequence meets."""
    if text is None or text in ("NaN", "Infinity", "-Infinity"):
        return None
    whole, _, rest = text.partition(".")
    value = int(whole)
    if rest.strip("0"):
        value += (1 if not text.startswith("-") else 0) if up else (-1 if text.startswith("-") else 0)
    return value
