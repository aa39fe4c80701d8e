"""A mapping's text, bound: each relation that it names is a CTE of that name, so the text itself is never rewritten."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.names import quote


def bound(text: str, bindings: Mapping[str, str]) -> str:
    """`with "customers" as not materialized (<sql>), ... select * from (<text>) q`.

    `bindings` maps a relation's unqualified name to the SQL that stands for it (a SELECT whose columns have the source
    table's names). Not materialized, so that a restriction inside or around it reaches the scan. The newlines keep a
    trailing `--` comment of the text from eating what follows.
    """
    ctes = ",\n".join(f"{quote(name)} as not materialized ({sql}\n)" for name, sql in bindings.items())
    head = f"with {ctes}\n" if ctes else ""
    return f"{head}select * from (\n{text}\n) q"
