"""Whether a refused statement met a table that is not as it was when the session's temporary tables were made like it.

Guards: rows that a column takes now are not set aside because they did not fit into a copy of what it was before.
"""

from __future__ import annotations

from connectors.postgres import column_types
from schemas.errors import Halt, Unavailable
from stream.engine import Engine


def assert_as_it_was(engine: Engine, name: str, error: Halt) -> None:
    """After `error`, within the transaction, from a savepoint. `name` is the load whose statement it was.

    Errors: Unavailable where columns have another type now (the role begins again, with tables like it); Halt where one
    is not there.
    """
    load = engine.loads.get(name)
    if load is None or not load.types or load.is_mirror:
        return
    now = column_types.of_columns(engine.conn, [load.into])[load.into]
    if gone := [c for c in load.mapping.columns if c not in now]:
        raise Halt(
            f"{name}.{gone[0]} on {engine.plan.direction.target}, which the mapping writes, is not there any more:"
            f" renamed or dropped while rows were streamed ({error.cause})",
            hint=f"give it its name back: alter table {load.into} rename column ... to {gone[0]}; or write its new"
            " name in the mapping and run `slackwater prepare`; nothing is lost meanwhile",
        ) from error
    for column in load.mapping.columns:
        if now[column] != load.types[column]:
            raise Unavailable(
                f"{name}.{column} on {engine.plan.direction.target} is of type {now[column].full} now, and was"
                f" {load.types[column].full} when this session's tables were made like it",
                hint="nothing has to be done: the role begins again with tables as they are now",
            ) from error
