"""What the end of a migration takes away, on both sides: every object that is named for it, and no table of a user's.

Invariant: every step looks before it drops, so an end that was killed is completed by the next one; the control rows go
last, old's first, for new's are what a later run goes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from connectors.failpoint import failpoint
from connectors.postgres import catalog, control, fence, kept_rows, mirror, slots, truncation
from connectors.postgres.control import Turn
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side, epochs_topic, slot_name
from schemas.errors import Refused
from schemas.spec import Spec
from stream.lifecycle.direction import canary_topic, row_topic
from stream.migration.prepared import Prepared
from stream.migration.topics import FlowTopics
from stream.preflight import counted, identity
from stream.preflight.kafka import topic_names

Done = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`result`: cancelled or finalized, or already (nothing of it was there). `steps` are what was taken away now."""

    result: str
    steps: tuple[str, ...]
    left: tuple[str, ...]  # what stays, on purpose


@contextmanager
def turns_locked(migration: str, old: Connection, new: Connection) -> Iterator[tuple[Turn | None, Turn | None]]:
    """Both turn rows, locked, old first: nobody turns, and no other end begins, while the caller looks and marks."""
    with ExitStack() as stack:
        stack.enter_context(control.transaction(old, "cannot lock old's turn row"))
        there = control.turn(old, migration, Side.OLD, lock=True)
        stack.enter_context(control.transaction(new, "cannot lock new's turn row"))
        yield there, control.turn(new, migration, Side.NEW, lock=True)


def assert_stopped(migration: str, old: Connection, new: Connection, verb: str) -> None:
    """Errors: Refused while a role of the migration runs."""
    alive = sorted({*control.alive(old, migration), *control.alive(new, migration)})
    if alive:
        raise Refused("roles of this migration run: " + "; ".join(alive), hint=f"stop them, then {verb} again")


def say_kept_rows(spec: Spec, old: Connection, new: Connection, say: Done) -> None:
    """Before the question: which rows that repairs have kept go with the control schema."""
    found = {side: kept_rows.kept(conn, spec.migration, side) for side, conn in ((Side.OLD, old), (Side.NEW, new))}
    said = [text for side, counts in found.items() if (text := kept_rows.clause(side, counts)) is not None]
    if said:
        say(
            f"rows that were kept go with the control schema, and this is their only copy: {'; '.join(said)}"
            f" (`{spec.command} repaired list --show-values` prints them)"
        )


def take_away(
    spec: Spec, old: Connection, new: Connection, done: Done, *, verb: str, topics: FlowTopics, names: list[str]
) -> None:
    """Everything of the migration. `names`: the topics to delete; `verb` names the failpoints."""
    _sources(spec, {Side.OLD: old, Side.NEW: new}, done)
    failpoint(f"{verb}.after_slot")
    _identities(spec, old, new, done)
    _fences(spec, old, new, done)
    failpoint(f"{verb}.after_fences")
    if names and (gone := topics.delete(names)):
        done(f"{counted(len(gone), 'topic')} deleted")
    failpoint(f"{verb}.after_topics")
    for conn, side in ((old, Side.OLD), (new, Side.NEW)):
        _control(spec, conn, side, done)
        failpoint(f"{verb}.after_{side}")


def every_topic(spec: Spec, old: Connection, new: Connection, prepared: Prepared | None) -> list[str]:
    """Every topic that this migration can have: those that were made, and those of a run that was killed before."""
    rows, epochs, schemas = topic_names(spec, catalog.tables(old, spec.old.schema_))
    back = [row_topic(spec, Direction.REVERSE, spec.new.schema_, t) for t in catalog.tables(new, spec.new.schema_)]
    back += [
        canary_topic(spec, Direction.REVERSE),
        epochs_topic(spec.kafka.topic_prefix, spec.migration, Direction.REVERSE),
    ]
    flows = [] if prepared is None else [f for f in (prepared.forward, prepared.reverse) if f is not None]
    known = [topic for flow in flows for topic in (*flow.topics.values(), flow.epochs_topic)]
    own = [] if schemas is None else [schemas]
    return sorted({*rows, *back, epochs, *known, *own})


def _sources(spec: Spec, sides: dict[Side, Connection], done: Callable[[str], None]) -> None:
    """The slots, then the publications: the other way round, a capture that still ran would fail on its publication."""
    for direction in Direction:
        name = slot_name(spec.migration, direction)
        if slots.drop_slot(sides[direction.source], name):
            done(f"replication slot {name} dropped")
        if slots.drop_publication(sides[direction.source], name):
            done(f"publication {name} dropped")


def _identities(spec: Spec, old: Connection, new: Connection, done: Callable[[str], None]) -> None:
    """Replica identities that `prepare --set-replica-identity` changed, back to what they were."""
    if not control.installed(new):
        return
    for side, conn in ((Side.OLD, old), (Side.NEW, new)):
        for table, statements in identity.restores(new, spec.migration, side).items():
            for statement in statements:

                def alter(conn: Connection = conn, statement: str = statement) -> None:
                    conn.execute(statement.encode())

                fence.patiently(conn, alter, f"cannot run {statement}")
            done(f"replica identity of {table} restored on {side}")


def _fences(spec: Spec, old: Connection, new: Connection, done: Callable[[str], None]) -> None:
    for conn, side in ((new, Side.NEW), (old, Side.OLD)):
        dropped = fence.drop(conn, spec.migration)
        if dropped:
            done(f"fence dropped from {counted(len(dropped), 'table')} of {side}")
        unwatched = truncation.drop(conn, spec.migration)
        if unwatched:
            done(f"the watch over {counted(len(unwatched), 'partition')} of {side} dropped")


def _control(spec: Spec, conn: Connection, side: Side, done: Callable[[str], None]) -> None:
    """The migration's rows and mirrors in one database; the control schema with the last migration in it."""
    if not control.installed(conn):
        return
    with control.transaction(conn, f"cannot remove the control rows on {side}"):
        mirror.drop_all(conn, spec.migration)
        control.forget(conn, spec.migration)
        gone = control.uninstall(conn, spec.migration)
    done(f"control rows of {side} removed" + (", and the control schema" if gone else ""))
