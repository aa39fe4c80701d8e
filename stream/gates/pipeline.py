"""Gates on the stream itself: who runs, what is loaded, how far behind, what was set aside, how long the WAL lasts."""

from __future__ import annotations

from schemas.direction import Direction
from schemas.spec import Spec
from stream.gates.facts import Facts, Stream
from stream.gates.gate import Gate, failed, listed, passed, unknown
from stream.monitoring.heartbeat import Beat
from stream.monitoring.lag import describe
from stream.monitoring.views import SlotView

GIGABYTE = 1 << 30


def prepared(facts: Facts, c: str) -> Gate:
    if facts.same_file is None:
        return unknown("prepared", "new does not answer", f"{c} status")
    if not facts.same_file:
        detail = "the file's mappings are not the ones that were prepared"
        return failed("prepared", detail, f"{c} prepare")
    return passed("prepared", "the file is the one that was prepared")


def roles(facts: Facts, direction: Direction, c: str) -> Gate:
    stream = facts.streams.get(direction)
    if stream is None:
        return failed("roles", f"the {direction} direction is not armed", f"{c} arm")
    if stream.source is None or stream.target is None:
        return unknown("roles", "a side does not answer", f"{c} status")
    beats = {"capture": stream.source.capture, "apply": stream.target.apply}
    if direction is Direction.FORWARD and (facts.loads is None or any(s != "done" for s in facts.loads.values())):
        beats["backfill"] = stream.target.backfill
    for bad in ("dead", "halted", "idle"):
        found = [describe(role, b) for role, b in beats.items() if _standing(b) == bad]
        if found:
            return failed("roles", "; ".join(found), f"{c} run" if bad == "dead" else f"{c} status")
    return passed("roles", f"{' and '.join(beats)} run")


def _standing(beat: Beat | None) -> str:
    if beat is None or not beat.alive:
        return "dead"
    if beat.state == "halted":
        return "halted"
    # Backfill holds back on purpose, and says why: that is its work.
    return "running" if beat.state == "running" or (beat.role == "backfill" and beat.state == "paused") else "idle"


def backfill(facts: Facts, c: str) -> Gate:
    if facts.loads is None:
        return unknown("backfill", "new does not answer", f"{c} status")
    open_ = [name for name, state in facts.loads.items() if state != "done"]
    if open_:
        detail = f"{len(open_)} of {len(facts.loads)} not done: {listed(open_)}"
        return failed("backfill", detail, f"{c} wait --for phase=streaming")
    return passed("backfill", f"{len(facts.loads)} of {len(facts.loads)} done")


def lag(stream: Stream, spec: Spec, c: str) -> Gate:
    limit, found = spec.cutover.max_lag_s, stream.lag
    if found is None or found.seconds is None or found.freshness_s is None:
        return unknown("lag", "the lag is not known", f"{c} status")
    # A low lag that was known long ago says nothing about now.
    worst = max(found.seconds, found.freshness_s)
    if worst > limit:
        cause = f": {stream.stuck.cause}" if stream.stuck else ""
        return failed("lag", f"{worst:.1f} s, more than {limit:g} s{cause}", f"{c} status --watch")
    return passed("lag", f"{found.seconds:.1f} s, known {found.freshness_s:.1f} s ago")


def quarantine(rows: int | None, c: str, *, back: bool = False) -> Gate:
    """`back`: those that there are, are of the way back."""
    of = " --direction reverse" if back else ""
    return _count("quarantine", rows, "rows could not be applied", f"{c} quarantine list{of}")


def reread(rows: int | None) -> Gate:
    return _count("reread", rows, "rows wait to be read again", "they are read again by themselves; see status")


def _count(name: str, rows: int | None, what: str, remedy: str) -> Gate:
    if rows is None:
        return unknown(name, "the side that holds them does not answer", remedy)
    return failed(name, f"{rows} {what}", remedy) if rows else passed(name, f"0 {what}")


def slot_headroom(facts: Facts, spec: Spec) -> Gate:
    """Of every slot that there is; the worst one speaks."""
    found = [_slot(direction, stream, spec) for direction, stream in facts.streams.items()]
    if not found:
        return unknown("slot_headroom", "no side answers")
    bad = [g for g in found if g.stops]
    if bad:
        return min(bad, key=lambda g: g.state)  # failed before unknown
    return found[0] if len(found) == 1 else passed("slot_headroom", "; ".join(g.detail for g in found))


def _slot(direction: Direction, stream: Stream, spec: Spec) -> Gate:
    remedy = "raise max_slot_wal_keep_size, or see what holds capture up: its WAL stays on the source's disk"
    slot: SlotView | None = stream.source.slot if stream.source else None
    if slot is None:
        if stream.source is None:
            return unknown("slot_headroom", f"{direction.source} does not answer", remedy)
        lost = "slackwater cancel, then prepare anew: what was written since the slot went is in no stream"
        return failed("slot_headroom", f"the slot on {direction.source} is gone", lost)
    if slot.wal_status not in ("reserved", "extended"):
        return failed("slot_headroom", f"slot {slot.name} is {slot.wal_status or 'in an unknown state'}", remedy)
    retained = slot.retained_bytes or 0
    least = spec.cutover.gates.slot_headroom.min_bytes
    if slot.safe_bytes is not None and slot.safe_bytes < (retained if least is None else least):
        asked = (
            f"and {_size(retained)} are held already" if least is None else f"less than the {_size(least)} asked for"
        )
        detail = f"{_size(slot.safe_bytes)} of WAL until slot {slot.name} is lost, {asked}"
        return failed("slot_headroom", detail, remedy)
    left = "" if slot.safe_bytes is None else f", {_size(slot.safe_bytes)} until it is lost"
    return passed("slot_headroom", f"{slot.name} holds back {_size(retained)} of WAL{left}")


def _size(value: int) -> str:
    return f"{value / GIGABYTE:.1f} GB" if value >= GIGABYTE else f"{value / 1024:,.0f} kB"
