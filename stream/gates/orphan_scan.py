"""The forward applier's look for orphans: whole tables are read, so seldom, and on a session and a thread of its own.

Invariant: a look is kept whole or not at all; one that was cut short, paused or failed lets the last one's age grow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from connectors.postgres import catalog, orphans, session
from connectors.postgres.orphans import Orphans
from connectors.postgres.session import Connection, connect
from schemas.errors import SlackwaterError
from schemas.spec import Spec
from stream.gates import gate_table
from stream.gates.facts import Look
from stream.migration import phase_store, prepared
from stream.migration.pauses import paused
from stream.migration.phases import Phase
from stream.migration.prepared import Prepared

log = logging.getLogger("slackwater.gates")

FIRST_S = 3.0
TICK_S = 30.0
STATEMENT_S = 3600  # one key's
AGAIN_S = 60.0  # while something is wrong: whoever mends it waits for the gate
LOADED = (Phase.STREAMING, Phase.ARMED)


def take(conn: Connection, document: Prepared, stop: Callable[[], bool]) -> list[Orphans] | None:
    """One look at every foreign key of new's tables, kept on new; None when `stop` cut it short."""
    started = time.monotonic()
    keys = _keys(conn, document)
    found = orphans.look(conn, keys, stop, timeout_s=STATEMENT_S)
    if len(found) < len(keys):
        return None
    fingerprint = orphans.fingerprint(keys)
    gate_table.put(conn, document.migration, found, fingerprint=fingerprint, seconds=time.monotonic() - started)
    return found


def _keys(conn: Connection, document: Prepared) -> list[orphans.ForeignKey]:
    now = catalog.tables(conn, document.new_schema)
    return orphans.foreign_keys(conn, [now[name] for name in document.forward.mappings if name in now])


def due(look: Look | None, max_age_s: float, excepted: Iterable[str]) -> bool:
    """Whether another look is wanted: half of the age that the gate allows, sooner while something is wrong."""
    if look is None or not look.current:
        return True
    wrong = any(o.rows for o in look.orphans if o.key not in set(excepted))
    return look.age_s > (min(AGAIN_S, max_age_s) if wrong else max_age_s / 2)


class Lookout:
    """Runs beside the forward applier. `pause verify` holds it; so does a gate that is switched off."""

    def __init__(self, dsn: str, spec: Callable[[], Spec]) -> None:
        self._dsn = dsn
        self._spec = spec
        self._ended = threading.Event()
        self._conn: Connection | None = None
        self._said: str | None = None
        self._thread = threading.Thread(target=self._run, name="orphans", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if (conn := self._conn) is not None:
            session.cancel(conn)

    def _run(self) -> None:
        pause_s = FIRST_S
        while not self._ended.wait(pause_s):
            pause_s = TICK_S
            try:
                self._tick()
                self._said = None
            except SlackwaterError as error:
                if not self._ended.is_set() and error.cause != self._said:
                    log.warning("cannot look for orphans: %s", error.cause)
                self._said = error.cause

    def _tick(self) -> None:
        spec = self._spec()
        options = spec.cutover.gates.foreign_keys
        if not options.on:
            return
        with connect(self._dsn, application=f"slackwater orphans {spec.migration}") as conn:
            self._conn = conn
            try:
                if phase_store.phase(conn, spec.migration) not in LOADED or paused(conn, spec.migration, "verify"):
                    return
                document = prepared.load(conn, spec.migration)
                if document is None:
                    return
                keys = _keys(conn, document)
                if not keys:
                    return
                look = gate_table.newest(conn, spec.migration, orphans.fingerprint(keys))
                if due(look, options.max_age_s, options.except_):
                    self._told(take(conn, document, self._ended.is_set))
            finally:
                self._conn = None

    def _told(self, found: list[Orphans] | None) -> None:
        bad = [o for o in found or () if o.rows]
        if bad:
            log.warning("new has orphans: %s", ", ".join(f"{o.key} ({o.rows:,} rows)" for o in bad))
