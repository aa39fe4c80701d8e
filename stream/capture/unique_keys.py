"""What tells old rows apart where their new rows are named by it: it has to stay as long as the migration.

Invariant: two rows of a source never want one row of a target, by an index of the source's that nobody dropped
meanwhile. Without it one of the two would be overwritten in silence.
"""

from __future__ import annotations

from connectors.postgres.observer import Observer
from schemas.errors import SchemaChanged
from schemas.plan import Plan


def check(plan: Plan, observer: Observer) -> None:
    """Errors: SchemaChanged when a mapping's key is no longer identified by a unique index of its source."""
    for mapping in plan.mappings:
        if not (mapping.row_local and mapping.key):
            continue
        source = plan.sources[mapping.sources[0]]
        named_by = mapping.feeds[source.name].columns
        if not any(set(unique) <= named_by for unique in observer.uniques(source)):
            columns = ", ".join(sorted(named_by))
            raise SchemaChanged(
                f"nothing says any more that {columns} tells the rows of {source.schema}.{source.name} apart, and each"
                f" row of {mapping.target} is named by it: its primary key, its unique index or a NOT NULL went",
                hint="bring it back, and restart capture; if two rows of old are alike now, correct them first",
            )
