"""Why nothing comes from Kafka: nothing is there, a broker is gone, a transaction hides it, or it is lost.

Invariant: a log that is shorter than its epochs say, and a topic that is gone or was made anew, are a StreamGap; a
broker that does not answer is waited out, and said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import KafkaError

from connectors.kafka.epochs import open_transaction
from connectors.kafka.rows import REMEDY, Part
from connectors.kafka.topics import Topics
from schemas.errors import SlackwaterError, StreamGap, Unavailable

STALL_S = 2.0  # without news: look at the log itself
PATIENCE_S = 10.0  # a log shorter than its epochs say is a gap only when it stays so: leaders move


class Silence:
    """Watches one reader. `problem` says why nothing comes, or None.

    `names` are the topics read, `expected` their ids where they are known from before. `patience_s` is how long a
    broker may be gone. Errors, of the constructor too: StreamGap, Unavailable.
    """

    def __init__(
        self,
        topics: Topics,
        bootstrap: str,
        names: Iterable[str],
        expected: Mapping[str, str],
        *,
        patience_s: float,
    ) -> None:
        self.problem: str | None = None
        self._topics = topics
        self._bootstrap = bootstrap
        self._patience_s = patience_s
        self._down_since: float | None = None
        self._short_since: dict[Part, float] = {}
        self._hidden_from: dict[Part, int] = {}  # as the look before saw it
        self._moved_at = self._looked_at = time.monotonic()
        self._ids = self._identify(names, expected)

    def broken(self) -> None:
        """Records have come."""
        self._moved_at = time.monotonic()
        self._down_since = self.problem = None

    def whole(self) -> None:
        """An epoch was there in full: no log is too short for it."""
        self._short_since.clear()

    def suspect(self) -> None:
        """A topic is said to be missing, which may be a broker's stale metadata: the next look asks."""
        self._looked_at = 0.0

    def failed(self, error: KafkaError) -> None:
        """librdkafka has lost a broker."""
        if self._down_since is None:
            self._down_since = time.monotonic()
        self.problem = f"Kafka at {self._bootstrap}: {error.str()}"

    def look(self, wanted: Callable[[], Mapping[Part, int]]) -> None:
        """Called when nothing came. `wanted` are the ends that the logs must have reached, by partition."""
        now = time.monotonic()
        if now - self._looked_at < STALL_S or now - self._moved_at < STALL_S:
            return
        self._looked_at = now
        try:
            if self._topics.topic_ids(self._ids) != self._ids:
                self._identify(self._ids, self._ids)
            self._look_at_logs(wanted(), now)
        except Unavailable as error:
            self._wait(error)

    def _look_at_logs(self, wanted: Mapping[Part, int], now: float) -> None:
        hidden: Unavailable | None = None
        before, self._hidden_from = self._hidden_from, {}
        for part, (_, stable, end) in self._topics.stable_ends(wanted).items():
            if end < wanted[part]:
                since = self._short_since.setdefault(part, now)
                if now - since >= PATIENCE_S:
                    raise StreamGap(
                        f"{part[0]}, partition {part[1]} ends at offset {end:,}, but records up to {wanted[part]:,}"
                        " were in it: the log was cut, or the topic made anew",
                        hint=REMEDY,
                    )
            else:
                self._short_since.pop(part, None)
            if stable < end:
                self._hidden_from[part] = stable
                if before.get(part) == stable:  # or an epoch is being published at this moment, as it should be
                    hidden = open_transaction(part[0], part[1], stable, end)
        self._down_since = None
        self.problem = None if hidden is None else hidden.cause

    def _wait(self, error: SlackwaterError) -> None:
        """Kafka does not answer: that is waited out, and said."""
        now = time.monotonic()
        self._down_since = self._down_since or now
        self.problem = error.cause
        if now - self._down_since > self._patience_s:
            raise error

    def _identify(self, names: Iterable[str], expected: Mapping[str, str]) -> dict[str, str]:
        """The topics' ids, all of them present and, where known before, the same."""
        names = list(names)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = self._topics.topic_ids(names)
            missing = [n for n in names if n not in found]
            if not missing:
                break
            if time.monotonic() > deadline:
                raise StreamGap(f"topic {missing[0]} does not exist any more", hint=REMEDY)
            time.sleep(0.5)
        for name, topic_id in found.items():
            if expected.get(name, topic_id) != topic_id:
                raise StreamGap(f"topic {name} was deleted and made anew: what it held is gone", hint=REMEDY)
        return found
