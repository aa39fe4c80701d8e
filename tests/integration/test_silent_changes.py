"""Hazard J5 through the program: what no event tells of is read again by itself, or halts, and no turn goes over it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from tests.fixtures.databases import Databases
from tests.fixtures.running import Program, started_with

TYPES = "create schema types; create type types.mood as enum ('sad', 'ok'); create type types.addr as (s text, n int);"
TABLES = """
create table %(s)s.using_text (id int primary key, v text);
create table %(s)s.using_number (id int primary key, v numeric(10, 4));
create table %(s)s.rescaled (id int primary key, v numeric(10, 4));
create table %(s)s.anew (id int primary key, v text);
create table %(s)s.swapped (id int primary key, v text, w text);
create table %(s)s.enum (id int primary key, v types.mood);
create table %(s)s.composite (id int primary key, v types.addr);
create table %(s)s.member (id int primary key, v text);
create table %(s)s.bio (member_id int primary key, v text);
create table %(s)s.emptied (id int primary key, v text);
create table %(s)s.packed (id int primary key, v text);
create table %(s)s.part (id int primary key, v text) partition by range (id);
create table %(s)s.untouched (id int primary key, v text);
"""
OLD_ONLY = """
create table old.part_a partition of old.part for values from (0) to (1000);
create table old.part_b (id int primary key, v text);
insert into old.part_b select i, 'b' || i from generate_series(1000, 1019) i;
"""
NEW_ONLY = """
create table new.part_all partition of new.part for values from (0) to (100000);
create table new.joined (id int primary key, v text, b text);
"""
SEED = """
insert into old.using_text select i, 'v' || i from generate_series(1, 300) i;
insert into old.using_number select i, i + 0.1234 from generate_series(1, 300) i;
insert into old.rescaled select i, i + 0.1234 from generate_series(1, 300) i;
insert into old.anew select i, 'v' || i from generate_series(1, 300) i;
insert into old.swapped select i, 'v' || i, 'w' || i from generate_series(1, 300) i;
insert into old.enum select i, (array['sad', 'ok'])[1 + i % 2]::types.mood from generate_series(1, 300) i;
insert into old.composite select i, row('s' || i, i)::types.addr from generate_series(1, 300) i;
insert into old.member select i, 'v' || i from generate_series(1, 300) i;
insert into old.bio select i, 'b' || i from generate_series(1, 300, 2) i;
insert into old.emptied select i, 'v' || i from generate_series(1, 300) i;
insert into old.packed select i, 'v' || i from generate_series(1, 300) i;
insert into old.part select i, 'v' || i from generate_series(1, 300) i;
insert into old.untouched select i, 'v' || i from generate_series(1, 300) i;
"""
COPIED = (
    "using_text", "using_number", "rescaled", "anew", "swapped", "enum", "composite", "emptied", "packed", "part",
    "untouched",
)  # fmt: skip
MAPPING = f"""
copy: [{", ".join(COPIED)}]
tables:
  - {{to: joined, select: "select m.id, m.v, b.v as b from member m left join bio b on b.member_id = m.id"}}
reverse:
  - {{to: member, select: "select id, v from joined"}}
  - {{to: bio, select: "select id as member_id, b as v from joined where b is not null"}}
cutover: {{max_pause_s: 60, max_lag_s: 300, gates: {{statistics: off, roundtrip: off, verification: off}}}}
"""

# On old, where the same has to be done for the copy to be able to hold it on new as well; and what the cause says.
CHANGES: list[tuple[str, str, str]] = [
    ("alter table old.using_text alter v type text using upper(v)", "", "column v of using_text was rewritten"),
    ("alter table old.using_number alter v type numeric(10, 4) using v * 2", "", "column v of using_number was rewr"),
    ("alter table old.rescaled alter v type numeric(10, 2)", "", "v of rescaled was rewritten with another length"),
    (
        "begin; alter table old.anew drop v; alter table old.anew add v text default 'anew'; commit",
        "",
        "column v of anew was dropped and added anew",
    ),
    (
        (
            "begin; alter table old.swapped rename v to x; alter table old.swapped rename w to v;"
            " alter table old.swapped rename x to w; commit"
        ),
        "",
        "of swapped was replaced by another one under its name",
    ),
    (
        "alter type types.mood rename value 'sad' to 'gloomy'",
        "alter type types.mood rename value 'sad' to 'gloomy'",
        "a label of type types.mood, which enum uses, was renamed",
    ),
    (
        "alter type types.addr add attribute zip text",
        "alter type types.addr add attribute zip text",
        "composite type types.addr, which composite uses, was altered",
    ),
    ("alter table old.bio alter v type text using upper(v)", "", "column v of bio was rewritten"),
    (
        "alter table old.part attach partition old.part_b for values from (1000) to (2000)",
        "",
        "partition old.part_b was attached to part",
    ),
]


class Writing:
    """Somebody writes to every table of old all the time."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failed: list[psycopg.Error] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        n = 5000
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._stop.wait(0.02):
                n += 1
                for statement in (
                    f"insert into old.using_text values ({n}, 'late{n}')",
                    f"update old.using_text set v = 'x{n}' where id = 1 + {n} % 300",
                    f"insert into old.enum values ({n}, 'ok')",
                    f"update old.bio set v = 'x{n}' where member_id = 1 + {n} % 300",
                    f"update old.untouched set v = 'x{n}' where id = 1 + {n} % 300",
                ):
                    try:
                        conn.execute(statement.encode())
                    except psycopg.Error as error:  # an ALTER stood in the way
                        self.failed.append(error)


@pytest.fixture
def program(
    databases: Databases, bootstrap: str, topic_prefix: str, migration_name: str, tmp_path: Path
) -> Iterator[Program]:
    for dsn, schema, more in ((databases.old, "old", OLD_ONLY), (databases.new, "new", NEW_ONLY)):
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"{TYPES} create schema {schema}; {TABLES % {'s': schema}} {more}".encode())
            if schema == "old":
                conn.execute(SEED.encode())
    text = (
        f'migration: {migration_name}\nold: {{dsn: "${{OLD_DSN}}", schema: old}}\n'
        f'new: {{dsn: "${{NEW_DSN}}", schema: new}}\n'
        f'kafka: {{bootstrap: "${{KAFKA}}", topic_prefix: {topic_prefix}, partitions: 2}}\n'
        f"exclude: [part_b]\n{MAPPING}"
    )
    env = {"OLD_DSN": databases.old, "NEW_DSN": databases.new, "KAFKA": bootstrap}
    with started_with(tmp_path, text, env) as made:
        yield made


def on(program: Program, side: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(program.env["OLD_DSN" if side == "old" else "NEW_DSN"], autocommit=True) as conn:
        cursor = conn.execute(query.encode())
        return cursor.fetchall() if cursor.description is not None else []


def gate(program: Program, name: str = "silent_changes") -> dict[str, Any]:
    gates: list[dict[str, Any]] = program.status()["gates"]
    return next(found for found in gates if found["gate"] == name)


def waiting(program: Program) -> list[str]:
    query = "select cause from slackwater.silent_change where state <> 'done'"
    return [cause for side in ("old", "new") for (cause,) in on(program, side, query)]


def causes(program: Program) -> str:
    query = "select cause from slackwater.silent_change order by id"
    return "\n".join(cause for side in ("old", "new") for (cause,) in on(program, side, query))


def differing(program: Program) -> list[str]:
    """Tables that are not the same on both sides, in plain SQL."""
    queries = {name: (f"select t::text from old.{name} t", f"select t::text from new.{name} t") for name in COPIED}
    queries["rescaled"] = ("select id, v::numeric from old.rescaled", "select id, v::numeric from new.rescaled")
    queries["anew"] = ("select id, v from old.anew", "select id, v from new.anew")
    queries["swapped"] = ("select id, v, w from old.swapped", "select id, v, w from new.swapped")
    queries["joined"] = (
        "select m.id, m.v, b.v as b from old.member m left join old.bio b on b.member_id = m.id",
        "select id, v, b from new.joined",
    )
    return [n for n, (a, b) in queries.items() if sorted(on(program, "old", a)) != sorted(on(program, "new", b))]


LOADING = "select count(*) from slackwater.load where state <> 'done'"


def settled(program: Program) -> None:
    """Everything that old holds now has been applied, and nothing waits to be looked at."""
    program.until(lambda: on(program, "new", LOADING) == [(0,)], 120)
    program.until(lambda: not waiting(program) and gate(program)["state"] == "passed", 240)
    program.until(lambda: program.forward()["lag_seconds"] == 0, 60)


def test_values_that_moved_are_read_again_by_themselves(program: Program) -> None:
    """Every kind at once, under load: named by the gate, read again by what `run` starts, and equal in the end."""
    program.streaming()
    assert gate(program)["state"] == "passed"
    with Writing(program.env["OLD_DSN"]):
        for first, then, _ in CHANGES:
            if then:
                on(program, "new", then)
            for statement in re.split(r"; ", first) if not first.startswith("begin") else [first]:
                on(program, "old", statement)
        # No cause at all, and one that is only a matter of another pass.
        on(program, "old", "truncate old.emptied")
        on(program, "old", "insert into old.emptied values (1, 'again')")
        on(program, "old", "vacuum full old.packed")
        program.until(lambda: all(cause in causes(program) for _, _, cause in CHANGES), 60)
        assert "held up" not in program("status", code=None)
    settled(program)
    assert differing(program) == []
    said = causes(program)
    assert "packed was rewritten, value for value" in said
    assert "emptied" not in said, "a TRUNCATE that the stream shows is no cause"
    assert "untouched" not in said
    assert program.status()["quarantine"]["rows"] == 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            (
                "create table old.t_load (like old.untouched including all);"
                " insert into old.t_load select i, 'fresh' || i from generate_series(1, 30) i;"
                " drop table old.untouched; alter table old.t_load rename to untouched"
            ),
            "untouched was replaced: another table has taken its name",
        ),
        ("alter table old.part_a set unlogged", "partition old.part_a of part is unlogged"),
    ],
    ids=["replaced", "unlogged"],
)
def test_rows_in_no_stream_halt_and_prepare_loads_that_table_alone(program: Program, change: str, cause: str) -> None:
    run = program.streaming()
    rows = dict(on(program, "new", "select name, done_at::text from slackwater.load"))
    on(program, "old", change)
    program.until(lambda: cause in (program.forward()["capture"]["reason"] or ""), 30)
    assert cause in gate(program)["detail"]
    run.terminate()
    run.wait(60)
    if "unlogged" in change:
        on(program, "old", "insert into old.part values (900, 'unseen')")
        on(program, "old", "alter table old.part_a set logged")
    program("prepare", "--yes")
    assert waiting(program) == []
    program.start("run")
    program.until(lambda: program.status()["phase"] == "streaming", 90)
    settled(program)
    assert differing(program) == []
    table = "part" if "unlogged" in change else "untouched"
    now = dict(on(program, "new", "select name, done_at::text from slackwater.load"))
    assert {name for name in rows if rows[name] != now[name]} == {table}


def test_what_was_changed_while_nothing_ran_is_found(program: Program) -> None:
    """By whoever looks at the gates, without any role; then by the roles when they start."""
    run = program.streaming()
    run.terminate()
    run.wait(60)
    on(program, "old", "alter table old.using_text alter v type text using upper(v)")
    assert "column v of using_text was rewritten" in gate(program)["detail"]
    program.start("run")
    program.until(lambda: "using_text was rewritten" in causes(program), 60)
    settled(program)
    assert differing(program) == []


ACCEPTED = """
select (f.parts->>'file')::oid = c.relfilenode from slackwater.fingerprint f, pg_class c
 where f.relation = 'emptied' and f.side = 'old' and c.oid = 'old.emptied'::regclass
"""


def test_a_truncate_is_explained_however_busy_the_server_is(program: Program) -> None:
    """The stream is always a little behind the end of the WAL: it has to pass where that was when it was first seen."""
    program.streaming()
    stop = threading.Event()

    def busy() -> None:
        with psycopg.connect(program.env["OLD_DSN"], autocommit=True) as conn:
            while not stop.is_set():
                conn.execute("select pg_logical_emit_message(false, 'busy', repeat('x', 2000))")

    threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        on(program, "old", "truncate old.emptied")
        program.until(lambda: on(program, "old", ACCEPTED) == [(True,)], 60)
        assert "emptied" not in causes(program)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


HELD = (
    "select count(*) from pg_locks l join pg_stat_activity a using (pid)"
    " where l.mode = 'ShareRowExclusiveLock' and l.granted and a.application_name like 'slackwater cutover%'"
)


def test_no_turn_goes_over_what_changed_when_its_gates_had_passed(program: Program) -> None:
    """What no table lock keeps out is found under the hold; a table that was replaced just before, by its oid."""
    program.armed()
    program.until(lambda: program.status()["safe_to_cutover"] is True, 60)
    turning = program.launch("cutover", "--yes", "--json", failpoints="turn.before_catalogs=sleep:3")
    program.until(lambda: on(program, "old", HELD)[0][0] > 5, 60)
    on(program, "old", "alter type types.mood rename value 'sad' to 'gloomy'")
    out, _ = turning.communicate(timeout=120)
    assert turning.returncode == 4, out
    assert "a label of type types.mood, which enum uses, was renamed" in out, json.loads(out)["reasons"]
    assert program.status()["writes"] == "old"
    on(program, "new", "alter type types.mood rename value 'sad' to 'gloomy'")
    settled(program)
    if program.status()["quarantine"]["rows"]:  # read again before new had the label
        program("quarantine", "retry", "--all")
    program.until(lambda: program.status()["safe_to_cutover"] is True, 120)
    marker = program.file.with_suffix(".hook")
    program.file.write_text(program.file.read_text() + f'hooks: {{before_cutover: "touch {marker}"}}\n')
    turning = program.launch("cutover", "--yes", "--json", failpoints="turn.after_look=sleep:3")
    program.until(marker.exists, 60)
    replaced = (
        "create table old.t_load (like old.untouched including all);"
        " insert into old.t_load select i, 'fresh' from generate_series(1, 30) i;"
        " drop table old.untouched; alter table old.t_load rename to untouched"
    )
    on(program, "old", replaced)
    out, _ = turning.communicate(timeout=120)
    assert turning.returncode in (3, 4), out
    assert "untouched was replaced" in out
    assert program.status()["writes"] == "old"


def test_an_alter_on_new_is_put_right_from_old(program: Program) -> None:
    program.streaming()
    on(program, "new", "alter table new.using_text alter v type text using upper(v)")
    on(program, "new", "vacuum full new.packed")
    program.until(lambda: "column v of using_text was rewritten" in causes(program), 30)
    settled(program)
    assert differing(program) == []
