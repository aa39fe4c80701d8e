"""Tables that took another one's name: what became of the rows of the one that had it before.

Invariant: a predecessor's rows, though the WAL and Kafka still hold some, are no rows of the table that has its name
now, which is loaded or compared as it is. They are left out by relation (capture) and by position (apply), counted, and
said; a row of the table itself is never among them: it committed later, or what was begun since sees it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping

from schemas.plan import Replaced
from schemas.position import Lsn
from schemas.table import Table

SAY_S = 10.0


def replaced(
    before: Mapping[str, Replaced],
    streamed: Collection[str],
    prepared: Mapping[str, Table],
    now: Mapping[str, Table],
    until: Lsn,
) -> dict[str, Replaced]:
    """What `before` says, and the streamed tables that are not, `now`, the ones of these names that were `prepared`.

    `until`: where the source's WAL ended after `now` was read, and before the barrier of what is loaded anew was made.
    """
    found = dict(before)
    for name in streamed:
        oid = prepared[name].oid if name in prepared else 0
        if not oid or (name in now and now[name].oid == oid):
            continue
        earlier = found[name].oids if name in found else ()
        oids = {*earlier, oid} - ({now[name].oid} if name in now else set())
        found[name] = Replaced(oids=tuple(sorted(oids)), until=until)
    return found


class LeftOut:
    """Counts rows that are left out, and says so. For one thread."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._rows: Counter[str] = Counter()
        self._said: Counter[str] = Counter()
        self._said_at = -SAY_S

    def add(self, table: str, rows: int = 1) -> None:
        self._rows[table] += rows

    def say(self, *, last: bool = False) -> None:
        """Whenever it is called: at once what is new, then every SAY_S, and what remains at the `last`."""
        if self._rows == self._said or not (last or time.monotonic() - self._said_at >= SAY_S):
            return
        self._said_at = time.monotonic()
        for table, rows in self._rows.items():
            if rows != self._said[table]:
                self._log.warning(
                    "%d rows of the table that was %s before it was replaced are left out: they are none of its own",
                    rows,
                    table,
                )
        self._said = Counter(self._rows)
