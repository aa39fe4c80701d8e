"""Facts, from what one look at both sides has found."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.direction import Direction, Side
from schemas.errors import SlackwaterError
from schemas.spec import Spec
from stream.gates.facts import Facts, Stream
from stream.monitoring.clock import now
from stream.monitoring.lag import Lag, Stuck
from stream.monitoring.views import SourceView, TargetView
from stream.status.survey import NewLook, SideLook

Looks = Mapping[Side, SideLook | SlackwaterError]


def facts(
    spec: Spec, looks: Looks, home: NewLook | None, streams: Mapping[Direction, Stream], turn: int | None
) -> Facts:
    """Everything but the circumstances. `home` is None where new does not answer."""
    document = None if home is None else home.prepared
    return Facts(
        at=now(),
        phase=None if home is None else home.phase,
        turn=turn,
        same_file=None if document is None else document.fingerprint == spec.fingerprint,
        streams=streams,
        loads=None if home is None else {name: str(load["state"]) for name, load in home.loads.items()},
        strangers=_strangers(looks[Side.OLD], home, Direction.FORWARD),
        new_strangers=_strangers(looks[Side.NEW], home, Direction.REVERSE),
        foreign_writes=_foreign(looks),
    )


def stream(
    direction: Direction,
    looks: Looks,
    lag: Lag,
    stuck: Stuck | None,
    source: SourceView | SlackwaterError | None,
    target: TargetView | SlackwaterError | None,
) -> Stream:
    written = looks[direction.target]
    side = None if isinstance(written, SlackwaterError) else written
    return Stream(
        lag=lag,
        stuck=stuck,
        source=None if isinstance(source, SlackwaterError) else source,
        target=None if isinstance(target, SlackwaterError) else target,
        quarantined=None if side is None else side.quarantined,
        rereads=None if side is None else side.rereads,
        unfenced=None if side is None else side.unfenced,
        canary_at=None if side is None else side.canary_at,
        verification=None if side is None else side.verification,
    )


def _foreign(looks: Looks) -> int | None:
    counts = [None if isinstance(found, SlackwaterError) else found.foreign_writes for found in looks.values()]
    return None if None in counts else sum(n for n in counts if n is not None)


def _strangers(side: SideLook | SlackwaterError, home: NewLook | None, direction: Direction) -> tuple[str, ...] | None:
    """Tables and columns of a source that were made since `prepare`: nobody decided what becomes of them."""
    if isinstance(side, SlackwaterError) or home is None or home.prepared is None:
        return None
    if direction is Direction.REVERSE and home.prepared.reverse is None:
        return None
    known = home.prepared.tables(direction)[0]
    found = [f"table {name}" for name in side.tables if name not in known]
    for name in home.prepared.flow(direction).streamed:
        if name in known and name in side.tables:
            found += [f"column {name}.{c}" for c in sorted(side.tables[name] - set(known[name].column_names))]
    return tuple(sorted(found))
