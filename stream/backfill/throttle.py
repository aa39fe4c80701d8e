"""When backfill may read its next chunk: it yields to the stream, to the application and to whoever paused it.

Invariant: a figure that is not known never counts as fine where the answer protects the stream (lag); and every pause
says why, in words for the operator.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from connectors.postgres.session import Connection, translated
from schemas.spec import Backfill as Options
from stream.monitoring.clock import now as utc_now

REPLICA_LAG_S = 30.0  # a physical replica of the source that replays later than this is left to catch up
BUSY_SHARE = 0.8  # of max_connections: more active sessions than this, and the source is busy enough
OLD_TRANSACTION_S = 3600.0  # one that holds back vacuum for an hour: rows should not be churned meanwhile
RATE_BURST_S = 1.0  # how much of the rate may be spent at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The source, as far as its views may be read; None is what may not, or does not apply."""

    replica_lag_s: float | None = None  # the worst of its physical replicas
    active_share: float | None = None  # active sessions of max_connections
    oldest_s: float | None = None  # age of the oldest transaction that holds back vacuum

    @property
    def complaint(self) -> str | None:
        """What is wrong with it, as a reason to pause."""
        if self.replica_lag_s is not None and self.replica_lag_s > REPLICA_LAG_S:
            return f"a replica of the source is {self.replica_lag_s:.0f} s behind (limit {REPLICA_LAG_S:.0f} s)"
        if self.active_share is not None and self.active_share > BUSY_SHARE:
            return f"{self.active_share:.0%} of the source's connections are active (limit {BUSY_SHARE:.0%})"
        if self.oldest_s is not None and self.oldest_s > OLD_TRANSACTION_S:
            return f"a transaction on the source is {self.oldest_s:.0f} s old (limit {OLD_TRANSACTION_S:.0f} s)"
        return None


# Our own sessions and walsenders (whose slots hold back the catalog's vacuum only) are left out. Columns that the role
# may not see are null, and drop out of the aggregates.
_HEALTH = """
select (select extract(epoch from max(r.replay_lag))::float8 from pg_stat_replication r
         where not exists (select from pg_replication_slots s where s.active_pid = r.pid and s.slot_type = 'logical')),
       count(*) filter (where state = 'active')::float8 / current_setting('max_connections')::int,
       extract(epoch from clock_timestamp() - min(xact_start)
         filter (where backend_xmin is not null or backend_xid is not null))::float8
  from pg_stat_activity
 where backend_type = 'client backend' and application_name not like 'slackwater%%' and pid <> pg_backend_pid()
"""


def read_health(source: Connection) -> Health:
    with translated("reading the source's load"):
        row = source.execute(_HEALTH, ()).fetchone()
    assert row is not None
    lag, share, oldest = (None if x is None else float(str(x)) for x in row)
    return Health(replica_lag_s=lag, active_share=share, oldest_s=oldest)


class Bucket:
    """Rows per second, spent after the fact: a chunk's rows are known when it is read. Thread-safe."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rate = rate
        self._left = (rate or 0.0) * RATE_BURST_S
        self._at = clock()

    def set_rate(self, rate: float | None) -> None:
        with self._lock:
            self._refill()
            self._rate = rate

    def spend(self, rows: int) -> None:
        with self._lock:
            self._refill()
            self._left -= rows

    def wait_s(self) -> float:
        """How long until something may be spent; 0 at once."""
        with self._lock:
            self._refill()
            return 0.0 if self._rate is None or self._left >= 0 else -self._left / self._rate

    def _refill(self) -> None:
        at = self._clock()
        if self._rate is not None:
            self._left = min(self._rate * RATE_BURST_S, self._left + (at - self._at) * self._rate)
        else:
            self._left = 0.0
        self._at = at


class Throttle:
    """Judges, once in a while and on one thread, whether backfill may go on; workers read the verdict.

    `lag_s` answers the stream's lag in seconds, None when it is not known; `paused` the operator's pause as a clause;
    `health` the source's state.
    """

    def __init__(
        self,
        options: Options,
        *,
        lag_s: Callable[[], float | None],
        paused: Callable[[], str | None],
        health: Callable[[], Health],
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._lag_s = lag_s
        self._paused = paused
        self._health = health
        self._clock = clock
        self.bucket = Bucket(options.max_rows_per_s, monotonic)
        self.brake: str | None = None  # the operator's pause alone: it holds rereads back as well
        self.reason: str | None = "not judged yet"  # None: go on

    def reconfigure(self, options: Options) -> None:
        """New rates, limits and window, from now on."""
        self._options = options
        self.bucket.set_rate(options.max_rows_per_s)

    @property
    def rate(self) -> int | None:
        """Rows per second at most; None is no limit."""
        return self._options.max_rows_per_s

    def judge(self) -> str | None:
        """Look at everything and keep the verdict: None, or the reason to hold back (the first that applies)."""
        self.brake = self._paused()
        self.reason = self.brake or self._window() or self._lag() or self._health().complaint
        return self.reason

    def _window(self) -> str | None:
        window = self._options.window
        return None if window is None or window.contains(self._clock()) else f"outside its window {window}"

    def _lag(self) -> str | None:
        lag, limit = self._lag_s(), self._options.max_lag_s
        if lag is None:
            return "the stream's lag is not known"
        return f"the stream is {lag:.1f} s behind (max_lag_s is {limit:g})" if lag > limit else None
