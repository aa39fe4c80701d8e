"""What must hold before writes may move. Pure: facts in, gates out.

Invariant: unknown counts as failed, and a gate whose facts are missing is unknown, never passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from schemas.spec import Spec
from stream.heartbeat import Beat
from stream.lag import Lag, Stuck, describe
from stream.observe import SlotView, SourceView, TargetView


class State(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition. `detail` says what was found; `remedy` what to do when it does not pass."""

    gate: str
    state: State
    detail: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the gates are judged by, read within one look. None: unknown."""

    lag: Lag | None
    stuck: Stuck | None
    source: SourceView | None
    target: TargetView | None
    loads: Mapping[str, str] | None  # load -> state
    quarantined: int | None
    rereads: int | None
    strangers: tuple[str, ...] | None  # old tables and columns that prepare did not see
    unfenced: tuple[str, ...] | None  # relations of new without their fence
    armed: bool | None


def judge(facts: Facts, spec: Spec) -> list[Gate]:
    """Every gate there is, in the order in which a person would see to them."""
    c = f"slackwater -c {spec.path.name if spec.path else 'migration.yaml'}"
    return [
        _roles(facts, c),
        _backfill(facts, c),
        _lag(facts, spec, c),
        _count("quarantine", facts.quarantined, "rows could not be applied", f"{c} quarantine list"),
        _count("reread", facts.rereads, "rows wait to be read again", "they are read again by themselves; see status"),
        _named("unmapped_columns", facts.strangers, "nothing reads", f"map or exclude them, then {c} prepare"),
        _named("fence", facts.unfenced, "no fence on", f"{c} prepare"),
        _slot(facts.source.slot if facts.source else None, known=facts.source is not None),
        _armed(facts),
    ]


def all_passed(gates: Iterable[Gate]) -> bool:
    return all(g.state is State.PASSED for g in gates)


def _roles(facts: Facts, c: str) -> Gate:
    if facts.source is None or facts.target is None:
        return Gate(gate="roles", state=State.UNKNOWN, detail="a side does not answer", remedy=f"{c} status")
    beats = {"capture": facts.source.capture, "apply": facts.target.apply}
    if facts.loads is None or any(state != "done" for state in facts.loads.values()):
        beats["backfill"] = facts.target.backfill
    for bad in ("dead", "halted", "idle"):
        found = [describe(role, b) for role, b in beats.items() if _standing(b) == bad]
        if found:
            remedy = f"{c} run" if bad == "dead" else f"{c} status"
            return Gate(gate="roles", state=State.FAILED, detail="; ".join(found), remedy=remedy)
    return Gate(gate="roles", state=State.PASSED, detail=f"{' and '.join(beats)} run")


def _standing(beat: Beat | None) -> str:
    if beat is None or not beat.alive:
        return "dead"
    if beat.state == "halted":
        return "halted"
    # Backfill holds back on purpose, and says why: that is its work.
    return "running" if beat.state == "running" or (beat.role == "backfill" and beat.state == "paused") else "idle"


def _backfill(facts: Facts, c: str) -> Gate:
    if facts.loads is None:
        return Gate(gate="backfill", state=State.UNKNOWN, detail="new does not answer", remedy=f"{c} status")
    open_ = [name for name, state in facts.loads.items() if state != "done"]
    if open_:
        detail = f"{len(open_)} of {len(facts.loads)} not done: {_list(open_)}"
        return Gate(gate="backfill", state=State.FAILED, detail=detail, remedy=f"{c} wait --for phase=streaming")
    return Gate(gate="backfill", state=State.PASSED, detail=f"{len(facts.loads)} of {len(facts.loads)} done")


def _lag(facts: Facts, spec: Spec, c: str) -> Gate:
    limit = spec.cutover.max_lag_s
    if facts.lag is None or facts.lag.seconds is None or facts.lag.freshness_s is None:
        return Gate(gate="lag", state=State.UNKNOWN, detail="the lag is not known", remedy=f"{c} status")
    # A low lag that was known long ago says nothing about now.
    worst = max(facts.lag.seconds, facts.lag.freshness_s)
    cause = f": {facts.stuck.cause}" if facts.stuck else ""
    if worst > limit:
        detail = f"{worst:.1f} s, more than {limit:g} s{cause}"
        return Gate(gate="lag", state=State.FAILED, detail=detail, remedy=f"{c} status --watch")
    return Gate(
        gate="lag", state=State.PASSED, detail=f"{facts.lag.seconds:.1f} s, known {facts.lag.freshness_s:.1f} s ago"
    )


def _count(name: str, rows: int | None, what: str, remedy: str) -> Gate:
    if rows is None:
        return Gate(gate=name, state=State.UNKNOWN, detail="new does not answer", remedy=remedy)
    if rows:
        return Gate(gate=name, state=State.FAILED, detail=f"{rows} {what}", remedy=remedy)
    return Gate(gate=name, state=State.PASSED, detail=f"0 {what}")


def _named(name: str, found: tuple[str, ...] | None, what: str, remedy: str) -> Gate:
    if found is None:
        return Gate(gate=name, state=State.UNKNOWN, detail="a side does not answer", remedy=remedy)
    if found:
        return Gate(gate=name, state=State.FAILED, detail=f"{what} {_list(found)}", remedy=remedy)
    return Gate(gate=name, state=State.PASSED, detail="none missing" if name == "fence" else "none")


def _slot(slot: SlotView | None, *, known: bool) -> Gate:
    remedy = "raise max_slot_wal_keep_size, or see what holds capture up: its WAL stays on the source's disk"
    if slot is None:
        if known:
            lost = "slackwater cancel, then prepare anew: what was written since the slot went is in no stream"
            return Gate(gate="slot_headroom", state=State.FAILED, detail="the slot is gone", remedy=lost)
        return Gate(gate="slot_headroom", state=State.UNKNOWN, detail="old does not answer", remedy=remedy)
    if slot.wal_status not in ("reserved", "extended"):
        detail = f"slot {slot.name} is {slot.wal_status or 'in an unknown state'}"
        return Gate(gate="slot_headroom", state=State.FAILED, detail=detail, remedy=remedy)
    retained = slot.retained_bytes or 0
    if slot.safe_bytes is not None and slot.safe_bytes < retained:
        detail = f"{slot.safe_bytes} bytes of WAL until slot {slot.name} is lost, and {retained} are held already"
        return Gate(gate="slot_headroom", state=State.FAILED, detail=detail, remedy=remedy)
    return Gate(gate="slot_headroom", state=State.PASSED, detail=f"{retained} bytes of WAL held back")


def _armed(facts: Facts) -> Gate:
    if facts.armed is None:
        return Gate(gate="armed", state=State.UNKNOWN, detail="new does not answer")
    if facts.armed:
        return Gate(gate="armed", state=State.PASSED, detail="the reverse direction runs")
    remedy = "the way back is built by a later version of slackwater; until then keep streaming"
    return Gate(gate="armed", state=State.FAILED, detail="the reverse direction is not armed", remedy=remedy)


def _list(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
