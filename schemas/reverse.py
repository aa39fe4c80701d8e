"""The way back, derived: for each old table the SELECT over new tables that gives its rows again.

Invariant: what is derived never guesses. A row is taken from a new table only where that table says which old row it
is; a column only where its expression can be turned round; what is not derived is named, with why. The rows begin at
the new table that has a row of every key that any of them has: a row without its children comes back, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Map
from dataclasses import dataclass, field, replace

from sqlglot import exp

from schemas.bind import bound
from schemas.draft import Draft
from schemas.inverse import Inverse
from schemas.mapping import Mapping
from schemas.names import qualified, quote, readable
from schemas.pieces import Piece, Useless, pieces
from schemas.reversal import How, Loss, Reversal
from schemas.spec import TableEntry
from schemas.sql_text import over_columns
from schemas.table import Table

Tables = Map[str, Table]
Forward = Sequence[tuple[Draft, Mapping]]


@dataclass(slots=True, kw_only=True)
class Derived:
    """One old table's way back. `text` is None where there is none, and `why` says what is in the way.

    `scope` is the condition on old rows that the way back speaks of, where it does not speak of all of them. `strays`
    are the new tables that it joins and whose rows, where they stand alone, no row of old can hold.
    """

    table: str
    text: str | None = None
    origin: str = "derived"
    why: str = ""
    scope: str | None = None
    strays: tuple[str, ...] = ()
    reversals: list[Reversal] = field(default_factory=list)


@dataclass(slots=True)
class _Choice:
    """Where an old table's rows come from: a base, joined by what holds its further columns; or several, one each."""

    parts: list[Piece]
    joined: list[Piece] = field(default_factory=list)
    columns: dict[str, Inverse] = field(default_factory=dict)


def derive(forward: Forward, old: Tables, new: Tables, entries: Map[str, TableEntry]) -> list[Derived]:
    """Every old table that a forward mapping reads. `entries` are those under `reverse` that only set columns."""
    read = {s for _, m in forward for s in m.sources}
    return [_derive(old[name], forward, old, new, entries.get(name)) for name in old if name in read]


def _derive(table: Table, forward: Forward, old: Tables, new: Tables, entry: TableEntry | None) -> Derived:
    found = _pieces(table, forward, old, new, qualified=True)
    usable = [p for p in found if isinstance(p, Piece)]
    given = dict(entry.set_) if entry is not None else {}
    choice = _choose(table, usable, given)
    failed = _failed(table, found)
    if isinstance(choice, str):
        why = "; ".join([choice, *(f"{p.new}: {p.why}" for p in found if isinstance(p, Useless))])
        lost = [_none(table.name, c.name, why) for c in table.columns if not c.generated]
        return Derived(table=table.name, why=why, reversals=lost)
    if len(choice.parts) == 1 and not choice.joined:  # written without the table's name before each column
        again = _pieces(table, forward, old, new, qualified=False)
        choice.parts = [p for p in again if isinstance(p, Piece) and p.new == choice.parts[0].new]
        choice.columns = dict(choice.parts[0].columns)
    made = Derived(table=table.name)
    if choice.parts[0].mapping.origin == "copy":
        made.origin = "copy"
    text = _text(table, choice, given)
    made.reversals = [_reversal(table.name, c.name, choice, given, failed) for c in table.columns if not c.generated]
    if not table.key:
        left = [r.column for r in made.reversals if r.loss is not Loss.LOSSLESS]
        if left:
            made.why = f"{table.name} has no key, so its rows are known by all of their columns, and"
            made.why += f" {', '.join(left)} does not come back as it was"
            made.reversals = [_none(table.name, r.column, r.why or made.why) for r in made.reversals]
            return made
    made.text = text
    made.scope = _scope(table, choice, old)
    made.strays = tuple(p.new for p in choice.joined if not _within(p, choice.parts[0], usable))
    return made


def _pieces(table: Table, forward: Forward, old: Tables, new: Tables, *, qualified: bool) -> list[Piece | Useless]:
    return [
        piece
        for draft, mapping in forward
        if table.name in mapping.sources
        for piece in pieces(draft, mapping, old, new[mapping.target], qualified=qualified)
        if piece.old == table.name
    ]


def _choose(table: Table, usable: list[Piece], given: Map[str, str]) -> _Choice | str:
    """Where the rows come from, or why they come from nowhere."""
    if not usable:
        return "no new table gives its rows back"
    whole = [p for p in usable if p.whole]
    if not whole and len(usable) > 1:
        if all(a.apart(b) for i, a in enumerate(usable) for b in usable[i + 1 :]):
            return _side_by_side(usable)
        names = ", ".join(p.new for p in usable)
        return f"{names} each hold a part of its rows, and it is not said that no row is in two of them"
    base = _first(table, whole or usable, usable, given)
    choice = _Choice(parts=[base], columns=dict(base.columns))
    if not table.key:
        return choice
    for piece in sorted((p for p in usable if p is not base), key=_worth, reverse=True):
        better = {c: i for c in piece.columns if (i := _through(table, piece, c, choice.columns.get(c))) is not None}
        if better:
            choice.joined.append(piece)
            sure = _within(base, piece, usable)
            choice.columns |= (
                better if sure else {c: _or_else(piece, i, choice.columns.get(c)) for c, i in better.items()}
            )
    for piece in choice.joined:
        if not _within(piece, base, usable) and _alone(table, piece, given):
            return _apart(base, piece)
    return choice


def _first(table: Table, candidates: list[Piece], usable: list[Piece], given: Map[str, str]) -> Piece:
    """The table that the others' rows lean on; where no foreign key says so, one that is a row of old by itself."""

    def rank(piece: Piece) -> tuple[object, ...]:
        leaning = sum(_within(other, piece, usable) for other in usable if other is not piece)
        return (leaning, _alone(table, piece, given), *_worth(piece))

    return max(candidates, key=rank)


def _or_else(piece: Piece, better: Inverse, before: Inverse | None) -> Inverse:
    """From the joined table where it has the row, and as before where it has not: new may hold one without it."""
    if before is None:
        return better
    there = " and ".join(f"{piece.columns[k].sql} is not null" for k in piece.key)
    return replace(better, sql=f"case when {there} then {better.sql} else {before.sql} end")


def _within(piece: Piece, base: Piece, usable: Sequence[Piece]) -> bool:
    """Whether each row of the piece has its row in the base, by foreign keys from table to table."""
    reached, before = [piece], 0
    while before < len(reached):
        before = len(reached)
        reached += [p for p in usable if p not in reached and any(q.within(p) for q in reached)]
    return base in reached


def _alone(table: Table, piece: Piece, given: Map[str, str]) -> bool:
    """Whether old could hold a row of which nothing is known but what the piece knows."""
    return all(
        c.name in piece.columns or c.name in given or c.has_default or c.identity or c.generated
        for c in table.columns
        if c.not_null
    )


def _apart(base: Piece, piece: Piece) -> str:
    """Why a row that one of two tables alone holds would not come back."""
    mine, theirs = ([p.columns[k].new for k in p.key] for p in (piece, base))
    key = f"({', '.join(map(readable, mine))}) references {readable(base.new)} ({', '.join(map(readable, theirs))})"
    return (
        f"its rows are in {base.new} and in {piece.new}, and new may hold one in either of them alone, which the other"
        f" does not know of: say on new which of them has every row (alter table {readable(piece.new)} add foreign key"
        f" {key}; or the other way round)"
    )


def _worth(piece: Piece) -> tuple[int, int]:
    return sum(not i.loses for i in piece.columns.values()), len(piece.columns)


def _side_by_side(parts: list[Piece]) -> _Choice:
    """Tables that each hold the rows of one value."""
    common = [c for c in parts[0].columns if all(c in p.columns for p in parts)]
    columns = {}
    for name in common:
        found = [p.columns[name] for p in parts]
        loses = "; ".join(dict.fromkeys(i.loses for i in found if i.loses))
        cuts = "; ".join(dict.fromkeys(i.cuts for i in found if i.cuts))
        columns[name] = Inverse(column=name, sql=", ".join(dict.fromkeys(i.sql for i in found)), loses=loses, cuts=cuts)
    return _Choice(parts=parts, columns=columns)


def _through(table: Table, piece: Piece, column: str, before: Inverse | None) -> Inverse | None:
    """The column by way of a joined piece, where that is better than what there is."""
    inverse = piece.columns[column]
    loses = inverse.loses
    if not piece.whole and not piece.decides(column):
        if table.column(column).not_null:
            return None
        loses = "; ".join(filter(None, (loses, f"rows that are not in {piece.new} lose it")))
    if before is not None and (loses or not before.loses):
        return None
    return Inverse(column=column, sql=inverse.sql, loses=loses, cuts=inverse.cuts)


# The text.


def _text(table: Table, choice: _Choice, given: Map[str, str]) -> str:
    names = [c.name for c in table.columns if c.name in choice.columns or c.name in given]
    if len(choice.parts) > 1:
        return "\nunion all\n".join(_one(part, part.columns, names, given, []) for part in choice.parts)
    return _one(choice.parts[0], choice.columns, names, given, choice.joined)


def _one(
    base: Piece, columns: Map[str, Inverse], names: Iterable[str], given: Map[str, str], joined: Sequence[Piece]
) -> str:
    items = []
    for name in names:
        sql = given[name].strip() if name in given else columns[name].sql
        same = sql in (readable(name), *(f"{readable(p.new)}.{readable(name)}" for p in (base, *joined)))
        items.append(sql if same and name not in given else f"{sql} as {readable(name)}")
    source = readable(base.new)
    for piece in joined:
        keys = [f"{piece.columns[k].sql} = {base.columns[k].sql}" for k in base.columns if k in _key(base, piece)]
        there = [f"({_there(piece, f'{readable(piece.new)}.')})"] if piece.witnesses else []
        source += f"\nleft join {readable(piece.new)} on {' and '.join([*keys, *there])}"
    name = f"{readable(base.new)}." if joined else ""
    where = f"where {_there(base, name)}" if base.witnesses else ""
    short = f"select {', '.join(items)} from {source} {where}".rstrip()
    if len(short) <= 100 and "\n" not in short:
        return short
    return ("select " + ",\n       ".join(items) + f"\nfrom {source}\n{where}").rstrip()


def _there(piece: Piece, name: str) -> str:
    """Whether the old row was there at all. `name` stands before each column."""
    return " or ".join(f"{name}{readable(w)} is not null" for w in piece.witnesses)


def _key(base: Piece, other: Piece) -> tuple[str, ...]:
    return tuple(k for k in base.key if k in other.columns)


def _scope(table: Table, choice: _Choice, old: Tables) -> str | None:
    """The condition on old's rows (`q`) that the rows of the choice were taken by; None where it is all of them."""
    if any(p.whole for p in choice.parts):
        return None
    said = [_filter(table, part) or _made_of(part, old) for part in choice.parts]
    return said[0] if len(said) == 1 else " or ".join(f"({s})" for s in said)


def _filter(table: Table, part: Piece) -> str | None:
    """The forward mapping's own condition, where it is one over the old table's columns alone."""
    columns = {c.name: c.name for c in table.columns}
    spelled = [over_columns(c.sql(dialect="postgres"), columns) for c in part.filter]
    return " and ".join(f"({s})" for s in spelled) if spelled and all(spelled) else None


def _made_of(part: Piece, old: Tables) -> str:
    """Whether the forward mapping makes a row of it: what a join leaves out is in old alone."""
    bindings = {s: _rows_of(old[s], part.mapping.reads[s]) for s in part.mapping.sources}
    if part.key:
        same = [f"{part.columns[k].sql} = q.{quote(k)}" for k in part.key]
    else:
        same = [f"{i.sql} is not distinct from q.{quote(c)}" for c, i in part.columns.items()]
    if part.witnesses:
        same.append(f"({_there(part, f'{readable(part.new)}.')})")
    made = bound(part.mapping.text, bindings)
    return f"exists (select from (\n{made}\n) {readable(part.new)} where {' and '.join(same)})"


def _rows_of(table: Table, columns: Iterable[str]) -> str:
    name = qualified(table.schema, table.name)
    return f"select {', '.join(map(quote, columns))} from {name if table.partitioned else f'only {name}'}"


# What is said of each column.


def _failed(table: Table, found: Sequence[Piece | Useless]) -> dict[str, str]:
    """Why a column that is read does not come back."""
    why: dict[str, str] = {}
    for piece in found:
        for column, said in piece.failed.items() if isinstance(piece, Piece) else ():
            why.setdefault(column, said)
    for piece in found:
        if isinstance(piece, Useless):
            for column in table.column_names:
                if column in piece.reads:
                    why.setdefault(column, f"{piece.new}: {piece.why}")
    return why


def _reversal(table: str, column: str, choice: _Choice, given: Map[str, str], failed: Map[str, str]) -> Reversal:
    if column in given:
        return Reversal(
            table=table, column=column, how=How.WRITTEN, loss=Loss.UNKNOWN, expression=given[column].strip()
        )
    inverse = choice.columns.get(column)
    if inverse is None:
        return _none(table, column, failed.get(column, "no new column is made from it"))
    loss = Loss.LOSSY if inverse.loses else Loss.LOSSLESS
    return Reversal(
        table=table, column=column, how=How.DERIVED, loss=loss, expression=inverse.sql, why=inverse.loses,
        cuts=inverse.cuts,
    )  # fmt: skip


def _none(table: str, column: str, why: str) -> Reversal:
    return Reversal(table=table, column=column, how=How.NONE, loss=Loss.LOST, why=why)


def written(draft: Draft, table: Table) -> list[Reversal]:
    """Of a SELECT under `reverse`: what it gives is written, the rest is lost."""
    given = {o.name: o for o in draft.shape.outputs} if draft.shape is not None else {}
    return [
        Reversal(
            table=table.name, column=c.name, how=How.WRITTEN, loss=Loss.UNKNOWN, place=draft.place,
            expression=_shown(given[c.name].node) or c.name,
        )
        if c.name in given
        else _none(table.name, c.name, "the SELECT under `reverse` does not give it")
        for c in table.columns
        if not c.generated
    ]  # fmt: skip


def _shown(node: exp.Expr | None) -> str:
    return "" if node is None else node.sql(dialect="postgres", comments=False)
