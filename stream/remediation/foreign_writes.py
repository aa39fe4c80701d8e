"""What becomes of foreign writes: taken over by the open side, or undone on the closed one.

Invariant: whichever is chosen, both sides hold the same rows afterwards, and the open side's stream has the last word.
Accepting writes the closed side's rows to the open one as an application would, unmarked, so they come back in order
among all others of that stream; discarding has the open side's rows read again, under the rule of every reread. Once
the side with the foreign ones takes the writes, these are its own: accepting has them read again from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing

from connectors.failpoint import failpoint
from connectors.postgres import control, foreign
from connectors.postgres.foreign import Recorded
from connectors.postgres.session import Connection, connect
from connectors.postgres.sight import Sight, bases
from connectors.postgres.void import void
from schemas.direction import Direction, Side
from schemas.errors import Refused
from schemas.plan import Plan
from schemas.repair import Repair
from schemas.spec import Spec
from stream.backfill.chunk_loader import Session
from stream.backfill.reread import Rereader
from stream.migration.journal import Actor, append
from stream.migration.prepared import Prepared, plan_for
from stream.verify.digests import Pair, agreed_hash
from stream.verify.queries import views
from stream.verify.repair import ask, plan_repair
from stream.verify.verdicts import Kind, Mismatch, Store

Keys = dict[str, list[dict[str, str | None]]]


def accept(
    spec: Spec,
    prepared: Prepared,
    rows: Sequence[Recorded],
    side: Side,
    *,
    actor: Callable[[Connection], Actor],
    reason: str | None,
) -> int:
    """Take the rows, as `side` has them now, over to the other side. Returns how many were decided upon.

    Errors: Refused for what has no key; Contended, Unavailable: run it again, it goes on from here.
    """
    direction = next(d for d in Direction if d.source is side)
    plan = plan_for(spec, prepared, direction)
    own = _takes_writes(spec, side)
    instead = (
        f"`slackwater verify --direction {direction} --repair` brings over what has a key"
        if own
        else f"make the same change on {side.other}, as the application would: it comes back from there"
    )
    keys = _keys(rows, "accept", instead)
    source, target = _dsn(spec, side), _dsn(spec, side.other)
    with closing(Session(source, target, None, plan)) as session:
        loads = {row.name: row for row in session.loads.all()}
        rereader = Rereader(session, plan, limit=lambda: spec.quarantine.limit)
        for table, wanted in keys.items():
            for name, load in session.engine.loads.items():
                if load.mapping.sources == (table,) and (load.is_mirror or load.mapping.row_local):
                    if own:
                        rereader.ask(name, wanted, "foreign-writes accept")
                    else:
                        rereader.take_over(loads[name], wanted)
                    failpoint("foreign.mid_accept")
    _decide(spec, prepared, rows, side, "accepted", actor=actor, reason=reason)
    return len(rows)


def discard(
    spec: Spec,
    prepared: Prepared,
    rows: Sequence[Recorded],
    side: Side,
    *,
    actor: Callable[[Connection], Actor],
    reason: str | None,
) -> int:
    """Have the open side's rows read again in the place of these. Returns how many rows were asked for.

    Errors: Refused for what cannot be found by a key, or is written by no mapping of that direction, and while `side`
    is open: what is there is the application's.
    """
    direction = next(d for d in Direction if d.target is side)
    if _takes_writes(spec, side):
        raise Refused(
            f"{side} takes the application's writes now: what was written there before is part of its rows",
            hint=f"undo it on {side}, as the application would; then `slackwater foreign-writes accept` brings"
            f" {side.other} to the same",
        )
    plan = plan_for(spec, prepared, direction)
    keys = _keys(rows, "discard", f"`slackwater verify --direction {direction} --repair` puts back what has a key")
    if unknown := sorted(keys.keys() - plan.targets.keys()):
        raise Refused(
            f"no mapping of the {direction} direction writes {', '.join(unknown)}: nothing can put its rows back",
            hint=f"put them back by hand on {side}, then `slackwater foreign-writes discard --done-by-hand`",
        )
    source = Sight(_dsn(spec, side.other), application="slackwater foreign-writes")
    total = 0
    with (
        closing(Pair(source, Sight(_dsn(spec, side), application="slackwater foreign-writes"))) as pair,
        closing(connect(_dsn(spec, side), application="slackwater foreign-writes")) as conn,
    ):
        store = Store(conn, plan.migration, direction)
        repair = Repair(deletes=True, by=actor(conn).identity, reason="foreign-writes discard")
        refused: dict[str, str] = {}
        found_views = views(
            plan,
            pair.source.primary,
            bases=bases(pair.target.primary, list(plan.targets.values())),
            how=agreed_hash(pair.source, pair.target),
            sources=plan.sources,
            targets=plan.targets,
            only=list(keys),
        )
        for view in found_views:
            found = [Mismatch(kind=Kind.DIFFERENT, key=_target_key(plan, view.name, key)) for key in keys[view.name]]
            asked = plan_repair(pair, plan, view, found)
            refused |= asked.refused
            if not asked.refused:
                total += ask(store, view.name, asked, repair)
        if refused:
            raise Refused(
                "some rows cannot be put back by themselves",
                reasons=tuple(f"{name}: {why}" for name, why in refused.items()),
                hint=f"put them back by hand on {side}, then `slackwater foreign-writes discard --done-by-hand`",
            )
    failpoint("foreign.mid_discard")
    _decide(spec, prepared, rows, side, "discarded", actor=actor, reason=reason)
    return total


def done_by_hand(
    spec: Spec,
    prepared: Prepared,
    rows: Sequence[Recorded],
    side: Side,
    state: str,
    *,
    actor: Callable[[Connection], Actor],
    reason: str | None,
) -> None:
    """Somebody has brought both sides together, and says so. `state`: accepted or discarded."""
    said = f"{reason} (by hand)" if reason else "by hand"
    _decide(spec, prepared, rows, side, state, actor=actor, reason=said)


def _takes_writes(spec: Spec, side: Side) -> bool:
    with closing(connect(_dsn(spec, side), application="slackwater foreign-writes")) as conn:
        turn = control.turn(conn, spec.migration, side)
    return turn is not None and turn.open


def _keys(rows: Sequence[Recorded], verb: str, instead: str) -> Keys:
    """Table -> keys. Refused for rows without a key."""
    nameless = sorted({row.source for row in rows if not row.key})
    if nameless:
        raise Refused(
            f"{', '.join(nameless)} was truncated, or has no key: which rows it was about cannot be told",
            hint=f"{instead}; then `slackwater foreign-writes {verb} --done-by-hand`, which takes your word for it",
        )
    found: dict[str, dict[tuple[object, ...], dict[str, str | None]]] = defaultdict(dict)
    for row in rows:
        found[row.source].setdefault(tuple(row.key.items()), dict(row.key))
    return {table: list(keys.values()) for table, keys in found.items()}


def _target_key(plan: Plan, table: str, key: dict[str, str | None]) -> dict[str, str | None]:
    """The key by which the open side's mapping tells the rows of `table` apart. Refused where it is another one."""
    mapping = next(m for m in plan.mappings if m.target == table)
    if set(mapping.key) != set(key):
        raise Refused(
            f"the mapping of {table} tells its rows apart by {', '.join(mapping.key) or 'nothing'}, not by its key",
            hint="`slackwater verify` finds what differs; put it right, then `slackwater foreign-writes discard"
            " --done-by-hand`",
        )
    return key


def _decide(
    spec: Spec,
    prepared: Prepared,
    rows: Sequence[Recorded],
    side: Side,
    state: str,
    *,
    actor: Callable[[Connection], Actor],
    reason: str | None,
) -> None:
    """Record the decision where the rows are kept, and in the journal; capture goes on then by itself.

    First of all nothing is taken for verified any more that the rows stand in, or are mapped to: what decides has
    moved rows, or says that somebody did.
    """
    tables = {row.source for row in rows}
    here = next(d for d in Direction if d.target is side)
    for direction in Direction:
        if (flow := prepared.forward if direction is Direction.FORWARD else prepared.reverse) is None:
            continue
        with closing(connect(_dsn(spec, direction.target), application="slackwater foreign-writes")) as conn:
            own = tables & flow.mappings.keys() if direction is here else None
            void(conn, spec.migration, direction, tables=own, cause=f"foreign writes on {side} were {state}")
    with (
        closing(connect(_dsn(spec, side), application="slackwater foreign-writes")) as conn,
        closing(connect(_dsn(spec, Side.NEW), application="slackwater foreign-writes")) as new,
    ):
        who = actor(new)
        with control.transaction(conn, "cannot record the decision"):
            foreign.decide(conn, rows, state, who.identity, reason)
        detail = {"side": side.value, "rows": len(rows), "tables": sorted({r.source for r in rows}), "reason": reason}
        append(new, spec.migration, actor=who, step=f"foreign writes {state}", detail=detail)
        append(new, spec.migration, actor=who, step="resume", detail={"what": "capture"})


def _dsn(spec: Spec, side: Side) -> str:
    return str(spec.old.dsn if side is Side.OLD else spec.new.dsn)
