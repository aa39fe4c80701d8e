"""The demo's acts, each a few public commands and what they say."""

from __future__ import annotations

import json
import secrets
import signal
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from connectors.postgres.session import connect, translated
from schemas import exits
from stream.demo.compare import compare, tables
from stream.demo.stage import Background, DemoFailed, Stage

SLACKWATER = "slackwater -c migration.yaml"
ADA = 4711  # customers.id of the customer who is followed
CLIENTS, TPS = 4, 250
HALFWAY = 0.5
CORRUPTED = (  # by corrupt.sql, as verify lists them
    "different gift_cards id=8f14e45f-ceea-167a-5a36-dedd4bea2543: cents",
    "missing price_history sku=SKU-42, changed_on=2025-01-02",
    "extra tax_rates country=NL, since=2099-01-01",
)
PATIENCE_S = 120.0
LOOK_S = 0.5
TOKEN = "slackwater.token"  # the prefix of the marker's logical message: part of the stream's contract

Status = dict[str, Any]


class Story:
    """`scale` multiplies the shop's 200,000 rows; `victims` are the roles that are killed halfway through."""

    def __init__(self, stage: Stage, *, scale: int = 1, victims: tuple[str, ...] = ("apply",)) -> None:
        self._stage = stage
        self._scale = scale
        self._victims = victims
        self._http: str | None = None
        self._load: Background | None = None
        self.roles: Background | None = None  # `slackwater run`

    def play(self) -> None:
        """Every act. Errors: SlackwaterError, with the cause and what the command said."""
        self._open()
        self._look()
        self._prepare()
        self._backfill()
        self._stream()
        self._verify()
        self._gates()
        self._compare()

    def _open(self) -> None:
        stage = self._stage
        stage.act("An old shop opens: customers come and go")
        document = stage.run(f"slackwater local up --dir {stage.quoted(stage.folder / 'servers')} --json", shown=False)
        stage.say(f"  $ slackwater local up --dir {stage.folder / 'servers'}")
        stage.say(f'  $ eval "$(slackwater local env --dir {stage.folder / "servers"})"')
        stage.env.update(json.loads(document)["env"])
        scale = "" if self._scale == 1 else f" -v scale={self._scale}"
        stage.run(f'psql "$OLD_DSN" -q -1 -v ON_ERROR_STOP=1{scale} -f old.sql -f rows.sql')
        stage.run(
            "psql \"$OLD_DSN\" -At -c \"select count(*) || ' tables, ' || to_char(sum(reltuples), 'FM999,999,999')"
            " || ' rows' from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'\"",
            first=1,
            shown=False,
        )
        self._load = stage.start(f'pgbench -n -c {CLIENTS} -R {TPS} -T 3600 -f load.sql "$OLD_DSN"', "pgbench")

    def _look(self) -> None:
        stage = self._stage
        stage.act("What would happen: nothing is changed yet")
        stage.run(f"{SLACKWATER} check", first=4, last=1)
        stage.run(f"{SLACKWATER} plan", first=8, last=2)
        self._show()

    def _show(self) -> None:
        self._stage.run(f"{SLACKWATER} show customer --key {ADA}", first=14)
        self._stage.check()

    def _prepare(self) -> None:
        stage = self._stage
        stage.act("The new schema is prepared, and every role starts")
        stage.run(f"{SLACKWATER} prepare --yes 2>&1", first=3, last=3)
        self.roles = stage.start(f"{SLACKWATER} run", "slackwater run")

    def _backfill(self) -> None:
        stage = self._stage
        stage.act("What is there is copied while the shop stays open, and the applier is killed halfway")
        stage.say(f"  $ {SLACKWATER} status   (looked at again and again)")
        self._until(lambda now: done(now) >= HALFWAY, "half of the backfill")
        self._ada("street = '5 Rue de l''Engine', city = 'Paris', country = 'FR'")
        killed: set[int | None] = set()
        for victim in self._victims:
            pid = self._pid(victim)
            killed.add(pid)
            stage.run(f"kill -9 {pid}   # {victim}")
        self._until(
            lambda now: not killed & {part_pid(now, victim) for victim in self._victims} and runs(now),
            "the killed roles to be running again",
        )
        self._until(lambda now: now["backfill"]["state"] == "done", "the end of the backfill")
        stage.say(f"  {headline(self._status())}")

    def _stream(self) -> None:
        stage = self._stage
        stage.act("The copy is complete, and stays so: what a customer does is there a moment later")
        self._ada("street = '10 Downing Street', city = 'London', country = 'GB', credit = credit - 9.90, status = 2")
        self._until(lambda now: now["phase"] == "streaming" and lag(now) is not None, "phase streaming")
        since = time.monotonic()
        self._until(lambda _: time.monotonic() - since > 6, "some seconds of streaming")
        self._show()
        stage.run(f"{SLACKWATER} status", first=9)

    def _verify(self) -> None:
        stage = self._stage
        stage.act("Every row is compared under load; then three are corrupted, found by their keys, and repaired")
        stage.run(f"{SLACKWATER} verify", last=4)
        stage.run('psql "$NEW_DSN" -q -1 -v ON_ERROR_STOP=1 -f corrupt.sql')
        said = stage.run(f"{SLACKWATER} verify --repair --delete --yes", last=4, code=exits.NO)
        found = [row for row in CORRUPTED if row not in " ".join(said.split())]
        if found:
            raise DemoFailed(f"verify did not find {', '.join(found)}:\n{said}")
        stage.run(f"{SLACKWATER} verify --table gift_cards --table price_history --table tax_rates", first=3)
        stage.check()

    def _gates(self) -> None:
        stage = self._stage
        stage.act("The way back is tried on the real rows: what it would lose was read, and accepted")
        stage.run(f"{SLACKWATER} roundtrip", last=8)
        stage.act("What stands between here and a cutover")
        stage.run(f"{SLACKWATER} gates --recheck", first=30)
        stage.run(f"{SLACKWATER} trace customer {ADA}", first=6)

    def _compare(self) -> None:
        stage = self._stage
        stage.act("Writers stop, a token goes through the whole pipe, and every row is compared by plain SQL")
        assert self._load is not None
        stage.say("  $ kill %pgbench")
        stage.end(self._load, signal.SIGINT)
        self._quiet()
        token = secrets.token_hex(8)
        content = json.dumps({"migration": "shop", "direction": "forward", "token": token})
        sent = time.monotonic()
        stage.run(f"psql \"$OLD_DSN\" -q -c \"select pg_logical_emit_message(true, '{TOKEN}', '{quoted(content)}')\"")
        self._until(lambda _: self._arrived(token), "the token to arrive in the new database")
        stage.say(f"  the token is in the new database after {time.monotonic() - sent:.2f} s: all before it is as well")
        self._audit()

    def _audit(self) -> None:
        stage = self._stage
        expected = (stage.shop / "expected.sql").read_text(encoding="utf-8")
        found = []
        for one in compare(stage.env["OLD_DSN"], stage.env["NEW_DSN"], expected, "app"):
            stage.live(f"  comparing {one.table}: {one.rows:,} rows")
            found.append(one)
        if forgotten := set(tables(stage.env["NEW_DSN"], "app")) - {one.table for one in found}:
            raise DemoFailed(f"expected.sql forgets {', '.join(sorted(forgotten))}")
        for one in found:
            for line in one.told():
                stage.say(f"  {line}")
        if different := [one.table for one in found if not one.equal]:
            raise DemoFailed(f"the two sides differ in {', '.join(different)}", hint="the rows are listed above")
        total = sum(one.rows for one in found)
        stage.say(f"  {len(found)} tables, {total:,} rows: every row is there, once, and every byte of it is right")

    def invite(self) -> None:
        """How to play with what is left running, and how to end it."""
        stage = self._stage
        servers = stage.quoted(stage.folder / "servers")
        self._load = stage.start(f'pgbench -n -c {CLIENTS} -R {TPS} -T 86400 -f load.sql "$OLD_DSN"', "pgbench again")
        stage.say(
            f"""
It goes on running, with the load on again. To play with it:
  cd {stage.quoted(stage.shop)}
  eval "$(slackwater local env --dir {servers})"
  {SLACKWATER} status --watch
  {SLACKWATER} show customer --key {ADA}
To end it:
  kill {" ".join(str(pid) for pid in stage.pids)}
  slackwater local down --purge --yes --dir {servers}; rm -r {stage.quoted(stage.folder)}"""
        )

    def _ada(self, change: str) -> None:
        """What the application does for her."""
        self._stage.run(f'psql "$OLD_DSN" -q -c "update customers set {change} where id = {ADA}"')

    def _quiet(self) -> None:
        """Until no session of the load is left: what it had in flight has ended one way or the other."""
        query = "select count(*) from pg_stat_activity where application_name = 'pgbench'"
        with connect(self._stage.env["OLD_DSN"], application="demo") as conn, translated("waiting for the load's end"):
            deadline = time.monotonic() + PATIENCE_S
            while (row := conn.execute(query).fetchone()) is not None and row[0]:
                if time.monotonic() > deadline:
                    raise DemoFailed("the load does not end")
                time.sleep(0.05)

    def _arrived(self, token: str) -> bool:
        query = (
            "select exists (select from slackwater.token where (migration, direction, token) = ('shop', 'forward', %s))"
        )
        with connect(self._stage.env["NEW_DSN"], application="demo") as conn, translated("looking for the token"):
            row = conn.execute(query, (token,)).fetchone()
        return row is not None and bool(row[0])

    def _status(self) -> Status:
        """What `status --json` says: by HTTP from a role that runs, which saves a process a look."""
        if self._http is not None:
            try:
                with urllib.request.urlopen(f"http://{self._http}/status.json", timeout=10) as answer:
                    found: Status = json.load(answer)
                    return found
            except OSError:
                self._http = None  # the role that answered has been killed
        said: Status = json.loads(self._stage.run(f"{SLACKWATER} status --json", shown=False))
        roles = [said["directions"].get("forward", {}).get("capture"), said["backfill"]["role"]]
        self._http = next((r["http"] for r in roles if r and r["state"] == "running"), None)
        return said

    def _pid(self, role: str) -> int | None:
        """Where a role runs; a look that a busy machine could not answer is taken again."""
        return part_pid(self._until(lambda now: part_pid(now, role) is not None, f"a sight of {role}"), role)

    def _until(self, met: Callable[[Status], bool], what: str) -> Status:
        """Looks until `met`, with a live line of the lag. Errors: DemoFailed when it takes too long or a role halts."""
        deadline = time.monotonic() + PATIENCE_S * self._scale
        while True:
            now = self._status()
            self._stage.check()
            self._stage.live(f"  {line(now)}")
            if met(now):
                return now
            if halted := error(now):
                raise DemoFailed(halted)
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited too long for {what}; {line(now)}")
            time.sleep(LOOK_S)


def line(now: Status) -> str:
    """The state of things on one line."""
    forward = now["directions"].get("forward", {})
    seconds, behind, rate = lag(now), forward.get("lag_bytes"), forward.get("rows_per_second")
    parts = [f"lag {'unknown' if seconds is None else f'{seconds:.2f} s'}"]
    if behind is not None:
        parts.append(f"{behind / 1024:,.0f} kB behind")
    if rate:
        parts.append(f"{rate:,.0f} rows/s")
    backfill = now["backfill"]
    if backfill["state"] != "done":
        parts.append(f"backfill {done(now):.0%}" + (f" ({backfill['reason']})" if backfill.get("reason") else ""))
    if forward.get("stuck"):
        parts.append(f"held up by {forward['stuck']['stage']}: {forward['stuck']['cause']}")
    return ", ".join(parts)


def headline(now: Status) -> str:
    return f"phase {now['phase']}, the application writes to {now['writes']}, {line(now)}"


def done(now: Status) -> float:
    """The part of the backfill's rows that is loaded, 0 to 1."""
    loads = now["backfill"]["tables"].values()
    expected = sum(max(t["rows_estimate"], t["rows"]) for t in loads)
    return sum(t["rows"] for t in loads) / expected if expected else 0.0


def lag(now: Status) -> float | None:
    seconds: float | None = now["directions"].get("forward", {}).get("lag_seconds")
    return seconds


def part_pid(now: Status, role: str) -> int | None:
    part = now["backfill"]["role"] if role == "backfill" else now["directions"].get("forward", {}).get(role)
    return None if part is None else part["pid"]


def runs(now: Status) -> bool:
    roles = [now["directions"].get("forward", {}).get(role) for role in ("capture", "apply")]
    return all(part is not None and part["state"] == "running" for part in roles)


def error(now: Status) -> str | None:
    """Why a role stands still, where one does."""
    roles = [*(now["directions"].get("forward", {}).get(r) for r in ("capture", "apply")), now["backfill"]["role"]]
    halted = [r for r in roles if r is not None and r["state"] == "halted"]
    return f"a role has halted: {halted[0]['reason']}" if halted else None


def quoted(text: str) -> str:
    """For a double-quoted word of the shell."""
    return text.replace('"', '\\"')
