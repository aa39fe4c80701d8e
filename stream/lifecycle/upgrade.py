"""`upgrade`: a migration that another version of slackwater prepared is made one of this version's.

Invariants: nothing is changed while anybody of an older version is at work; each side is changed in one transaction,
old's first, so one that was killed is completed by the next; new's document, by which roles and verbs begin, comes
last. What the older version compared counts for nothing: its judge may have been blind where this one sees.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from connectors.failpoint import failpoint
from connectors.postgres import busy, catalog, control, control_version, session
from connectors.postgres.session import Connection
from connectors.postgres.void import void
from schemas import control_steps
from schemas.direction import Direction, Side
from schemas.errors import Contended, PrivilegeMissing, Refused
from schemas.resolve import resolve
from schemas.spec import Spec
from stream.lifecycle import build
from stream.lifecycle.difference import wanted_loads
from stream.migration import prepared_steps
from stream.migration.journal import Actor, append
from stream.migration.paths import in_force
from stream.migration.prepared import Flow, Prepared, plan_of
from stream.migration.prepared_steps import Document
from stream.preflight import bindings

PATIENCE_S = 30.0  # how long a control table may be held by others
LOCK_MS = 500  # writers of the application read `turn` and `route`: they never wait behind us for longer

Loads = Mapping[str, str]
"""Load -> fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`result`: done, already, or ready (a dry run). `steps` are sentences; `versions` is "old", "new" or "document"
    -> (from, to); `others` are the migrations that share a control schema which was upgraded."""

    result: str
    versions: Mapping[str, tuple[int, int]]
    steps: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Found:
    """What is there, on the sides that are looked at. `control`: a side's version, None where there is no control
    schema. `one`: both sides live in one database."""

    conns: Mapping[Side, Connection]
    control: Mapping[Side, int | None]
    document: Document | None
    spare: Document | None
    one: bool
    made: str | None = None  # the document as this version writes it
    made_spare: str | None = None
    loads: dict[Direction, Loads] = field(default_factory=dict)

    def outdated(self, sides: Collection[Side]) -> bool:
        """Whether the control schema of these sides, which live in one database, is an older one."""
        return any(self.control[side] not in (None, control_steps.VERSION) for side in sides)

    @property
    def versions(self) -> dict[str, tuple[int, int]]:
        """What has another version than this program's."""
        found = {side.value: (v, control_steps.VERSION) for side, v in self.control.items() if v is not None}
        if self.documents:
            found["document"] = (min(map(prepared_steps.version, self.documents)), prepared_steps.VERSION)
        return {what: (then, now) for what, (then, now) in found.items() if then != now}

    @property
    def documents(self) -> list[Document]:
        return [document for document in (self.document, self.spare) if document is not None]

    @property
    def places(self) -> list[tuple[Connection, frozenset[Side]]]:
        """Each database and the sides in it, old's first."""
        if self.one:
            return [(self.conns[Side.NEW], frozenset(Side))]
        return [(self.conns[side], frozenset({side})) for side in Side if side in self.conns]


def upgrade(
    spec: Spec,
    *,
    actor: Callable[[Connection], Actor],
    say: Callable[[str], None],
    only: Side | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Bring both control schemas and the prepared document to this version, or say what would be done.

    `only` one side, while the other one is dead: as much as a failover to it needs; the rest is for when that is back.
    Errors: Refused with every reason while somebody is at work, and where this version does not take the mappings as
    they are; OtherVersion when a newer slackwater was here; PrivilegeMissing; Unavailable when a side does not answer.
    """
    with ExitStack() as stack:
        conns = {
            side: stack.enter_context(session.connect(str(at.dsn), application="slackwater upgrade"))
            for side, at in ((Side.OLD, spec.old), (Side.NEW, spec.new))
            if only in (None, side)
        }
        home = conns[only or Side.NEW]
        stack.enter_context(build.alone(home, spec.migration))
        found = _look(spec, conns)
        versions = found.versions
        if not versions:
            return Outcome(result="already", versions={})
        _may(spec, found)
        if only is None:
            _read_again(spec, found)
        else:
            _read_half(spec, found, only)
        steps = _steps(found)
        others = _others(spec, found)
        if dry_run:
            return Outcome(result="ready", versions=versions, steps=steps, others=others)
        _write(spec, found, actor(home), say)
    return Outcome(result="done", versions=versions, steps=steps, others=others)


def _look(spec: Spec, conns: Mapping[Side, Connection]) -> _Found:
    """What each side holds. Errors: OtherVersion, where it is newer; Refused, where there is nothing."""
    versions = {side: control_version.of(conn) for side, conn in conns.items()}
    for side, version in versions.items():
        if version is not None:
            control_version.not_newer(conns[side], version)
            if version < control_steps.VERSION:
                _assert_owner(conns[side], side)
    if all(version is None for version in versions.values()):
        raise Refused(
            f"migration {spec.migration} is not prepared: there is nothing to upgrade", hint="slackwater prepare"
        )
    there = {side: conn for side, conn in conns.items() if versions[side] is not None}
    document = control_version.document(there[Side.NEW], spec.migration) if Side.NEW in there else None
    spare = control_version.spare(there[Side.OLD], spec.migration) if Side.OLD in there else None
    for kept in (document, spare):
        if kept is not None:
            prepared_steps.assert_not_newer(kept)
    identities = {catalog.server(conn).identity for conn in conns.values()}
    one = len(identities) == 1 and len(conns) == 2
    return _Found(conns=conns, control=versions, document=document, spare=spare, one=one)


def _may(spec: Spec, found: _Found) -> None:
    """Refused while a role or a verb that does not know this version is at work, of whichever migration."""
    at_work: list[busy.Busy] = []
    for conn, sides in found.places:
        if found.control[next(iter(sides))] is None:
            continue
        roles = busy.roles(conn)
        if found.outdated(sides):
            at_work += roles or busy.sessions(conn)
            at_work += busy.verbs(conn, [name for name in busy.migrations(conn) if name != spec.migration])
        else:  # those of other migrations are of this version already
            at_work += [one for one in roles if one.migration == spec.migration]
    if at_work:
        raise Refused(
            "programs that do not know this version are at work",
            reasons=tuple(dict.fromkeys(_named(spec, one) for one in at_work)),
            hint="stop them (Ctrl-C or SIGTERM ends a role at an epoch's end), those of other migrations in the same"
            " database too; then run `slackwater upgrade` again. The slots and Kafka hold everything meanwhile",
        )


def _named(spec: Spec, one: busy.Busy) -> str:
    return one.who if one.migration in (None, spec.migration) else f"migration {one.migration}: {one.who}"


def _assert_owner(conn: Connection, side: Side) -> None:
    """Who made the control schema, or a member of that role, upgrades it."""
    theirs = control_version.not_owned(conn)
    if theirs:
        listed = ", ".join(theirs[:5]) + (f" and {len(theirs) - 5} more" if len(theirs) > 5 else "")
        raise PrivilegeMissing(
            f"this login may not alter the control schema on {side}: {listed}",
            hint="run `slackwater upgrade` with the login that ran `slackwater prepare`, or grant this one that role",
        )


def _both(sides: frozenset[Side]) -> str:
    return " and ".join(side for side in Side if side in sides)


def _read_again(spec: Spec, found: _Found) -> None:
    """What was prepared, as this version reads the same file: documents and loads. Refused where it does not."""
    if found.document is None:
        return
    now = {
        Side.OLD: catalog.tables(found.conns[Side.OLD], spec.old.schema_),
        Side.NEW: catalog.tables(found.conns[Side.NEW], spec.new.schema_),
    }
    document = Prepared.from_json(prepared_steps.upgraded(found.document, now))
    if spec.fingerprint != document.fingerprint:
        raise Refused(
            f"{spec.path or 'the file'} is not the file that migration {spec.migration} was prepared with",
            hint="bring the old file back, upgrade, and then prepare what has changed",
        )
    flows: dict[Direction, Flow] = {}
    reasons: list[str] = []
    for direction in Direction:
        if direction is Direction.REVERSE and document.reverse is None:
            continue
        try:
            flows[direction], found.loads[direction] = _flow(spec, document, direction, found.conns)
        except Refused as error:
            reasons += [f"{direction}: {reason}" for reason in error.reasons or (error.cause,)]
    if reasons:
        raise Refused(
            f"this version of slackwater does not take the mappings of {spec.migration} as they were prepared",
            reasons=tuple(reasons),
            hint="nothing was changed: go on with the version that prepared it; or end the migration with that one and"
            " prepare anew with this one",
        )
    document = replace(document, forward=flows[Direction.FORWARD], reverse=flows.get(Direction.REVERSE))
    found.made = document.to_json()
    if found.spare is not None:  # once there was a switch, what is prepared stays as it is: old keeps the same
        found.made_spare = found.made


def _read_half(spec: Spec, found: _Found, side: Side) -> None:
    """What is kept on one side, as this version writes it: what only the other side's catalog tells is left out."""
    schema = spec.old.schema_ if side is Side.OLD else spec.new.schema_
    now = {side: catalog.tables(found.conns[side], schema)}
    if found.document is not None:
        found.made = json.dumps(prepared_steps.upgraded(found.document, now))
    if found.spare is not None:
        found.made_spare = json.dumps(prepared_steps.upgraded(found.spare, now))


def _flow(spec: Spec, document: Prepared, direction: Direction, conns: Mapping[Side, Connection]) -> tuple[Flow, Loads]:
    """The direction's flow and its loads, from the tables as they were prepared. Refused where they are others now."""
    flow = document.flow(direction)
    sources, targets = document.tables(direction)
    resolution = resolve(spec, direction, sources, targets)
    source, target = conns[direction.source], conns[direction.target]
    outputs: dict[str, dict[str, str]] = {}
    paths = in_force(spec, document.paths)
    if not resolution.problems:
        outputs = bindings.outputs(spec, source, target, sources, targets, resolution, direction, paths=paths)
    plan = plan_of(spec, direction, resolution, sources, targets, flow.topics, outputs, paths)
    wanted = {name: load.fingerprint for name, load in wanted_loads(plan).items()}
    before = {*flow.mappings, *(f"mirror:{name}" for name in flow.mirrors)}
    if wanted.keys() != before:
        apart = sorted(wanted.keys() ^ before)
        raise Refused(
            "other tables would be written or mirrored", reasons=tuple(f"{n} is read in another way" for n in apart)
        )
    mappings = {mapping.target: mapping.fingerprint for mapping in plan.mappings}
    return replace(flow, mappings=mappings, outputs=outputs), wanted


def _steps(found: _Found) -> tuple[str, ...]:
    """What is brought, in words."""
    lines = [step.brings for version in found.control.values() for step in control_version.missing(version)]
    for document in found.documents:
        lines += [step.brings for step in prepared_steps.missing(document)]
    return tuple(dict.fromkeys(lines))


def _others(spec: Spec, found: _Found) -> tuple[str, ...]:
    """The migrations that find their control schema upgraded, and whose own documents are not."""
    names = {name for conn, sides in found.places if found.outdated(sides) for name in busy.migrations(conn)}
    return tuple(sorted(names - {spec.migration}))


def _write(spec: Spec, found: _Found, who: Actor, say: Callable[[str], None]) -> None:
    """One transaction for each database, old's first. The intent is journalled before, where there is a journal."""
    name = spec.migration
    detail = {what: {"from": then, "to": now} for what, (then, now) in found.versions.items()}
    journal = found.control.get(Side.NEW) is not None
    if journal:
        append(found.conns[Side.NEW], name, actor=who, step="upgrade", outcome="intent", detail=detail)
    for conn, sides in found.places:

        def work(conn: Connection = conn, sides: frozenset[Side] = sides) -> None:
            if any(found.control[side] is not None for side in sides):
                control_version.keep_readers(conn)
            control_version.bring(conn, sides)
            for direction in Direction:
                if direction.target in sides and found.documents:
                    control_version.relabel(conn, name, direction, found.loads.get(direction, {}))
                    void(conn, name, direction, tables=None, cause="slackwater was upgraded")
            if Side.OLD in sides and found.made_spare is not None:
                control.keep_spare(conn, name, found.made_spare)
            if Side.NEW in sides and found.made is not None:
                control_version.forget_roundtrip(conn, name)
                control_version.rewrite(conn, name, found.made)
            if Side.NEW in sides and journal:
                append(conn, name, actor=who, step="upgrade", detail=detail)
            _may(spec, found)  # whoever began meanwhile; who begins from here on waits, and finds the new version
            failpoint("upgrade.before_commit")

        _patiently(conn, work, f"cannot upgrade {_both(sides)}")
        say(f"{_both(sides)}: upgraded")
        failpoint("upgrade.after_side")


def _patiently(conn: Connection, work: Callable[[], None], doing: str) -> None:
    """Run `work` in one transaction; again with pauses while others hold a control table, until PATIENCE_S is over."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            with control.transaction(conn, doing):
                conn.execute(f"set local lock_timeout = '{LOCK_MS}ms'".encode())
                work()
            return
        except Contended as error:
            if time.monotonic() > give_up:
                raise Contended(
                    f"{doing}: others held its tables for {PATIENCE_S:.0f} s",
                    hint="see pg_stat_activity for long transactions that read slackwater's tables; then run"
                    " `slackwater upgrade` again: it goes on from here",
                ) from error
        time.sleep(random.uniform(0.2, 1.0))
