"""Lives of migrations: legal steps in random orders, with random writers, and a judge of its own after each.

A state machine (Hypothesis) draws lives without living them, so that a life hangs on no server's pace.
One of them is lived then: real roles, PostgreSQL and Kafka, verbs through the command line.

Invariant: whenever the word was "safe" or "done", plain SQL over whole tables of both sides agrees, foreign keys and
sequences included. Before anybody has done what no stream tells, the word has to come, too.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.fixtures.databases import fresh_database
from tests.fixtures.running import Program, end
from tests.fixtures.world import MAPPING, NEW, OLD, PLANNED, SCHEMAS, SILENT, WRITES, differences

LIVES, SOAKED = 5, 40  # `make test` lives the first ones, the soak all
STEPS = 12
NOTICED_S = 10.0  # a word that was given before somebody's change is taken back within this time; turns ask anew
PATIENCE_S = 60.0

Step = tuple[str, tuple[Any, ...]]
"""A method of Life, and what it is given."""

numbers = st.integers(1, 60)
texts = st.sampled_from(["abc", "Ümlaut", "", "it's", "a\\b", "null"])
writes = st.lists(st.tuples(st.sampled_from(WRITES), numbers, numbers, texts), min_size=4, max_size=16)


class Drawn(RuleBasedStateMachine):
    """Draws lives: every step is legal at any time."""

    lives: ClassVar[list[list[Step]]]

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Step] = []

    @rule(what=writes)
    def write(self, what: list[Any]) -> None:
        self._steps.append(("write", (what,)))

    @rule(what=st.sampled_from(sorted(SILENT)), side=st.sampled_from(["old", "new"]))
    def change_unseen(self, what: str, side: str) -> None:
        self._steps.append(("change_unseen", (what, side)))

    @rule(repair=st.sampled_from([[], ["--repair"], ["--repair", "--delete"]]))
    def verify(self, repair: list[str]) -> None:
        self._steps.append(("verify", (repair,)))

    @rule(role=st.sampled_from(["capture", "apply", "backfill"]))
    def kill(self, role: str) -> None:
        self._steps.append(("kill", (role,)))

    @rule()
    def upgrade(self) -> None:
        self._steps.append(("upgrade", ()))

    @rule()
    def edit(self) -> None:
        self._steps.append(("edit", ()))

    @rule(what=st.sampled_from(sorted(PLANNED)))
    def change_planned(self, what: str) -> None:
        self._steps.append(("change_planned", (what,)))

    @rule()
    def turn(self) -> None:
        self._steps.append(("turn", ()))

    def teardown(self) -> None:
        self.lives.append(self._steps)


def drawn(number: int) -> list[Step]:
    """The life of that number: always the same one. It turns at least once."""
    lived: list[list[Step]] = []
    machine = seed(number)(type("Life", (Drawn,), {"lives": lived}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,  # the first ones are the simplest, and as like one another as can be
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    lives = [life for life in lived if sum(name == "turn" for name, _ in life) in (1, 2, 3)]
    return max(lives[-20:], key=lambda life: len({name for name, _ in life}))


class Life:
    """One migration that is lived: the program is the real one, with real roles."""

    def __init__(self, program: Program, dsns: dict[str, str], name: str) -> None:
        self._program = program
        self._dsns = dsns
        self._name = name
        self._spoiled: list[str] = []  # what was done that no stream tells
        self.said: list[str] = []

    def live(self, steps: list[Step]) -> None:
        for name, arguments in steps:
            getattr(self, name)(*arguments)
        self._look()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def write(self, what: list[Any]) -> None:
        side = self._writes
        with psycopg.connect(self._dsns[side], autocommit=True) as conn:
            for statements, a, b, text in what:
                self._try(conn, statements[side], {"a": a, "b": b, "t": text})
        self._log(f"{len(what)} writes on {side}")

    def change_unseen(self, what: str, side: str) -> None:
        with psycopg.connect(self._dsns[side], autocommit=True) as conn:
            done = [self._try(conn, one) for one in SILENT[what].replace("@", SCHEMAS[side]).split(";")]
        if any(done):
            self._spoiled.append(f"{what} on {side}")
        self._log(f"{what} on {side}: {done}")
        self._look()

    def verify(self, repair: list[str]) -> None:
        direction = "forward" if self._writes == "old" else "reverse"
        self._do("verify", "--direction", direction, *repair, *(["--yes"] if repair else []), codes=(0, 1, 3))
        self._look()

    def kill(self, role: str) -> None:
        direction = "forward" if self._writes == "old" else "reverse"
        seen = self._status()["directions"].get(direction, {}).get(role) or {}
        if seen.get("pid") and Path(f"/proc/{seen['pid']}").exists():
            os.kill(seen["pid"], signal.SIGKILL)
        self._log(f"killed {direction} {role}")

    def upgrade(self) -> None:
        self._do("upgrade", codes=(0, 3))  # refused while roles live, or already so

    def edit(self) -> None:
        """The file is edited and prepared again."""
        text = self._program.file.read_text()
        before, after = "total from orders", "total from orders where amount is not null"
        edited = text.replace(after, before) if after in text else text.replace(before, after)
        self._at_rest()
        self._program.file.write_text(edited)
        if self._prepared():
            self._program.file.write_text(text)
        self._program.start("run")

    def change_planned(self, what: str) -> None:
        """As the runbook has it: the side that leads, then the other one while nothing runs, then `prepare`."""
        leads = self._writes
        for side in (leads, "new" if leads == "old" else "old"):
            with psycopg.connect(self._dsns[side], autocommit=True) as conn:
                done = self._try(conn, PLANNED[what].replace("@", SCHEMAS[side]))
            self._log(f"{what} on {side}: {done}")
            if side == leads:
                self._at_rest()
        self._prepared()
        self._program.start("run")

    def _prepared(self) -> int:
        """The exit status. A role that was killed counts as running for some seconds."""
        deadline = time.monotonic() + PATIENCE_S
        while "are running" in (done := self._program.ended("prepare", "--yes")).stderr and time.monotonic() < deadline:
            time.sleep(1)
        self._log(f"prepare: {done.returncode}")
        expected = (0, 3) if self._spoiled else (0,)
        assert done.returncode in expected, f"{done.returncode}: {done.stdout}{done.stderr}; {self.said}"
        return done.returncode

    def _at_rest(self) -> None:
        for process in self._program.background:
            end(process)
        self._program.background.clear()

    def turn(self) -> None:
        """What a person does who wants the writes on the other side: sees to each gate, and turns, writers at work."""
        verb = "cutover" if self._writes == "old" else "rollback"
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if verb == "cutover":
                self._see_to_gates()
            with self._writers() as acknowledged:
                told = json.loads(self._program.ended(verb, "--yes", "--json", "--max-pause", "20").stdout)
            result = told["result"]
            self._log(f"{verb}: {result} {told['reasons']} {told['error']}")
            if result == "done":
                self._agree(f"{verb} was done", acknowledged)
                return
            assert result in ("refused", "aborted", "failed", "ambiguous"), told
            if self._spoiled:
                self._look()
                return
            # A role that was killed, a lock that was not to be had: those pass.
            assert result in ("refused", "aborted"), f"nothing was done that no stream tells: {told}; {self.said}"
            assert time.monotonic() < deadline, f"nothing was done that no stream tells: {told}; {self.said}"
            time.sleep(1)

    # -- what it is held to --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """If it says that a turn is safe, both sides are equal, now or once it has had time to notice."""
        word = "safe_to_cutover" if self._writes == "old" else "safe_to_rollback"
        deadline = time.monotonic() + NOTICED_S
        while self._status()[word] is True:
            if not self._drained():
                continue
            if not (found := differences(self._dsns, self._writes)):
                return
            assert time.monotonic() < deadline, f"{word}, and {found}; before: {self.said}"
            time.sleep(0.5)

    def _agree(self, what: str, acknowledged: list[int]) -> None:
        side = self._writes
        assert self._drained(), f"{what}, and nothing comes through; before: {self.said}"
        found = differences(self._dsns, side, computed=False)
        assert not found, f"{what}, and {found}; before: {self.said}"
        # What new had computed for itself is computed anew from old, by whoever follows from now on.
        deadline = time.monotonic() + PATIENCE_S
        while not self._spoiled and (found := differences(self._dsns, side)):
            assert time.monotonic() < deadline, f"{what}, and {found}; before: {self.said}"
            time.sleep(0.5)
        table = "shop.log" if side == "old" else "app.log"
        with psycopg.connect(self._dsns[side], autocommit=True) as conn:
            there = {n for (n,) in conn.execute(f"select at from {table} where what = 'turning'".encode()).fetchall()}
        assert not (lost := set(acknowledged) - there), f"{what}, and {len(lost)} acknowledged rows are gone"

    def _see_to_gates(self) -> None:
        """Up to four rounds of what the failing gates ask for, as far as it is a verb of ours."""
        for _ in range(4):
            status = self._status()
            if status["safe_to_cutover"]:
                return
            failing = [g for g in status["gates"] if g["state"] != "passed"]
            self._log(f"gates: {[(g['gate'], g['state'], g['detail'][:90]) for g in failing]}")
            verbs = {g["gate"]: (g["remedy"] or "") for g in failing}
            if "armed" in verbs or "canary_age" in verbs:
                self._do("arm", "--timeout", "60", codes=(0, 1, 3, 4))
            if "verification" in verbs:
                self._do("verify", codes=(0, 1, 3))
            if "roundtrip" in verbs:
                self._do("roundtrip", codes=(0, 1, 3))
            if "foreign_keys" in verbs:
                self._do("gates", "--recheck", codes=(0, 3))
            if "statistics" in verbs:
                with psycopg.connect(self._dsns["new"], autocommit=True) as conn:
                    conn.execute("analyze")
            time.sleep(1)

    # -- small parts ---------------------------------------------------------------------------------------------------

    @property
    def _writes(self) -> str:
        return str(self._status()["writes"])

    @property
    def _turn(self) -> int:
        return int(self._status()["turn"])

    def _status(self) -> dict[str, Any]:
        """As whoever asks now is told: a look that stays up knows some of it from a while ago."""
        status: dict[str, Any] = json.loads(self._program.ended("status", "--json").stdout)
        return status

    def _do(self, *arguments: str, codes: tuple[int, ...]) -> int:
        done = self._program.ended(*arguments)
        self._log(f"{' '.join(arguments)}: {done.returncode}")
        assert done.returncode in codes, f"{done.args}: {done.returncode}: {done.stdout}{done.stderr}; {self.said}"
        return done.returncode

    def _log(self, what: str) -> None:
        self.said.append(what)
        print(what, flush=True)

    @staticmethod
    def _try(conn: psycopg.Connection[Any], statement: str, values: dict[str, Any] | None = None) -> bool:
        """Whether the server took it: an application's errors are the application's."""
        try:
            conn.execute(statement.encode(), values)
        except psycopg.Error:
            return False
        return True

    def _drained(self, within_s: float = PATIENCE_S) -> bool:
        """Whether everything that is committed on the side that writes is on the other one."""
        source, target = (self._writes, "new" if self._writes == "old" else "old")
        direction = "forward" if source == "old" else "reverse"
        token = secrets.token_hex(8)
        content = json.dumps({"migration": self._name, "direction": direction, "token": token})
        with (
            psycopg.connect(self._dsns[source], autocommit=True) as here,
            psycopg.connect(self._dsns[target], autocommit=True) as there,
        ):
            here.execute("select pg_logical_emit_message(true, 'slackwater.token', %s)", (content,))
            deadline = time.monotonic() + within_s
            while time.monotonic() < deadline:
                if there.execute("select 1 from slackwater.token where token = %s", (token,)).fetchone():
                    return True
                time.sleep(0.05)
        return False

    @contextmanager
    def _writers(self) -> Iterator[list[int]]:
        """An application that goes on writing through a turn, and follows the route."""
        stop, acknowledged = threading.Event(), list[int]()

        def work() -> None:
            side, number = self._start, 1000 * (1 + len(self.said))
            while not stop.is_set():
                number += 1
                try:
                    with psycopg.connect(self._dsns[side], autocommit=True) as conn:
                        table = "shop.log" if side == "old" else "app.log"
                        conn.execute(f"insert into {table} values (%s, 'turning')".encode(), (number,))
                except psycopg.errors.ReadOnlySqlTransaction:
                    side = "new" if side == "old" else "old"
                except psycopg.Error:
                    pass  # not acknowledged
                else:
                    acknowledged.append(number)
                stop.wait(0.02)

        self._start = self._writes
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield acknowledged
        finally:
            stop.set()
            thread.join(30)


def _begun(number: int, server_dsn: str, bootstrap: str, folder: Path, stack: ExitStack) -> Life:
    """A fresh pair of databases, filled, prepared and streaming; gone with `stack`."""
    dsns = {side: stack.enter_context(fresh_database(server_dsn, side)) for side in ("old", "new")}
    for side, ddl in (("old", OLD), ("new", NEW)):
        with psycopg.connect(dsns[side], autocommit=True) as conn:
            conn.execute(ddl.encode())
    name = f"life{number}x{secrets.token_hex(3)}"
    file = folder / "life.yaml"
    file.write_text(
        f'migration: {name}\nold: {{dsn: "${{OLD_DSN}}", schema: shop}}\nnew: {{dsn: "${{NEW_DSN}}", schema: app}}\n'
        f'kafka: {{bootstrap: "${{KAFKA}}", topic_prefix: {name}, partitions: 2}}\n'
        "cutover: {max_pause_s: 20, attempts: 8}\n" + MAPPING
    )
    program = Program(file=file, env={"OLD_DSN": dsns["old"], "NEW_DSN": dsns["new"], "KAFKA": bootstrap})
    stack.callback(_ended, program)
    program.streaming()
    return Life(program, dsns, name)


def _ended(program: Program) -> None:
    if program.sides is not None:
        program.sides.close()
    for process in program.background:
        end(process)


@pytest.mark.timeout(900)  # three minutes where others work beside it: it prepares, verifies and turns several times
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[] if n <= LIVES else [pytest.mark.soak]) for n in range(1, SOAKED + 1)]
)
def test_safe_and_done_are_true(number: int, postgres_dsn: str, bootstrap: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        _begun(number, postgres_dsn, bootstrap, tmp_path, stack).live(drawn(number))


def test_the_same_life_is_drawn_again() -> None:
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
