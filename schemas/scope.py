"""Names: which column of which relation in scope one means, from the innermost scope outwards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sqlglot import exp

from schemas.mapping import Ref
from schemas.shape import Item, Relation, Shape
from schemas.sql_text import name_of
from schemas.table import Table

if TYPE_CHECKING:
    from schemas.lineage import Names


@dataclass(eq=False, slots=True, kw_only=True)
class Scope:
    """One SELECT while it is read. `merged` are the columns that USING made one of."""

    shape: Shape
    names: Names
    outer: Scope | None
    merged: dict[str, Item] = field(default_factory=dict)
    in_join: bool = False


class NameReader:
    """The part of the reader that finds what a name means. What is read goes to `touched`."""

    tables: Mapping[str, Table]
    touched: set[Ref]

    @abstractmethod
    def fault(self, cause: str, remedy: str) -> None: ...
    @abstractmethod
    def unknown(self, what: str, name: str, known: Iterable[str]) -> None: ...

    def item_of(self, relation: Relation, name: str) -> Item:
        item = relation.items[name]
        self.touched |= item.deps
        return replace(item, exact=item.exact and not relation.nullable)

    def merged_of(self, scope: Scope, name: str) -> Item:
        item = scope.merged[name]
        self.touched |= item.deps
        gone = any(r.nullable for r in scope.shape.relations for p in item.places if p.relation == r.id)
        return replace(item, exact=item.exact and not gone)

    def sees(self, name: str, scope: Scope) -> bool:
        return name in scope.merged or any(name in r.items for r in scope.shape.relations)

    def column(self, node: exp.Column, scope: Scope) -> Item:
        """What a column's name means, from the innermost scope outwards. An unknown one is a fault."""
        name = name_of(node.this)
        qualifier = name_of(node.args["table"]) if node.args.get("table") is not None else None
        if node.args.get("db") is not None:
            shown = ".".join(name_of(p) for p in node.parts)
            self.fault(f"{shown} is written with its schema", "write table.column, or an alias and the column")
            return Item(name=name)
        at: Scope | None = scope
        while at is not None:
            item = self._in_scope(name, qualifier, at)
            if item is not None:
                return item
            unclear = [r for r in at.shape.relations if r.open]
            if qualifier is None and unclear:
                return self._perhaps(node, name, unclear, at.outer)
            at = at.outer
        self._unknown_column(name, qualifier, scope)
        return Item(name=name)

    def _in_scope(self, name: str, qualifier: str | None, scope: Scope) -> Item | None:
        relations = scope.shape.relations
        if qualifier is not None:
            for relation in relations:
                if relation.alias == qualifier:
                    return self._of(relation, name)
            return None
        if name in scope.merged:
            return self.merged_of(scope, name)
        found = [r for r in relations if name in r.items]
        if len(found) == 1:
            return self.item_of(found[0], name)
        if found:
            self.fault(f"column {name} is ambiguous", f"write {found[0].alias}.{name} or {found[1].alias}.{name}")
            return Item(name=name, deps=frozenset[Ref]().union(*(self.item_of(r, name).deps for r in found)))
        for relation in relations:
            if relation.alias == name:
                return Item(name=name, deps=frozenset(self._everything(relation)), many=relation.many)
        return None

    def _perhaps(self, node: exp.Column, name: str, unclear: list[Relation], outer: Scope | None) -> Item:
        """A name that may be one of a relation whose columns only the server knows, or one further out: both."""
        deps = frozenset[Ref]().union(*(r.open_deps for r in unclear))
        if outer is not None and self.home(node, outer) is not None:
            deps |= self.column(node, outer).deps
        return Item(name=name, deps=deps, many=any(r.many for r in unclear))

    def _of(self, relation: Relation, name: str) -> Item | None:
        if name in relation.items:
            return self.item_of(relation, name)
        if relation.open:
            return Item(name=name, deps=relation.open_deps, many=relation.many)
        return None

    def _everything(self, relation: Relation) -> set[Ref]:
        deps = set(relation.open_deps).union(*(i.deps for i in relation.items.values()))
        self.touched |= deps
        return deps

    def whole(self, alias: str, scope: Scope) -> set[Ref]:
        """The columns of a whole row (`c.*` or `c` in an expression)."""
        at: Scope | None = scope
        while at is not None:
            for relation in at.shape.relations:
                if relation.alias == alias:
                    return self._everything(relation)
            at = at.outer
        self.unknown("table", alias, (r.alias for r in scope.shape.relations))
        return set()

    def star(self, scope: Scope, alias: str | None) -> list[Item]:
        """`*` or `c.*` written out."""
        chosen = [r for r in scope.shape.relations if alias is None or r.alias == alias]
        if not chosen and alias is not None:
            self.unknown("table", alias, (r.alias for r in scope.shape.relations))
        merged = list(scope.merged) if alias is None else []
        items = [self.merged_of(scope, n) for n in merged]
        for relation in chosen:
            if relation.open:
                self.fault(f"the columns of {relation.alias or 'a function'} are not known", "write the columns out")
            items += [self.item_of(relation, n) for n in relation.items if n not in merged]
        for item in items:
            self.touched |= item.deps
        return items

    def home(self, node: exp.Column, scope: Scope) -> Scope | None:
        """The scope that a column's name is found in."""
        name = name_of(node.this)
        qualifier = name_of(node.args["table"]) if node.args.get("table") is not None else None
        at: Scope | None = scope
        while at is not None:
            if self._in_scope(name, qualifier, at) is not None:
                return at
            at = at.outer
        return None

    def distance(self, scope: Scope, outer: Scope) -> int:
        steps, at = 0, scope
        while at is not outer and at.outer is not None:
            steps, at = steps + 1, at.outer
        return steps

    def _unknown_column(self, name: str, qualifier: str | None, scope: Scope) -> None:
        generated = [t for t in self.tables.values() for c in t.columns if c.name == name and c.generated]
        here = {r.table for r in scope.shape.relations if qualifier is None or r.alias == qualifier}
        for table in generated:
            if table.name in here:
                self.fault(
                    f"column {table.name}.{name} is generated: logical replication does not carry it",
                    "write its expression over the columns that it is computed from",
                )
                return
        known = [n for r in scope.shape.relations if qualifier is None or r.alias == qualifier for n in r.items]
        if qualifier is not None and not any(r.alias == qualifier for r in scope.shape.relations):
            self.unknown("table or alias", qualifier, (r.alias for r in scope.shape.relations))
            return
        self.unknown("column", f"{qualifier}.{name}" if qualifier else name, known)
