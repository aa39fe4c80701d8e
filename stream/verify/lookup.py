"""How rows are found by keys: conditions that an index can answer, and the same by what the digests see, in a scan.

Invariant: a key that holds a NULL is found like any other: in SQL nothing equals it, and what a condition leaves out
would seem to be on neither side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from connectors.postgres.sight import Sight
from schemas.digest import Rows
from schemas.names import EQ
from schemas.table import Table
from stream.verify.evidence import Image, Key, Row
from stream.verify.queries import INTEGERS, View, bare

TEXTS = frozenset({"text", "character varying"})


def feeding(view: View, table: Table, expressions: Sequence[str], wanted: Sequence[Key]) -> tuple[list[str], str]:
    """The owner that a source's row feeds, as text, and a condition: it feeds one of `wanted`.

    The condition is one that an index can answer where types agree, else it is over the text.
    """
    owner_types = [view.table.column(o).type for o in view.mapping.owner]
    types = []
    for expression, type_ in zip(expressions, owner_types, strict=True):
        name = bare(expression, table)
        held = table.column(name).type if name is not None else ""
        if held in INTEGERS and type_ in INTEGERS:
            types.append("bigint")
        elif held in TEXTS and type_ in TEXTS:
            types.append("text")
        elif held == type_ and "." not in held:
            types.append(held)
        else:
            types.append("")
    texts = [f"(({e}){'' if '.' in t else f'::{t}'})::text" for e, t in zip(expressions, owner_types, strict=True)]
    if all(types):
        return texts, among(expressions, types, wanted)
    return texts, among([f'{t} collate "C"' for t in texts], ["text"] * len(texts), wanted)


def among(expressions: Sequence[str], types: Sequence[str], wanted: Sequence[Key]) -> str:
    """A condition: the expressions are one of the tuples `wanted` (text), as these types; user types by text."""
    spelled = [(f"({e})::text", "text") if "." in t else (f"{e}", t) for e, t in zip(expressions, types, strict=True)]
    whole = [key for key in wanted if None not in key]
    tests = [_by_part(spelled, key) for key in wanted if None in key]
    if whole and len(spelled) == 1:
        expression, type_ = spelled[0]
        tests.append(f"{expression} {EQ} any(array[{', '.join(literal(key[0]) for key in whole)}]::{type_}[])")
    elif whole:
        rows = ", ".join(
            "(" + ", ".join(f"{literal(v)}::{t}" for v, (_, t) in zip(key, spelled, strict=True)) + ")" for key in whole
        )
        tests.append(f"({', '.join(e for e, _ in spelled)}) {EQ} any (values {rows})")
    return f"({' or '.join(tests)})" if tests else "false"


def _by_part(spelled: Sequence[tuple[str, str]], key: Key) -> str:
    parts = zip(spelled, key, strict=True)
    tests = [f"({e}) is null" if v is None else f"{e} {EQ} {literal(v)}::{t}" for (e, t), v in parts]
    return f"({' and '.join(tests)})"


# What the digests see.


def scanned(sight: Sight, view: View, rows: Rows, keys: Sequence[Key], doing: str) -> dict[Key, Image]:
    """Within a look: the rows that have one of some keys as a digest spells them, found by reading all of them."""
    query = f"select {cells(rows)} from {rows.source} where ({rows.where}) and {spelled_among(rows.keys, keys)}"
    return images_by_key(view, sight.all(query, doing))


def spelled_among(texts: Sequence[str], keys: Sequence[Key]) -> str:
    """A condition: expressions of text are one of the tuples. `row(..)::text` tells a NULL from an empty text."""
    values = ", ".join(f"({', '.join(f'{literal(v)}::text' for v in key)})" for key in keys)
    names = ", ".join(f"k{i}" for i in range(len(texts)))
    wanted = f"select row({names})::text from (values {values}) v ({names})"
    return f"row({', '.join(texts)})::text {EQ} any ({wanted})"


def cells(rows: Rows) -> str:
    """The key's columns, then every mapped column, as text."""
    return ", ".join([*rows.keys, *(f"({cell})::text" for cell in rows.cells)])


def key_of(view: View, row: Sequence[str | None]) -> Key:
    return tuple(row[: len(view.mapping.key)])


def images_by_key(view: View, found: Iterable[Sequence[str | None]]) -> dict[Key, Image]:
    images: defaultdict[Key, list[Row]] = defaultdict(list)
    for row in found:
        images[key_of(view, row)].append(tuple(row[len(view.mapping.key) :]))
    return {k: tuple(sorted(v, key=repr)) for k, v in images.items()}


def literal(value: str | None) -> str:
    """A string constant (standard_conforming_strings is pinned)."""
    return "null" if value is None else "'" + value.replace("'", "''") + "'"
