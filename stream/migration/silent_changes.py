"""Changes that no event tells: looked for in a side's catalogs each second, and kept until they are done with.

Invariants (hazard J5): what differs from what was last accepted is either harmless, or it is kept in the transaction
that accepts it; what only `prepare` can mend is never accepted here. A TRUNCATE explains another file only once the
stream has shown it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from connectors.postgres import control, fingerprint, silent_changes
from connectors.postgres.session import Connection
from connectors.postgres.silent_changes import Silent
from schemas.direction import Direction, Side, slot_name
from schemas.errors import SchemaChanged
from schemas.fingerprint import Change, Kind, Parts, compare
from schemas.mapping import Mapping as TableMapping
from schemas.plan import Plan
from schemas.position import Lsn

log = logging.getLogger("slackwater.catalogs")

UNKNOWN = "what could change {} without an event was not kept before now"

_CALLED = re.compile(r'(?:"((?:[^"]|"")+)"|([A-Za-z_\u0080-\uffff][\w$]*))\s*\(')
_OPERATOR = re.compile(r"[-+*/<>=~!@#%^&|`?]+")

Explains = Callable[[str, Lsn], bool | None]
"""Whether a TRUNCATE in the stream explains that a table lies in another file at an LSN; None: not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is looked at on one side: its tables, each with the columns that mappings read or write.

    `calls`: of tables that mappings write, the names in what computes their rows; it is looked at while the side is
    closed, for then that is done there. None where the stream begins.
    """

    migration: str
    side: Side
    schema: str
    used: Mapping[str, Collection[str]]
    source: bool
    calls: Mapping[str, Collection[str]] | None = None

    @property
    def publication(self) -> str:
        """Of the direction that begins on this side."""
        return slot_name(self.migration, next(d for d in Direction if d.source is self.side))

    def changes(self, before: Mapping[str, Parts], now: Mapping[str, Parts]) -> list[Change]:
        """How tables differ from what was accepted of them; of one that nothing was accepted of, nothing is said."""
        found = (
            compare(table, before[table], now.get(table), used=used, source=self.source)
            for table, used in self.used.items()
            if table in before
        )
        return [change for change in found if change is not None]


def watched(plan: Plan, side: Side) -> Watched:
    """What a direction has on a side. A mirror holds every column of its table."""
    source = side is plan.direction.source
    used: dict[str, Collection[str]]
    if source:
        used = {
            name: set(table.column_names)
            if name in plan.mirrors
            else {*table.key, *(c for m in plan.reading(name) for c in m.reads.get(name, ()))}
            for name, table in plan.sources.items()
        }
    else:
        used = {m.target: set(m.columns) for m in plan.mappings}
    schema = plan.source_schema if source else plan.target_schema
    calls = None if source else {m.target: _called(m) for m in plan.mappings}
    return Watched(migration=plan.migration, side=side, schema=schema, used=used, source=source, calls=calls)


def _called(mapping: TableMapping) -> frozenset[str]:
    """Every name before a parenthesis, and every operator; most are PostgreSQL's own, or no functions at all."""
    if mapping.origin == "copy":
        return frozenset()
    texts = (mapping.text, *(feed.query for feed in mapping.feeds.values()))
    found = (q.replace('""', '"') if q else w.lower() for text in texts for q, w in _CALLED.findall(text))
    return frozenset([*found, *(operator for text in texts for operator in _OPERATOR.findall(text))])


def _open(conn: Connection, what: Watched) -> bool:
    turn = control.turn(conn, what.migration, what.side)
    return turn is None or turn.open


class Lookout:
    """Looks at one side again and again, over the session that it is given; for one thread."""

    def __init__(self, what: Watched) -> None:
        self._what = what
        self._glance: fingerprint.Glance | None = None
        self._seen: str | None = None  # what the glance showed when all was looked at
        self._stay: list[Change] = []  # what was found then
        self._said: set[str] = set()
        self._open: bool | None = None  # the side, at the last look
        self._since: dict[str, tuple[Parts, Lsn]] = {}  # tables in another file: as they are, and when first seen so

    def look(self, conn: Connection, *, explains: Explains = lambda _, __: False) -> tuple[list[Change], bool]:
        """What only `prepare` can mend, or undoing it; and whether the catalogs have moved since the last look.

        What differs otherwise is kept and accepted, by the role whose side it is now: of the side that is open, by
        whoever reads its stream; of one that is closed, by whoever writes there.
        """
        what = self._what
        if self._open is not (open_ := _open(conn, what)):
            self._open, self._seen = open_, None
        if self._glance is not None and self._seen is not None and self._glance.take(conn)[0] == self._seen:
            return self._stay, False
        calls = None if open_ else what.calls
        now, self._glance, seen, at = fingerprint.survey(conn, what.schema, what.used, what.publication, calls)
        if what.source is open_:
            self._stay, settled = self._take(conn, explains, at, now)
        else:
            before = silent_changes.accepted(conn, what.migration, what.side)
            found = what.changes(before, now)
            self._stay = [c for c in found if c.kind.stays]
            settled = self._stay == found  # what is another role's to accept is ours after a turn
        self._seen = seen if settled else None
        return self._stay, True

    def _take(
        self, conn: Connection, explains: Explains, at: Lsn, now: Mapping[str, Parts]
    ) -> tuple[list[Change], bool]:
        """Keep and accept what can be; what cannot, and whether everything is decided."""
        what = self._what
        with control.transaction(conn, "looking for changes without an event"):
            silent_changes.lock(conn, what.migration, what.side)
            before = silent_changes.accepted(conn, what.migration, what.side)
            now = {table: parts.keeping(before.get(table)) for table, parts in now.items()}
            found = what.changes(before, now)
            undecided: set[str] = set()
            explained: set[str] = set()
            for change in found:
                if change.kind is not Kind.FILE:
                    continue
                if (why := explains(change.table, self._first_seen(change.table, now[change.table], at))) is not False:
                    (undecided if why is None else explained).add(change.table)
            self._since = {table: since for table, since in self._since.items() if table in undecided}
            told = [c for c in found if c.table not in undecided | explained]
            new = [table for table in what.used if table in now and table not in before]
            told += [Change(table=t, kind=Kind.FILE, cause=UNKNOWN.format(t)) for t in new]
            silent_changes.record(conn, what.migration, what.side, [*told, *self._undone(conn, found)])
            stay = [c for c in found if c.kind.stays]
            kept = {c.table for c in stay} | undecided
            taken = {t: p for t, p in now.items() if t in what.used and t not in kept and before.get(t) != p}
            silent_changes.accept(conn, what.migration, what.side, taken)
        for change in told:
            if change.cause not in self._said:
                log.warning("%s: %s", what.side, change.cause)
                self._said.add(change.cause)
        return stay, not undecided

    def _first_seen(self, table: str, parts: Parts, at: Lsn) -> Lsn:
        """Where the WAL ended when the table was first seen as it is: a busy stream never reaches where it ends now."""
        since = self._since.get(table)
        if since is None or since[0] != parts:
            since = self._since[table] = (parts, at)
        return since[1]

    def _undone(self, conn: Connection, found: Iterable[Change]) -> list[Change]:
        """What was there to be mended and is gone again: rows may have been missed meanwhile."""
        what = self._what
        differing = {c.table for c in found if c.kind.stays}
        gone = [
            one
            for one in silent_changes.waiting(conn, what.migration, what.side)
            if one.kind.stays and one.table not in differing and one.table in what.used
        ]
        silent_changes.done(conn, [one.id for one in gone])
        return [
            Change(table=one.table, kind=Kind.VALUES, cause=f"{one.cause}; that is over, and what it left is looked at")
            for one in gone
        ]


class Onlooker:
    """Looks at one side as often as it is asked, and changes nothing; for one thread at a time."""

    def __init__(self, *of: Watched) -> None:
        """`of`: what each direction has on that side."""
        used: dict[str, set[str]] = {}
        for one in of:
            for table, columns in one.used.items():
                used.setdefault(table, set()).update(columns)
        calls = next((one.calls for one in of if one.calls is not None), None)
        self.what = replace(of[0], used=used, calls=calls)
        self._open: bool | None = None  # the side, at the last look
        self._glance: fingerprint.Glance | None = None
        self._seen: str | None = None  # what the glance showed when nothing differed

    def look(self, conn: Connection) -> list[Change]:
        """What stands between that side and a turn: all that waits, and what differs and nobody has found yet.

        A table that only lies in another file may have been truncated: the stream says so in a moment. Once verdicts on
        it are void, it is a matter for them.
        """
        waits = silent_changes.waiting(conn, self.what.migration, self.what.side)
        found = [
            Change(table=one.table, kind=one.kind, cause=one.cause) for one in waits if one.table in self.what.used
        ]
        differing = self.differing(conn)
        return list(dict.fromkeys([*found, *(change for change in differing if change.kind is not Kind.FILE)]))

    def differing(self, conn: Connection) -> list[Change]:
        """How it differs from what was last accepted."""
        what = self.what
        if self._open is not (open_ := _open(conn, what)):
            self._open, self._seen = open_, None
        if self._glance is not None and self._seen is not None and self._glance.take(conn)[0] == self._seen:
            return []
        calls = None if open_ else what.calls
        parts, self._glance, seen, _ = fingerprint.survey(conn, what.schema, what.used, what.publication, calls)
        found = what.changes(silent_changes.accepted(conn, what.migration, what.side), parts)
        self._seen = None if found else seen
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A side as it was read at one moment: its tables, how they differ from what was accepted, and what waits."""

    what: Watched
    parts: Mapping[str, Parts]
    differing: tuple[Change, ...]
    waits: tuple[Silent, ...]

    @property
    def open(self) -> list[Change]:
        """What was found and is not done with, and what nobody has found yet."""
        kept = [Change(table=one.table, kind=one.kind, cause=one.cause) for one in self.waits]
        return list(dict.fromkeys([*kept, *self.differing]))

    @property
    def lost(self) -> dict[str, str]:
        """Tables with rows that are in no stream -> the cause."""
        return {change.table: change.cause for change in self.open if change.kind is Kind.LOST}


def standing(conn: Connection, what: Watched, only: Collection[str] | None = None) -> Standing:
    """Read one side, or some tables of it; changes nothing."""
    names = what.used.keys() if only is None else set(only)
    calls = None if what.calls is None else {t: called for t, called in what.calls.items() if t in names}
    parts, _ = fingerprint.read(conn, what.schema, names, what.publication, calls)
    before = {t: p for t, p in silent_changes.accepted(conn, what.migration, what.side).items() if t in names}
    waits = (one for one in silent_changes.waiting(conn, what.migration, what.side) if one.table in names)
    return Standing(what=what, parts=parts, differing=tuple(what.changes(before, parts)), waits=tuple(waits))


def begin(conn: Connection, what: Watched) -> None:
    """Accept those tables of a side of which nothing was accepted yet, in the caller's transaction."""
    silent_changes.lock(conn, what.migration, what.side)
    known = silent_changes.accepted(conn, what.migration, what.side)
    parts, _ = fingerprint.read(conn, what.schema, what.used.keys() - known.keys(), what.publication)
    silent_changes.accept(conn, what.migration, what.side, parts)


def settle(
    conn: Connection, found: Standing, reloaded: Collection[str], parts: Mapping[str, Parts] | None = None
) -> None:
    """Accept a side as it was read, in the caller's transaction; `parts` stand in for those of some tables.

    `reloaded`: tables of it whose rows are loaded anew; of the others, what may have moved values is still to be
    looked at.
    """
    what = found.what
    silent_changes.lock(conn, what.migration, what.side)
    over = [one for one in found.waits if one.table in reloaded or one.kind.stays]
    silent_changes.done(conn, [one.id for one in over])
    told = [
        Change(table=c.table, kind=Kind.VALUES if c.kind.stays else c.kind, cause=c.cause)
        for c in (*(c for c in found.open if c.kind.stays), *found.differing)
        if c.table not in reloaded
    ]
    silent_changes.record(conn, what.migration, what.side, dict.fromkeys(told))
    silent_changes.accept(conn, what.migration, what.side, {**found.parts, **(parts or {})})


def halt(lost: Iterable[Change]) -> SchemaChanged | None:
    """What a role stops for: rows that are in no stream."""
    causes = [change.cause for change in lost if change.kind is Kind.LOST]
    if not causes:
        return None
    more = f" (and {len(causes) - 1} more like it)" if len(causes) > 1 else ""
    return SchemaChanged(f"{causes[0]}{more}", hint=REMEDY)


REMEDY = (
    "undo it, then `slackwater resume capture`: what went unseen is compared and read again; or, where it is meant,"
    " `slackwater prepare` loads that table anew, and no other (see the runbook on schema changes)"
)
