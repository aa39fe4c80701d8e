"""Which rows of a source table have no counterpart on the other side: no mapping over their table makes a row of them.

A question about the mappings alone, as SQL over the source: it needs neither the target nor the stream. One scan of the
table, whatever the number of mappings; none at all where a mapping plainly makes a row of each of its rows.

Invariant: where this cannot tell, a row counts as one without a counterpart; it is never taken for represented. It is
represented by a row-local mapping that makes at least one row with a whole key of it, or by a mapping over mirrors that
makes at least one row of an owner that it feeds.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from dataclasses import dataclass

from sqlglot import exp

from schemas import digest
from schemas.bind import bound
from schemas.control import MIRROR_SCHEMA, mirror_name
from schemas.mapping import Mapping
from schemas.names import EQ, qualified, quote
from schemas.plan import Plan
from schemas.sql_text import name_of, parse
from schemas.table import Identity, Table

# What an item of a SELECT may be made of without a doubt that it is one value, whatever the row.
_ONE_VALUE = (
    exp.Abs, exp.And, exp.Case, exp.Cast, exp.Coalesce, exp.Concat, exp.If, exp.Length, exp.Lower, exp.Nullif, exp.Or,
    exp.Round, exp.Substring, exp.Trim, exp.Upper,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """The rows of one source table without a counterpart: a FROM item called `s`, a condition, its key as texts."""

    source: str
    where: str
    keys: tuple[str, ...]

    def count(self) -> str:
        return f"select pg_catalog.count(*) from {self.source}\nwhere {self.where}"

    def some(self, limit: int) -> str:
        """The keys of a few."""
        return f"select {', '.join(self.keys)} from {self.source}\nwhere {self.where} limit {limit}"


def alone(plan: Plan, name: str, bases: Map[str, str]) -> Alone | None:
    """The rows of a source table that stand for nothing on the target. None: each of them is made into something.

    `bases`: the target's domains -> the types they are over.
    """
    table, readers = plan.sources[name], plan.reading(name)
    if not readers or any(_takes_all(mapping, table) for mapping in readers):
        return None
    computed: list[str] = []
    tests = [_unmade(plan, mapping, table, bases, computed) for mapping in readers]
    columns = ", ".join([*(quote(c.name) for c in table.columns), *computed])
    return Alone(
        source=f"(select {columns} from {_relation(table)}) s",
        where="\n  and ".join(tests),
        keys=tuple(f"s.{quote(k)}::text" for k in named_by(table)),
    )


def named_by(table: Table) -> tuple[str, ...]:
    """The columns that a row may be named by: its key. Where it has none, nothing: its values are nobody's business."""
    return table.key or (table.identity_columns if table.identity is Identity.INDEX else ())


def _takes_all(mapping: Mapping, table: Table) -> bool:
    """Whether its text, by what can be read in it, makes a row of each row of the table.

    One plain SELECT from it, left joins at most beside it, and a key that is the table's own and not null.
    """
    query = parse(mapping.text).query
    if not isinstance(query, exp.Select) or mapping.owner != mapping.key:
        return False
    if {k for k, v in query.args.items() if v} - {"expressions", "from_", "joins"}:
        return False
    base = query.args["from_"].this
    joins = query.args.get("joins") or []
    if not isinstance(base, exp.Table) or base.args.get("joins") or name_of(base.this) != table.name:
        return False
    if any(j.side != "LEFT" or j.kind or not isinstance(j.this, exp.Table) for j in joins):
        return False
    if any(not _one_value(item) for item in query.expressions):
        return False
    keys = [mapping.output(k).plain for k in mapping.key]
    return all(k is not None and k[0] == table.name and table.column(k[1]).not_null for k in keys)


def _one_value(item: exp.Expr) -> bool:
    return not any(
        isinstance(n, (exp.Star, exp.Query, exp.AggFunc, exp.Window, exp.UDTF))
        or (isinstance(n, exp.Func) and not isinstance(n, _ONE_VALUE))
        for n in item.walk()
    )


def _unmade(plan: Plan, mapping: Mapping, table: Table, bases: Map[str, str], computed: list[str]) -> str:
    """A condition on `s`: the mapping makes nothing of it. `computed` is added to what `s` selects."""
    if mapping.row_local:
        own = ", ".join(f"s.{quote(c.name)}" for c in table.columns)
        there = " and ".join(f"q.{quote(k)} is not null" for k in mapping.key) or "true"
        return f"not exists (select from (\n{bound(mapping.text, {table.name: f'select {own}'})}\n) q where {there})"
    target = plan.targets[mapping.target]
    whole = {s: f"select * from {_relation(plan.sources[s])}" for s in mapping.sources}
    made = f"(\n{bound(mapping.text, whole)}\n) q"
    mine = [digest.comparable(f"q.{quote(o)}", target.column(o), bases) for o in mapping.owner]
    feed = mapping.feeds[table.name]
    if feed.restrict is not None:
        names = [f"slackwater_{len(computed) + i}" for i in range(len(feed.restrict))]
        pairs = list(zip(mapping.owner, feed.restrict, names, strict=True))
        computed += [f"{digest.comparable(f'({e})', target.column(o), bases)} as {n}" for o, e, n in pairs]
        same = " and ".join(f"{m} {EQ} s.{n}" for m, n in zip(mine, names, strict=True))
        return f"not exists (select from {made} where {same})"
    own = ", ".join(f"s.{quote(c.name)}" for c in table.columns)
    names = [f"o{i}" for i in range(len(mapping.owner))]
    query = bound(_without_mirrors(plan, mapping, feed.query), whole | {table.name: f"select {own}"})
    fed = [digest.comparable(f"f.{n}", target.column(o), bases) for o, n in zip(mapping.owner, names, strict=True)]
    return (
        f"not exists (select from (\n{query}\n) f({', '.join(names)})"
        f" where ({', '.join(fed)}) {EQ} any (select {', '.join(mine)} from {made}))"
    )


def _without_mirrors(plan: Plan, mapping: Mapping, query: str) -> str:
    """A feed names the mirror of a table that is joined to itself; on the source that is the table."""
    for source in mapping.sources:
        mirror = qualified(MIRROR_SCHEMA, mirror_name(plan.migration, plan.direction, source))
        table = plan.sources[source]
        query = query.replace(mirror, qualified(table.schema, table.name))
    return query


def _relation(table: Table) -> str:
    name = qualified(table.schema, table.name)
    return name if table.partitioned else f"only {name}"
