"""An applier's look for orphans on the side that it writes: whole tables are read, so seldom, and on a session and a
thread of its own. The forward one looks at new until the cutover; the reverse one at old, from `arm` on, and oftener
once old is closed: nothing but the way back writes there then, past its foreign keys, and nobody works there.

Invariant: a look is kept whole or not at all; one that was cut short, paused or failed lets the last one's age grow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from connectors.postgres import catalog, orphans, session
from connectors.postgres.orphans import Orphans
from connectors.postgres.session import Connection, connect
from schemas.direction import Direction, Side
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
CLOSED_S = 300.0  # on old once it is closed, and twenty times what a look takes
LOADED = {
    Direction.FORWARD: (Phase.STREAMING, Phase.ARMED),
    Direction.REVERSE: (Phase.ARMED, Phase.SWITCHING, Phase.SWITCHED),
}


def take(
    conn: Connection, document: Prepared, stop: Callable[[], bool], direction: Direction = Direction.FORWARD
) -> list[Orphans] | None:
    """One look at every foreign key of the tables that the direction writes, kept on its target, which `conn` is of.

    None when `stop` cut it short.
    """
    started = time.monotonic()
    keys = keys_of(conn, document, direction)
    found = orphans.look(conn, keys, stop, timeout_s=STATEMENT_S)
    if len(found) < len(keys):
        return None
    fingerprint, seconds = orphans.fingerprint(keys), time.monotonic() - started
    gate_table.put(conn, document.migration, direction, found, fingerprint=fingerprint, seconds=seconds)
    return found


def keys_of(conn: Connection, document: Prepared, direction: Direction) -> list[orphans.ForeignKey]:
    """The foreign keys of the tables that the direction writes, and those that refer to them, as they are now."""
    back = document.reverse
    names = document.forward.mappings if direction is Direction.FORWARD else () if back is None else back.mappings
    schema = document.new_schema if direction is Direction.FORWARD else document.old_schema
    now = catalog.tables(conn, schema)
    return orphans.foreign_keys(conn, [now[name] for name in names if name in now])


def due(look: Look | None, max_age_s: float, excepted: Iterable[str], *, closed: bool = False) -> bool:
    """Whether another look is wanted: half of the age that the gate allows, sooner while something is wrong.

    `closed`: of a side that the application has left for the time being.
    """
    if look is None or not look.current:
        return True
    wrong = any(o.rows for o in look.orphans if o.key not in set(excepted))
    age_s = max_age_s / 2
    if closed:
        age_s = min(age_s, max(CLOSED_S, 20 * look.seconds))
    return look.age_s > (min(AGAIN_S, max_age_s) if wrong else age_s)


class Lookout:
    """Runs beside an applier. `pause verify` holds it; so does a gate that is switched off."""

    def __init__(self, dsns: Mapping[Side, str], direction: Direction, spec: Callable[[], Spec]) -> None:
        self._dsns = dsns
        self._direction = direction
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
        application = f"slackwater orphans {spec.migration}"
        with connect(self._dsns[Side.NEW], application=application) as home:
            now = phase_store.phase(home, spec.migration)
            if now not in LOADED[self._direction] or paused(home, spec.migration, "verify"):
                return
            document = prepared.load(home, spec.migration)
        if document is None:
            return
        with connect(self._dsns[self._direction.target], application=application) as conn:
            self._conn = conn
            try:
                keys = keys_of(conn, document, self._direction)
                if not keys:
                    return
                look = gate_table.newest(conn, spec.migration, self._direction, orphans.fingerprint(keys))
                closed = self._direction is Direction.REVERSE and now is Phase.SWITCHED
                if due(look, options.max_age_s, options.except_, closed=closed):
                    self._told(take(conn, document, self._ended.is_set, self._direction))
            finally:
                self._conn = None

    def _told(self, found: list[Orphans] | None) -> None:
        bad = [o for o in found or () if o.rows]
        if bad:
            side, keys = self._direction.target, ", ".join(f"{o.key} ({o.rows:,} rows)" for o in bad)
            log.warning("%s has orphans: %s", side, keys)
