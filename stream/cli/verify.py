"""`slackwater verify`: compare every row of both sides, while traffic runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import Annotated

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
from stream.cli import context, formatting, verify_output, verify_repair
from stream.migration import prepared
from stream.migration.pauses import paused
from stream.runtime import process
from stream.runtime.supervisor import RoleName
from stream.verify.judge import Stopped
from stream.verify.preconditions import WAIT_S, assert_loaded, guard, wanted
from stream.verify.role import figures, health_of, throttled
from stream.verify.sweep import Sweep
from stream.verify.task import Tally
from stream.verify.verdicts import Verdict, latest

LINE_S = 5.0  # between two lines of progress where no terminal is


def verify(
    direction: Annotated[Direction, typer.Option(help="Which way: what is compared with what it is made of.")] = (
        Direction.FORWARD
    ),
    table: Annotated[list[str] | None, typer.Option(help="Only this target table; may be given again.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Have rows that differ read again from the source.")] = False,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="With --repair: delete rows that nothing on the source makes, and keep them."),
    ] = False,
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
    --repair leaves rows that the target alone has, for each may be the only copy; --delete has them deleted, and kept
    until `finalize` (`slackwater repaired`).
    """
    spec = context.spec()
    if delete and not repair:
        raise ConfigError("--delete goes with --repair", hint="slackwater verify --repair --delete")
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
        asked = None
        if repair:
            asked = verify_repair.repair(spec, plan, new, target, tallies, stop, delete=delete)
        found = latest(target, spec.migration, direction, fingerprint=document.judged_under(spec), targets=names)
    next_ = verify_output.follows(spec, direction, found, tallies, repaired=bool(asked and asked["rows"]))
    context.show(
        verify_output.document(spec, direction, found, tallies, asked, next_, values=show_values)
        | {"seconds": round(seconds, 3), "next": next_},
        lambda: verify_output.screen(spec, plan, found, tallies, next_, values=show_values, deleted=delete),
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
