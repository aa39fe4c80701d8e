"""The source's catalogs, looked at each second: what is in them can move rows that no frame of the stream tells of.

Invariant (hazards A2, J5): a publication that is not what was prepared, rows that are in no stream, and a key that
nothing tells apart any more stop the stream; a TRUNCATE that the stream has shown explains why a table lies in another
file, and one that it will show yet is waited for.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from connectors.postgres import session
from connectors.postgres.chunks import before_header
from connectors.postgres.observer import Observer
from schemas.plan import Plan
from schemas.position import Lsn
from stream.capture import unique_keys
from stream.capture.partition_watch import PartitionWatch
from stream.migration.silent_changes import Lookout, halt, watched
from stream.monitoring.heartbeat import Heartbeat

LOOK_S: Final = 1.0
WATCH_S: Final = 60.0
"""How often partitions are asked for the trigger that tells of a TRUNCATE, where the catalogs have not moved."""
WAL_BLOCK: Final = 8192


class CatalogWatch:
    """Belongs to capture's reading thread; its session is its own, for a look is a transaction."""

    def __init__(self, dsn: str, plan: Plan, publication: str, observer: Observer, heartbeat: Heartbeat) -> None:
        self._plan = plan
        self._publication = publication
        self._observer = observer
        self._partitions = PartitionWatch(plan, observer, heartbeat)
        self._conn = session.connect(dsn, application="slackwater capture catalogs", settings={"jit": "off"})
        self._lookout = Lookout(watched(plan, plan.direction.source))
        self._looked_at = self._watched_at = -WATCH_S
        self._announced = -1
        self._truncated: dict[str, list[Lsn]] = {}
        self._reached = Lsn(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._conn.close()

    def truncated(self, table: str, commit_lsn: Lsn) -> None:
        """The stream has shown a TRUNCATE of the table."""
        self._truncated.setdefault(table, []).append(commit_lsn)

    def look(self, *, announced: int, reached: Lsn) -> None:
        """Once a second, or when the stream has described a relation: `announced` counts that.

        `reached`: all that ends at or below it has been taken from the stream. Errors: SchemaChanged.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOK_S and announced == self._announced:
            return
        self._looked_at = now
        self._reached = reached
        stay, moved = self._lookout.look(self._conn, explains=self._explains)
        if (error := halt(stay)) is not None:
            raise error
        if moved or announced != self._announced:
            self._observer.check_publication(self._publication, self._plan.published)
            unique_keys.check(self._plan, self._observer)
        if moved or announced != self._announced or now - self._watched_at >= WATCH_S:
            self._watched_at = now
            self._partitions.look()
        self._announced = announced

    def _explains(self, table: str, at: Lsn) -> bool | None:
        """Whether the stream has shown a TRUNCATE of the table up to `at`; None while it has not come that far."""
        if self._reached < before_header(at, WAL_BLOCK):
            return None
        shown = self._truncated.pop(table, [])
        if later := [lsn for lsn in shown if lsn > at]:
            self._truncated[table] = later
        return len(later) < len(shown)
