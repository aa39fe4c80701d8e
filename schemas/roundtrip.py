"""The verdict on old -> new -> old over the real rows: of each old column, what came back and what did not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from schemas.reversal import How, Loss
from schemas.spec import Spec


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
class Verdict:
    """The whole answer."""

    tables: tuple[TableVerdict, ...] = ()
    columns: tuple[ColumnVerdict, ...] = ()

    @property
    def unjudged(self) -> tuple[TableVerdict, ...]:
        return tuple(t for t in self.tables if t.problem)

    @property
    def losses(self) -> tuple[str, ...]:
        """Columns and tables that lose something that nobody has accepted, as `roundtrip.accept` would name them."""
        columns = [f"{c.table}.{c.column}" for c in self.columns if c.loss is not Loss.LOSSLESS and not c.accepted]
        tables = [t.table for t in self.tables if (t.missing or t.extra) and not t.accepted]
        return (*tables, *columns)

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
        )


def _known(kind: type, document: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in names}


def accepted(spec: Spec, table: str, column: str | None = None) -> bool:
    """Whether the file says that this loss was read and accepted: `table.column`, or the whole `table`."""
    return table in spec.roundtrip.accept or (column is not None and f"{table}.{column}" in spec.roundtrip.accept)


def unknown(spec: Spec, names: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Names under `roundtrip.accept` that are no old column or table."""
    columns = {f"{t}.{c}" for t, c in names}
    tables = {name.partition(".")[0] for name in columns}
    return tuple(n for n in spec.roundtrip.accept if n not in columns and n not in tables)
