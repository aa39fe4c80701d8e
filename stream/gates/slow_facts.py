"""What surrounds the stream and changes seldom: privileges, statistics, foreign keys, replica identities.

Invariant: what is remembered from an earlier look is at most KEPT_S old; what could not be read is unknown. Looks for
orphans are never taken here: only the newest one's result is read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from connectors.postgres import catalog, orphans, privileges, statistics
from connectors.postgres.privileges import Rights, Verbs
from connectors.postgres.session import Connection
from schemas.direction import Direction, Side
from schemas.errors import Refused, SlackwaterError
from schemas.names import qualified
from schemas.plan import Plan
from schemas.spec import Spec
from schemas.table import Table
from stream.gates import gate_table, orphan_scan, rights
from stream.gates.facts import Facts, Look
from stream.gates.sequence_facts import SequenceLooks
from stream.gates.silent_facts import SilentLooks
from stream.migration.paths import judged_under
from stream.migration.prepared import Prepared, plan_for
from stream.monitoring.sessions import Sides
from stream.preflight import identity
from stream.verify import roundtrip
from stream.verify.roundtrip import Kept

KEPT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfNew:
    """What new says of all this."""

    roundtrip: Kept | None
    foreign_keys: int
    orphans: Look | None
    unanalysed: tuple[str, ...]
    tables: dict[str, Table]
    rights: dict[str, dict[str, Rights]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfOld:
    """What old says of all this."""

    writers: dict[str, dict[str, Verbs]]
    foreign_keys: int | None  # None: nothing is to write there yet
    orphans: Look | None


class Circumstances:
    """Looks at both sides, at most every KEPT_S. For one watch."""

    def __init__(self, spec: Spec, sides: Sides) -> None:
        self._spec = spec
        self._sides = sides
        self._plan: tuple[Prepared, Plan | None] | None = None
        self._kept: tuple[float, str, Facts] | None = None
        self._identities: tuple[tuple[str, dict[str, Any]], tuple[str, ...]] | None = None
        self._sequences = SequenceLooks(spec, sides)
        self._silent = SilentLooks(spec, sides)

    def add(self, facts: Facts, document: Prepared | None) -> Facts:
        """`facts`, with what is known of the circumstances of the migration that was prepared."""
        if document is None:
            return facts
        facts = self._silent.add(self._sequences.add(facts, document), document)
        if self._kept is not None:
            taken_at, fingerprint, kept = self._kept
            if time.monotonic() - taken_at < KEPT_S and fingerprint == document.fingerprint:
                return _with(facts, kept)
        found, whole = self._look(facts, document)
        if whole:
            self._kept = (time.monotonic(), document.fingerprint, found)
        return found

    def reconfigure(self, spec: Spec) -> None:
        """The next look is a new one, by this file."""
        self._spec = spec
        self._kept = None
        self._sequences = SequenceLooks(spec, self._sides)
        self._silent = SilentLooks(spec, self._sides)

    def _look(self, facts: Facts, document: Prepared) -> tuple[Facts, bool]:
        """The facts, and whether both sides answered."""
        plan = self._planned(document)
        old = self._sides.attempt(Side.OLD, partial(_of_old, document=document))
        writers = {} if isinstance(old, SlackwaterError) else old.writers
        wants = {} if plan is None else rights.wanted(plan, writers)
        new = self._sides.attempt(Side.NEW, partial(self._of_new, document=document, roles=list(wants)))
        if isinstance(new, SlackwaterError):
            return replace(facts, blind=new.cause), False
        found = replace(
            facts,
            roundtrip=new.roundtrip,
            roundtrip_counts=new.roundtrip is not None and new.roundtrip.under == self._judged_under(document),
            foreign_keys=new.foreign_keys,
            orphans=new.orphans,
            unanalysed=new.unanalysed,
            unidentified=self._unidentified(new.tables, document),
        )
        if isinstance(old, SlackwaterError):
            return replace(found, blind=old.cause), False
        found = replace(found, old_foreign_keys=old.foreign_keys, old_orphans=old.orphans)
        if plan is None:
            return found, True
        lacking, strange = rights.lacking(plan, wants, new.rights, self._spec.cutover.gates.grants.except_)
        return replace(found, lacking=lacking, strange_roles=strange), True

    def _judged_under(self, document: Prepared) -> str:
        """What a verdict on the file as it is now is given under."""
        return judged_under(self._spec.fingerprint, self._spec, document.paths)

    def _planned(self, document: Prepared) -> Plan | None:
        """The forward plan; None where the file is not the one that was prepared: the gate `prepared` says so."""
        if self._plan is None or self._plan[0] != document:
            try:
                self._plan = (document, plan_for(self._spec, document, Direction.FORWARD))
            except Refused:
                self._plan = (document, None)
        return self._plan[1]

    def _of_new(self, conn: Connection, document: Prepared, roles: list[str]) -> _OfNew:
        now = catalog.tables(conn, document.new_schema)
        targets = [now[name] for name in document.forward.mappings if name in now]
        keys = orphans.foreign_keys(conn, targets)
        loaded = gate_table.loaded(conn, document.migration, Direction.FORWARD)
        analysed = statistics.analysed(conn, targets)
        least = self._spec.cutover.gates.statistics.min_rows
        late = []
        for name, (rows, at) in loaded.items():
            known = analysed.get(name)
            if rows >= least and name in analysed and (known is None or known < at):
                late.append(qualified(document.new_schema, name))
        return _OfNew(
            roundtrip=roundtrip.latest(conn, document.migration),
            foreign_keys=len(keys),
            orphans=gate_table.newest(conn, document.migration, Direction.FORWARD, orphans.fingerprint(keys)),
            unanalysed=tuple(late),
            tables=now,
            rights={role: dict(found) for role, found in privileges.rights(conn, targets, roles).items()},
        )

    def _unidentified(self, now: dict[str, Table], document: Prepared) -> tuple[str, ...]:
        """Tables of new that do not send enough of their old rows for the way back. Asked anew when one has changed."""
        seen = {name: (table.identity_columns, table.column_names) for name, table in now.items()}
        if self._identities is None or self._identities[0] != (document.fingerprint, seen):
            needing = identity.needing_full(self._spec, Direction.REVERSE, now, document.old)
            names = tuple(qualified(now[name].schema, name) for name in needing)
            self._identities = ((document.fingerprint, seen), names)
        return self._identities[1]


def _of_old(conn: Connection, document: Prepared) -> _OfOld:
    now = catalog.tables(conn, document.old_schema)
    keys = orphan_scan.keys_of(conn, document, Direction.REVERSE)
    look = gate_table.newest(conn, document.migration, Direction.REVERSE, orphans.fingerprint(keys))
    return _OfOld(
        writers=privileges.writers(conn, [now[name] for name in document.forward.streamed if name in now]),
        foreign_keys=None if document.reverse is None else len(keys),
        orphans=look,
    )


def _with(facts: Facts, kept: Facts) -> Facts:
    return replace(
        facts,
        roundtrip=kept.roundtrip,
        roundtrip_counts=kept.roundtrip_counts,
        foreign_keys=kept.foreign_keys,
        orphans=kept.orphans,
        old_foreign_keys=kept.old_foreign_keys,
        old_orphans=kept.old_orphans,
        unanalysed=kept.unanalysed,
        unidentified=kept.unidentified,
        lacking=kept.lacking,
        strange_roles=kept.strange_roles,
    )
