"""Values that nobody wrote: of a type, such as new can hold and old perhaps cannot. What `roundtrip` makes rows of.

Invariant: the same table gives the same values each time; none of them is taken from the user's rows, and none of them
needs a sequence. What no value is known for is said to be so, and never taken for tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from schemas.casts import INTEGERS, TEXTS, Type, type_of_column
from schemas.table import Column

LONG = 70_000  # characters, where nothing else bounds a text
MANY_LABELS = 50


class Kind(StrEnum):
    """What new holds, and old perhaps does not. `roundtrip.accept` names it after a colon."""

    ALONE = "alone"  # a row by itself: no row of another table beside it but those that its foreign keys ask for
    SAME_KEY = "same_key"  # rows of two tables that come back as one
    NULL = "null"
    LONG = "long"  # a text longer than any column of old takes
    LARGE = "large"  # a number with more digits before the point
    DIGITS = "digits"  # a number, or a time, with more digits after the point
    LABEL = "label"  # an enum's, each
    OTHER = "other"  # a value that no mapping ever gave


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One value to be tried in one column. `text` as PostgreSQL would print it; None is NULL."""

    column: str
    kind: Kind
    text: str | None


def key_value(column: Column, n: int) -> str | None:
    """What every column that rows are known by, or that points at one, is given: equal types get equal values, so that
    rows made apart still belong together. None where no value of the type is known."""
    kind = type_of_column(column)
    match kind.name:
        case "smallint":
            return str(32_011 + n)
        case "integer" | "bigint":
            return str(2_000_000_011 + n)
        case "numeric":
            room = kind.limits[0] - kind.limits[1] if kind.limits else 10
            return str(2_000_000_011 + n) if room >= 10 else str(10 ** max(room, 1) - 2 - n)
        case "uuid":
            return f"f0f0f0f0-0000-4000-8000-{n:012x}"
        case "date":
            return f"1901-02-{3 + n:02}"
        case "timestamp without time zone":
            return f"1901-02-{3 + n:02} 04:05:06"
        case "timestamp with time zone":
            return f"1901-02-{3 + n:02} 04:05:06+00"
        case name if name in TEXTS:
            limit = kind.limits[0] if kind.limits else 3
            return f"zq{n}"[-min(limit, 3) :]
    return None


_PLAIN = {
    "boolean": "t", "bytea": "\\x01", "json": '{"a": 1}', "jsonb": '{"a": 1}', "real": "1", "double precision": "1",
    "interval": "01:00:00", "inet": "192.0.2.1", "cidr": "192.0.2.0/24", "time without time zone": "04:05:06",
    "point": "(1,2)", "xml": "<a/>", "tsvector": "'a'", "money": "$1.00", "bit": "1", "bit varying": "1",
    "macaddr": "08:00:2b:01:02:03", "daterange": "[2001-01-01,2001-01-02)", "int4range": "[1,2)", "numrange": "[1,2]",
}  # fmt: skip


def plain_value(column: Column, labels: Sequence[str], n: int) -> str | None:
    """Some value of the type, for a table that has no row to go by. None where none is known."""
    if labels:
        return labels[0]
    kind = type_of_column(column)
    if kind.name in INTEGERS:
        return "1"
    if kind.name == "numeric":
        return "1" if not kind.limits or kind.limits[0] > kind.limits[1] else "0"
    if kind.name.endswith("[]"):
        return "{}"
    return _PLAIN.get(kind.name) or key_value(column, n)


def longest(columns: Sequence[Column]) -> int | None:
    """The longest text that old's columns with a length take; None where none has one."""
    lengths = [k.limits[0] for k in map(type_of_column, columns) if k.name in TEXTS and k.limits]
    return max(lengths, default=None)


def tried(column: Column, labels: Sequence[str], old: Sequence[Column]) -> list[Made]:
    """What may be tried in a column of new, knowing `old`'s columns. Values that new refuses are refused there."""
    made: list[tuple[Kind, str | None]] = [] if column.not_null else [(Kind.NULL, None)]
    kind = type_of_column(column)
    if labels:
        made += [(Kind.LABEL, label) for label in labels[:MANY_LABELS]]
    elif kind.name in TEXTS:
        made += _texts(kind, longest(old))
    elif kind.name in INTEGERS:
        made += [(Kind.LARGE, str(v)) for v in _wider(kind, old)] + [(Kind.OTHER, v) for v in ("77", "-7")]
    elif kind.name == "numeric":
        made += _numbers(kind)
    elif kind.name in ("real", "double precision"):
        made += [(Kind.LARGE, "1e+30"), (Kind.DIGITS, "0.3333333333333333"), (Kind.OTHER, "-7")]
    elif kind.name.startswith("timestamp"):
        made += [(Kind.DIGITS, "2001-02-03 04:05:06.123457"), (Kind.LARGE, "infinity")]
    elif kind.name == "date":
        made += [(Kind.LARGE, "infinity"), (Kind.OTHER, "2001-02-03")]
    elif kind.name == "boolean":
        made += [(Kind.OTHER, "t"), (Kind.OTHER, "f")]
    return [Made(column=column.name, kind=k, text=text) for k, text in made]


def knows(column: Column, labels: Sequence[str]) -> bool:
    """Whether `tried` has more to say of the type than NULL."""
    name = type_of_column(column).name
    known = (*TEXTS, *INTEGERS, "numeric", "real", "double precision", "date", "boolean")
    return bool(labels) or name in known or name.startswith("timestamp")


def _texts(kind: Type, bound: int | None) -> list[tuple[Kind, str | None]]:
    made: list[tuple[Kind, str | None]] = [(Kind.OTHER, "slackwater"[: kind.limits[0] if kind.limits else None])]
    length = kind.limits[0] if kind.limits else LONG
    if bound is not None and length > bound:
        made.append((Kind.LONG, "x" * min(length, LONG)))
    return made


def _wider(kind: Type, old: Sequence[Column]) -> list[int]:
    """Numbers beyond each narrower integer that old has a column of."""
    bits = {"smallint": 16, "integer": 32, "bigint": 64}
    narrower = {type_of_column(c).name for c in old} & bits.keys()
    return sorted(2 ** (bits[n] - 1) for n in narrower if bits[n] < bits[kind.name])


def _numbers(kind: Type) -> list[tuple[Kind, str | None]]:
    before, after = (30, 15) if not kind.limits else (kind.limits[0] - kind.limits[1], kind.limits[1])
    made: list[tuple[Kind, str | None]] = [(Kind.LARGE, "7" * before)] if before > 0 else []
    return made + ([(Kind.DIGITS, "0." + "3" * after)] if after > 0 else []) + [(Kind.OTHER, "-7" if before else "0")]
