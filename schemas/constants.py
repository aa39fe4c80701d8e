"""Constants in an expression: literals, numbers, and what a CASE says between literals. Read from the text alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from sqlglot import exp

from schemas.casts import INTEGERS, Type


class NoWay(Exception):
    """There is no computing it back; the text says why."""


def literal(node: exp.Expr) -> bool:
    return isinstance(node, (exp.Literal, exp.Boolean)) or (isinstance(node, exp.Neg) and literal(node.this))


def sql(node: exp.Expr) -> str:
    return node.sql(dialect="postgres")


def value(node: exp.Expr) -> object:
    found = number(node)
    return found if found is not None else sql(node)


def number(node: exp.Expr) -> Decimal | None:
    if isinstance(node, exp.Paren):
        return number(node.this)
    if isinstance(node, exp.Neg):
        inner = number(node.this)
        return None if inner is None else -inner
    if isinstance(node, exp.Literal) and not node.is_string:
        return Decimal(str(node.this))
    return None


def is_whole(node: exp.Expr) -> bool:
    """Whether PostgreSQL reads the literal as an integer."""
    return re.fullmatch(r"[-()\s0-9]+", sql(node)) is not None


def scale(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def places(divisor: Decimal) -> int | None:
    """How many digits after the point a quotient of whole numbers needs at most; None when it never ends."""
    for k in range(13):
        quotient = Decimal(10) ** k / abs(divisor)
        if quotient == quotient.to_integral_value():
            return k
    return None


def parts(node: exp.Expr) -> list[exp.Expr]:
    if isinstance(node, exp.Paren):
        return parts(node.this)
    if isinstance(node, exp.DPipe):
        return [*parts(node.this), *parts(node.expression)]
    if isinstance(node, exp.Concat):
        return [p for e in node.expressions for p in parts(e)]
    return [node]


def whens(node: exp.Case) -> tuple[exp.Expr, list[tuple[exp.Expr, exp.Expr]]]:
    """What is compared, and (value, result) of each branch. NoWay where they are not literals."""
    pairs: list[tuple[exp.Expr, exp.Expr]] = []
    operand = node.this
    for branch in node.args["ifs"]:
        when, then = branch.this, branch.args["true"]
        if node.this is None:
            when, compared = condition(when)
            if operand is not None and sql(operand) != sql(compared):
                raise NoWay("its branches ask about several columns")
            operand = compared
        if not literal(when) or not literal(then):
            raise NoWay("a CASE is turned round only between literals")
        pairs.append((when, then))
    return operand, pairs


def condition(node: exp.Expr) -> tuple[exp.Expr, exp.Expr]:
    """`a = 1` as (1, a); a boolean column as (true, a)."""
    while isinstance(node, exp.Paren):
        node = node.this
    if isinstance(node, exp.EQ):
        left, right = node.this, node.expression
        return (left, right) if literal(left) else (right, left)
    if isinstance(node, exp.Column):
        return exp.true(), node
    if isinstance(node, exp.Not) and isinstance(node.this, exp.Column):
        return exp.false(), node.this
    raise NoWay("a CASE is turned round only where it compares one column with literals")


def remaining(kind: Type, known: Sequence[exp.Expr]) -> list[exp.Expr]:
    """The values that are not listed: of a boolean, those; of anything else, two at least."""
    if kind.name != "boolean":
        return [exp.true(), exp.false()]
    listed = {sql(k).strip("'").lower() in ("true", "t", "yes", "y", "on", "1") for k in known}
    return [b for b, value in ((exp.true(), True), (exp.false(), False)) if value not in listed]


def told_apart(kind: Type, literals: Sequence[exp.Expr]) -> bool:
    """Whether two literals that are written differently are two values of the type, and equal ones are the same."""
    if kind.name == "boolean":
        return all(isinstance(node, exp.Boolean) for node in literals)
    if kind.name in INTEGERS or (kind.name == "numeric" and kind.limits):
        return all(number(node) is not None for node in literals)
    if kind.kind == "e" or kind.name in ("text", "character varying", "character"):
        texts = [str(n.this) for n in literals if isinstance(n, exp.Literal) and n.is_string]
        cut = [t.rstrip(" ") if kind.name == "character" else t for t in texts]
        return len(set(cut)) == len(literals)
    return False
