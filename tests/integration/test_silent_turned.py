"""Hazard J5 once both directions are armed, before a turn and after it, on the side that leads and on the other."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from typing import Any, Self

import psycopg
import pytest

from schemas.direction import Direction
from tests.fixtures.databases import major
from tests.fixtures.plain import Pair, fresh_shop, program_on
from tests.fixtures.repack import repack
from tests.fixtures.running import end

TABLES = """
create schema kinds; create type kinds.mood as enum ('sad', 'ok');
create table {s}.using_text (id int primary key, v text);
create table {s}.using_number (id int primary key, v numeric(10, 4));
create table {s}.anew (id int primary key, v text);
create table {s}.swapped (id int primary key, v text, w text);
create table {s}.enum (id int primary key, v kinds.mood);
create table {s}.packed (id int primary key, v text, wide text);
create table {s}.moved (id int primary key, v text);
create table {s}.part (id int primary key, v text) partition by range (id);
create table {s}.part_a partition of {s}.part for values from (0) to (1000);
create table {s}.replaced (id int primary key, v text);
"""
NAMES = ("using_text", "using_number", "anew", "swapped", "enum", "packed", "moved", "part", "replaced")
OLD = f"""
create schema shop; {TABLES.format(s="shop")}
create table shop.part_rest partition of shop.part for values from (1000) to (100000);
insert into shop.using_text select i, 'v' || i from generate_series(1, 100) i;
insert into shop.using_number select i, i + 0.1234 from generate_series(1, 100) i;
insert into shop.anew select i, 'v' || i from generate_series(1, 100) i;
insert into shop.swapped select i, 'v' || i, 'w' || i from generate_series(1, 100) i;
insert into shop.enum select i, (array['sad', 'ok'])[1 + i % 2]::kinds.mood from generate_series(1, 100) i;
insert into shop.packed select i, 'v' || i, repeat(md5(i::text), 200) from generate_series(1, 300) i;
insert into shop.moved select i, 'v' || i from generate_series(1, 300) i;
insert into shop.part select i, 'v' || i from generate_series(1, 100) i;
insert into shop.replaced select i, 'v' || i from generate_series(1, 100) i;
"""
NEW = f"""
create schema app; {TABLES.format(s="app")}
"""
FILE = f"copy: [{', '.join(NAMES)}]\n"
OPTIONS = "cutover: {max_pause_s: 60, max_lag_s: 300, gates: {roundtrip: off}}\n"
SIDES = {"old": "shop", "new": "app"}


class Writing:
    """Somebody writes to some tables of a side all the time."""

    def __init__(self, pair: Pair, side: str) -> None:
        self._dsn = pair.shop.old if side == "old" else pair.shop.new
        self._schema = SIDES[side]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        n, s = 5000 + secrets.randbelow(20_000), self._schema
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._stop.wait(0.02):
                n += 1
                for statement in (
                    f"insert into {s}.packed values ({n}, 'late', repeat('w{n}', 2000))",
                    f"update {s}.packed set v = 'x{n}' where id = 1 + {n} % 300",
                    f"delete from {s}.packed where id = {n} - 7",
                    f"update {s}.moved set v = 'x{n}' where id = 1 + {n} % 300",
                    f"update {s}.using_text set v = 'x{n}' where id = 1 + {n} % 100",
                ):
                    with contextlib.suppress(psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                        conn.execute(statement.encode())


@pytest.fixture(scope="module")
def pair(postgres_dsn: str, bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Armed and verified; the tests go on from each other's end, in the order in which they stand here."""
    with fresh_shop(postgres_dsn, bootstrap, OLD, NEW) as made:
        shop = made.with_(tables=FILE, options=OPTIONS)
        with program_on(shop, tmp_path_factory.mktemp("turned")) as program:
            program.armed()
            program("verify")
            yield Pair(shop=shop, program=program)


def on(pair: Pair, side: str, query: str) -> list[tuple[Any, ...]]:
    return pair.shop.on_old(query) if side == "old" else pair.shop.on_new(query)


def causes(pair: Pair) -> str:
    query = "select cause from slackwater.silent_change order by id"
    return "\n".join(cause for side in SIDES for (cause,) in on(pair, side, query))


def waiting(pair: Pair) -> list[str]:
    query = "select cause from slackwater.silent_change where state <> 'done'"
    return [cause for side in SIDES for (cause,) in on(pair, side, query)]


def differing(pair: Pair) -> list[str]:
    columns = {"swapped": "id, v, w", "enum": "id, v::text", "packed": "id, v, md5(wide)"}
    found = []
    for name in NAMES:
        old, new = (on(pair, side, f"select {columns.get(name, 'id, v')} from {s}.{name}") for side, s in SIDES.items())
        if sorted(old) != sorted(new):
            found.append(name)
    return found


def loads(pair: Pair) -> list[tuple[Any, ...]]:
    query = "select direction, name, done_at::text from slackwater.load order by 1, 2"
    return [row for side in SIDES for row in on(pair, side, query)]


def gates(pair: Pair) -> dict[str, str]:
    return {gate["gate"]: gate["state"] for gate in pair.program.status()["gates"]}


def quiet(pair: Pair) -> None:
    """Nothing waits to be looked at, and all that was written has arrived."""
    way = Direction.FORWARD if pair.program.status()["writes"] == "old" else Direction.REVERSE
    pair.program.until(lambda: not waiting(pair) and gates(pair)["silent_changes"] == "passed", 240)
    pair.program.until(lambda: pair.program.status()["directions"][way.value]["lag_seconds"] == 0, 60)
    pair.program.until(lambda: not differing(pair), 60)


def verified(pair: Pair, table: str) -> str:
    return str(pair.program.status()["verification"]["reverse"]["tables"][table]["state"])


def green(pair: Pair) -> bool:
    status = pair.program.status()
    return bool(status["safe_to_cutover" if status["writes"] == "old" else "safe_to_rollback"])


def red(found: dict[str, str]) -> set[str]:
    return {gate for gate, state in found.items() if state != "passed"}


def rewritten(pair: Pair) -> None:
    """By everything that writes a table into another file, on both sides, while the side that leads is written to."""
    pair.program.until(lambda: green(pair), 120)
    leads, warned = pair.program.status()["writes"], red(gates(pair))
    said, before = len(pair.program.log), loads(pair)
    during: list[dict[str, str]] = []
    with Writing(pair, leads):
        for side, schema in SIDES.items():
            dsn = pair.shop.old if side == "old" else pair.shop.new
            repack(dsn, f"{schema}.packed", between=lambda: during.append(gates(pair)))
            on(pair, side, f"vacuum full {schema}.moved")
            on(pair, side, f"cluster {schema}.swapped using swapped_pkey")
            if major(dsn) >= 19:
                on(pair, side, f"repack {schema}.enum")
        query = (
            "select count(*) from slackwater.silent_change where side = '{}' and cause like 'packed was rewritten,%'"
        )
        pair.program.until(lambda: all(on(pair, s, query.format(s)) != [(0,)] for s in SIDES), 60)
    quiet(pair)
    pair.program.until(lambda: green(pair), 120)  # and nobody has done anything for it
    for found in during:
        assert red(found) <= {*warned, "silent_changes", "verification", "lag"}
    assert red(gates(pair)) <= warned  # an old look for orphans may have been taken anew meanwhile
    assert loads(pair) == before, "nothing is loaded anew"
    log = pair.program.log[said:]
    assert "are read again" not in log
    assert "halted" not in log


def test_repacked_before_the_turn(pair: Pair) -> None:
    rewritten(pair)
    assert pair.program.document("cutover", "--yes")["result"] == "done"
    pair.program("verify", "--direction", "reverse")


def test_repacked_after_the_turn(pair: Pair) -> None:
    rewritten(pair)


MOVED: list[tuple[str, str]] = [
    ("alter table app.using_text alter v type text using upper(v)", "column v of using_text was rewritten"),
    ("alter table app.using_number alter v type numeric(10, 4) using v * 2", "column v of using_number was rewritten"),
    (
        "begin; alter table app.anew drop v; alter table app.anew add v text default 'anew'; commit",
        "column v of anew was dropped and added anew",
    ),
    (
        (
            "begin; alter table app.swapped rename v to x; alter table app.swapped rename w to v;"
            " alter table app.swapped rename x to w; commit"
        ),
        "of swapped was replaced by another one under its name",
    ),
    (
        "alter type kinds.mood rename value 'sad' to 'gloomy'",
        "a label of type kinds.mood, which enum uses, was renamed",
    ),
    (
        (
            "create table app.part_b (id int primary key, v text);"
            " insert into app.part_b select i, 'b' || i from generate_series(1000, 1019) i;"
            " alter table app.part attach partition app.part_b for values from (1000) to (2000)"
        ),
        "partition app.part_b was attached to part",
    ),
]


def test_values_that_moved_on_the_side_that_leads(pair: Pair) -> None:
    """Every kind at once, under load, and a rollback right behind them."""
    with Writing(pair, "new"):
        on(pair, "old", "alter type kinds.mood rename value 'sad' to 'gloomy'")
        for statement, _ in MOVED:
            on(pair, "new", statement)
        said = pair.program.ended("rollback", "--yes", "--json")
    if said.returncode == 0:  # everything was seen to before it came to the hold
        assert not differing(pair)
        assert pair.program.document("cutover", "--yes")["result"] == "done"
    else:
        assert said.returncode in (3, 4), said.stdout
        assert pair.program.status()["writes"] == "new"
    quiet(pair)
    for _, cause in MOVED:
        assert cause in causes(pair)


def test_values_that_moved_on_the_other_side(pair: Pair) -> None:
    """What leads is right: the others are brought back to it."""
    on(pair, "old", "alter table shop.using_number alter v type numeric(10, 4) using v + 1")
    on(pair, "old", "begin; alter table shop.anew drop v; alter table shop.anew add v text default 'old'; commit")
    pair.program.until(lambda: "column v of using_number was rewritten" in causes(pair), 60)
    quiet(pair)


def test_rows_that_went_without_a_word_stop_the_way_back(pair: Pair) -> None:
    """A partition that is detached: what old has of it is for somebody to decide."""
    on(pair, "new", "alter table app.part detach partition app.part_b")
    pair.program.until(lambda: gates(pair)["silent_changes"] != "passed", 60)
    assert "part_b" in pair.program("rollback", "--yes", code=3)
    pair.program.until(lambda: verified(pair, "part") == "mismatched", 60)
    assert "part_b" in pair.program("rollback", "--yes", code=3)
    pair.program("verify", "--direction", "reverse", "--table", "part", "--repair", "--delete", "--yes", code=3)
    pair.program("verify", "--direction", "reverse")
    quiet(pair)


def test_rows_in_no_stream_halt_it(pair: Pair) -> None:
    """Unlogged: until it is undone; what was written meanwhile is compared and read again."""
    on(pair, "new", "alter table app.part_a set unlogged")

    def reason() -> str:
        return str(pair.program.status()["directions"]["reverse"]["capture"]["reason"])

    pair.program.until(lambda: "part_a of part is unlogged" in reason(), 60)
    on(pair, "new", "insert into app.part values (900, 'unseen'); update app.part set v = 'unseen' where id = 5")
    assert "part_a" in pair.program("rollback", "--yes", code=3)
    on(pair, "new", "alter table app.part_a set logged")
    pair.program("resume", "capture")
    quiet(pair)
    assert on(pair, "old", "select v from shop.part where id in (5, 900)") == [("unseen",), ("unseen",)]


def test_a_table_put_in_anothers_place_stops_the_way_back(pair: Pair) -> None:
    """Until `prepare` has taken note of it: its rows that were on their way are left out, and what has its place now is
    read in place. What is left over on old is for somebody to decide, as ever."""
    pair.program("pause", "apply")
    on(pair, "new", "insert into app.replaced select i, 'gone' from generate_series(9000, 9020) i")
    on(
        pair,
        "new",
        "create table app.load_ (like app.replaced including all);"
        " insert into app.load_ select i, 'fresh' || i from generate_series(1, 30) i;"
        " drop table app.replaced; alter table app.load_ rename to replaced",
    )
    said = pair.program("rollback", "--yes", code=None)
    assert pair.program.status()["writes"] == "new", said
    pair.program.until(lambda: "replaced was replaced" in pair.program("gates", code=None), 60)
    assert "replaced was replaced" in pair.program("rollback", "--yes", code=3)
    assert pair.program.status()["writes"] == "new"
    before = loads(pair)
    end(pair.program.background[0])
    pair.program("prepare", "--yes")
    pair.program("resume", "apply")
    pair.program.start("run")
    pair.program.until(lambda: verified(pair, "replaced") == "mismatched", 120)
    assert "replaced was replaced" in pair.program("rollback", "--yes", code=3)
    assert {row[1] for row in set(loads(pair)) ^ set(before)} <= {"replaced"}
    pair.program("verify", "--direction", "reverse", "--table", "replaced", "--repair", "--delete", "--yes", code=3)
    pair.program("verify", "--direction", "reverse")
    quiet(pair)
    pair.program.until(lambda: green(pair), 120)
    assert pair.program.document("rollback", "--yes")["result"] == "done"
    assert not differing(pair)
