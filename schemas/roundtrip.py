"""The verdict on the way back: of each old column, what came back of the real rows; and of rows that only new can hold,
which kinds old would never hear of, and which it would refuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from schemas.made import Kind
from schemas.resolve import Resolution
from schemas.reversal import How, Loss
from schemas.spec import Spec

NEW = "new."


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnVerdict:
    """One old column. `rows` came back otherwise, `keys` are some of theirs. `accepted`: by `roundtrip.accept`."""

    table: str
    column: str
    how: How
    loss: Loss
    rows: int = 0
    keys: tuple[dict[str, str], ...] = ()
    why: str = ""
    accepted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableVerdict:
    """One old table. `rows` are all, `left_out` those that the forward mappings leave in old alone (and the way back
    as well). `missing` did not come back, `extra` came back without having been there. `problem`: it could not be
    judged, and why."""

    table: str
    rows: int = 0
    left_out: int = 0
    missing: int = 0
    extra: int = 0
    missing_keys: tuple[dict[str, str], ...] = ()
    extra_keys: tuple[dict[str, str], ...] = ()
    problem: str = ""
    accepted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeVerdict:
    """Rows of one kind that new can hold, and what would come of them: `lost`, without a word, or `refused` by old,
    which the quarantine would show. `column` is empty where it is a row as such."""

    table: str  # of new
    column: str
    kind: Kind
    lost: bool
    why: str
    remedy: str
    accepted: bool = False

    @property
    def name(self) -> str:
        """As `roundtrip.accept` names it."""
        return of_new(f"{self.table}.{self.column}" if self.column else self.table) + f":{self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OneWay:
    """A table that has no way back, by its name in `roundtrip.accept`: one of old that nothing brings back, or one of
    new that no way back reads."""

    name: str
    why: str
    accepted: bool = False

    @property
    def of_new(self) -> bool:
        return self.name.startswith(NEW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The whole answer. `one_way` are the tables that have no way back. `made`: of rows that only new can hold;
    None where they were not tried at all (by an earlier version). `untried`: what of them could not be tried, and why.
    """

    tables: tuple[TableVerdict, ...] = ()
    columns: tuple[ColumnVerdict, ...] = ()
    one_way: tuple[OneWay, ...] = ()
    made: tuple[MadeVerdict, ...] | None = None
    untried: tuple[str, ...] = ()

    @property
    def unjudged(self) -> tuple[TableVerdict, ...]:
        return tuple(t for t in self.tables if t.problem)

    @property
    def losses(self) -> tuple[str, ...]:
        """Columns and tables that lose something that nobody has accepted, as `roundtrip.accept` would name them."""
        columns = [f"{c.table}.{c.column}" for c in self.columns if c.loss is not Loss.LOSSLESS and not c.accepted]
        tables = [t.table for t in self.tables if (t.missing or t.extra) and not t.accepted]
        apart = [o.name for o in self.one_way if o.of_new and not o.accepted]  # of old's, the columns are listed
        return (*tables, *columns, *apart, *(m.name for m in self.made or () if m.lost and not m.accepted))

    @property
    def refused(self) -> tuple[str, ...]:
        """Kinds of rows that old would refuse, and that nobody has accepted: they would wait in the quarantine."""
        return tuple(m.name for m in self.made or () if not m.lost and not m.accepted)

    @property
    def passed(self) -> bool:
        """Every row was judged, and nothing is lost that was not accepted."""
        return not self.unjudged and not self.losses

    def judged(self, spec: Spec) -> Verdict:
        """The same, by what the file accepts."""
        return replace(
            self,
            tables=tuple(replace(t, accepted=accepted(spec, t.table)) for t in self.tables),
            columns=tuple(replace(c, accepted=accepted(spec, c.table, c.column)) for c in self.columns),
            one_way=tuple(replace(o, accepted=accepted(spec, o.name)) for o in self.one_way),
            made=None if self.made is None else tuple(replace(m, accepted=taken(spec, m)) for m in self.made),
        )

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Verdict:
        """What `document` gave, read back."""
        return cls(
            tables=tuple(TableVerdict(**_known(TableVerdict, t)) for t in document["tables"]),
            columns=tuple(
                ColumnVerdict(**{**_known(ColumnVerdict, c), "how": How(c["how"]), "loss": Loss(c["loss"])})
                for c in document["columns"]
            ),
            one_way=tuple(OneWay(**_known(OneWay, o)) for o in document.get("one_way", ())),
            made=None
            if document.get("made") is None
            else tuple(MadeVerdict(**{**_known(MadeVerdict, m), "kind": Kind(m["kind"])}) for m in document["made"]),
            untried=tuple(document.get("untried", ())),
        )


def _known(kind: type, document: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in names}


def accepted(spec: Spec, table: str, column: str | None = None) -> bool:
    """Whether the file says that this loss was read and accepted: `table.column`, or the whole `table`."""
    return table in spec.roundtrip.accept or (column is not None and f"{table}.{column}" in spec.roundtrip.accept)


def taken(spec: Spec, made: MadeVerdict) -> bool:
    """Whether the file accepts it: by its own name, its column's, or its table's."""
    names = {made.name, made.name.rpartition(":")[0], of_new(made.table)}
    return not names.isdisjoint(spec.roundtrip.accept)


def staying(spec: Spec, tables: Iterable[str]) -> tuple[str, ...]:
    """The tables of new of which rows that old never hears of are accepted."""
    taken = set(spec.roundtrip.accept)
    return tuple(t for t in tables if not taken.isdisjoint((of_new(t), f"{of_new(t)}:{Kind.ALONE}")))


def of_new(table: str) -> str:
    """How `roundtrip.accept` names a table of new; old's tables go by their bare names."""
    return f"{NEW}{table}"


def one_way(spec: Spec, mapped: Iterable[str], back: Resolution) -> tuple[OneWay, ...]:
    """Tables that have no way back. `mapped` are the forward mappings' targets."""
    returned = {m.target for m in back.mappings}
    whys: dict[str, list[str]] = {}
    for reversal in back.reversals:
        if reversal.table not in returned:
            whys.setdefault(reversal.table, []).append(reversal.why)
    found = [
        OneWay(name=name, why=f"old table {name} has no way back" + "".join(f": {w}" for w in dict.fromkeys(why) if w))
        for name, why in whys.items()
    ]
    found += [
        OneWay(name=of_new(n), why=f"nothing on old is fed by new's {n}: what is written there does not come back")
        for n in mapped
        if n not in back.streamed
    ]
    return tuple(replace(o, accepted=accepted(spec, o.name)) for o in found)
