"""When a suspect row agrees, and when it is proven different: pure reasoning over samples of both sides.

The side that takes the application's writes leads; the stream carries them to the other, which follows. A sample of the
leader says how new it is at most; one of the follower stands exactly where the stream had been applied.

Invariants: a row is only called different on evidence that no write in flight can explain; and it only agrees with
something that the leader held when the follower's sample was taken, never with what it held before.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from schemas.position import Lsn

Key = tuple[str | None, ...]
Row = tuple[str | None, ...]
Image = tuple[Row, ...]
"""The rows that a side has under one key, in order; empty where it has none."""

STABLE = 4  # samples of a follower that have to say the same where the leader's rows have no versions to go by
STABLE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Some rows of one side. `order` counts samples of both sides in the order in which they were taken, at `at_s`.

    `versions` name the stored rows that an image was computed from: two samples with the same version of a key show a
    row that was not written in between. An absent version says nothing.
    `unsettled`: rows of the follower waited to be read again when it was taken, so what it lacks may be on its way.
    """

    order: int
    at_s: float
    lsn: Lsn
    images: Mapping[Key, Image]
    versions: Mapping[Key, Hashable]
    unsettled: bool = False

    def image(self, key: Key) -> Image:
        return self.images.get(key, ())

    def version(self, key: Key) -> Hashable:
        return self.versions.get(key)

    def state(self, key: Key) -> Hashable:
        return self.image(key), self.version(key)


def settle(
    keys: Collection[Key], leaders: Sequence[Sample], followers: Sequence[Sample]
) -> tuple[set[Key], dict[Key, tuple[Sample, Sample]]]:
    """Which of the keys agree, and which are different, each with the (leader's, follower's) samples that prove it."""
    agreed = {key for key in keys if agrees(key, leaders, followers)}
    different = {}
    for key in keys:
        if key not in agreed and (proof := differs(key, leaders, followers)) is not None:
            different[key] = proof
    return agreed, different


def agrees(key: Key, leaders: Sequence[Sample], followers: Sequence[Sample]) -> bool:
    """Whether a follower's sample shows what the leader held at that moment."""
    for follower in followers:
        image = follower.image(key)
        for i, leader in enumerate(leaders):
            if leader.image(key) != image:
                continue
            state = leader.state(key)
            # A later sample that shows something else, and had been applied by then: this one was history.
            if not any(x.state(key) != state and x.lsn <= follower.lsn for x in leaders[i + 1 :]):
                return True
    return False


def differs(key: Key, leaders: Sequence[Sample], followers: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    """The samples that prove a difference, or None.

    The leader's row was the same version before and after a follower's sample that had everything the first one shows:
    so it was that very row at the follower's place. Without versions (no row there, or one that is computed from rows
    which cannot be told), several samples of both have to say the same for a while. An unsettled sample proves nothing.
    """
    followers = [f for f in followers if not f.unsettled]
    for follower in followers:
        before = [x for x in leaders if x.order < follower.order and x.lsn <= follower.lsn]
        after = [x for x in leaders if x.order > follower.order]
        for one in before:
            version = one.version(key)
            if version is not None and any(x.version(key) == version for x in after):
                return (one, follower) if one.image(key) != follower.image(key) else None
    return _stable(key, leaders, followers)


def _stable(key: Key, leaders: Sequence[Sample], followers: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    if len(followers) < STABLE:
        return None
    last = followers[-STABLE:]
    before = [x for x in leaders if x.order < last[0].order and x.lsn <= last[0].lsn]
    if not before or last[-1].at_s - last[0].at_s < STABLE_S:
        return None
    since = [x for x in leaders if x.order >= before[-1].order]
    if since[-1].order < last[-1].order:
        return None
    if len({f.state(key) for f in last}) > 1 or len({x.state(key) for x in since}) > 1:
        return None
    return (since[-1], last[-1]) if since[-1].image(key) != last[-1].image(key) else None
