"""A lie for each gate, in both directions, before a turn and after it: the gate tells of it, and no turn goes over it.

Everything is real: the program and its roles, both databases, the verb that would turn. What is planted is planted
where the judge looks, by what anybody could have done there; the judge itself is never touched.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from schemas.direction import Direction, Side
from stream.cli.status import settled
from stream.gates import Gate, State
from stream.gates.judge import HARD_FOR_ROLLBACK
from stream.monitoring.sessions import Sides
from stream.status.document import Watch
from tests.fixtures import lies
from tests.fixtures.databases import fresh_database
from tests.fixtures.lies import Lie, Step
from tests.fixtures.running import Program, started_with

FILE = """
migration: {name}
old: {{dsn: "${{OLD_DSN}}", schema: shop}}
new: {{dsn: "${{NEW_DSN}}", schema: app}}
kafka: {{bootstrap: "${{KAFKA}}", topic_prefix: {name}, partitions: 2}}
exclude: []
cutover:
  max_pause_s: 20
  attempts: 8
  window: "{hours}"
  gates: {{statistics: {{min_rows: 1}}, slot_headroom: {{min_bytes: 1000000000}}}}
"""
NOTICED_S = 60.0
HEALED_S = 120.0


def hours(from_h: int, to_h: int) -> str:
    now = datetime.now(UTC)
    return f"{now + timedelta(hours=from_h):%H:%M}-{now + timedelta(hours=to_h):%H:%M} UTC"


@dataclass(kw_only=True)
class Scene:
    """An armed migration on which every gate is on, and the hands that plant."""

    program: Program
    dsns: dict[str, str]
    migration: str
    words: dict[str, str]
    stack: ExitStack
    pids: dict[str, int] = field(default_factory=dict)

    def take(self, steps: tuple[Step, ...]) -> None:
        for who, written in steps:
            what = written
            for name, word in self.words.items():
                what = what.replace(f"{{{name}}}", word)
            match who.split():
                case ["old" | "new" as side]:
                    self._on(side, what)
                case ["hidden", side]:
                    lies.hidden(self.dsns[side], self.migration, side, what)
                case ["hold", side]:
                    holder = self.stack.enter_context(psycopg.connect(self.dsns[side]))
                    holder.execute(what.encode())
                case ["release"]:
                    self.stack.close()
                case ["verb"]:
                    self.program(*what.split(), code=None)
                case ["stop"]:
                    self.pids[what] = self._pid(*what.split())
                    os.kill(self.pids[what], signal.SIGSTOP)
                case ["go"]:
                    os.kill(self.pids.pop(what), signal.SIGCONT)
                case ["file"]:
                    before, _, after = what.partition("=>")
                    text = self.program.file.read_text()
                    assert before in text
                    self.program.file.write_text(text.replace(before, after))
                case ["wait"]:
                    time.sleep(float(what))
                case _:
                    pytest.fail(f"nobody does {who}")

    def _on(self, side: str, what: str) -> None:
        with psycopg.connect(self.dsns[side], autocommit=True) as conn:
            conn.execute("select set_config('lie.migration', %s, false)", (self.migration,))
            conn.execute(what.encode())

    def _pid(self, direction: str, role: str) -> int:
        seen = self.program.status()["directions"][direction][role]
        assert seen["state"] == "running", seen
        return int(seen["pid"])

    # -- what the gates say -------------------------------------------------------------------------------------------

    def look(self, direction: Direction) -> tuple[list[Gate], dict[str, Any]]:
        """By a watch of its own, as every verb takes it: nothing is remembered from an earlier look."""
        spec = self.program.spec
        sides = Sides({Side.OLD: spec.old.dsn, Side.NEW: spec.new.dsn}, application="test")
        try:
            seen = settled(Watch(spec, sides))
        finally:
            sides.close()
        return seen.gates[direction], seen.document

    def red(self, direction: Direction) -> dict[str, str]:
        return {g.gate: g.detail for g in self.look(direction)[0] if g.state is not State.PASSED}

    def green(self, direction: Direction) -> None:
        """Every gate; what is void is compared again, for that is what a void verdict asks for."""
        deadline = time.monotonic() + HEALED_S
        while red := self.red(direction):
            assert time.monotonic() < deadline, (red, self.program.log[-3000:])
            if set(red) == {"verification"}:
                self.program("verify", "--direction", direction.value, code=None)
            else:
                time.sleep(0.3)

    def told(self, direction: Direction, lie: Lie) -> dict[str, str]:
        deadline = time.monotonic() + NOTICED_S
        while lie.says not in (red := self.red(direction)).get(lie.gate, ""):
            assert time.monotonic() < deadline, f"{lie.gate} does not tell of {lie.planted}: {red}"
            time.sleep(0.2)
        return red

    def refused(self, direction: Direction, lie: Lie) -> None:
        """The verb that would turn names it: as its reason, or as what it goes over, on the way back."""
        verb = "cutover" if direction is Direction.FORWARD else "rollback"
        # A rehearsal may be held at any hour.
        arguments = [verb, "--yes", "--json", *([] if lie.gate == "window" else ["--dry-run"])]
        done = self.program.ended(*arguments)
        assert done.stdout, done.stderr
        said = json.loads(done.stdout)
        named = [*said["reasons"], *(note.removeprefix("gone over: ") for note in said["notes"])]
        assert any(line.startswith(f"{lie.gate}: ") and lie.says in line for line in named), said
        if direction is Direction.FORWARD or lie.gate in HARD_FOR_ROLLBACK | {"foreign_keys"}:
            assert (done.returncode, said["result"], said["writes"]) == (
                3, "refused", direction.source.value,
            ), said  # fmt: skip


@pytest.fixture(scope="module")
def scene(postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ExitStack() as stack:
        dsns = {side: stack.enter_context(fresh_database(postgres_dsn, side)) for side in ("old", "new")}
        for side, ddl in (("old", lies.OLD), ("new", lies.NEW)):
            with psycopg.connect(dsns[side], autocommit=True) as conn:
                conn.execute(ddl.encode())
        name = "m" + secrets.token_hex(5)
        words = {"open": hours(-3, 9), "closed": hours(10, 12), "liar": f"liar_{secrets.token_hex(4)}"}
        text = FILE.format(name=name, hours=words["open"]) + lies.MAPPING
        env = {"OLD_DSN": dsns["old"], "NEW_DSN": dsns["new"], "KAFKA": bootstrap}
        program = stack.enter_context(started_with(tmp_path_factory.mktemp("lies"), text, env))
        holders = stack.enter_context(ExitStack())
        made = Scene(program=program, dsns=dsns, migration=name, words=words, stack=holders)
        program.armed()
        program("roundtrip")
        program("gates", "--recheck", code=None)
        made.green(Direction.FORWARD)
        yield made


@pytest.fixture(scope="module")
def turned(scene: Scene) -> Scene:
    """New is open, and everything is verified there."""
    assert scene.program.document("cutover", "--yes")["result"] == "done"
    scene.take((("new", "select nextval('app.ticket_no') from generate_series(1, 40)"),))
    scene.program("gates", "--recheck", code=None)
    scene.green(Direction.REVERSE)
    return scene


def found(scene: Scene, direction: Direction, lie: Lie) -> None:
    scene.green(direction)
    try:
        scene.take(lie.plant)
        red = scene.told(direction, lie)
        assert red.keys() - {lie.gate} <= lie.beside, red
        word = "safe_to_cutover" if direction is Direction.FORWARD else "safe_to_rollback"
        said = scene.look(direction)[1][word]
        assert said is lie.safe, f"{word} is {said} over {lie.planted}"
        scene.refused(direction, lie)
    finally:
        scene.take(lie.heal)
    scene.green(direction)


def named(lie: Lie) -> str:
    return f"{lie.gate}-{lie.planted}".replace(" ", "_")


@pytest.mark.parametrize("lie", lies.FORWARD, ids=named)
def test_before_a_turn(scene: Scene, lie: Lie) -> None:
    found(scene, Direction.FORWARD, lie)


@pytest.mark.parametrize("lie", lies.BACK, ids=named)
def test_after_a_turn(turned: Scene, lie: Lie) -> None:
    found(turned, Direction.REVERSE, lie)
