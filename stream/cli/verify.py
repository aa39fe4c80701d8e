"""`slackwater verify`: compare every row of both sides, while traffic runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import Annotated, Any

import typer

from connectors.postgres.session import Connection
from connectors.postgres.sight import Sight
from schemas import exits
from schemas.direction import Direction, Side
from schemas.errors import Aborted, ConfigError
from schemas.plan import Plan
from schemas.spec import Spec
from stream.backfill.reread import assert_closed
from stream.backfill.throttle import Throttle
from stream.cli import context, formatting, verify_output
from stream.migration import journal, prepared
from stream.migration.pauses import paused
from stream.runtime import process
from stream.runtime.supervisor import RoleName
from stream.verify import reload_table
from stream.verify import repair as repairing
from stream.verify.digests import Pair
from stream.verify.judge import Stopped
from stream.verify.preconditions import WAIT_S, assert_loaded, guard, wanted
from stream.verify.role import figures, health_of, throttled
from stream.verify.sweep import Sweep
from stream.verify.task import Tally
from stream.verify.verdicts import Store, Verdict, latest

LINE_S = 5.0  # between two lines of progress where no terminal is
REPAIR_S = 120.0


def verify(
    direction: Annotated[Direction, typer.Option(help="Which way: what is compared with what it is made of.")] = (
        Direction.FORWARD
    ),
    table: Annotated[list[str] | None, typer.Option(help="Only this target table; may be given again.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Have rows that differ read again from the source.")] = False,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Without end, at a budget: what `run verify` does.")
    ] = False,
    show_values: Annotated[
        bool, typer.Option("--show-values", help="Print the values that differ; they are kept nowhere.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew instead of where a killed one stopped.")] = False,
) -> None:
    """Compare every row of both sides while traffic runs: 0 clean, 3 rows differ, 1 could not compare.

    Rows that differ are judged when the stream has passed them. They are listed by key and column names; values stay
    where they are. What is slow, or was killed, goes on where it stopped.
    """
    spec = context.spec()
    if continuous:
        if repair or table or show_values:
            raise ConfigError("--continuous goes with --direction alone", hint="slackwater verify --continuous")
        _forever(spec, direction)
    with ExitStack() as stack:
        with context.asking():
            new = stack.enter_context(closing(context.prepared_side(spec, Side.NEW, "verify")))
            target = stack.enter_context(closing(context.prepared_side(spec, direction.target, "verify")))
            document = prepared.load(new, spec.migration)
            assert document is not None
            plan = prepared.plan_for(spec, document, direction)
            names = wanted(plan, table or [])
            if repair:
                assert_closed(target, plan.migration, direction)
            assert_loaded(target, plan, names)
            stop = context.stoppable()
            if not guard(target, plan, stop, patience_s=WAIT_S):
                raise _stopped(spec)
            began = time.monotonic()
            tallies = _compare(spec, document, plan, new, table or [], stop, resume=not fresh)
            seconds = time.monotonic() - began
        asked = _repair(spec, plan, new, target, tallies, stop) if repair else None
        found = latest(target, spec.migration, direction, fingerprint=document.fingerprint, targets=names)
    next_ = verify_output.follows(spec, direction, found, tallies, repaired=bool(asked and asked["rows"]))
    context.show(
        verify_output.document(spec, direction, found, tallies, asked, next_, values=show_values)
        | {"seconds": round(seconds, 3), "next": next_},
        lambda: verify_output.screen(spec, plan, found, tallies, next_, values=show_values, repair=repair),
    )
    if any(t.total or t.lost for t in tallies.values()):
        raise typer.Exit(exits.NO)
    if any(t.problem for t in tallies.values()) or found.state is not Verdict.CLEAN:
        raise typer.Exit(exits.FAILED)  # voided again before this was printed


def _forever(spec: Spec, direction: Direction) -> None:
    from stream.cli import run

    with context.asking():
        status = run.one(spec, RoleName("verify", direction), spec.http.listen, None)
    run.finish(spec, RoleName("verify", direction), status)


def _compare(
    spec: Spec,
    document: prepared.Prepared,
    plan: Plan,
    new: Connection,
    only: list[str],
    stop: threading.Event,
    *,
    resume: bool,
) -> Mapping[str, Tally]:
    ask = context.sides(spec, "verify")
    try:
        task = process.verify_task(spec, document, plan, ask)
        monitor = process.lag_monitor(spec, task.link, ask)
        with closing(Sight(task.source_dsn, application="slackwater verify health")) as source:
            throttle = Throttle(
                throttled(spec.verify, spec.backfill.max_lag_s),
                lag_s=monitor.lag_s,
                paused=partial(_paused, new, spec.migration),
                health=health_of(source.primary),
            )
            monitor.start()
            sweep = Sweep(task, throttle=throttle, only=only, resume=resume, progress=_progress(throttle))
            try:
                return sweep.run(stop)
            except Stopped:
                raise _stopped(spec) from None
            finally:
                monitor.stop()
    finally:
        ask.close()


def _stopped(spec: Spec) -> Aborted:
    again = context.command(spec, "verify")
    return Aborted("stopped before every row was compared", hint=f"`{again}` goes on from here")


def _paused(new: Connection, migration: str) -> str | None:
    found = paused(new, migration, "verify")
    return None if found is None else found.clause


def _progress(throttle: Throttle) -> Callable[[Sweep], None]:
    """A line of progress: over itself on a terminal, one every few seconds elsewhere."""
    terminal, told = sys.stderr.isatty(), time.monotonic()

    def show(sweep: Sweep) -> None:
        nonlocal told
        if not terminal and time.monotonic() - told < LINE_S:
            return
        told = time.monotonic()
        f = figures(sweep.tallies, time.monotonic() - sweep.began_s)
        left = "" if f["seconds_left"] is None else f", {formatting.seconds(f['seconds_left'])} left"
        rate = "" if f["rows_per_second"] is None else f", {f['rows_per_second']:,.0f} rows/s"
        line = f"{f['tables_done']} of {f['tables']} tables, {f['rows']:,} of {f['rows_estimate']:,} rows{rate}{left}"
        line += f"; {f['mismatched']:,} differ" if f["mismatched"] else ""
        line += f" [held back: {throttle.reason}]" if throttle.reason else ""
        last = f["tables_done"] == f["tables"]
        typer.echo(f"\r\033[K{line}" if terminal else line, err=True, nl=last or not terminal)

    return show


# Repair.


def _repair(
    spec: Spec, plan: Plan, new: Connection, target: Connection, tallies: Mapping[str, Tally], stop: threading.Event
) -> dict[str, Any]:
    """Ask for the rows to be read again, and wait until they are."""
    wrong = {name: t for name, t in tallies.items() if t.found}
    if not wrong:
        return {"rows": 0, "tables": {}, "refused": {}, "left": 0}
    counts = ", ".join(
        f"{len(t.found):,} of {name}" if t.view.mapping.key else f"all of {name}, which has no key and is emptied first"
        for name, t in wrong.items()
    )
    context.confirm(f"to be read again from {plan.direction.source} and written to {plan.direction.target}: {counts}?")
    task_source, task_target = (str(spec.old.dsn), str(spec.new.dsn))
    if plan.direction.source is Side.NEW:
        task_source, task_target = task_target, task_source
    source = Sight(task_source, application="slackwater verify repair")
    tables: dict[str, int] = {}
    refused: dict[str, str] = {}
    with closing(Pair(source, Sight(task_target, application="slackwater verify repair"))) as pair:
        for name, tally in wrong.items():
            asked = repairing.plan_repair(pair, plan, tally.view, [f.mismatch for f in tally.found])
            refused |= asked.refused
            if asked.anew and (why := reload_table.why_not(new, plan)) is not None:
                refused[name] = why
            elif asked.anew:
                reload_table.load_anew(pair.source.primary, target, plan, name)
                tables[name] = tally.rows
            else:
                tables[name] = repairing.ask(Store(target, plan.migration, plan.direction), name, asked)
    detail = {"direction": plan.direction.value, "rows": tables, "refused": sorted(refused)}
    journal.append(new, spec.migration, actor=context.actor(new), step="verify repair", detail=detail)
    for name, why in refused.items():
        context.note(f"{name} cannot be repaired: {why}")
    total = sum(tables.values())
    context.note(f"{total:,} rows are to be read again" + ("; waiting for it" if total else ""))
    deadline = time.monotonic() + REPAIR_S
    while (left := repairing.left(target, plan)) and time.monotonic() < deadline and not stop.is_set():
        stop.wait(0.2)
    if left:
        context.note(f"{left:,} rows (or tables) still wait to be read again: is `slackwater run backfill` running?")
    return {"rows": total, "tables": tables, "refused": refused, "left": left}
