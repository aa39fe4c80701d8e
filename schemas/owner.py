"""Who owns a target row, and how a changed old row finds the owners it feeds.

Invariant: deleting an owner's rows that the SELECT no longer gives deletes nothing that another old row still gives.
Row-local: the owner identifies the one old row, by what even a DELETE is sure to send of it. Otherwise: the owner is
what feeds can find, for every table that is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlglot import exp

from schemas import functions
from schemas.draft import Draft, nearest
from schemas.feeds import Deriver, Instance, direct_feed
from schemas.lineage import Reader, called
from schemas.mapping import Feed, Ref
from schemas.names import qualified, quote
from schemas.select_from import bare
from schemas.shape import Item, Relation, Shape
from schemas.sql_text import name_of, over_columns, parse, select_items
from schemas.table import Identity, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    columns: tuple[str, ...]
    feeds: dict[str, Feed]


def row_local(shape: Shape) -> bool:
    """Exactly one reference to a table, each of its rows standing for itself.

    What a subquery over one row's own arrays gathers (no table in it) is a function of that row.
    """
    if len(shape.tables()) != 1 or any(part.recursive for part in shape.parts()):
        return False
    return _carries(shape)


def _carries(shape: Shape) -> bool:
    if shape.gathers or shape.branches or shape.one_row:
        return False
    holding = [r for r in shape.relations if r.table is not None or (r.shape is not None and r.shape.tables())]
    if len(holding) != 1 or holding[0].nullable:
        return False
    inner = holding[0].shape
    return inner is None or _carries(inner)


# Row-local.


def of_row(draft: Draft, shape: Shape, source: Table, key: tuple[str, ...]) -> Owner | None:
    """The owner of a row-local mapping's rows. None, with the draft's problems, when there is none."""
    if not key:
        return _without_key(draft, source)
    if not source.key:
        draft.refuse(
            f"{draft.here} table {source.name} has no primary key, so the key of {draft.target} cannot tell its rows"
            " apart",
            f"give {source.name} a primary key; or give {draft.there}'s {draft.target} none, and {draft.here}'s"
            f" {source.name} `replica identity full`",
        )
        return None
    outputs = {o.name: o for o in shape.outputs}
    spelled = {k: expression_of(draft, shape, source, outputs[k]) for k in key}
    sent = set(source.identity_columns)
    single = [k for k in key if not outputs[k].many]
    owner = [k for k in single if _columns(outputs[k]) <= sent and spelled[k] is not None]
    late = [k for k in single if k not in owner]
    if not owner or late:
        _not_sent(draft, source, outputs, late or list(key), spelled)
        return None
    if not _identifies(shape, source, [outputs[k] for k in owner]):
        draft.refuse(
            f"two rows of {source.name} could write one row of {draft.target}: the key ({', '.join(key)}) does not hold"
            f" {source.name}'s primary key ({', '.join(source.key)}), nor the columns of another unique index of it",
            f"add {', '.join(source.key)} to the key of {draft.target}; or, where many {draft.here} rows become one,"
            f" say how: `group by` the key; or, where the key does tell them apart, let {draft.here} say so: a unique"
            " index over NOT NULL columns",
        )
        return None
    if shape.many and not any(outputs[k].many for k in key) and _surely_many(shape):
        draft.refuse(
            f"one row of {source.name} can give several rows of {draft.target}, and the key ({', '.join(key)}) does not"
            " tell them apart",
            "add to the key what tells them apart, such as a number: `unnest(...) with ordinality as x(value, no)`",
        )
        return None
    expressions = tuple(str(spelled[k]) for k in owner)
    columns = {c for k in owner for c in _columns(outputs[k])}
    feed = direct_feed(source.name, [expressions], columns, whole=True)
    given = draft.entry.feeds if draft.entry is not None else {}
    by = ", ".join(expressions)
    if given and (set(given) != {source.name} or not _agrees(given[source.name], owner, outputs)):
        draft.refuse(
            f"`feeds` of {draft.target} is not what its SELECT says: {source.name} feeds it by {by}",
            f"leave `feeds` out: each row of {draft.there} comes from one row of {draft.here}, and the SELECT says"
            " which",
        )
    return Owner(columns=tuple(owner), feeds={source.name: feed})


def _columns(item: Item) -> set[str]:
    return {c for _, c in item.deps}


def _without_key(draft: Draft, source: Table) -> Owner | None:
    if source.identity is not Identity.FULL:
        draft.refuse(
            f"{draft.target} has no key in {draft.there}, so its rows are known by all of their columns, and"
            f" {source.name} does not send those of a deleted row",
            f"give {draft.target} a primary key, or name its `key:`; or run: alter table"
            f" {qualified(source.schema, source.name)} replica identity full",
        )
        return None
    return Owner(columns=(), feeds={})


def _not_sent(
    draft: Draft, source: Table, outputs: Mapping[str, Item], late: list[str], spelled: Mapping[str, str | None]
) -> None:
    full = f"alter table {qualified(source.schema, source.name)} replica identity full"
    unspelled = [k for k in late if spelled[k] is None and not outputs[k].many]
    if unspelled:
        draft.refuse(
            f"key column {', '.join(unspelled)} of {draft.target} is not an expression over {source.name}'s columns",
            "select it in the outermost SELECT, straight from the table, without subqueries",
        )
        return
    columns = sorted({c for k in late for c in _columns(outputs[k])} - set(source.identity_columns))
    cause = (
        f"key column {', '.join(late)} of {draft.target} is computed from {', '.join(columns)}, which {source.name}"
        " does not send of a changed or deleted row"
        if columns
        else f"no key column of {draft.target} says which row of {source.name} it comes from"
    )
    kept = ", ".join(source.key) or "its key"
    draft.refuse(cause, f"make the key from {source.name}'s primary key ({kept}), or run: {full}")


def _surely_many(shape: Shape) -> bool:
    """Whether the rows are multiplied by something known to (a user's function in FROM may well give one row)."""
    return any(
        (r.many and (not r.open or r.items)) or (r.shape is not None and _surely_many(r.shape)) for r in shape.relations
    ) or not any(r.many for r in shape.relations)


def expression_of(draft: Draft, shape: Shape, source: Table, item: Item) -> str | None:
    """An output as an expression over the source's own columns; None when it cannot be written as one."""
    if item.plain is not None:
        return quote(item.plain[1])
    base = [r for r in shape.relations if r.table == source.name]
    items = select_items(draft.text)
    if len(base) != 1 or items is None or len(items) != len(shape.outputs) or item.many:
        return None
    columns = {n: i.origin[1] for n, i in base[0].items.items() if i.origin is not None}
    return over_columns(items[shape.outputs.index(item)], columns)


def _identifies(shape: Shape, source: Table, owner: list[Item]) -> bool:
    """Whether the owner tells any two rows of the source apart."""
    base: Relation | None = next((r for r in shape.relations if r.table == source.name), None)
    told: set[str] = set()
    for item in owner:
        if item.plain is not None:
            told.add(item.plain[1])
        elif base is not None and item.node is not None:
            origin = _injective(item.node, base.items)
            if origin is not None:
                told.add(origin[1])
    return any(set(unique) <= told for unique in (source.key, *source.uniques))


_INTEGERS = {"SMALLINT", "INT", "BIGINT", "DECIMAL"}


def _injective(node: exp.Expr, columns: Mapping[str, Item]) -> Ref | None:
    """The one old column that the expression tells apart: two values of it never give the same result."""
    match node:
        case exp.Column():
            return columns.get(name_of(node.this), Item(name="")).origin
        case exp.Paren() | exp.Neg():
            return _injective(node.this, columns)
        case exp.Cast() if isinstance(node.args.get("to"), exp.DataType):
            return _through_cast(node, columns)
        case exp.Add() | exp.Sub() | exp.DPipe() | exp.Concat():
            return _of_one(node.expressions or [node.this, node.expression], columns)
        case exp.Dot() if isinstance(node.expression, exp.Anonymous):
            return _injective(node.expression, columns)
        case exp.MD5():
            return _injective(node.this, columns)
        case exp.Anonymous() if called(node) in functions.HASHES:
            return _of_one(node.expressions, columns)
    return None


def _of_one(parts: list[exp.Expr], columns: Mapping[str, Item]) -> Ref | None:
    others = [p for p in parts if not isinstance(p, exp.Literal)]
    return _injective(others[0], columns) if len(others) == 1 else None


def _through_cast(node: exp.Cast, columns: Mapping[str, Item]) -> Ref | None:
    kind, inner = node.args["to"], bare(node.this)
    inside = inner.expression if isinstance(inner, exp.Dot) else inner
    name = kind.this.value
    if kind.expressions:
        return None  # a length cuts
    if name in ("TEXT", "VARCHAR") or (
        name == "UUID" and (isinstance(inside, exp.MD5) or called(inside) in functions.HASHES)
    ):
        return _injective(inner, columns)
    whole = isinstance(inner, exp.Column) and columns.get(name_of(inner.this), Item(name="")).kind == "int"
    return _injective(inner, columns) if name in _INTEGERS and whole else None


def _agrees(given: str | list[str], owner: list[str], outputs: Mapping[str, Item]) -> bool:
    listed = [given] if isinstance(given, str) else given
    plain = [o.plain[1] if (o := outputs[k]).plain is not None else None for k in owner]
    return [x.strip().strip('"') for part in listed for x in part.split(",")] == plain


# Over mirrors.


def of_join(
    draft: Draft,
    shape: Shape,
    sources: Mapping[str, Table],
    target: Table,
    key: tuple[str, ...],
    mirrors: Mapping[str, str],
) -> Owner | None:
    """The owner of the rows of a join or an aggregate. None, with the draft's problems, when feeds cannot be found.

    `mirrors` are the names of the sources' mirrors, as SQL.
    """
    if not key:
        draft.refuse(
            f"{draft.target} has no key in {draft.there}, and its rows are made of several {draft.here} rows",
            f"give {draft.target} a primary key, or name its `key:`",
        )
        return None
    outputs = {o.name: o for o in shape.outputs}
    candidates = [k for k in key if not outputs[k].many or shape.branches]
    if not candidates:
        draft.refuse(
            f"the whole key of {draft.target} comes out of a set-returning function",
            f"add a column of a table of {draft.here} to the key",
        )
        return None
    deriver = Deriver(shape, sources, mirrors)
    given = _given(draft, shape, sources, len(candidates))
    if given is None:
        return None
    instances = deriver.instances()
    types = {c.name: c.type for c in target.columns}
    everything = [o for o in deriver.shape.outputs if o.name in candidates]
    decided = [(i, deriver.direct(i, everything, types)) for i in instances if i.table not in given]
    owner = _choose(candidates, [set(d) for _, d in decided], given)
    feeds = dict(given)
    for table in dict.fromkeys(i.table for i in instances):
        if table in given:
            continue
        feed = _derive(deriver, table, [(i, d) for i, d in decided if i.table == table], owner)
        if feed is None:
            _ask(draft, table, owner)
        else:
            feeds[table] = feed
    if set(feeds) != {i.table for i in instances}:
        return None
    pushed_down = not shape.gathers and all(outputs[k].origin is not None for k in owner)  # the planner does it then
    if not any(f.restrict for f in feeds.values()) and not pushed_down:
        draft.refuse(
            f"no {draft.here} table of {draft.target} holds its owner ({', '.join(owner)}) by itself, so every change"
            " would compute it whole",
            f"begin the key with columns of one {draft.here} table",
        )
        return None
    return Owner(columns=owner, feeds={t: feeds[t] for t in draft.sources})


def _choose(candidates: list[str], decided: list[set[str]], given: Mapping[str, Feed]) -> tuple[str, ...]:
    if given:
        count = len(next(iter(given.values())).restrict or ()) or _width(next(iter(given.values())).query)
        return tuple(candidates[:count])
    some = [d for d in decided if d]
    common = set.intersection(*some) if some else set()
    return tuple(k for k in candidates if k in common) or tuple(candidates)


def _width(query: str) -> int:
    parsed = parse(query).query
    return len(parsed.selects) if parsed is not None else 0


def _derive(
    deriver: Deriver, table: str, decided: list[tuple[Instance, dict[str, str]]], owner: tuple[str, ...]
) -> Feed | None:
    """One feed for all of a table's appearances."""
    outputs = [next(o for o in deriver.shape.outputs if o.name == k) for k in owner]
    direct: list[tuple[str, ...]] = []
    columns: set[str] = set()
    queries: list[str] = []
    for instance, found in decided:
        if all(k in found for k in owner):
            direct.append(tuple(quote(found[k]) for k in owner))
            columns |= {found[k] for k in owner}
            continue
        path = deriver.path(instance, outputs)
        if path is None:
            return None
        queries.append(path[0])
        columns |= path[1]
    if not queries:
        return direct_feed(table, direct, columns, whole=True)
    if direct:
        queries.insert(0, direct_feed(table, direct, columns, whole=False).query)
    return Feed(source=table, query="\nunion\n".join(queries), columns=frozenset(columns), restrict=None)


def _ask(draft: Draft, table: str, owner: tuple[str, ...]) -> None:
    names = ", ".join(owner)
    draft.refuse(
        f"the mapping of {draft.target} does not say which of its rows ({names}) a changed row of {table} feeds",
        f"say so: `feeds: {{{table}: <what equals {names} in a row of {table}>}}`, or a SELECT over {table} and the"
        f" mapping's other tables that gives {names}",
    )


def _given(draft: Draft, shape: Shape, sources: Mapping[str, Table], width: int) -> dict[str, Feed] | None:
    """The feeds that the file gives. None when one of them cannot be used."""
    feeds: dict[str, Feed] = {}
    count = len(draft.problems)
    appearances = shape.tables()
    for table, said in (draft.entry.feeds if draft.entry is not None else {}).items():
        if table not in appearances:
            draft.refuse(
                f"`feeds` of {draft.target} names {table}, which its SELECT does not read{nearest(table, appearances)}",
                "name the tables that the SELECT reads",
            )
            continue
        feed = _given_feed(draft, table, said, sources, once=appearances.count(table) == 1)
        if feed is not None:
            feeds[table] = feed
    widths = {len(f.restrict) if f.restrict else _width(f.query) for f in feeds.values()}
    if len(widths) > 1 or any(not 1 <= w <= width for w in widths):
        draft.refuse(
            f"the feeds of {draft.target} do not all give the same columns of its key",
            "let each give the same first columns of `key`, in that order: they are the owner",
        )
    return feeds if len(draft.problems) == count else None


def _given_feed(
    draft: Draft, table: str, said: str | list[str], sources: Mapping[str, Table], *, once: bool
) -> Feed | None:
    whole = isinstance(said, str) and said.lstrip("( \n\t").lower().startswith(("select", "with"))
    text = str(said) if whole else f"select {said if isinstance(said, str) else ', '.join(said)} from {quote(table)}"
    parsed = parse(text)
    reader = Reader(sources)
    shape = reader.read(parsed.query) if parsed.query is not None else Shape()
    faults = [*parsed.faults, *reader.faults]
    for fault in faults:
        draft.refuse(f"the feed of {draft.target} from {table}: {fault.cause}", fault.remedy)
    foreign = set(shape.tables()) - set(draft.sources)
    if foreign:
        draft.refuse(
            f"the feed of {draft.target} from {table} reads {', '.join(sorted(foreign))}, which the mapping does not",
            "let a feed read only what the mapping reads",
        )
    if faults or foreign or parsed.query is None:
        return None
    columns = frozenset(c for t, c in reader.touched if t == table)
    restrict = None if whole else _restrict(parsed.text, shape, sources[table])
    if not whole and restrict is None:
        draft.refuse(
            f"the feed of {draft.target} from {table} is not a list of expressions over {table}'s columns",
            "give a column or an expression for each owner column, or a whole SELECT",
        )
        return None
    query = parsed.text if restrict is None else f"select {', '.join(restrict)} from {quote(table)}"
    return Feed(source=table, query=query, columns=columns, restrict=restrict if once else None)


def _restrict(text: str, shape: Shape, table: Table) -> tuple[str, ...] | None:
    columns = {c.name: c.name for c in table.columns}
    items = select_items(text) or []
    spelled = [over_columns(item, columns) for item in items]
    return tuple(str(s) for s in spelled) if all(spelled) and len(spelled) == len(shape.outputs) else None
