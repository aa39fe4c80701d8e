"""Rows that a foreign key of the target would have refused: replica role writes past foreign keys (hazard D3).

Invariant: each key is looked at by the meaning PostgreSQL gives it (its own operators, MATCH SIMPLE or FULL), in one
snapshot; a key that was not looked at is named with the reason, never counted as whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.errors import SlackwaterError
from schemas.names import qualified, quote
from schemas.table import Table

COUNTED = 10_000  # more than so many orphans of one key are not counted

# Keys of the tables, and keys of other tables that refer to them; one that is NOT VALID too, for rows have come past it
# since, but none that is not enforced. Operators are the constraint's own: primary key
# on the left. Of partitioned tables, the root's constraint speaks for its partitions.
_KEYS = """
select k.conname, cn.nspname, c.relname, c.relkind = 'p', pn.nspname, p.relname, p.relkind = 'p', k.confmatchtype = 'f',
       coalesce((to_jsonb(k) ->> 'conperiod')::bool, false),
       (select array_agg(array[ca.attname, pa.attname, on_.nspname, o.oprname] order by x.n)
          from unnest(k.conkey, k.confkey, k.conpfeqop) with ordinality x(c, p, o, n)
          join pg_catalog.pg_attribute ca on ca.attrelid = k.conrelid and ca.attnum = x.c
          join pg_catalog.pg_attribute pa on pa.attrelid = k.confrelid and pa.attnum = x.p
          join pg_catalog.pg_operator o on o.oid = x.o join pg_catalog.pg_namespace on_ on on_.oid = o.oprnamespace)
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_class c on c.oid = k.conrelid join pg_catalog.pg_namespace cn on cn.oid = c.relnamespace
  join pg_catalog.pg_class p on p.oid = k.confrelid join pg_catalog.pg_namespace pn on pn.oid = p.relnamespace
 where k.contype = 'f' and k.conparentid = 0 and coalesce((to_jsonb(k) ->> 'conenforced')::bool, true)
   and (k.conrelid = any(%(oids)s::oid[]) or k.confrelid = any(%(oids)s::oid[]))
 order by 2, 3, 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    """One constraint. `pairs`: (child column, parent column, operator's schema, operator)."""

    name: str
    child: tuple[str, str]
    parent: tuple[str, str]
    child_partitioned: bool
    parent_partitioned: bool
    full: bool
    pairs: tuple[tuple[str, str, str, str], ...]
    skipped: str | None  # why it is not looked at

    @property
    def label(self) -> str:
        """`orders.orders_customer_fkey`."""
        return f"{self.child[1]}.{self.name}"

    @property
    def query(self) -> str:
        """How many rows of the child have no parent, up to COUNTED."""
        filled = [f"c.{quote(c)} is not null" for c, *_ in self.pairs]
        equal = " and ".join(f"p.{quote(p)} operator({quote(s)}.{o}) c.{quote(c)}" for c, p, s, o in self.pairs)
        alone = f"{' and '.join(filled)} and not exists (select from {self._parent} p where {equal})"
        if self.full and len(self.pairs) > 1:  # MATCH FULL: some columns NULL and others not is an orphan, too
            empty = " and ".join(f"c.{quote(c)} is null" for c, *_ in self.pairs)
            alone = f"({alone}) or not (({' and '.join(filled)}) or ({empty}))"
        child = f"{'' if self.child_partitioned else 'only '}{qualified(*self.child)}"
        return f"select count(*) from (select from {child} c where {alone} limit {COUNTED}) o"

    @property
    def _parent(self) -> str:
        return f"{'' if self.parent_partitioned else 'only '}{qualified(*self.parent)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphans:
    """What one key was found to be. `rows` is None where it was not looked at; `why` says why not."""

    key: str
    child: str
    parent: str
    rows: int | None
    why: str | None = None


def foreign_keys(conn: Connection, tables: Iterable[Table]) -> list[ForeignKey]:
    """The foreign keys of the tables, and those that refer to them."""
    with translated("cannot read the foreign keys"):
        rows: list[Any] = conn.execute(_KEYS, {"oids": [t.oid for t in tables]}).fetchall()
    return [_foreign_key(row) for row in rows]


def _foreign_key(row: Any) -> ForeignKey:
    name, cs, c, c_split, ps, p, p_split, full, period, pairs = row
    skipped = "a temporal key, which this version does not look at" if period else None
    return ForeignKey(
        name=name,
        child=(cs, c),
        parent=(ps, p),
        child_partitioned=c_split,
        parent_partitioned=p_split,
        full=full,
        pairs=tuple(tuple(pair) for pair in pairs),
        skipped=skipped,
    )


def fingerprint(keys: Iterable[ForeignKey]) -> str:
    """Of everything that the look depends on."""
    return hashlib.sha256(json.dumps([[k.label, k.query, k.skipped] for k in keys]).encode()).hexdigest()


def look(conn: Connection, keys: Iterable[ForeignKey], stop: Callable[[], bool], *, timeout_s: int) -> list[Orphans]:
    """Counts the orphans of each key, one statement a key. `stop` ends it between two of them.

    A key whose look fails (privileges, `timeout_s`) is listed with the reason.
    """
    found: list[Orphans] = []
    for key in keys:
        if stop():
            break
        child, parent = (f"{schema}.{table}" for schema, table in (key.child, key.parent))
        rows, why = None, key.skipped
        if why is None:
            try:
                rows = _count(conn, key, timeout_s)
            except SlackwaterError as error:
                if conn.closed:
                    raise
                why = error.cause
        found.append(Orphans(key=key.label, child=child, parent=parent, rows=rows, why=why))
    return found


def _count(conn: Connection, key: ForeignKey, timeout_s: int) -> int:
    with translated(f"looking for orphans of {key.label}"), conn.transaction(force_rollback=True):
        conn.execute("set transaction read only")
        conn.execute(f"set local statement_timeout = '{timeout_s}s'".encode())
        row = conn.execute(key.query.encode()).fetchone()
    assert row is not None
    return int(str(row[0]))
