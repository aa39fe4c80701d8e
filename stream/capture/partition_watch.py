"""Partitions made while capture runs: each gets the trigger that makes a TRUNCATE of it alone be heard.

Invariant (hazard A15): what could not be watched is said, once per cause, and tried again at the next look; one that
may have been emptied before anybody watched it stops the stream, and goes on doing so until somebody has decided.
"""

from __future__ import annotations

import logging

from connectors.postgres.observer import Observer
from schemas.errors import Contended, PrivilegeMissing, SchemaChanged
from schemas.plan import Plan
from stream.monitoring.heartbeat import Heartbeat

log = logging.getLogger("slackwater.capture")


class PartitionWatch:
    """Looks at the leaves of a plan's partitioned sources. Belongs to capture's reading thread."""

    def __init__(self, plan: Plan, observer: Observer, heartbeat: Heartbeat) -> None:
        self._plan = plan
        self._observer = observer
        self._heartbeat = heartbeat
        self._said: str | None = None

    def look(self) -> None:
        """Watch what is not watched yet; what cannot be now stands in the heartbeat's figures as `unwatched`.

        Errors: SchemaChanged.
        """
        plan, left, cause = self._plan, [], None
        for leaf in self._observer.unwatched(plan.migration, plan.sources.values()):
            name = f"{leaf.schema}.{leaf.name}"
            if not leaf.pristine:
                raise SchemaChanged(
                    f"partition {name} was truncated, rewritten or moved to another tablespace before it was watched:"
                    " if it was truncated, the other side still holds its rows",
                    hint="`slackwater prepare` watches it from now on, then `slackwater resume`; where it was"
                    " truncated, then `slackwater verify --repair`: a full pass finds the rows that went",
                )
            try:
                self._observer.watch(plan.migration, plan.direction, leaf)
            except (Contended, PrivilegeMissing) as error:
                left.append(name)
                cause = error.cause
                continue
            log.info("partition %s is watched for a TRUNCATE from now on", name)
        if cause is not None and cause != self._said:
            log.warning("%s; it is tried again, or `slackwater prepare` as the tables' owner does it", cause)
        self._said = cause
        self._heartbeat.figures.update(unwatched=left)
