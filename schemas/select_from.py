"""FROM: the relations of a scope, and what joins them. What a column's name means there is told in `schemas.scope`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlglot import exp

from schemas import functions
from schemas.scope import NameReader, Scope
from schemas.shape import Equality, Item, Join, Place, Relation, Shape, kind_of
from schemas.sql_text import name_of

if TYPE_CHECKING:
    from schemas.lineage import Cte, Names, Use


class FromReader(NameReader):
    """The part of the reader that deals with FROM."""

    _relations: int

    @abstractmethod
    def query(self, node: exp.Expr, names: Names, outer: Scope | None) -> Shape: ...
    @abstractmethod
    def cte(self, cte: Cte) -> Shape: ...
    @abstractmethod
    def with_names(self, node: exp.Expr, names: Names, outer: Scope | None) -> Names: ...
    @abstractmethod
    def expression(self, node: exp.Expr, scope: Scope) -> Use: ...

    # FROM.

    def from_clause(self, node: exp.Expr, scope: Scope) -> None:
        """Fill the scope's relations, equalities and join columns."""
        clause = node.args.get("from_")
        seen: set[int] = set()
        if clause is not None:
            seen = self._item(clause.this, scope)
            seen |= self._joins(clause.this.args.get("joins") or [], scope, seen)
        self._joins(node.args.get("joins") or [], scope, seen)
        for lateral in node.args.get("laterals") or []:
            self._item(lateral, scope)

    def _joins(self, joins: list[exp.Join], scope: Scope, left: set[int]) -> set[int]:
        for join in joins:
            right = self._item(join.this, scope)
            right |= self._joins(join.this.args.get("joins") or [], scope, set(right))
            kind = str(join.args.get("side") or "inner").lower()
            made = Join(kind=kind, left=frozenset(left), right=frozenset(right))
            for relation in scope.shape.relations:
                null_left = kind in ("right", "full") and relation.id in left
                if null_left or (kind in ("left", "full") and relation.id in right):
                    relation.nullable = True
            if (on := join.args.get("on")) is not None:
                scope.in_join = kind != "inner"
                self.condition(on, scope, made)
                scope.in_join = False
            for column in join.args.get("using") or []:
                self._using(name_of(column), scope, made)
            left = left | right
        return left

    def _using(self, name: str, scope: Scope, join: Join) -> None:
        shape = scope.shape
        before = scope.merged.get(name)
        lefts = [r for r in shape.relations if r.id in join.left and name in r.items]
        rights = [r for r in shape.relations if r.id in join.right and name in r.items]
        if not (lefts or any(r.open for r in shape.relations if r.id in join.left)) or not (
            rights or any(r.open for r in shape.relations if r.id in join.right)
        ):
            self.fault(f"`using ({name})`: not both sides of the join have a column {name}", "name a column of both")
            return
        if not lefts or not rights:
            shape.row_deps |= {d for r in (*lefts, *rights) for d in r.items[name].deps}
            return
        right = self.item_of(rights[0], name)
        left = before or self.item_of(lefts[0], name)
        if left.place is not None and right.place is not None:
            shape.equalities.append(Equality(a=left.place, b=right.place, join=join))
        deps = left.deps | right.deps
        shape.row_deps |= deps
        if join.kind in ("inner", "left"):
            scope.merged[name] = replace(left, name=name)
        elif join.kind == "right":
            scope.merged[name] = replace(right, name=name)
        else:
            scope.merged[name] = Item(name=name, deps=deps, merged=(*left.places, *right.places))

    def condition(self, node: exp.Expr, scope: Scope, join: Join | None = None) -> None:
        """A WHERE or ON: its columns decide on rows, its plain equalities tie places together."""
        for part in conjuncts(node):
            nested_before = len(scope.shape.nested)
            scope.shape.row_deps |= self.expression(part, scope).deps
            for a, b in self._equal(part, scope, nested_before):
                scope.shape.equalities.append(Equality(a=a, b=b, join=join))

    def _equal(self, node: exp.Expr, scope: Scope, nested_before: int) -> list[tuple[Place, Place]]:
        if isinstance(node, exp.In) and isinstance(node.this, exp.Column) and not scope.in_join:
            return self._member(node, scope, nested_before)
        if not isinstance(node, exp.EQ):
            return []
        left, right = bare(node.this), bare(node.expression)
        pairs = [(left, right)]
        if isinstance(left, exp.Tuple) and isinstance(right, exp.Tuple):
            pairs = list(zip(map(bare, left.expressions), map(bare, right.expressions), strict=False))
        found = []
        for a, b in pairs:
            if isinstance(a, exp.Column) and isinstance(b, exp.Column):
                p, q = self.column(a, scope).place, self.column(b, scope).place
                found += [(p, q)] if p is not None and q is not None else []
        return found

    def _member(self, node: exp.In, scope: Scope, nested_before: int) -> list[tuple[Place, Place]]:
        """`x in (select y ...)`: the subquery's rows reach only the rows with x = y."""
        nested = scope.shape.nested[nested_before:]
        if node.args.get("query") is None or len(nested) != 1 or len(nested[0].outputs) != 1:
            return []
        p, q = self.column(node.this, scope).place, nested[0].outputs[0].place
        if p is not None and q is not None and nested[0].together is None and not nested[0].branches:
            nested[0].equalities.append(Equality(a=p, b=q))
        return []

    def _item(self, node: exp.Expr, scope: Scope) -> set[int]:
        """One item of a FROM; a parenthesised join gives several relations."""
        alias = node.args.get("alias")
        if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Table) and alias is None:
            inner = self._item(node.this, scope)
            inner = inner | self._joins(node.this.args.get("joins") or [], scope, inner)
            return inner | self._joins(node.args.get("joins") or [], scope, inner)
        if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
            return {self._named(node, scope).id}
        lateral = isinstance(node, exp.Lateral)
        body = node.this if isinstance(node, (exp.Lateral, exp.Table)) else node
        if isinstance(body, (exp.Subquery, exp.Values, exp.Select, exp.SetOperation)):
            return {self._derived(node, body, scope, lateral=lateral).id}
        return {self._function(node, body, scope).id}

    def _add(self, scope: Scope, relation: Relation) -> Relation:
        scope.shape.relations.append(relation)
        scope.shape.many |= relation.many
        if relation.shape is not None:
            scope.shape.row_deps |= relation.shape.row_deps
        return relation

    def _next(self) -> int:
        self._relations += 1
        return self._relations

    def _named(self, node: exp.Table, scope: Scope) -> Relation:
        name = name_of(node.this)
        alias = name_of(node.args["alias"].this) if node.args.get("alias") is not None else name
        number = self._next()
        if name in scope.names and node.args.get("db") is None:
            shape = self.cte(scope.names[name])
            columns = [name_of(c) for c in scope.names[name].node.args["alias"].columns]
            return self._add(scope, self._of_shape(number, alias, shape, columns or _column_names(node)))
        table = self.tables.get(name)
        if table is None:
            self.unknown("table", name, self.tables)
            return self._add(scope, Relation(id=number, alias=alias, items={}, open=True))
        names = [c.name for c in table.columns if not c.generated]
        shown = dict(zip(names, [*_column_names(node), *names[len(_column_names(node)) :]], strict=False))
        items = {
            shown[c]: Item(
                name=shown[c],
                deps=frozenset({(name, c)}),
                origin=(name, c),
                exact=True,
                place=Place(number, shown[c]),
                kind=kind_of(table.column(c)),
            )
            for c in names
        }
        return self._add(scope, Relation(id=number, alias=alias, items=items, table=name))

    def _derived(self, node: exp.Expr, body: exp.Expr, scope: Scope, *, lateral: bool) -> Relation:
        shape = self.query(body, scope.names, scope if lateral else scope.outer)
        holder = node if node.args.get("alias") is not None else body
        alias = holder.args.get("alias")
        name = name_of(alias.this) if alias is not None else ""
        return self._add(scope, self._of_shape(self._next(), name, shape, _column_names(holder)))

    def _of_shape(self, number: int, alias: str, shape: Shape, columns: list[str]) -> Relation:
        items: dict[str, Item] = {}
        order = [columns[i] if i < len(columns) else o.name for i, o in enumerate(shape.outputs)]
        for name, output in zip(order, shape.outputs, strict=True):
            items[name] = Item(
                name=name, deps=output.deps, origin=output.origin, exact=output.exact, many=output.many,
                place=Place(number, name), kind=output.kind,
            )  # fmt: skip
        relation = Relation(id=number, alias=alias, items=items, shape=shape, order=tuple(order), many=shape.many)
        relation.open = shape.open
        relation.open_deps = frozenset(shape.deps())
        return relation

    def _function(self, node: exp.Expr, body: exp.Expr, scope: Scope) -> Relation:
        """A function, UNNEST, ROWS FROM, XMLTABLE or JSON_TABLE: lateral by nature, any number of rows."""
        use = self.expression(body, scope)
        for part in node.args.get("rows_from") or []:
            use.deps |= self.expression(part, scope).deps
        deps = frozenset(use.deps)
        scope.shape.row_deps |= deps
        number = self._next()
        names = _column_names(node)
        listed = bool(names)
        alias_node = node.args.get("alias")
        called = str(body.this).lower() if isinstance(body, exp.Anonymous) else ""
        alias = name_of(alias_node.this) if alias_node is not None and alias_node.this is not None else called
        offset = node.args.get("offset") or body.args.get("offset")
        if isinstance(offset, exp.Identifier):
            names = [*names, name_of(offset)]
        if not names and called not in _RECORDS and not isinstance(body, (exp.XMLTable, exp.JSONTable)):
            names = [alias or "unnest"]
        if (node.args.get("ordinality") and not listed) or offset is True:
            names = [*names, "ordinality"]
        items = {n: Item(name=n, deps=deps, many=True, place=Place(number, n)) for n in names}
        relation = Relation(id=number, alias=alias, items=items, open=not listed, open_deps=deps, many=True)
        return self._add(scope, relation)


_RECORDS = functions.SETS & {
    "json_each", "json_each_text", "jsonb_each", "jsonb_each_text", "json_populate_recordset", "json_to_recordset",
    "jsonb_populate_recordset", "jsonb_to_recordset", "ts_debug", "ts_parse", "ts_token_type", "ts_stat", "each",
}  # fmt: skip


def bare(node: exp.Expr) -> exp.Expr:
    while isinstance(node, exp.Paren):
        node = node.this
    return node


def conjuncts(node: exp.Expr) -> list[exp.Expr]:
    """The parts of a condition that must all hold."""
    node = bare(node)
    if isinstance(node, exp.And):
        return [*conjuncts(node.this), *conjuncts(node.expression)]
    return [node]


def _column_names(node: exp.Expr) -> list[str]:
    alias = node.args.get("alias")
    if alias is None:
        return []
    return [name_of(c.this) if isinstance(c, exp.ColumnDef) else name_of(c) for c in alias.args.get("columns") or []]
