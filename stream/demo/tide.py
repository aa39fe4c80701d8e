"""The demo's acts of the turn: there, and back again, told by the clients' own ledger."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

from connectors.postgres.session import connect, translated
from schemas import exits
from schemas.direction import Side
from stream.demo.clients import Clients
from stream.demo.stage import Background, DemoFailed, Stage

SLACKWATER = "slackwater -c migration.yaml"
QUIET_S = 8.0  # longer than the file's finalize.quiet_s
ADA = 4711  # customers.id of the customer who is followed
SLEEPER = "from pg_stat_activity where query = 'select pg_sleep(600)'"
OURS = """
select (select count(*) from pg_namespace where nspname like 'slackwater%')
     + (select count(*) from pg_replication_slots where slot_name like 'slackwater%')
     + (select count(*) from pg_publication where pubname like 'slackwater%')
     + (select count(*) from pg_trigger where tgname like 'slackwater%')
"""
STUCK = 'psql "$OLD_DSN" -q -c begin -c "update stock set pieces = pieces" -c "select pg_sleep(600)"'


class Tide:
    """Plays after the forward story. With `roles`, which is its `slackwater run`, up to the end of the migration."""

    def __init__(self, stage: Stage, *, roles: Background | None = None) -> None:
        self._stage = stage
        self._roles = roles
        self._clients = Clients({Side.OLD: stage.env["OLD_DSN"], Side.NEW: stage.env["NEW_DSN"]})

    def play(self) -> None:
        """Every act. Errors: SlackwaterError."""
        self._arm()
        self._clients.start()
        try:
            self._stuck()
            self._turn("cutover", "The tide turns: the writes move to the new schema")
            self._new_shaped()
            self._turn("rollback", "And back again: the old schema was kept exact")
            if self._roles is not None:
                self._again()
        finally:
            self._clients.stop()
        self._score()
        if self._roles is not None:
            self._finish(self._roles)

    def _arm(self) -> None:
        stage = self._stage
        stage.act("The way back is built and proven, before anything is written to the new schema")
        if any(gate["gate"] == "verification" and gate["state"] != "passed" for gate in self._status()["gates"]):
            stage.run(f"{SLACKWATER} verify", last=2)
        stage.run(f"{SLACKWATER} arm 2>&1", last=4)
        self._until(lambda: self._status()["safe_to_cutover"] is True, "every gate to pass")

    def _stuck(self) -> None:
        stage = self._stage
        stage.act("A cutover meets a transaction that does not end: it gives up, and names it")
        stuck = stage.start(STUCK, "a forgotten transaction")
        self._until(self._is_stuck, "the forgotten transaction")
        self._clients.slowest_s()
        stage.run(f"{SLACKWATER} cutover --yes 2>/dev/null", first=8, code=exits.ABORTED)
        slowest_s = self._clients.slowest_s()
        stage.say(f"  the clients' slowest write meanwhile: {slowest_s:.2f} s; errors: {self._errors()}")
        stage.end(stuck, signal.SIGKILL)
        stage.run(f'psql "$OLD_DSN" -q -c "select pg_terminate_backend(pid) {SLEEPER}" > /dev/null')
        self._until(lambda: not self._is_stuck(), "the end of the forgotten transaction")

    def _turn(self, verb: str, title: str) -> None:
        stage = self._stage
        stage.act(title)
        self._clients.slowest_s()
        stage.run(f"{SLACKWATER} {verb} --yes 2>/dev/null", first=14)
        time.sleep(2)
        stage.say(f"  the clients' slowest write, over to the other side: {self._clients.slowest_s():.2f} s")
        self._errors()

    def _again(self) -> None:
        """What was verified before two turns says nothing of what came between."""
        self._stage.act("Once more, without a new backfill: every row is compared again, for two turns came between")
        self._stage.run(f"{SLACKWATER} verify", last=2)
        self._until(lambda: self._status()["safe_to_cutover"] is True, "every gate to pass")
        self._turn("cutover", "And over to the new schema again")

    def _new_shaped(self) -> None:
        stage = self._stage
        stage.act("New-shaped writes, and the same customer in the old table")
        stage.run(f'psql "$NEW_DSN" -q -c "update app.customer set name = \'Ada King\' where id = {ADA}"')
        query = f"select cust_nm from customers where id = {ADA}"
        self._until(lambda: ("Ada King",) in self._rows(Side.OLD, query), "her row in the old table")
        stage.run(f'psql "$OLD_DSN" -At -c "{query}"', first=1)
        stage.run(f"{SLACKWATER} status", first=8)

    def _score(self) -> None:
        stage = self._stage
        stage.act("The scoreboard, from the clients' own ledger")
        score = self._clients.score(Side(self._status()["writes"]))
        stage.say(
            f"  acknowledged {score.acknowledged:,}, found {score.found:,}, lost {score.lost}, doubled {score.doubled},"
            f" 25006 retried {score.retried}"
        )
        if score.lost or score.doubled or self._clients.errors:
            raise DemoFailed("the clients' ledger does not agree with what is there")

    def _finish(self, roles: Background) -> None:
        stage = self._stage
        stage.act("Nobody wants to go back any more: every trace of the migration goes")
        stage.run(f"{SLACKWATER} verify --direction reverse", last=3)
        stage.say("  $ kill %run")
        stage.end(roles)
        time.sleep(QUIET_S)
        stage.run(f"{SLACKWATER} finalize --yes --drop-topics 2>/dev/null", first=4)
        left = sum(int(str(self._rows(side, OURS)[0][0])) for side in Side)
        if left:
            raise DemoFailed(f"{left} objects of ours are left behind")
        stage.say("  no schema, slot, publication or trigger of slackwater is left on either side")

    def _status(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._stage.run(f"{SLACKWATER} status --json", shown=False))
        return said

    def _errors(self) -> int:
        if self._clients.errors:
            raise DemoFailed(f"a client was given an error: {self._clients.errors[0]}")
        return 0

    def _is_stuck(self) -> bool:
        return self._rows(Side.OLD, f"select count(*) {SLEEPER}") != [(0,)]

    def _rows(self, side: Side, query: str) -> list[tuple[object, ...]]:
        dsn = self._stage.env["OLD_DSN" if side is Side.OLD else "NEW_DSN"]
        with connect(dsn, application="demo", settings={"search_path": "public"}) as conn, translated("looking"):
            return list(conn.execute(query.encode()).fetchall())

    def _until(self, met: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
        deadline = time.monotonic() + within_s
        while not met():
            self._stage.check()
            if time.monotonic() > deadline:
                failing = [g for g in self._status()["gates"] if g["state"] != "passed"]
                raise DemoFailed(f"waited too long for {what}; {failing}")
            time.sleep(0.1)
