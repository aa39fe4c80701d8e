"""Where a sequence has to stand so that it never gives a value that the other side has given already. Pure.

Invariant: a sequence only ever moves on in its own direction, by whole steps, so the values that it would never have
given before (odd ones, say) it does not give now; and it is never put where it has nothing left to give, unless there
is no other place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MARGIN_STEPS = 1000
"""Values an application may have drawn and not used yet (`nextval` waits for no lock; hi-lo allocators keep some)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A sequence's definition and state. `last` is the last value given (or reserved by a cache); None before any.

    `first` is, before any, the value that comes first: RESTART moves it away from `start`, which None stands for.
    """

    increment: int
    minimum: int
    maximum: int
    start: int
    cache: int
    cycle: bool
    last: int | None
    first: int | None = None

    @property
    def up(self) -> bool:
        return self.increment > 0

    @property
    def end(self) -> int:
        """The last value that it can give."""
        return self.maximum if self.up else self.minimum

    @property
    def stands(self) -> int:
        """The value that its next one is one step on from."""
        if self.last is not None:
            return self.last
        return (self.start if self.first is None else self.first) - self.increment


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`value` is what the sequence is set to (its next is one step on), None where it stands well.

    `note` is a doubt. It is `wrong` where the application would be refused values, or given one twice, that it would
    not have been on the other side; `needs` is then how far the sequence would have to reach.
    """

    value: int | None
    note: str = ""
    wrong: bool = False
    needs: int | None = None


def place(
    own: Sequence,
    feeding: Iterable[Sequence],
    values: Iterable[int],
    *,
    here: Iterable[int] = (),
    limit: tuple[int, int],
    reach: int | None = None,
    margins: int = 1,
    spare: int = 0,
    stride: int = 0,
) -> Place:
    """Where `own` has to stand.

    `feeding` are the other side's sequences of the columns that it feeds, `values` the extremes of those columns there,
    `here` on its own side; `limit` is what the columns can hold, and `reach` how far the other side could go on (None:
    not known). `margins` is how many are kept: two where the other side cannot be asked, for it began one ahead of all
    that was known here; `spare` is how many more there must be room for, for what is drawn until the turn; `stride` is
    how far apart the values lie that the other side's sequences give.
    """
    feeding = list(feeding)
    others = [s for s in feeding if s.up is own.up]
    end = min(own.maximum, limit[1]) if own.up else max(own.minimum, limit[0])
    steps = [abs(s.increment) for s in others if s.last is not None]
    margin = margins * MARGIN_STEPS * max([abs(own.increment), stride, *steps])
    drawn = [s.last for s in others if s.last is not None]
    if margins > 1 and not drawn:
        drawn = [own.start]  # nothing has come, and anything may have been given
    cycles = any(s.cycle for s in others)
    if own.cycle and cycles:
        return _around(own, drawn, margin, limit)
    used, given = [*drawn, *values], _given_at_most(own, feeding)
    found = _found(own, used, drawn, [*here, *given], given, end=end, margin=margin, asked=margins == 1)
    made = _judged(own, found, used, drawn, end=end, ahead=spare * margin if used else 0, reach=reach)
    if cycles and not made.wrong and any(not _beyond(own, own.end, s.end) for s in others if s.cycle):
        return Place(value=made.value, note="it ends where the other side's starts anew", wrong=True)
    return made


def _given_at_most(own: Sequence, feeding: Iterable[Sequence]) -> list[int]:
    """What the other side's sequences are not past: those that have given nothing, and those that count the other way.

    No margin is kept there: the ones have given nothing, and the others move away.
    """
    edge = max if own.up else min
    return [s.stands if s.last is None else edge(s.start, s.last) for s in feeding if s.last is None or s.up != own.up]


@dataclass(frozen=True, slots=True)
class _Found:
    stands: int  # where the sequence is to be, or is already
    note: str = ""
    tight: bool = False  # no margin is left
    ended: bool = False  # it has nothing left to give


def _found(
    own: Sequence,
    used: list[int],
    drawn: list[int],
    present: list[int],
    given: list[int],
    *,
    end: int,
    margin: int,
    asked: bool,
) -> _Found:
    """The best place there is. `asked`: what the other side has drawn is known from its sequences."""
    rows = "rows with higher values are there, which it will meet"
    close = "it is about to reach its end: no margin is left"
    tries = [(used, margin, present, "", False)]
    if asked:  # a row that nobody drew from the sequence must not end it
        tries.append((drawn, margin, given, rows, False))
    tries += [(used, 0, present, close, True), (drawn, 0, given, f"{close}, and {rows}", True)]
    if not used and not present:
        return _Found(own.stands)
    for known, ahead, also, note, tight in tries:
        if not known and known is not used:
            continue
        wanted = _past(own, known, ahead, also)
        if not _beyond(own, wanted + own.increment, end):
            return _Found(wanted, note, tight)
    return _Found(end, "it is at its end: it can give no value that is free", ended=True)


def _judged(
    own: Sequence, found: _Found, used: list[int], drawn: list[int], *, end: int, ahead: int, reach: int | None
) -> Place:
    """Where both sides end alike, nothing is lost by the turn: wrong is where the other one could go on."""
    wider = reach is not None and _beyond(own, reach, end)
    moved = _beyond(own, found.stands, own.stands)
    value = found.stands if moved else None
    stands = found.stands if moved else own.stands
    room = MARGIN_STEPS * abs(own.increment)
    if found.ended:
        exhausted = bool(drawn) and all(reach is not None and _beyond(own, d + own.increment, reach) for d in drawn)
        needs = _on(own, (max if own.up else min)([*(drawn or used), end]), ahead + room)
        return Place(value=value, note=found.note, wrong=wider or not exhausted, needs=needs)
    if wider and (found.tight or _beyond(own, _on(own, stands, ahead), end)):
        note = found.note or "it is about to reach its end"
        return Place(value=value, note=note, wrong=True, needs=_on(own, stands, ahead + room))
    return Place(value=value, note=found.note if moved or found.tight else "")


def _beyond(own: Sequence, value: int, edge: int) -> bool:
    """Whether `value` lies past `edge` in the direction in which `own` counts."""
    return value > edge if own.up else value < edge


def _on(own: Sequence, value: int, ahead: int) -> int:
    return value + abs(ahead) if own.up else value - abs(ahead)


def _past(own: Sequence, known: list[int], ahead: int, also: list[int]) -> int:
    """The nearest value of the sequence's own steps that is `ahead` of all that is known, and past `also`.

    Never behind where it stands. At least one of both lists holds something.
    """
    edges = [*(_on(own, k, ahead) for k in known), *also, own.stands]
    edge = max(edges) if own.up else min(edges)
    step = abs(own.increment)
    if own.up:
        return edge + (own.stands - edge) % step
    return edge - (edge - own.stands) % step


def _around(own: Sequence, drawn: list[int], margin: int, limit: tuple[int, int]) -> Place:
    """A sequence that starts anew at its end goes on where the other one stands, wherever its rows are."""
    low, high = max(own.minimum, limit[0]), min(own.maximum, limit[1])
    if not drawn:
        return Place(value=None)
    reach = high - low + 1
    ahead = min(margin, reach // 2)
    edge = max(drawn) if own.up else min(drawn)
    if not low <= edge <= high:
        return Place(value=None, note="the other side's stands outside of what this one gives", wrong=True, needs=edge)
    wanted = edge + (ahead if own.up else -ahead)
    return Place(value=low + (wanted - low) % reach)
