"""An expression over one old column, turned round: the SQL that computes the column back, and what it cannot know.

Invariant: what is called lossless gives back each value that the expression was given, to its image, wherever the
expression gave a value that new accepted. What is not known to be so is lossy, or has no way back at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlglot import exp

from schemas import casts, constants
from schemas.casts import INTEGERS, TEXTS, Type, one, there_and_back, type_of_cast, type_of_column
from schemas.constants import NoWay
from schemas.table import Column

Finder = Callable[[exp.Column], Column | None]
"""The old column that a name in the expression means; None when it is another table's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inverse:
    """`sql` computes the old column from new's. `loses` is empty when it is lossless, else what does not come back.

    `cuts` says which values that new may hold, and old never gave, would not come back as they are. `new` is the column
    of new that it is read from, `forward` the expression that new's column is filled by; empty where it is a constant.
    """

    column: str
    sql: str
    loses: str = ""
    cuts: str = ""
    new: str = ""
    forward: str = ""


def invert(node: exp.Expr, new: Column, spelled: str, find: Finder) -> Inverse:
    """The way back of `node`, which new holds in column `new`, spelled so in SQL. Errors: NoWay."""
    turn = _Turn(find=find, new=new)
    wanted, held = turn.type_of(node), type_of_column(new)
    sql = spelled
    if wanted is not None and wanted != held:
        sql = turn.cast(spelled, wanted, held)
    sql, column = turn.back(node, sql)
    return Inverse(
        column=column.name,
        sql=_assigned(sql, spelled, type_of_column(column), held),
        loses=_listed(turn.loses),
        cuts=_listed(turn.cuts) or _narrower(held, type_of_column(column), turn.plain),
        new=new.name,
        forward=node.transform(_bare).sql(dialect="postgres", comments=False),
    )


def _bare(node: exp.Expr) -> exp.Expr:
    """A column without its table: one piece reads one table."""
    return exp.column(node.this.copy()) if isinstance(node, exp.Column) else node


def _assigned(sql: str, spelled: str, column: Type, held: Type) -> str:
    """Without a cast that the assignment to the column makes as well."""
    alike = any(column.name in family and held.name in family for family in (INTEGERS, TEXTS))
    alike |= held.name in TEXTS and column.kind == "e"  # the type need not be there on new
    return spelled if alike and sql == f"{spelled}::{column.sql}" else sql


def _listed(said: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(said))


def _narrower(new: Type, old: Type, plain: bool) -> str:
    """Which of new's values do not fit the old column, by the types alone."""
    if not plain or new == old:
        return ""
    if new.name in INTEGERS and old.name in INTEGERS and INTEGERS[new.name] > INTEGERS[old.name]:
        return f"numbers beyond {old.name}"
    if new.name in TEXTS and old.name in TEXTS and old.limits and not (new.limits and new.limits[0] <= old.limits[0]):
        return f"texts longer than {old.limits[0]} characters"
    if new.name == "numeric" and old.name == "numeric" and old.limits and new.limits != old.limits:
        more = not new.limits or new.limits[1] > old.limits[1]
        wide = not new.limits or new.limits[0] - new.limits[1] > old.limits[0] - old.limits[1]
        return f"digits beyond numeric({old.limits[0]}, {old.limits[1]})" if more or wide else ""
    if new.kind == "e" and old.kind == "e":
        return f"labels that {old.name} has not"
    way = there_and_back(new, old)
    if way is None or way.loses or (new.name in TEXTS and old.kind == "e"):
        return f"values of {new.name} that {old.name} cannot hold"
    return ""


class _Turn:
    """One expression, from its value inwards to the column."""

    def __init__(self, *, find: Finder, new: Column) -> None:
        self.find = find
        self.new = new
        self.loses: list[str] = []
        self.cuts: list[str] = []
        self.plain = True

    def cast(self, sql: str, inner: Type, outer: Type) -> str:
        """From a value of `outer` back to `inner`, whose value it was."""
        way = there_and_back(inner, outer)
        if way is None:
            raise NoWay(f"there is no cast from {outer.name} back to {inner.name} that is known to be its reverse")
        if way.loses:
            self.loses.append(f"{outer.name} does not hold {way.loses}")
        return sql if one(inner, outer) else f"{_operand(sql)}::{inner.sql}"

    def back(self, node: exp.Expr, y: str) -> tuple[str, Column]:
        """(the column's value in SQL, the column), where `y` is the expression's value."""
        match node:
            case exp.Paren():
                return self.back(node.this, y)
            case exp.Column():
                column = self.find(node)
                if column is None:
                    raise NoWay("it is computed from another table's column")
                return y, column
            case exp.Cast():
                return self._cast(node, y)
            case exp.Case():
                return self._case(node, y)
            case exp.Neg():
                inner = self.type_of(node.this)
                if inner is None or inner.name in casts.FLOATS:
                    self.loses.append("the sign of what is not a number")
                self.plain = False
                return self.back(node.this, f"-{_operand(y)}")
            case exp.Not():
                return self.back(node.this, f"not {_operand(y)}")
            case exp.Add() | exp.Sub() | exp.Mul() | exp.Div():
                return self._arithmetic(node, y)
            case exp.DPipe() | exp.Concat():
                return self._joined(node, y)
            case exp.Coalesce():
                return self._coalesce(node, y)
            case exp.AtTimeZone():
                return self._zone(node, y)
            case exp.StrToDate() | exp.TimeToStr():
                return self._date(node, y)
            case exp.EQ() | exp.NEQ() | exp.GT() | exp.LT() | exp.Is() | exp.In():
                raise NoWay("a comparison does not say which of its values it was")
        return self._forgetful(node, y)

    def type_of(self, node: exp.Expr) -> Type | None:
        """The expression's type, where it is sure. Of a number that is computed, the digits that it needs."""
        match node:
            case exp.Paren() | exp.Neg():
                return self.type_of(node.this)
            case exp.Column():
                column = self.find(node)
                return None if column is None else type_of_column(column)
            case exp.Cast():
                kind = type_of_cast(node.args["to"])
                held = type_of_column(self.new)
                enum = held.kind == "e" and held.name.rpartition(".")[2] == kind.name.rpartition(".")[2]
                return held if enum else kind
            case exp.Add() | exp.Sub() | exp.Mul() | exp.Div():
                return self._computed(node)
            case exp.DPipe() | exp.TimeToStr():
                return Type("text")
            case exp.StrToDate():
                return Type("date")
            case exp.Not():
                return Type("boolean")
            case exp.AtTimeZone():
                inner = self.type_of(node.this)
                return None if inner is None or inner.name not in casts.TIMES else Type(_other_time(inner.name))
            case exp.Coalesce():
                return self.type_of(node.this)
        return None

    # Forms.

    def _cast(self, node: exp.Cast, y: str) -> tuple[str, Column]:
        inner, outer = self.type_of(node.this), self.type_of(node)
        if isinstance(node, exp.TryCast) or inner is None or outer is None:
            raise NoWay("what is cast is not of a type that is known here")
        if inner == outer:
            return self.back(node.this, y)
        return self.back(node.this, self.cast(y, inner, outer))

    def _case(self, node: exp.Case, y: str) -> tuple[str, Column]:
        operand, pairs = constants.whens(node)
        column = self._column(operand)
        otherwise = node.args.get("default")
        otherwise = None if isinstance(otherwise, exp.Null) else otherwise
        missing = constants.remaining(type_of_column(column), [w for w, _ in pairs])
        if otherwise is not None and (len(missing) > 1 or not constants.literal(otherwise)):
            raise NoWay(f"every value that is not listed becomes {constants.sql(otherwise)}: list each value")
        if otherwise is not None:
            pairs = [*pairs, *((value, otherwise) for value in missing)]
            if not column.not_null and (
                missing or constants.value(otherwise) in {constants.value(t) for _, t in pairs}
            ):
                self.loses.append(f"NULL becomes {constants.sql(otherwise)}")
        elif missing and not self.new.not_null:
            self.loses.append("values that are not listed become NULL")
        if len({constants.value(t) for _, t in pairs}) != len(pairs) or len(
            {constants.value(w) for w, _ in pairs}
        ) != len(pairs):
            raise NoWay("two values become one: it does not say which of them it was")
        if not constants.told_apart(type_of_column(self.new), [t for _, t in pairs]):
            raise NoWay(f"two of its results may be one value of {self.new.type}")
        if not constants.told_apart(type_of_column(column), [w for w, _ in pairs]):
            self.loses.append(f"values of {column.type} may be equal and written otherwise")
        whens = " ".join(f"when {constants.sql(then)} then {constants.sql(when)}" for when, then in pairs)
        self.cuts.append("values that the mapping does not give")
        self.plain = False
        return self.back(operand, f"case {y} {whens} end")

    def _column(self, operand: exp.Expr) -> Column:
        while isinstance(operand, exp.Paren):
            operand = operand.this
        column = self.find(operand) if isinstance(operand, exp.Column) else None
        if column is None:
            raise NoWay("a CASE is turned round only where it compares one column with literals")
        return column

    def _arithmetic(self, node: exp.Expr, y: str) -> tuple[str, Column]:
        left, right = node.this, node.expression
        inner, constant, first = (right, left, True) if constants.number(left) is not None else (left, right, False)
        number = constants.number(constant)
        kind = self.type_of(inner)
        if number is None or kind is None:
            raise NoWay("only arithmetic of one column with a constant is turned round")
        c = constant.sql(dialect="postgres")
        self.plain = False
        self._exactness(node, kind, number, first=first)
        match node:
            case exp.Add():
                value = f"{_operand(y)} - {_operand(c)}"
            case exp.Sub():
                value = f"{_operand(c)} - {_operand(y)}" if first else f"{_operand(y)} + {_operand(c)}"
            case exp.Mul():
                self.cuts.append(f"what is not a multiple of {c}")
                value = f"{_operand(y)} / {_operand(c)}"
            case _:
                if first:
                    raise NoWay("a constant is divided by it")
                value = f"{_operand(y)} * {_operand(c)}"
        whole = kind.name in INTEGERS and not constants.is_whole(constant)
        if kind.name == "date":
            return self.back(inner, f"({value})")
        return self.back(inner, f"round({value})::{kind.sql}" if whole else f"({value})::{kind.sql}")

    def _exactness(self, node: exp.Expr, kind: Type, number: Decimal, *, first: bool) -> None:
        """What the arithmetic loses; NoWay where it is not understood."""
        multiplies = isinstance(node, (exp.Mul, exp.Div))
        if multiplies and number == 0:
            raise NoWay("everything becomes 0, or nothing does")
        if kind.name == "date" and not multiplies and not first and number == number.to_integral_value():
            return
        if kind.name in casts.FLOATS:
            self.loses.append("arithmetic with floating point does not give the last digits back")
        elif kind.name in INTEGERS:
            if isinstance(node, exp.Div) and not first and constants.is_whole(node.expression):
                self.loses.append("the remainder of the division")
            elif isinstance(node, exp.Div) and _endless(kind, number):
                self.loses.append("the last digits of the quotient")
        elif kind.name == "numeric":
            fixed = bool(kind.limits)
            if not fixed and (multiplies or number != number.to_integral_value()):
                self.loses.append("how many digits after the point were written")
            elif isinstance(node, exp.Div) and _endless(kind, number):
                self.loses.append("the last digits of the quotient")
        else:
            raise NoWay(f"arithmetic on {kind.name} is not turned round")

    def _computed(self, node: exp.Expr) -> Type | None:
        left, right = node.this, node.expression
        inner, constant = (right, left) if constants.number(left) is not None else (left, right)
        number, kind = constants.number(constant), self.type_of(inner)
        if number is None or kind is None or kind.name not in (*INTEGERS, "numeric"):
            return kind
        if kind.name in INTEGERS and constants.is_whole(constant):
            return Type("bigint") if kind.name == "bigint" or abs(number) > 2147483647 else Type("integer")
        if kind.name == "numeric" and not kind.limits:
            return Type("numeric")
        scale = kind.limits[1] if kind.limits else 0
        match node:
            case exp.Mul():
                scale += constants.scale(number)
            case exp.Div():
                places = constants.places(number)
                return Type("numeric") if places is None else Type("numeric", (1000, scale + places))
            case _:
                scale = max(scale, constants.scale(number))
        return Type("numeric", (1000, scale))

    def _joined(self, node: exp.Expr, y: str) -> tuple[str, Column]:
        parts = constants.parts(node)
        inner = [p for p in parts if not isinstance(p, exp.Literal)]
        if len(inner) != 1 or not all(p.is_string for p in parts if isinstance(p, exp.Literal)):
            raise NoWay("several values are put into one text: it does not say where each of them ends")
        at = parts.index(inner[0])
        prefix = "".join(str(p.this) for p in parts[:at])
        suffix = "".join(str(p.this) for p in parts[at + 1 :])
        kind = self.type_of(inner[0])
        if kind is None or not (kind.name in (*TEXTS, *INTEGERS, "uuid") or kind.kind == "e"):
            raise NoWay("what is put into the text is not of a type that is known here")
        column = next((c for n in inner[0].find_all(exp.Column) if (c := self.find(n)) is not None), None)
        if isinstance(node, exp.Concat) and (column is None or not column.not_null):
            self.loses.append("NULL becomes the text around it")
        if type_of_column(self.new).name not in ("text", "character varying"):
            raise NoWay(f"new holds the text as {self.new.type}")
        value = f"substr({y}, {len(prefix) + 1})" if prefix else y
        value = f"left({value}, -{len(suffix)})" if suffix else value
        self.cuts.append("texts that are put together otherwise")
        self.plain = False
        if kind.name not in TEXTS:
            value = self.cast(value, kind, Type("text"))
        return self.back(inner[0], value)

    def _coalesce(self, node: exp.Coalesce, y: str) -> tuple[str, Column]:
        column = self.find(node.this) if isinstance(node.this, exp.Column) else None
        if not all(constants.literal(p) for p in node.expressions):
            raise NoWay("it is taken from one of several columns")
        if column is None or not column.not_null:
            self.loses.append(f"NULL becomes {node.expressions[0].sql(dialect='postgres')}")
        return self.back(node.this, y)

    def _zone(self, node: exp.AtTimeZone, y: str) -> tuple[str, Column]:
        zone, kind = node.args["zone"], self.type_of(node.this)
        if not (isinstance(zone, exp.Literal) and zone.is_string) or kind is None or kind.name not in casts.TIMES:
            raise NoWay("the time zone is not written out, or what is in it is not a timestamp")
        if str(zone.this).upper() not in ("UTC", "Z", "ETC/UTC"):
            self.loses.append(f"hours that the clocks of {zone.this} repeat or leave out")
        return self.back(node.this, f"{_operand(y)} at time zone {constants.sql(zone)}")

    def _date(self, node: exp.Expr, y: str) -> tuple[str, Column]:
        """`to_date(text, 'YYYY-MM-DD')` and `to_char(date, ...)`."""
        generated = re.search(r", '([^']*)'\)$", node.sql(dialect="postgres"))
        pattern = generated[1] if generated is not None else ""
        tokens = re.findall(r"YYYY|MM|DD|[^A-Za-z0-9\"\\]|.", pattern)
        kind = self.type_of(node.this)
        inside = sorted(t for t in tokens if t.isalpha())
        if kind is None or inside != ["DD", "MM", "YYYY"]:
            raise NoWay("only dates as text with YYYY, MM and DD are turned round")
        if isinstance(node, exp.StrToDate):
            if kind.name not in TEXTS:
                raise NoWay("what becomes a date is not text")
            self.loses.append(f"dates that are not written exactly as '{pattern}'")
            self.plain = False
            return self.back(node.this, f"to_char({y}, '{pattern}')")
        if kind.name != "date":
            raise NoWay("the time of day is left out")
        self.loses.append("dates before the year 1 and after 9999")
        return self.back(node.this, f"to_date({y}, '{pattern}')")

    def _forgetful(self, node: exp.Expr, y: str) -> tuple[str, Column]:
        """Functions that change nothing when they are applied to their own result: what they forgot stays forgotten."""
        said = _FORGETS.get(type(node))
        if said is None:
            called = node.expression if isinstance(node, exp.Dot) else node  # with its schema, or without one
            if not isinstance(called, exp.Func):
                raise NoWay("it is computed")
            name = str(called.this) if isinstance(called, exp.Anonymous) else called.sql_name().lower()
            raise NoWay(f"{name}() has no reverse that is known here")
        others = [c for c in node.find_all(exp.Column) if self.find(c) is None]
        columns = {c.name for c in node.find_all(exp.Column)}
        if others or len(columns) != 1 or not any(isinstance(node.this, t) for t in (exp.Column, exp.Paren, exp.Cast)):
            raise NoWay("it is computed from more than one column")
        self.loses.append(said)
        inner = self.type_of(node.this)
        exact = inner is None or inner.name in TEXTS or inner == self.type_of(node)
        return self.back(node.this, y if exact or inner is None else f"{_operand(y)}::{inner.sql}")


_FORGETS: dict[type[exp.Expr], str] = {
    exp.Lower: "lower() forgets capital letters",
    exp.Upper: "upper() forgets small letters",
    exp.Initcap: "initcap() forgets how letters were written",
    exp.Trim: "trim() forgets what it cuts off",
    exp.Round: "round() forgets digits",
    exp.Trunc: "trunc() forgets digits",
    exp.Floor: "floor() forgets digits",
    exp.Ceil: "ceil() forgets digits",
    exp.Nullif: "nullif() makes NULL of a value",
    exp.Left: "left() forgets the rest of the text",
}


def _endless(kind: Type, divisor: Decimal) -> bool:
    """Whether a quotient may need more digits than PostgreSQL gives it: 16 that matter, fewer after a long number."""
    places = constants.places(divisor)
    whole, after = (10, 0) if kind.name != "numeric" else (20, 0)
    if kind.limits:
        whole, after = kind.limits[0] - kind.limits[1], kind.limits[1]
    return places is None or kind.name == "bigint" or abs(divisor) < 1 or whole > 10 or after + places > 8


def _other_time(name: str) -> str:
    return casts.TIMES[1] if name == casts.TIMES[0] else casts.TIMES[0]


def _operand(sql: str) -> str:
    return sql if re.fullmatch(r'[\w."]+(\([^()]*\))?(::[\w ]+)?|"(?:[^"]|"")+"|\([^()]*\)', sql) else f"({sql})"
