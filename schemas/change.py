"""One row event, as apply sees it after Kafka."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from schemas.position import Position

Image = dict[str, Any]
"""A row: column name to bool, int, float, PostgreSQL text, or None for SQL NULL.

Unsent columns hold None and are named beside it.
"""


class Op(StrEnum):
    """Debezium's letters."""

    INSERT = "c"
    UPDATE = "u"
    DELETE = "d"
    TRUNCATE = "t"


class Change(NamedTuple):
    """What happened to one row of one table.

    `before` is None (an update under default identity that leaves the key alone, an insert), the identity columns only,
    or the whole old row: `before_missing` names what it lacks. `missing` names the columns of `after` that PostgreSQL
    did not send (unchanged TOAST): their value in `after` is a None that stands for nothing. A key change is one UPDATE
    whose `before` holds the old key. `xid` is the 32-bit transaction id.
    """

    op: str
    table: str
    before: Image | None
    after: Image | None
    missing: tuple[str, ...]
    before_missing: tuple[str, ...]
    position: Position
    xid: int
