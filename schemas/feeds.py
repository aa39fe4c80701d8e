"""How a changed old row finds the new rows it feeds: the owners, derived from what a text says is equal.

Invariant: a feed gives at least every owner whose rows can differ because of the row. It is derived from equalities
that hold in each result row in which that row takes part (WHERE, inner joins, an outer join's condition for the side it
may leave empty), and through grouping only by what rows are grouped by. Where that does not decide, nothing is derived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from schemas.mapping import Feed
from schemas.names import quote
from schemas.shape import Equality, Item, Place, Relation, Shape, kind_of
from schemas.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One appearance of a table in the text, seen from one scope.

    `known` are the places whose value, in every row that a row of the table can change, is that row's column. `active`
    are the relations that are surely there in those rows. `blocked` says that nothing may be concluded.
    """

    table: str
    known: Mapping[Place, str]
    active: frozenset[int]
    own: int = -1  # its relation, where it stands in that scope itself
    blocked: bool = False


def _blocked(table: str) -> Instance:
    return Instance(table=table, known={}, active=frozenset(), blocked=True)


def _seen_from_outside(shape: Shape) -> Shape:
    """A set operation as the only relation of a scope."""
    items = {o.name: replace(o, place=Place(0, o.name), merged=()) for o in shape.outputs}
    names = tuple(o.name for o in shape.outputs)
    relation = Relation(id=0, alias="", items=items, shape=shape, order=names)
    return Shape(outputs=list(items.values()), relations=[relation])


class Deriver:
    """Feeds of one shape."""

    def __init__(self, shape: Shape, tables: Mapping[str, Table], mirrors: Mapping[str, str]) -> None:
        """`mirrors` are the mirrors' names as SQL: a feed names its own table's, where it reads both."""
        self.mirrors = mirrors
        self.tables = tables
        self.shape = _seen_from_outside(shape) if shape.branches else shape
        self._kinds = {
            item.place: item.kind
            for part in self.shape.parts()
            for relation in part.relations
            for item in relation.items.values()
            if item.place is not None
        }

    # What a row of each appearance decides.

    def instances(self) -> list[Instance]:
        """Every appearance of a table, seen from the outermost scope."""
        return self._in_scope(self.shape)

    def _in_scope(self, shape: Shape) -> list[Instance]:
        """Every appearance in `shape`, with the places of its scope (and of scopes around it) that it decides."""
        found: list[Instance] = []
        for relation in shape.relations:
            if relation.table is not None:
                known = {p: i.origin[1] for i in relation.items.values() if (p := i.place) and i.origin}
                here = frozenset({relation.id})
                found.append(Instance(table=relation.table, known=known, active=here, own=relation.id))
            elif relation.shape is not None:
                found += self._outside(relation.shape, relation.id, relation.order)
        for nested in shape.nested:
            found += self._outside(nested, None, ())
        for nested in shape.nested_on:
            found += [_blocked(i.table) for i in self._outside(nested, None, ())]
        return [self._closed(i, shape) for i in found]

    def _outside(self, shape: Shape, number: int | None, names: tuple[str, ...]) -> list[Instance]:
        """The appearances within `shape`, seen from the scope around it, where it is relation `number` (or none)."""
        own = {r.id for r in shape.relations}
        result = []
        if shape.branches:
            for branch in shape.branches:
                result += self._outside(branch, number, names)
            if shape.recursive or shape.open:
                return [_blocked(i.table) for i in result]
            return result
        for instance in self._in_scope(shape):
            if shape.recursive or shape.open or instance.blocked:
                result.append(_blocked(instance.table))
                continue
            known = {p: c for p, c in instance.known.items() if p.relation not in own}
            if number is not None:
                for i, output in enumerate(shape.outputs):
                    column = self.decided(instance, output, shape)
                    if column is not None:
                        known[Place(number, names[i])] = column
            active = {p.relation for p in known} | ({number} if number is not None else set())
            result.append(Instance(table=instance.table, known=known, active=frozenset(active)))
        return result

    def decided(self, instance: Instance, output: Item, shape: Shape) -> str | None:
        """The column of the instance's row that equals `output` in every row of `shape` that the row can change."""
        if instance.blocked or shape.recursive or shape.open:
            return None
        for place in output.places:
            if place not in instance.known:
                continue
            if shape.together is not None and not self._gathered(place, shape.together, instance):
                continue
            if shape.distinct_on is not None and not self._gathered(place, shape.distinct_on, instance):
                continue
            return instance.known[place]
        return None

    def _gathered(self, place: Place, by: set[Place], instance: Instance) -> bool:
        """Whether rows are gathered by this place, or by one that the same column of the row decides."""
        return place in by or any(instance.known.get(p) == instance.known[place] for p in by)

    def _closed(self, instance: Instance, shape: Shape) -> Instance:
        """Follow the equalities that hold wherever the instance's row takes part."""
        if instance.blocked:
            return instance
        own = {r.id for r in shape.relations}
        active = set(instance.active) | {r.id for r in shape.relations if not r.nullable}
        usable = self.usable(shape, active)
        known = dict(instance.known)
        changed = True
        while changed:
            changed = False
            for e in usable:
                for a, b in ((e.a, e.b), (e.b, e.a)):
                    if a in known and b not in known and self.same(a, b):
                        known[b] = known[a]
                        changed = True
        return replace(instance, known=known, active=frozenset(active & own))

    def usable(self, shape: Shape, active: set[int]) -> list[Equality]:
        """The equalities that hold where the relations `active` are there; `active` grows by what they imply."""
        own = {r.id for r in shape.relations}
        found: list[Equality] = []
        changed = True
        while changed:
            changed = False
            for e in shape.equalities:
                if e not in found and self._holds(e, active):
                    found.append(e)
                    active |= {p.relation for p in (e.a, e.b) if p.relation in own}
                    changed = True
        return found

    @staticmethod
    def _holds(equality: Equality, active: set[int]) -> bool:
        join = equality.join
        if join is None:
            return True
        left, right = bool(active & join.left), bool(active & join.right)
        match join.kind:
            case "left":
                return right
            case "right":
                return left
            case "full":
                return left and right
            case _:
                return left or right

    def same(self, a: Place, b: Place) -> bool:
        """Whether an equality between the two places means that they hold the same value."""
        kind = self._kinds.get(a, "")
        return bool(kind) and kind == self._kinds.get(b)

    # Feeds.

    def direct(self, instance: Instance, outputs: Iterable[Item], types: Mapping[str, str]) -> dict[str, str]:
        """The outputs that the instance's row decides by itself: output -> its column.

        `types` are the target columns' types: a loose equality is trusted only where the target compares the same way.
        """
        found = {}
        for output in outputs:
            column = self.decided(instance, output, self.shape)
            if column is not None and self._comparable(instance, column, output, types):
                found[output.name] = column
        return found

    def _comparable(self, instance: Instance, column: str, output: Item, types: Mapping[str, str]) -> bool:
        kind = kind_of(self.tables[instance.table].column(column))
        if not kind.startswith("=") or output.origin == (instance.table, column):
            return True
        target = types.get(output.name, "")
        return kind == f"={target}" or (kind == "=numeric" and target in ("smallint", "integer", "bigint"))

    def path(self, instance: Instance, outputs: list[Item]) -> tuple[str, frozenset[str]] | None:
        """A query from the instance's rows over further tables to the owner, and the columns read of the instance."""
        if instance.blocked or self.shape.branches or self.shape.recursive or self.shape.open:
            return None
        tables = {r.id: r for r in self.shape.relations if r.table is not None and r.id != instance.own}
        active = set(instance.active)
        usable = self.usable(self.shape, active)
        spelled = {p: f"f.{quote(c)}" for p, c in instance.known.items()}
        visited: dict[int, str] = {}
        conditions: list[str] = []
        while True:
            owners = [self._spelled(o, spelled) for o in outputs]
            if all(owners):
                break
            step = self._step(usable, spelled, visited, set(tables))
            if step is None:
                return None
            alias = f"j{len(visited)}"
            visited[step] = alias
            for item in tables[step].items.values():
                if item.place is not None and item.origin is not None:
                    spelled[item.place] = f"{alias}.{quote(item.origin[1])}"
                    if item.place in instance.known:
                        conditions.append(f"{spelled[item.place]} = f.{quote(instance.known[item.place])}")
        for e in usable:
            one, two = spelled.get(e.a), spelled.get(e.b)
            joined = e.a.relation in visited or e.b.relation in visited
            if one and two and one != two and joined and f"{two} = {one}" not in conditions:
                conditions.append(f"{one} = {two}")
        if not visited:
            return None
        said = " ".join([*conditions, *filter(None, owners)])
        used = {c for c in instance.known.values() if f"f.{quote(c)}" in said}
        names = ", ".join(f"{self._named(str(tables[n].table), instance)} {alias}" for n, alias in visited.items())
        query = f"select {', '.join(filter(None, owners))} from {quote(instance.table)} f, {names}"
        return f"{query} where {' and '.join(dict.fromkeys(conditions))}", frozenset(used)

    def _named(self, table: str, instance: Instance) -> str:
        """A further table of a path; the instance's own name is bound to its changed rows, so the mirror is meant."""
        return self.mirrors[table] if table == instance.table else quote(table)

    def _spelled(self, output: Item, spelled: Mapping[Place, str]) -> str | None:
        for place in output.places:
            loose = self._kinds.get(place, "").startswith("=") and spelled.get(place, "").startswith("f.")
            if (
                place in spelled
                and not loose
                and all(by is None or place in by for by in (self.shape.together, self.shape.distinct_on))
            ):
                return spelled[place]
        return None

    @staticmethod
    def _step(
        usable: list[Equality], spelled: Mapping[Place, str], visited: Mapping[int, str], tables: set[int]
    ) -> int | None:
        decided = [p for p in spelled if p.relation in tables and p.relation not in visited]
        if decided:
            return decided[0].relation
        for e in usable:
            for a, b in ((e.a, e.b), (e.b, e.a)):
                if a in spelled and b.relation in tables and b.relation not in visited:
                    return b.relation
        return None


def direct_feed(table: str, expressions: list[tuple[str, ...]], columns: Iterable[str], *, whole: bool) -> Feed:
    """A feed of expressions over one table; a table that appears more than once gives the owners of each appearance.

    `whole` says that every appearance is among them, so the table's rows may be restricted by the one expression.
    """
    distinct = list(dict.fromkeys(expressions))
    query = "\nunion\n".join(f"select {', '.join(e)} from {quote(table)}" for e in distinct)
    restrict = distinct[0] if whole and len(distinct) == 1 else None
    return Feed(source=table, query=query, columns=frozenset(columns), restrict=restrict)
