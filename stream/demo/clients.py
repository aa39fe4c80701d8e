"""The shop's clients, who follow the route: they write where it says, and keep a ledger of what they were told.

What they hold the databases against in the end is their own account: acknowledged, found, lost, doubled.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field

from connectors.postgres.session import Connection, connect, translated
from schemas.direction import Side
from schemas.errors import SlackwaterError
from stream.monitoring.route import newest, read

MIGRATION = "shop"
CLOSED = "25006"
SCHEMAS = {Side.OLD: "public", Side.NEW: "app"}
PACE_S = 0.02


@dataclass(slots=True)
class Account:
    """What one client did: cards it was told are written, errors it was given, how often it went over to the other."""

    acknowledged: set[str] = field(default_factory=set)
    attempted: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    retried: int = 0
    slowest_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Every client's account together, against what is in a database."""

    acknowledged: int
    found: int
    lost: int
    doubled: int
    retried: int
    slowest_s: float


class Clients:
    """Some threads that sell gift cards, each in a transaction of its own; `start`, `stop`, `score`."""

    def __init__(self, dsns: dict[Side, str], count: int = 4) -> None:
        self._dsns = dsns
        self._stop = threading.Event()
        self.accounts = [Account() for _ in range(count)]
        self._threads = [threading.Thread(target=self._sell, args=(a,), daemon=True) for a in self.accounts]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def errors(self) -> list[str]:
        return [error for account in self.accounts for error in account.errors]

    def slowest_s(self) -> float:
        """The slowest write since this was asked last, retries and all."""
        slowest = max(account.slowest_s for account in self.accounts)
        for account in self.accounts:
            account.slowest_s = 0.0
        return slowest

    def score(self, side: Side) -> Score:
        acknowledged = {card for account in self.accounts for card in account.acknowledged}
        attempted = {card for account in self.accounts for card in account.attempted}
        with connect(self._dsns[side], application="shop audit") as conn, translated("counting the gift cards"):
            rows = conn.execute(
                f"select id::text from {SCHEMAS[side]}.gift_cards where id = any(%s::uuid[])".encode(),
                (list(attempted),),
            ).fetchall()
        found = [str(card) for (card,) in rows]
        return Score(
            acknowledged=len(acknowledged),
            found=len(set(found)),
            lost=len(acknowledged - set(found)),
            doubled=len(found) - len(set(found)),
            retried=sum(account.retried for account in self.accounts),
            slowest_s=max(account.slowest_s for account in self.accounts),
        )

    def _sell(self, account: Account) -> None:
        side = Side.OLD
        conn: Connection | None = None
        while not self._stop.wait(PACE_S):
            card, began = str(uuid.uuid4()), time.monotonic()
            account.attempted.add(card)
            while not self._stop.is_set():
                try:
                    if conn is None:
                        conn = connect(self._dsns[side], application="shop client")
                    with translated("selling a gift card"), conn.transaction():
                        conn.execute(
                            f"insert into {SCHEMAS[side]}.gift_cards (id, cents) values (%s, 500)".encode(), (card,)
                        )
                except SlackwaterError as error:
                    if getattr(error.__cause__, "sqlstate", None) != CLOSED:
                        account.errors.append(error.cause)
                        return
                    account.retried += 1
                    if conn is not None:
                        conn.close()
                    conn, side = None, self._route(side)
                else:
                    account.acknowledged.add(card)
                    account.slowest_s = max(account.slowest_s, time.monotonic() - began)
                    break
        if conn is not None:
            conn.close()

    def _route(self, side: Side) -> Side:
        """Where to write, as soon as somebody says so."""
        while not self._stop.is_set():
            rows = []
            for dsn in self._dsns.values():
                with connect(dsn, application="shop client") as conn:
                    rows.append(read(conn, MIGRATION))
            writes = newest([row for row in rows if row is not None]).writes
            if writes != "none":
                return Side(writes)
            time.sleep(0.02)
        return side
