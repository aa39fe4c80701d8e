"""Which old columns each new column is computed from, and which decide whether a row appears at all.

Invariant: a column that is not among an output's `deps`, the key outputs' and the `row_deps` can change without that
output changing. Where the text cannot be followed, it depends on everything within reach. PostgreSQL's own record of
what a view reads (`connectors.postgres.bindings`) is held against this analysis before a mapping is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sqlglot import exp

from schemas import functions
from schemas.mapping import Ref
from schemas.scope import Scope
from schemas.select_from import FromReader
from schemas.shape import Item, Join, Place, Shape
from schemas.sql_text import Fault, name_of
from schemas.table import Table

_MANY = (exp.Explode, exp.Unnest, exp.GenerateSeries, exp.ExplodingGenerateSeries, exp.XMLTable, exp.JSONTable)


@dataclass(frozen=True, slots=True)
class Cte:
    """A name defined by WITH: its query, and the names that its query sees."""

    node: exp.CTE
    names: Mapping[str, Cte]
    outer: Scope | None
    recursive: bool


Names = Mapping[str, Cte]


@dataclass(slots=True)
class Use:
    """What an expression is made of."""

    deps: set[Ref] = field(default_factory=set)
    many: bool = False


class Reader(FromReader):
    """Reads one mapping's text. `touched` collects every old column named anywhere, `faults` what is wrong."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.tables = tables
        self.touched: set[Ref] = set()
        self.faults: list[Fault] = []
        self._unused: dict[int, str] = {}
        self._relations = 0
        self._reading: list[int] = []
        self._used: set[int] = set()

    # Queries.

    def query(self, node: exp.Expr, names: Names, outer: Scope | None) -> Shape:
        """A SELECT, VALUES or set operation; `names` are the CTEs it sees, `outer` the scope around it."""
        while isinstance(node, (exp.Subquery, exp.Paren)):
            names = self.with_names(node, names, outer)
            node = node.this
        names = self.with_names(node, names, outer)
        if isinstance(node, exp.SetOperation):
            return self._set_operation(node, names, outer)
        if isinstance(node, exp.Values):
            return self._values(node, names, outer)
        if isinstance(node, exp.Select):
            return self._select(node, names, outer)
        if isinstance(node, exp.Table):  # a parenthesised join
            node = exp.select("*").from_(node.copy())
            return self._select(node, names, outer)
        self.fault("a part of the text cannot be followed", "write it as a plain SELECT")
        return Shape(open=True)

    def read(self, node: exp.Expr) -> Shape:
        """The whole text."""
        shape = self.query(node, {}, None)
        for name in self._unused.values():
            self.fault(f"`with {name}` is never used", "leave it out")
        return shape

    def with_names(self, node: exp.Expr, names: Names, outer: Scope | None) -> Names:
        """`names` and what the node's own WITH adds."""
        clause = node.args.get("with_")
        if clause is None:
            return names
        known = dict(names)
        recursive = bool(clause.args.get("recursive"))
        for cte in clause.expressions:
            name = name_of(cte.args["alias"].this)
            if id(cte) not in self._used:
                self._unused[id(cte)] = name
            known[name] = Cte(cte, dict(known), outer, recursive)
        return known

    def cte(self, cte: Cte) -> Shape:
        """One use of a CTE: a shape of its own."""
        key = id(cte.node)
        self._used.add(key)
        self._unused.pop(key, None)
        if key in self._reading:
            return Shape(recursive=True, open=True)
        names = {**cte.names, name_of(cte.node.args["alias"].this): cte} if cte.recursive else cte.names
        self._reading.append(key)
        shape = self.query(cte.node.this, names, cte.outer)
        self._reading.pop()
        if any(part.recursive for part in shape.parts()):
            read = set(shape.tables())
            everything = frozenset(shape.deps() | {r for r in self.touched if r[0] in read})
            shape.recursive = True
            shape.row_deps |= everything
            shape.outputs = [Item(name=o.name, deps=everything) for o in shape.outputs]
        return shape

    def _set_operation(self, node: exp.SetOperation, names: Names, outer: Scope | None) -> Shape:
        branches = [self.query(node.this, names, outer), self.query(node.expression, names, outer)]
        shape = Shape(branches=branches, gathers=True, many=True)
        left, right = branches
        shape.row_deps = left.row_deps | right.row_deps
        if not isinstance(node, exp.Union) or node.args.get("distinct"):
            shape.row_deps |= left.deps() | right.deps()
        if left.open or right.open:
            shape.open = True
        if left.outputs and right.outputs and len(left.outputs) != len(right.outputs):
            self.fault(
                f"the two sides of a set operation have {len(left.outputs)} and {len(right.outputs)} columns",
                "give both the same columns",
            )
        for i, item in enumerate(left.outputs):
            other = right.outputs[i] if i < len(right.outputs) else item
            same = item.origin if item.origin == other.origin else None
            deps = item.deps | other.deps
            kind = item.kind if item.kind == other.kind else ""
            shape.outputs.append(
                Item(name=item.name, deps=deps, origin=same, exact=item.exact and other.exact, many=True, kind=kind)
            )
        return shape

    def _values(self, node: exp.Values, names: Names, outer: Scope | None) -> Shape:
        shape = Shape(many=len(node.expressions) > 1)
        scope = Scope(shape=shape, names=names, outer=outer)
        rows = [row.expressions if isinstance(row, exp.Tuple) else [row] for row in node.expressions]
        for i in range(max((len(row) for row in rows), default=0)):
            uses = [self.expression(row[i], scope) for row in rows if i < len(row)]
            deps = frozenset[Ref]().union(*(u.deps for u in uses))
            shape.outputs.append(Item(name=f"column{i + 1}", deps=deps, many=shape.many))
        return shape

    def _select(self, node: exp.Select, names: Names, outer: Scope | None) -> Shape:
        shape = Shape()
        scope = Scope(shape=shape, names=names, outer=outer)
        self.from_clause(node, scope)
        if (where := node.args.get("where")) is not None:
            self.condition(where.this, scope)
        for projection in node.expressions:
            shape.outputs.extend(self._projection(projection, scope))
        for window in node.args.get("windows") or []:
            self._window(window, scope)
        if (having := node.args.get("having")) is not None:
            shape.row_deps |= self.expression(having.this, scope).deps
            shape.gathers = True
        self._grouping(node, scope)
        if (order := node.args.get("order")) is not None:
            for ordered in order.expressions:
                self._by_name(ordered.this, scope)
        self._distinct(node, scope)
        if shape.one_row:
            shape.outputs = [replace(o, many=False) for o in shape.outputs]
            shape.many = False
        return shape

    # Outputs.

    def _projection(self, node: exp.Expr, scope: Scope) -> list[Item]:
        if isinstance(node, exp.Star):
            return self.star(scope, None)
        if isinstance(node, exp.Column) and isinstance(node.this, exp.Star):
            return self.star(scope, name_of(node.args["table"]))
        name, inner = output_name(node)
        bare = inner
        while isinstance(bare, exp.Paren):
            bare = bare.this
        if isinstance(bare, exp.Column):
            item = self.column(bare, scope)
            return [replace(item, name=name, node=inner)]
        use = self.expression(inner, scope)
        if use.many:
            scope.shape.many = True
            scope.shape.row_deps |= use.deps
        merged = self._coalesced(bare, scope)
        return [Item(name=name, deps=frozenset(use.deps), many=use.many, merged=merged, node=inner)]

    def _coalesced(self, node: exp.Expr, scope: Scope) -> tuple[Place, ...]:
        """The places of `coalesce(a.x, b.y)` where a join says that a.x = b.y whenever both are there."""
        if not isinstance(node, exp.Coalesce):
            return ()
        places: list[Place] = []
        for argument in (node.this, *node.expressions):
            item = self.column(argument, scope) if isinstance(argument, exp.Column) else None
            if item is None or item.place is None:
                return ()
            places.append(item.place)
        for i, a in enumerate(places):
            for b in places[i + 1 :]:
                if not any(self._across(e.join, a, b) and {e.a, e.b} == {a, b} for e in scope.shape.equalities):
                    return ()
        return tuple(places)

    @staticmethod
    def _across(join: Join | None, a: Place, b: Place) -> bool:
        if join is None:
            return False
        return (a.relation in join.left and b.relation in join.right) or (
            b.relation in join.left and a.relation in join.right
        )

    # Gathering.

    def _grouping(self, node: exp.Select, scope: Scope) -> None:
        shape = scope.shape
        group = node.args.get("group")
        if group is None:
            if shape.gathers and shape.together is None:
                shape.together, shape.one_row = set(), True
            return
        shape.gathers = True
        places: set[Place] = set()
        for key in group.expressions:
            if isinstance(key, (exp.Rollup, exp.Cube, exp.GroupingSets)):
                shape.row_deps |= self.expression(key, scope).deps
                shape.open = True
                continue
            item = self._by_name(key, scope)
            shape.row_deps |= item.deps
            places.update(item.places)
        for kind in ("rollup", "cube", "grouping_sets"):
            for key in group.args.get(kind) or []:
                shape.row_deps |= self.expression(key, scope).deps
                shape.open = True
        shape.together = places if shape.together is None else shape.together & places

    def _by_name(self, node: exp.Expr, scope: Scope) -> Item:
        """An expression of GROUP BY, ORDER BY or DISTINCT ON: a position, an output's name, or an expression."""
        outputs = scope.shape.outputs
        if isinstance(node, exp.Literal) and not node.is_string and node.name.isdigit():
            position = int(node.name)
            return outputs[position - 1] if 1 <= position <= len(outputs) else Item(name="")
        if isinstance(node, exp.Column):
            if node.args.get("table") is None and not self.sees(name_of(node.this), scope):
                named = [o for o in outputs if o.name == name_of(node.this)]
                if named:
                    return named[0]
            return self.column(node, scope)
        if isinstance(node, exp.Tuple):
            items = [self._by_name(part, scope) for part in node.expressions]
            merged = tuple(p for i in items for p in i.places)
            return Item(name="", deps=frozenset[Ref]().union(*(i.deps for i in items)), merged=merged)
        return Item(name="", deps=frozenset(self.expression(node, scope).deps))

    def _window(self, node: exp.Expr, scope: Scope) -> None:
        """Rows seen together are those of one partition."""
        shape = scope.shape
        shape.gathers = True
        places: set[Place] = set()
        for key in node.args.get("partition_by") or []:
            if isinstance(key, exp.Column):
                places.update(self.column(key, scope).places)
            shape.row_deps |= self.expression(key, scope).deps
        if order := node.args.get("order"):
            shape.row_deps |= self.expression(order, scope).deps
        if isinstance(node.this, exp.Identifier) or node.args.get("alias") is None:
            shape.together = places if shape.together is None else shape.together & places

    def _distinct(self, node: exp.Select, scope: Scope) -> None:
        distinct = node.args.get("distinct")
        if distinct is None:
            return
        shape = scope.shape
        shape.gathers = True
        on = distinct.args.get("on")
        if on is None:
            shape.row_deps |= shape.deps()
            return
        keys = on.expressions if isinstance(on, exp.Tuple) else [on]
        places: set[Place] = set()
        for key in keys:
            item = self._by_name(key.this if isinstance(key, exp.Paren) else key, scope)
            shape.row_deps |= item.deps
            places.update(item.places)
        for ordered in node.args["order"].expressions if node.args.get("order") is not None else []:
            shape.row_deps |= self._by_name(ordered.this, scope).deps
        shape.distinct_on = places

    # Expressions.

    def expression(self, node: exp.Expr, scope: Scope) -> Use:
        """What an expression depends on; subqueries become the shape's `nested`."""
        use = Use()
        self._walk(node, scope, use)
        return use

    def _walk(self, node: exp.Expr, scope: Scope, use: Use) -> None:
        if isinstance(node, exp.Column):
            if isinstance(node.this, exp.Star):
                use.deps |= self.whole(name_of(node.args["table"]), scope)
            else:
                item = self.column(node, scope)
                use.deps |= item.deps
                use.many |= item.many
            return
        if isinstance(node, (exp.Select, exp.SetOperation, exp.Values)) or (
            isinstance(node, exp.Subquery) and isinstance(node.this, exp.Query)
        ):
            nested = self.query(node, scope.names, scope)
            (scope.shape.nested_on if scope.in_join else scope.shape.nested).append(nested)
            use.deps |= nested.deps()
            return
        if isinstance(node, exp.Window):
            self._window(node, scope)
        elif isinstance(node, exp.AggFunc) or called(node) in functions.AGGREGATES:
            self._aggregate(node, scope)
        elif isinstance(node, _MANY) or called(node) in functions.SETS:
            use.many = True
        for child in node.iter_expressions():
            if not isinstance(child, (exp.Identifier, exp.DataType)):
                self._walk(child, scope, use)

    def _aggregate(self, node: exp.Expr, scope: Scope) -> None:
        """An aggregate belongs to the innermost scope among its arguments' columns, or to its own where it has none."""
        if isinstance(node.parent, exp.Window) or (
            isinstance(node.parent, exp.Filter) and isinstance(node.parent.parent, exp.Window)
        ):
            return
        homes = [self.home(c, scope) for c in node.find_all(exp.Column) if not isinstance(c.this, exp.Star)]
        known = [h for h in homes if h is not None]
        owner = scope if not known or scope in known else min(known, key=lambda h: self.distance(scope, h))
        owner.shape.gathers = True

    # Messages.

    def fault(self, cause: str, remedy: str) -> None:
        fault = Fault(cause=cause, remedy=remedy)
        if fault not in self.faults:
            self.faults.append(fault)

    def unknown(self, what: str, name: str, known: Iterable[str]) -> None:
        near = difflib.get_close_matches(name.rpartition(".")[2], sorted(known), n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
        self.fault(f"{what} {name} is unknown", hint)


def called(node: exp.Expr) -> str:
    """The name of a function that sqlglot has no class for."""
    return str(node.this).lower() if isinstance(node, exp.Anonymous) else ""


def output_name(node: exp.Expr) -> tuple[str, exp.Expr]:
    """An output's name as PostgreSQL gives it ('' where it would invent one), and the expression without its alias."""
    if isinstance(node, exp.Alias):
        return name_of(node.args["alias"]), node.this
    inner = node
    while isinstance(inner, (exp.Paren, exp.Cast, exp.Collate)):
        inner = inner.this
    if isinstance(inner, exp.Column):
        return name_of(inner.this), node
    if isinstance(inner, exp.Dot) and isinstance(inner.expression, exp.Identifier):
        return name_of(inner.expression), node
    return "", node
