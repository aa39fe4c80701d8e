"""Where a sequence has to stand so that it never gives a value that the other side has given already. Pure.

Invariant: a sequence only ever moves on in its own direction, by whole steps, so the values that it would never have
given before (odd ones, say) it does not give now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MARGIN_STEPS = 1000
"""Values an application may have drawn and not used yet (`nextval` waits for no lock; hi-lo allocators keep some)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A sequence's definition and state. `last` is the last value given (or reserved by a cache); None before any."""

    increment: int
    minimum: int
    maximum: int
    start: int
    cache: int
    cycle: bool
    last: int | None

    @property
    def up(self) -> bool:
        return self.increment > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`value` is what the sequence is set to (its next is one step on), None where it stands well. `note`: a doubt."""

    value: int | None
    note: str = ""


def place(
    own: Sequence,
    feeding: Iterable[Sequence],
    values: Iterable[int],
    *,
    here: Iterable[int] = (),
    limit: tuple[int, int],
    margins: int = 1,
    stride: int = 0,
) -> Place:
    """Where `own` has to stand.

    `feeding` are the other side's sequences of the columns that it feeds, `values` the extremes of those columns there,
    `here` on its own side; `limit` is what the columns can hold. `margins` is how many are kept: two where the other
    side cannot be asked, for it began one ahead of all that was known here; `stride` is how far apart the values lie
    that its sequences give.
    """
    others = [s for s in feeding if s.up is own.up and s.last is not None]
    low, high = max(own.minimum, limit[0]), min(own.maximum, limit[1])
    margin = margins * MARGIN_STEPS * max([abs(own.increment), stride, *(abs(s.increment) for s in others)])
    drawn = [s.last for s in others if s.last is not None]
    if margins > 1 and not drawn:
        drawn = [own.start]  # nothing has come, and anything may have been given
    if own.cycle and any(s.cycle for s in others):
        return _around(own, drawn, margin, low, high)
    used, present = [*drawn, *values], list(here)
    if not used and not present:
        return Place(value=None)
    for known, ahead, also, note in (
        (used, margin, present, ""),
        (used, 0, present, "it is about to reach its end: no margin is left"),
        (drawn, margin, [], "rows with higher values are there, which it will meet"),
        (drawn, 0, [], "it is at its end"),
    ):
        wanted = _past(own, known, ahead, also)
        if wanted is None:
            continue
        if low <= wanted <= high:
            return _moved(own, wanted, note)
    end = high if own.up else low
    return _moved(own, end, "it is at its end: it can give no value that is free")


def _past(own: Sequence, known: list[int], ahead: int, also: list[int]) -> int | None:
    """The nearest value of the sequence's own steps that is `ahead` of all that is known, and past `also`."""
    edges = [*(k + ahead if own.up else k - ahead for k in known), *also]
    if not edges:
        return None
    edge = max(edges) if own.up else min(edges)
    step = abs(own.increment)
    base = own.last if own.last is not None else own.start
    if own.up:
        return edge + (base - edge) % step
    return edge - (edge - base) % step


def _moved(own: Sequence, wanted: int, note: str) -> Place:
    if own.last is not None and (own.last >= wanted if own.up else own.last <= wanted):
        return Place(value=None)
    return Place(value=wanted, note=note)


def _around(own: Sequence, drawn: list[int], margin: int, low: int, high: int) -> Place:
    """A sequence that starts anew at its end goes on where the other one stands, wherever its rows are."""
    reach = high - low + 1
    ahead = min(margin, reach // 2)
    edge = max(drawn) if own.up else min(drawn)
    if not low <= edge <= high:
        return Place(value=None, note="the other side's sequence is outside of what this one gives")
    wanted = edge + (ahead if own.up else -ahead)
    return Place(value=low + (wanted - low) % reach)
