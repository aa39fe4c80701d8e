"""From suspects to verdicts: samples of both sides, taken in turn, until each row agrees or is proven different.

Invariant: a suspect leaves as one that agrees or as a mismatch with its proof; one that could not be settled in time is
an error that says so, and never either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from connectors.postgres.ranges import Chunk
from connectors.postgres.session import translated
from connectors.postgres.sight import Sight
from schemas.direction import Direction
from schemas.errors import Halt, Unavailable
from schemas.position import Lsn, format_lsn, parse_lsn
from stream.monitoring.heartbeat import beats
from stream.verify.digests import Compared
from stream.verify.evidence import Image, Key, Sample, settle
from stream.verify.queries import View, named
from stream.verify.sampler import REFUSED, Witness
from stream.verify.verdicts import Kind, Mismatch

BATCH = 500  # suspects judged together
POLL_S = 0.03
ROUND_S = 0.1
PATIENCE_S = 90.0  # for the stream to pass a position, while its roles live
ROUNDS = 40
CALM_ROUNDS = 3  # rounds of one sample per side; rows that are still open are written all the time
BURST = 40  # samples of each side, as fast as they come: a row that never rests is met in one of its states
BURST_ROWS = 100
MOST = 10_000  # mismatches of one table; past it, counting more tells nobody anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A mismatch. `source` and `target` are the rows' mapped columns as text, for `--show-values` alone."""

    mismatch: Mismatch
    key: Key
    source: Image
    target: Image


class TooMany(Exception):
    """More rows differ than are worth being told apart; `found` are those that were."""

    def __init__(self, found: list[Found]) -> None:
        super().__init__()
        self.found = found


class Unsettled(Unavailable):
    """Rows of one table could not be settled in time; the others go on."""


class Stopped(Exception):
    """Asked to stop."""


class Applied:
    """Waits until the stream has carried the leader's writes to the follower."""

    def __init__(
        self,
        *,
        leader: Sight,
        follower: Sight,
        migration: str,
        link: Direction,
        stop: threading.Event,
        standing: Callable[[], str | None] | None = None,
    ) -> None:
        """`standing` answers in the heartbeats' place."""
        self._asked = standing
        self._leader = leader
        self._follower = follower
        self._id = (migration, link.value)
        self._link = link
        self._stop = stop

    def at(self) -> Lsn:
        with translated("reading the checkpoint"):
            row = self._follower.primary.execute(
                "select end_lsn::text from slackwater.checkpoint where migration = %s and direction = %s", self._id
            ).fetchone()
        if row is None:
            raise Halt(f"there is no {self._link} checkpoint", hint="`slackwater prepare` writes it")
        return parse_lsn(str(row[0]))

    def past(self, lsn: Lsn) -> None:
        """Wait for it. Errors: Unavailable, with the role that does not run, or when it takes too long; Stopped."""
        began = time.monotonic()
        looked, nudged = began, False
        while self.at() < lsn:
            if self._stop.is_set():
                raise Stopped
            now = time.monotonic()
            if not nudged:
                nudged = True
                self._leader.nudge(self._id[0], self._link)
            if now - looked > 1.0:
                looked = now
                if (why := self.standing()) is not None:
                    raise Unavailable(
                        f"rows that differ cannot be judged, because the stream does not go on: {why}",
                        hint="see `slackwater status`; then `slackwater verify` again: it goes on where it stopped",
                    )
            if now - began > PATIENCE_S:
                raise Unavailable(
                    f"the stream has not passed {format_lsn(lsn)} for {PATIENCE_S:.0f} s",
                    hint="see `slackwater status`; then `slackwater verify` again: it goes on where it stopped",
                )
            self._stop.wait(POLL_S)

    def standing(self) -> str | None:
        """Why the stream cannot be going on; None when both of its roles work."""
        if self._asked is not None:
            return self._asked()
        for role, side in (("capture", self._leader), ("apply", self._follower)):
            beat = beats(side.primary, self._id[0]).get((self._link.value, role))
            if beat is None:
                return f"{role} has never run"
            state = beat.seen_state
            if state not in ("running", "waiting", "starting"):
                return f"{role} is {state}" + (f" ({beat.reason})" if beat.reason else "")
        return None


class Judge:
    """Judges suspects over one worker's sessions."""

    def __init__(self, witness: Witness, applied: Applied, stop: threading.Event) -> None:
        self.witness = witness
        self._applied = applied
        self._stop = stop

    def judge(
        self,
        view: View,
        suspects: Sequence[Key],
        *,
        most: int = MOST,
        batch: int = BATCH,
        scan: Chunk | None = None,
    ) -> list[Found]:
        """The suspects that are mismatches; other rows of the same owners may come to light, and count too.

        `scan`: they are looked for by reading that chunk, for those that cannot be found by their keys.
        Errors: TooMany past `most`; Unsettled when rows cannot be settled; Unavailable.
        """
        found: dict[Key, Found] = {}
        for i in range(0, len(suspects), batch):
            for one in self._batch(view, suspects[i : i + batch], scan):
                found[one.key] = one
            if len(found) > most:
                raise TooMany(list(found.values()))
        return list(found.values())

    def _batch(self, view: View, suspects: Sequence[Key], scan: Chunk | None) -> list[Found]:
        open_ = list(dict.fromkeys(suspects))
        leaders: list[Sample] = []
        followers: list[Sample] = []
        found: list[Found] = []
        for turn in range(ROUNDS):
            leaders.append(self.witness.lead(view, open_, scan))
            open_ = self._settled(view, open_, leaders, followers, found)
            if not open_:
                return found
            self._applied.past(leaders[-1].lsn)
            followers.append(self.witness.follow(view, open_, scan))
            self._caught_up(followers)
            open_ = self._settled(view, open_, leaders, followers, found)
            if not open_:
                return found
            if self._stop.wait(min(1.0, ROUND_S * turn)):
                raise Stopped
            if turn >= CALM_ROUNDS and scan is None and not followers[-1].unsettled:
                open_ = self._burst(view, open_, found)
                if not open_:
                    return found
        if followers[-1].unsettled:
            raise Unsettled(
                f"{len(open_)} rows of {view.name} differ, and rows of it wait to be read again: it may be that alone",
                hint="`slackwater run backfill` reads them; then `slackwater verify` again",
            )
        raise Unsettled(
            f"{len(open_)} rows of {view.name} are written faster than they can be compared",
            hint="run it again when there is less traffic",
        )

    def _burst(self, view: View, open_: list[Key], found: list[Found]) -> list[Key]:
        """Rows that are written all the time: many samples of each side, until two of them meet."""
        left: list[Key] = []
        for i in range(0, len(open_), BURST_ROWS):
            part = open_[i : i + BURST_ROWS]
            leaders: list[Sample] = []
            followers: list[Sample] = []
            for _ in range(BURST):
                leaders.append(self.witness.lead(view, part))
                followers.append(self.witness.follow(view, part))
                if self._stop.is_set():
                    raise Stopped
            leaders.append(self.witness.lead(view, part))
            left += self._settled(view, part, leaders, followers, found)
        return left

    def _caught_up(self, followers: Sequence[Sample]) -> None:
        """A replica that leads has to show what the follower already has, or its next sample would look older.

        Errors: Unavailable when it does not come that far.
        """
        began = time.monotonic()
        replayed = self.witness.leader.replayed()
        while replayed is not None and followers and replayed < followers[-1].lsn:
            if self._stop.wait(POLL_S):
                raise Stopped
            if time.monotonic() - began > PATIENCE_S:
                raise Unavailable(
                    f"verify.read_from has not replayed up to {format_lsn(followers[-1].lsn)} for {PATIENCE_S:.0f} s",
                    hint="see why its replay stands still, or set verify.read_from to null",
                )
            replayed = self.witness.leader.replayed()

    def _settled(
        self,
        view: View,
        open_: Sequence[Key],
        leaders: Sequence[Sample],
        followers: Sequence[Sample],
        found: list[Found],
    ) -> list[Key]:
        """Takes out what is settled; returns what is still open."""
        if not followers:
            return list(open_)
        agreed, different = settle(open_, leaders, followers)
        for key, (leader, follower) in different.items():
            lead, follow = leader.image(key), follower.image(key)
            ahead = self.witness.leader is self.witness.source
            found.append(mismatch(view, key, *((lead, follow) if ahead else (follow, lead))))
        return [key for key in open_ if key not in agreed and key not in different]


def doubtful(compared: Compared, found: Sequence[Found]) -> list[Key]:
    """Keys whose rows a look-up may not see: the digests count them otherwise, or one side seems to lack them."""
    if compared.by_rows:  # found by their keys alone: there is no digest
        return []
    lacking = (f.key for f in found if f.mismatch.kind is not Kind.DIFFERENT)
    return list(dict.fromkeys([*compared.apart, *lacking]))


def mismatch(view: View, key: Key, source: Image, target: Image) -> Found:
    """What a proven difference is called."""
    rows, names = 1, tuple[str, ...]()
    if not view.mapping.key:
        here, there = (int(image[0][0] or 0) if image else 0 for image in (source, target))
        kind, rows = (Kind.MISSING if here > there else Kind.EXTRA), abs(here - there)
    elif not source:
        kind = Kind.EXTRA
    elif not target:
        kind = Kind.MISSING
    else:
        kind, names = Kind.DIFFERENT, _columns(view, source, target)
    found = Mismatch(kind=kind, key=named(view, key), columns=names, rows=rows)
    return Found(mismatch=found, key=key, source=source, target=target)


def _columns(view: View, source: Image, target: Image) -> tuple[str, ...]:
    if len(source) != 1 or len(target) != 1 or REFUSED in source:
        return ()
    pairs = zip(view.mapping.columns, source[0], target[0], strict=True)
    return tuple(name for name, a, b in pairs if a != b)
