"""What a cast loses, by the types' names: whether a value can be cast there and back and be the same, to its image.

Invariant: lossless means that each value which the cast accepts comes back unchanged, to the last digit and blank. A
value that a cast refuses is not lost: its row never reaches the other side in silence. Unknown types are not judged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlglot import exp

from schemas.table import Column

_NAMES = {
    "int": "integer", "int4": "integer", "int8": "bigint", "int2": "smallint", "decimal": "numeric", "bool": "boolean",
    "varchar": "character varying", "char": "character", "bpchar": "character", "float8": "double precision",
    "float4": "real", "timestamp": "timestamp without time zone", "timestamptz": "timestamp with time zone",
    "time": "time without time zone", "timetz": "time with time zone", "varbit": "bit varying",
}  # fmt: skip
INTEGERS = {"smallint": 2, "integer": 4, "bigint": 8}
FLOATS = ("real", "double precision")
TEXTS = ("text", "character varying", "character")
TIMES = ("timestamp without time zone", "timestamp with time zone")


@dataclass(frozen=True, slots=True)
class Type:
    """A type's name as `format_type` spells it, its length or precision and scale (or none), its pg_type.typtype."""

    name: str
    limits: tuple[int, ...] = ()
    kind: str = "b"

    @property
    def sql(self) -> str:
        """The type in a cast; never with a length, which would cut in silence."""
        if self.name == "numeric" and self.limits:
            return f"numeric({', '.join(map(str, self.limits))})"
        return "bpchar" if self.name == "character" else self.name


@dataclass(frozen=True, slots=True)
class Way:
    """What is lost by casting there and back; empty when nothing is."""

    loses: str = ""


def type_of_column(column: Column) -> Type:
    return _named(column.type_full, column.type_kind)


def type_of_cast(node: exp.Expr) -> Type:
    return _named(node.sql(dialect="postgres"), "b")


def _named(text: str, kind: str) -> Type:
    """`numeric(12,2)`, `timestamp(3) with time zone`, `CHAR(2)`."""
    quoted = '"' in text
    text = text if quoted else text.lower()
    found = re.fullmatch(r"([^()]*)\(([-0-9, ]+)\)(.*)", text)
    if found is None:
        return Type(name=_NAMES.get(text, text), kind=kind)
    name = (found[1] + found[3]).strip()
    limits = tuple(int(n) for n in found[2].split(","))
    if name == "numeric" or _NAMES.get(name) == "numeric":
        limits = (limits[0], 0) if len(limits) == 1 else limits
    return Type(name=_NAMES.get(name, name), limits=limits, kind=kind)


def one(inner: Type, outer: Type) -> bool:
    """Whether they are one type, of whatever length. An extension may live in another schema on the other side; nothing
    but an extension brings base types."""
    if inner.name == outer.name:
        return True
    brought = inner.kind == outer.kind == "b" and "." in inner.name and "." in outer.name
    return brought and inner.name.rpartition(".")[2] == outer.name.rpartition(".")[2]


def there_and_back(inner: Type, outer: Type) -> Way | None:
    """A value of `inner` cast to `outer` and back. None where no way back is known."""
    if inner == outer:
        return Way()
    if one(inner, outer):
        return _same(inner, outer)
    if outer.name in TEXTS and inner.kind in "be":
        return _to_text(inner, outer)
    if inner.name in ("text", "character varying"):
        return _from_text(outer)
    if inner.name in (*INTEGERS, "numeric", *FLOATS) and outer.name in (*INTEGERS, "numeric", *FLOATS):
        return _number(inner, outer)
    return _PAIRS.get((inner.name, outer.name)) if not outer.limits else _timed(inner, outer)


_PAIRS = {
    ("date", "timestamp without time zone"): Way(),
    ("date", "timestamp with time zone"): Way(),  # every session's zone is pinned
    ("timestamp without time zone", "timestamp with time zone"): Way(),
    ("timestamp with time zone", "timestamp without time zone"): Way(),
    ("timestamp without time zone", "date"): Way("the time of day"),
    ("timestamp with time zone", "date"): Way("the time of day"),
    ("boolean", "integer"): Way(),
    ("integer", "boolean"): Way("every number but 0 and 1"),
    ("jsonb", "json"): Way(),
    ("json", "jsonb"): Way("blanks, the order of keys and keys given twice"),
}


def _timed(inner: Type, outer: Type) -> Way | None:
    if inner.name in TIMES and outer.name in TIMES:
        return Way() if outer.limits[0] >= (inner.limits or (6,))[0] else Way("fractions of a second")
    return Way() if inner.name == "date" and outer.name in TIMES else None


def _same(inner: Type, outer: Type) -> Way | None:
    """One type, of two lengths."""
    if not outer.limits:
        return Way()
    if inner.name == "numeric":
        if inner.limits and outer.limits[1] >= inner.limits[1]:
            return Way()
        return Way(f"digits after the {outer.limits[1]}th" if outer.limits[1] else "digits after the point")
    if inner.name in TEXTS:
        if inner.limits and inner.limits[0] <= outer.limits[0]:
            return Way()
        return Way(f"what is longer than {outer.limits[0]} characters")
    if inner.name in TIMES or inner.name.startswith("time "):
        return Way() if outer.limits[0] >= (inner.limits or (6,))[0] else Way("fractions of a second")
    return Way(f"what does not fit {outer.name}({', '.join(map(str, outer.limits))})")


def _to_text(inner: Type, outer: Type) -> Way:
    longest = inner.limits[0] if inner.name in TEXTS and inner.limits else None
    if outer.limits and (longest is None or longest > outer.limits[0]):
        return Way(f"what is longer than {outer.limits[0]} characters")
    if outer.name == "character" and inner.name != "character":
        return Way("blanks at the end")
    return Way()


def _from_text(outer: Type) -> Way | None:
    if outer.kind == "e" or outer.name == "json":
        return Way()  # a label, or the text itself
    return Way(f"texts that are not written as PostgreSQL writes {_a(outer.name)}")


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def _number(inner: Type, outer: Type) -> Way:
    exact = {"smallint": 5, "integer": 10, "bigint": 19}
    digits = {"real": 6, "double precision": 15}
    if inner.name in INTEGERS:
        if outer.name in INTEGERS:
            return Way()
        if outer.name == "numeric":
            return Way() if not outer.limits or outer.limits[1] >= 0 else Way("the last digits")
        return Way() if exact[inner.name] <= digits[outer.name] else Way(f"digits after the {digits[outer.name]}th")
    if inner.name == "numeric":
        whole = bool(inner.limits) and inner.limits[1] <= 0
        if outer.name in INTEGERS:
            return Way() if whole and inner.limits[1] == 0 else Way("digits after the point")
        return Way(f"digits after the {digits[outer.name]}th")
    if outer.name in FLOATS:
        return Way() if inner.name == "real" else Way("digits after the 6th")
    return Way("digits after the point" if outer.name in INTEGERS else "the last digits: decimal and binary differ")
