"""`status --json`: the one document about a migration that people, scripts and alerts read.

Invariant: unknown is null, never 0; `writes` is read from the two turn rows and nothing else; a side that does not
answer takes away what only it knows, and is named under `errors`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from connectors.postgres import control
from schemas.direction import Direction, Side
from schemas.errors import Outdated, SlackwaterError
from schemas.position import format_lsn
from schemas.remedy import throughout
from schemas.spec import Spec
from stream.gates import Facts, Gate, State, Stream, judge, safe
from stream.gates.slow_facts import Circumstances
from stream.migration.pauses import Pause
from stream.migration.phases import Phase
from stream.monitoring.clock import now, rfc3339
from stream.monitoring.heartbeat import Beat
from stream.monitoring.lag import Lag, Stuck, Tracker, state_of
from stream.monitoring.sessions import Sides
from stream.monitoring.views import SourceView, TargetView
from stream.status import facts as gather
from stream.status.survey import Document, NewLook, SideLook, look, look_at_new

ENDING = {Phase.CANCELLED.value: "cancel", Phase.FINALIZED.value: "finalize"}
"""Phases that are only seen while the verb is at work, or was killed: what goes on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look: the document that `status` prints, and the facts that its gates were judged by."""

    document: Document
    facts: Facts
    gates: Mapping[Direction, list[Gate]]  # of both turns; empty before `prepare`


class Watch:
    """Looks at a migration again and again; `document` is what `status` prints. Keeps each direction's probes."""

    def __init__(self, spec: Spec, sides: Sides) -> None:
        self._spec = spec
        self._sides = sides
        self.trackers = {d: Tracker() for d in Direction}
        self.circumstances = Circumstances(spec, sides)
        self._since: dict[tuple[Direction, str], tuple[State, str]] = {}
        self._lock = threading.Lock()

    def document(self) -> Document:
        """One look at everything. Takes up to a few seconds where a side does not answer."""
        return self.look().document

    def look(self) -> Seen:
        """One look at everything, with what a turn's gates are judged by."""
        with self._lock:
            return self._look()

    def _look(self) -> Seen:
        spec, migration = self._spec, self._spec.migration
        new = self._sides.attempt(Side.NEW, lambda conn: look_at_new(conn, migration))
        home = None if isinstance(new, SlackwaterError) else new
        document = None if home is None else home.prepared
        looks = {s: self._sides.attempt(s, partial(look, spec=spec, side=s, document=document)) for s in Side}
        streams, directions = self._directions(looks, home)
        turns = {s: None if isinstance(found, SlackwaterError) else found.turn for s, found in looks.items()}
        turn, writes = current_turn(turns, looks), who_writes(turns, looks)
        facts = self.circumstances.add(gather.facts(spec, looks, home, streams, turn), document)
        gates = {} if document is None else {d: judge(facts, spec, d) for d in Direction}
        self._remember(home, gates)
        ahead = Direction.REVERSE if writes == Side.NEW else Direction.FORWARD
        shown = gates.get(ahead, [])
        found: Document = {
            "migration": migration,
            "phase": None if home is None else home.phase.value,
            "writes": writes,
            "turn": turn,
            "at": rfc3339(facts.at),
            "directions": directions,
            "backfill": _backfill(home, looks[Side.NEW]),
            "verification": {d.value: _verification(s) for d, s in streams.items()} if document else {},
            "quarantine": {"rows": _sum(s.quarantined for s in streams.values())},
            "reread": {"rows": _sum(s.rereads for s in streams.values())},
            "foreign_writes": {"rows": facts.foreign_writes},
            **self._gates(shown, ahead),
            "safe_to_cutover": None if home is None else home.phase is Phase.ARMED and _safe(gates, Direction.FORWARD),
            "safe_to_rollback": _safe(gates, Direction.REVERSE) if home and home.phase is Phase.SWITCHED else None,
            "cutover": _turned(home),
            "switching": _switching(home, writes),
            "errors": _errors({**looks, Side.NEW: new if isinstance(new, SlackwaterError) else looks[Side.NEW]}),
        }
        outdated = any(isinstance(answer, Outdated) for answer in (new, *looks.values()))
        found["next"] = f"{spec.command} upgrade" if outdated else _next(found, shown, spec)
        found = throughout(found, spec.command)
        return Seen(document=found, facts=facts, gates=gates)

    def reconfigure(self, spec: Spec) -> None:
        """Thresholds from the file as it is now."""
        with self._lock:
            self._spec = spec
            self.circumstances.reconfigure(spec)

    def gate_documents(self, gates: Iterable[Gate], direction: Direction) -> Document:
        """Gates as `status` and `gates` print them: `gates`, and beside them those that the file switches off."""
        with self._lock:
            found: Document = throughout(self._gates(gates, direction), self._spec.command)
            return found

    def _remember(self, home: NewLook | None, gates: Mapping[Direction, list[Gate]]) -> None:
        """Since when gates are as they are: as new keeps it where it is so still, else since we saw it."""
        kept = {} if home is None else home.since
        for direction, judged in gates.items():
            for gate in judged:
                key = direction, gate.gate
                before = self._since.get(key)
                if key in kept and kept[key][0] is gate.state:
                    self._since[key] = (gate.state, rfc3339(kept[key][1]))
                elif before is None or before[0] is not gate.state:
                    self._since[key] = (gate.state, rfc3339(now()))

    def _gates(self, gates: Iterable[Gate], direction: Direction) -> Document:
        found: Document = {"gates": [], "gates_off": []}
        for gate in gates:
            shown = {**asdict(gate), "state": gate.state.value, "since": self._since[direction, gate.gate][1]}
            del shown["wrong"]  # the words `safe` and `safe_to_rollback` say that
            found["gates_off" if shown.pop("off") else "gates"].append(shown)
        return found

    def _directions(
        self, looks: Mapping[Side, SideLook | SlackwaterError], home: NewLook | None
    ) -> tuple[dict[Direction, Stream], dict[str, Document]]:
        """The directions that were prepared; forward always."""
        documents: dict[str, Document] = {}
        streams: dict[Direction, Stream] = {}
        reverse = home is not None and home.prepared is not None and home.prepared.reverse is not None
        for direction in Direction:
            if direction is Direction.REVERSE and not reverse:
                continue
            from_, to = looks[direction.source], looks[direction.target]
            source = from_ if isinstance(from_, SlackwaterError) else from_.sources.get(direction)
            target = to if isinstance(to, SlackwaterError) else to.targets.get(direction)
            lag, stuck, documents[direction.value] = self._direction(direction, source, target, home)
            streams[direction] = gather.stream(direction, looks, lag, stuck, source, target)
            documents[direction.value]["canary_age_seconds"] = streams[direction].canary_age_s
        return streams, documents

    def _direction(
        self,
        direction: Direction,
        source: SourceView | SlackwaterError | None,
        target: TargetView | SlackwaterError | None,
        home: NewLook | None,
    ) -> tuple[Lag, Stuck | None, Document]:
        tracker = self.trackers[direction]
        seen = None if isinstance(source, SlackwaterError) else source
        held = None if isinstance(target, SlackwaterError) else target
        if held is not None and held.apply is not None:
            tracker.remember(held.apply.figures.get("lag"))
        tracker.seen(seen, held)
        # Where the source does not answer, its clock is taken to be ours: the lag goes on growing.
        at = now().timestamp() if seen is None else seen.at
        lag = tracker.lag(at)
        how, stuck = state_of(source, target)
        stuck = stuck or tracker.stuck(at)
        pause = None if home is None else home.pauses.get("apply")
        return lag, stuck, _direction_document(how, lag, stuck, seen, held, pause)


def _direction_document(
    how: str, lag: Lag, stuck: Stuck | None, source: SourceView | None, target: TargetView | None, pause: Pause | None
) -> Document:
    capture = source.capture if source else None
    apply = target.apply if target else None
    slot = source.slot if source else None
    errors = [b for b in (capture, apply) if b is not None and b.last_error is not None]
    errors.sort(key=lambda b: (b.state == "halted", b.seen_at))
    return {
        "state": how,
        "lag_seconds": None if lag.seconds is None else round(lag.seconds, 3),
        "lag_bytes": lag.bytes,
        "freshness_seconds": None if lag.freshness_s is None else round(lag.freshness_s, 3),
        "source_lsn": None if source is None else format_lsn(source.insert_lsn),
        "applied_lsn": None if lag.applied_lsn is None else format_lsn(lag.applied_lsn),
        "epoch": None if target is None else target.epoch,
        "rows_per_second": None if target is None else target.rows_per_second,
        "capture": role_document(capture),
        "apply": role_document(apply),
        "slot": None
        if slot is None
        else {
            "name": slot.name,
            "active": slot.active,
            "retained_bytes": slot.retained_bytes,
            "wal_status": slot.wal_status,
            "safe_bytes": slot.safe_bytes,
        },
        "stuck": None if stuck is None else {"stage": stuck.stage, "cause": stuck.cause},
        "paused": pause_document(pause),
        "last_error": dict(errors[-1].last_error or {}) if errors else None,
    }


def role_document(beat: Beat | None) -> Document | None:
    """A role's heartbeat; `dead` is the state of one that was not heard of for too long."""
    if beat is None:
        return None
    return {
        "state": beat.seen_state,
        "reason": beat.reason or beat.figures.get("waits_for"),
        "pid": beat.pid,
        "host": beat.host,
        "seen_at": rfc3339(beat.seen_at),
        "http": beat.figures.get("http"),
    }


def pause_document(pause: Pause | None) -> Document | None:
    return None if pause is None else {"reason": pause.reason, "by": pause.by, "at": rfc3339(pause.at)}


def who_writes(turns: Mapping[Side, control.Turn | None], looks: Mapping[Side, object]) -> str | None:
    """old, new or none, from the two turn rows; None where they do not tell, or there is neither."""
    opened = [side for side, turn in turns.items() if turn is not None and turn.open]
    if any(_failed(found) for found in looks.values()):
        # The invariant is that at most one side is open: one that is seen to be open is the one.
        return opened[0].value if len(opened) == 1 else None
    if not any(turns.values()):
        return None  # before `prepare` it is old, after `finalize` perhaps new: nothing here tells the two apart
    if not opened and turns[Side.OLD] is None:
        return Side.OLD.value  # an end was killed half-way: nothing of ours is in the way on old
    return {0: "none", 1: opened[0].value if opened else None}.get(len(opened))


def current_turn(turns: Mapping[Side, control.Turn | None], looks: Mapping[Side, object]) -> int | None:
    """The newest turn that a side was opened for; None where a side does not answer, or neither has a turn row."""
    if any(_failed(found) for found in looks.values()) or not any(turns.values()):
        return None
    return max([0, *(turn.open_turn for turn in turns.values() if turn is not None)])


def _errors(answers: Mapping[Side, object]) -> Document:
    """Per side, why there is no answer."""
    failed = {side.value: answer for side, answer in answers.items() if isinstance(answer, SlackwaterError)}
    return {side: {"cause": error.cause, "remedy": error.hint} for side, error in failed.items()}


def _failed(found: object) -> bool:
    return isinstance(found, SlackwaterError)


def _verification(stream: Stream) -> Document | None:
    """A direction's verdicts; None where they are not known."""
    found = stream.verification
    if found is None:
        return None
    return {
        "state": found.state.value,
        "at": None if found.at is None else rfc3339(found.at),
        "age_seconds": found.age_s,
        "mismatched": found.mismatched,
        "tables": {
            name: {
                "state": table.state.value,
                "at": None if table.at is None else rfc3339(table.at),
                "rows": table.rows,
                "mismatched": table.mismatched,
                "unrepresented": {n: u.rows for n, u in table.unrepresented.items()},
                "running": table.running,
                "problem": table.problem,
                "uncompared": table.uncompared,
                "void": None if table.void is None else table.void.document(),
            }
            for name, table in found.tables.items()
        },
    }


def _sum(counts: Iterable[int | None]) -> int | None:
    """None where one of them is not known, or there is none."""
    known = list(counts)
    return sum(n for n in known if n is not None) if known and None not in known else None


def _safe(gates: Mapping[Direction, list[Gate]], direction: Direction) -> bool:
    return safe(gates.get(direction, []))


def _backfill(home: NewLook | None, new: SideLook | SlackwaterError) -> Document:
    if home is None or isinstance(new, SlackwaterError):
        return {"state": None, "paused": None, "tables": {}, "role": None}
    target = new.targets.get(Direction.FORWARD)
    beat = target.backfill if target is not None else None
    states = {str(load["state"]) for load in home.loads.values()}
    pause = home.pauses.get("backfill")
    if not states:
        how = "pending" if home.prepared is None else "done"
    elif states == {"done"}:
        how = "done"
    elif pause is not None:
        how = "paused"
    elif beat is None or not beat.alive:
        how = "pending" if states <= {"pending", "asleep"} else "stopped"
    else:
        how = beat.state
    left = [load["seconds_left"] for load in home.loads.values()]
    return {
        "state": how,
        "reason": None if beat is None or how in ("done", "running") else beat.reason,
        "paused": pause_document(pause),
        "seconds_left": None if None in left else max(left, default=None if home.prepared is None else 0.0),
        "role": role_document(beat),
        "last_error": None if beat is None or beat.last_error is None else dict(beat.last_error),
        "tables": dict(home.loads),
    }


def _turned(home: NewLook | None) -> Document:
    """The last turn that came to its end."""
    last = None if home is None else home.turned
    if last is None:
        return {"at": None, "pause_seconds": None, "verb": None, "turn": None}
    return {"at": rfc3339(last.at), "pause_seconds": last.pause_s, "verb": last.verb, "turn": last.turn}


def _switching(home: NewLook | None, writes: str | None) -> Document | None:
    """A turn that has begun and has not come to its end: it is at work, or died. The same verb finishes it."""
    if home is None or not (home.phase is Phase.SWITCHING or writes == "none"):
        return None
    begun = home.begun
    if begun is None or begun.outcome != "intent":
        return {"verb": "cutover", "turn": None, "since": None, "by": None}
    return {"verb": begun.verb, "turn": begun.turn, "since": rfc3339(begun.at), "by": f"{begun.actor} ({begun.host})"}


def _next(document: Document, gates: list[Gate], spec: Spec) -> str | None:
    """The one command that helps most now; None when there is nothing to do but let it run."""
    c = spec.command
    if document["phase"] is None or document["errors"]:
        return None
    if document["phase"] == Phase.PLANNED.value:
        return f"{c} prepare"
    if document["phase"] in ENDING:
        return f"{c} {ENDING[document['phase']]}"
    if document["switching"] is not None:
        return f"{c} {document['switching']['verb']}"
    for direction, verified in document["verification"].items():
        if verified is not None and any(table["uncompared"] for table in verified["tables"].values()):
            return f"{c} verify" + ("" if direction == Direction.FORWARD.value else f" --direction {direction}")
    failing = [g for g in gates if g.stops and g.remedy and g.remedy.startswith(c)]
    return failing[0].remedy if failing else None
