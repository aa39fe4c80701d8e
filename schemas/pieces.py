"""What a forward mapping keeps of each old table that it reads: its pieces.

Invariant: a piece holds at most one row for each row of its old table, and says which one: every key column of the old
table comes back from it, losslessly.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from dataclasses import dataclass, field

from sqlglot import exp

from schemas.constants import NoWay
from schemas.draft import Draft
from schemas.feeds import Deriver
from schemas.inverse import Finder, Inverse, invert
from schemas.mapping import Mapping
from schemas.names import readable
from schemas.select_from import conjuncts
from schemas.shape import Item, Relation, Shape, kind_of
from schemas.sql_text import name_of, parse
from schemas.table import Column, Reference, Table

Tables = Map[str, Table]


@dataclass(slots=True, kw_only=True)
class Piece:
    """An old table's rows as one new table holds them.

    `whole`: every row of the old table is in it. `filter` is the forward mapping's WHERE, over the old table alone;
    `witnesses` the new columns that are null where the old row was not there, and not all of them where it was.
    `failed` says why a column has no way back here. `references` are the new table's foreign keys.
    """

    old: str
    new: str
    mapping: Mapping
    key: tuple[str, ...] = ()  # the old table's
    columns: dict[str, Inverse] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    whole: bool = True
    filter: list[exp.Expr] = field(default_factory=list)
    witnesses: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()

    def within(self, other: Piece) -> bool:
        """Whether a foreign key says that each of its rows has a row of the same old key in the other table."""
        pairs = [(self.columns[k], other.columns[k]) for k in self.key]
        return any(
            r.table == other.new
            and all(
                (mine.new, theirs.new) in zip(r.columns, r.to, strict=True) and mine.forward == theirs.forward
                for mine, theirs in pairs
            )
            for r in self.references
        )

    def apart(self, other: Piece) -> bool:
        """Whether no old row is in both: their filters ask for two values of one column."""
        mine, theirs = _fixed(self.filter), _fixed(other.filter)
        return any(column in theirs and theirs[column] != literal for column, literal in mine.items())

    def decides(self, column: str) -> bool:
        """Whether the filter asks for nothing but the column not to be null, so that NULL is what is not there."""
        return len(self.filter) == 1 and _not_null(self.filter[0]) == column


@dataclass(slots=True, kw_only=True)
class Useless:
    """Why a new table that an old one feeds does not give its rows back."""

    old: str
    new: str
    why: str
    reads: tuple[str, ...] = ()


def pieces(draft: Draft, mapping: Mapping, sources: Tables, target: Table, *, qualified: bool) -> list[Piece | Useless]:
    """One answer for each old table that the mapping reads. `qualified`: spell new's columns with their table."""
    shape = draft.shape
    assert shape is not None
    query = parse(draft.text).query
    why = _unfit(shape, query)
    if why is not None or not isinstance(query, exp.Select):
        said = why or "it is not one SELECT"
        return [Useless(old=s, new=draft.target, why=said, reads=mapping.reads[s]) for s in mapping.sources]
    prefix = f"{readable(target.name)}." if qualified else ""
    reader = _Reader(draft, mapping, shape, query, sources, target, prefix)
    return [reader.piece(relation) for relation in shape.relations]


def _unfit(shape: Shape, query: exp.Expr | None) -> str | None:
    """What keeps any of the mapping's tables from being read back out of it."""
    if shape.branches:
        return "it puts rows of several SELECTs together"
    if shape.gathers or shape.one_row or shape.together is not None or shape.distinct_on is not None:
        return "it makes one row of many"
    if shape.many or shape.open:
        return "it makes many rows of one"
    if any(r.table is None for r in shape.relations):
        return "it reads its tables through a subquery"
    tables = [r.table for r in shape.relations]
    if len(set(tables)) != len(tables):
        return "it joins a table to itself"
    if query is not None and any(j.args.get("side") in ("RIGHT", "FULL") for j in query.args.get("joins") or []):
        return "it is a right or full join"
    return None


class _Reader:
    def __init__(
        self,
        draft: Draft,
        mapping: Mapping,
        shape: Shape,
        query: exp.Select,
        sources: Tables,
        target: Table,
        prefix: str,
    ) -> None:
        self.draft = draft
        self.prefix = prefix
        self.mapping = mapping
        self.shape = shape
        self.query = query
        self.sources = sources
        self.target = target
        self.outputs = {o.name: o for o in shape.outputs}
        where = query.args.get("where")
        self.conditions = conjuncts(where.this) if where is not None else []
        joins = query.args.get("joins") or []
        self.inner = any(str(j.args.get("side") or "").upper() != "LEFT" for j in joins)
        self.deriver = Deriver(shape, sources, {})
        self.instances = {i.own: i for i in self.deriver.instances()}
        self.types = {c.name: c.type for c in target.columns}

    def piece(self, relation: Relation) -> Piece | Useless:
        """What the mapping keeps of one of its tables."""
        assert relation.table is not None
        table = self.sources[relation.table]
        equal = self.deriver.direct(self.instances[relation.id], self.shape.outputs, self.types)
        if self.mapping.key and not (self.mapping.row_local or set(self.mapping.key) <= set(equal)):
            return self._useless(table, "a row of it may be in several rows there")
        first = relation is self.shape.relations[0]
        piece = Piece(
            old=table.name,
            new=self.target.name,
            mapping=self.mapping,
            key=table.key,
            references=tuple(r for r in self.target.references if r.schema == self.target.schema),
        )
        piece.whole = first and not self.inner and not self.conditions
        self._columns(piece, table, relation, equal)
        missing = [k for k in table.key if k not in piece.columns or piece.columns[k].loses]
        if missing:
            lost = "; ".join(filter(None, (_said(piece, k) for k in missing)))
            return self._useless(
                table, f"its key ({', '.join(missing)}) does not come back from there" + _because(lost)
            )
        if not table.key and self.mapping.key:
            return self._useless(table, f"{table.name} has no key")
        if relation.nullable:
            piece.witnesses = self._witnesses(table)
            if not piece.witnesses:
                return self._useless(table, "nothing there says whether it had a row at all")
        if self.mapping.row_local:
            piece.filter = self.conditions
        return piece

    def _columns(self, piece: Piece, table: Table, relation: Relation, equal: Map[str, str]) -> None:
        found: dict[str, Inverse] = {}
        for name, column in equal.items():
            bare = exp.column(exp.to_identifier(column, quoted=True))
            own = table.column(column)
            self._offer(piece, found, bare, name, _always(own))
        for item in self.shape.outputs:
            if item.node is None or item.name in equal or not any(t == table.name for t, _ in item.deps):
                continue
            self._offer(piece, found, item.node, item.name, lambda node: self._own(node, relation, table))
        for column, literal in _fixed(self.conditions if self.mapping.row_local else []).items():
            own_name = relation.items[column].origin if column in relation.items else None
            if own_name is not None and not kind_of(table.column(own_name[1])).startswith("="):
                found.setdefault(own_name[1], Inverse(column=own_name[1], sql=literal))
        piece.columns = found

    def _offer(self, piece: Piece, found: dict[str, Inverse], node: exp.Expr, name: str, find: Finder) -> None:
        """Keep the best way back of a column."""
        new = self.target.column(name)
        try:
            inverse = invert(node, new, f"{self.prefix}{readable(name)}", find)
        except NoWay as error:
            for dep_table, column in self.outputs[name].deps:
                if dep_table == piece.old:
                    piece.failed.setdefault(column, f"{self.target.name}.{name}: {error}")
            return
        before = found.get(inverse.column)
        if before is None or (before.loses and not inverse.loses):
            found[inverse.column] = inverse

    def _own(self, node: exp.Column, relation: Relation, table: Table) -> Column | None:
        """The column of this relation that a name means."""
        name = name_of(node.this)
        if node.args.get("table") is not None:
            if name_of(node.args["table"]) != relation.alias:
                return None
        elif sum(name in r.items for r in self.shape.relations) != 1:
            return None
        item: Item | None = relation.items.get(name)
        return None if item is None or item.origin is None else table.column(item.origin[1])

    def _witnesses(self, table: Table) -> tuple[str, ...]:
        """All of its columns that are taken over bare. With none of them NOT NULL on old, a row may leave no trace.

        New may hold a row in which the NOT NULL one alone is missing: what the others hold must not vanish with it.
        """
        bare = {o.name: o.origin[1] for o in self.shape.outputs if o.origin is not None and o.origin[0] == table.name}
        return tuple(bare) if any(table.column(c).not_null for c in bare.values()) else ()

    def _useless(self, table: Table, why: str) -> Useless:
        return Useless(old=table.name, new=self.target.name, why=why, reads=self.mapping.reads[table.name])


def _always(column: Column) -> Finder:
    return lambda _: column


def _not_null(node: exp.Expr) -> str | None:
    """The column of `x is not null`."""
    negated = isinstance(node, exp.Not)
    inner = node.this if negated else node
    if not isinstance(inner, exp.Is) or not isinstance(inner.expression, exp.Null):
        return None
    if bool(inner.args.get("negate")) == negated or not isinstance(inner.this, exp.Column):
        return None
    return name_of(inner.this.this)


def _because(why: str) -> str:
    return f": {why}" if why else ""


def _said(piece: Piece, column: str) -> str:
    found = piece.columns.get(column)
    return found.loses if found is not None else piece.failed.get(column, "")


def _fixed(conditions: list[exp.Expr]) -> dict[str, str]:
    """`kind = 'A'` fixes kind."""
    fixed: dict[str, str] = {}
    for condition in conditions:
        if not isinstance(condition, exp.EQ):
            continue
        for column, literal in (
            (condition.this, condition.expression),
            (condition.expression, condition.this),
        ):
            if isinstance(column, exp.Column) and isinstance(literal, exp.Literal):
                fixed.setdefault(name_of(column.this), literal.sql(dialect="postgres"))
    return fixed
