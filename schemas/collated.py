"""Which source columns' collations can change what mappings make of them.

Guards: where a value is more than copied (sorted, grouped, joined, compared, put in upper case) it is staged with the
collation that it has at its source. A bare copy is the same under any: the target need not have its collation.
"""

from __future__ import annotations

from collections.abc import Iterable

from schemas.mapping import Mapping


def collated(mappings: Iterable[Mapping], source: str) -> frozenset[str]:
    """The columns of `source` that any of these mappings does more with than to copy them."""
    found: set[str] = set()
    for m in mappings:
        if source not in m.sources:
            continue
        if not m.row_local:
            found.update(m.reads[source])
            continue
        found.update(column for table, column in m.row_deps if table == source)
        for output in m.outputs:
            if output.plain is None:
                found.update(column for table, column in output.deps if table == source)
    return frozenset(found)
