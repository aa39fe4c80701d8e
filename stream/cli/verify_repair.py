"""The part of `verify --repair` that asks, queues and waits.

Invariant: what is deleted was asked for with --delete, named by table and count beforehand, and is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from connectors.postgres.session import Connection
from connectors.postgres.sight import Sight
from schemas.direction import Side
from schemas.errors import Refused
from schemas.plan import Plan
from schemas.repair import Action, Repair
from schemas.spec import Spec
from stream.cli import context
from stream.cli.verify_output import Tallies, kinds
from stream.migration import journal
from stream.verify import reload_table
from stream.verify import repair as repairing
from stream.verify.digests import Pair
from stream.verify.task import Tally
from stream.verify.verdicts import Kind, Store

REPAIR_S = 120.0


@dataclass(slots=True)
class Done:
    """What was asked for: rows by table; tables that cannot be repaired, and why; rows that are left as they are."""

    tables: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    spared: dict[str, int] = field(default_factory=dict)

    def document(self, left: int, kept: Mapping[Action, Mapping[str, int]]) -> dict[str, Any]:
        return {
            "rows": sum(self.tables.values()),
            "tables": self.tables,
            "refused": self.refused,
            "left": left,
            "spared": self.spared,
            **{action.value: dict(rows) for action, rows in kept.items()},
        }


def repair(
    spec: Spec,
    plan: Plan,
    new: Connection,
    target: Connection,
    tallies: Tallies,
    stop: threading.Event,
    *,
    delete: bool,
) -> dict[str, Any]:
    """Have the rows read again that differ, and wait until they are. `delete`: those that only the target has go."""
    wrong = {name: t for name, t in tallies.items() if t.found}
    extra = {name: n for name, t in wrong.items() if (n := kinds(t)[Kind.EXTRA])}
    done = Done(spared={} if delete else extra)
    nothing: dict[Action, dict[str, int]] = {action: {} for action in Action}
    wanted = {n: t for n, t in wrong.items() if delete or any(f.mismatch.kind is not Kind.EXTRA for f in t.found)}
    if not wanted:
        return done.document(0, nothing)
    context.confirm(_question(plan, wanted, extra if delete else {}))
    asked = Repair(deletes=delete, by=context.actor(new).identity, reason="verify --repair")
    newest = repairing.newest_kept(target)
    _ask(spec, plan, new, target, wanted, asked, done)
    detail = {"direction": plan.direction.value, "rows": done.tables, "refused": sorted(done.refused), "delete": delete}
    journal.append(new, spec.migration, actor=context.actor(new), step="verify repair", detail=detail)
    for name, why in done.refused.items():
        context.note(f"{name} cannot be repaired: {why}")
    total = sum(done.tables.values())
    context.note(f"{total:,} rows are to be read again" + ("; waiting for it" if total else ""))
    deadline = time.monotonic() + REPAIR_S
    while (left := repairing.left(target, plan)) and time.monotonic() < deadline and not stop.is_set():
        stop.wait(0.2)
    if left:
        context.note(f"{left:,} rows (or tables) still wait to be read again: is `slackwater run backfill` running?")
    kept = repairing.kept_since(target, plan, newest)
    for action, rows in kept.items():
        if rows:
            said = ", ".join(f"{n:,} of {name}" for name, n in rows.items())
            context.note(f"{action} on {plan.direction.target}, and kept until `finalize`: {said}")
    return done.document(left, kept)


def _question(plan: Plan, wanted: Mapping[str, Tally], deleted: Mapping[str, int]) -> str:
    """Which side, which tables, how many rows; what is to be deleted stands by itself."""
    here, there = plan.direction.source, plan.direction.target
    parts = []
    for name, tally in wanted.items():
        n = kinds(tally)
        if not tally.view.mapping.key:
            parts.append(f"all of {name}, which has no key and is emptied first")
        elif n[Kind.MISSING] + n[Kind.DIFFERENT]:
            parts.append(f"{n[Kind.MISSING] + n[Kind.DIFFERENT]:,} rows of {name}")
    read = f"Read again from {here} and write to {there}: {', '.join(parts)}." if parts else ""
    gone = ", ".join(f"{n:,} row{'' if n == 1 else 's'} of {name}" for name, n in deleted.items())
    if gone:
        read = f"{read} DELETE on {there}: {gone}; {here} has nothing that makes them. They are kept until `finalize`."
    return f"{read.strip()} Go on?"


def _ask(
    spec: Spec,
    plan: Plan,
    new: Connection,
    target: Connection,
    wanted: Mapping[str, Tally],
    asked: Repair,
    done: Done,
) -> None:
    dsns = {Side.OLD: str(spec.old.dsn), Side.NEW: str(spec.new.dsn)}
    name_ = "slackwater verify repair"
    source = Sight(dsns[plan.direction.source], application=name_)
    with closing(Pair(source, Sight(dsns[plan.direction.target], application=name_))) as pair:
        for name, tally in wanted.items():
            mismatches = [f.mismatch for f in tally.found if asked.deletes or f.mismatch.kind is not Kind.EXTRA]
            rows = repairing.plan_repair(pair, plan, tally.view, mismatches)
            done.refused |= rows.refused
            if not rows.anew:
                store = Store(target, plan.migration, plan.direction)
                whole = name not in done.spared
                done.tables[name] = repairing.ask(store, name, rows, asked, whole=whole)
            elif (why := reload_table.why_not(new, plan)) is not None:
                done.refused[name] = why
            else:
                try:
                    reload_table.load_anew(pair, target, plan, tally.view, asked)
                except Refused as error:
                    done.refused[name] = f"{error.cause}; {context.on_file(error.hint)}"
                else:
                    done.tables[name] = tally.rows
