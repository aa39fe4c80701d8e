"""Planned changes of the schema in a migration that runs: under load, before the way back is armed and after a turn.

The runbook on schema changes, step by step: the side that leads is changed while everything runs, then the other one
and the file, then `prepare`. The judge is plain SQL over whole tables.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from tests.fixtures.databases import Databases
from tests.fixtures.running import Program, started_with

TABLES = """
create schema %(s)s;
create table %(s)s.added (id int primary key, v text);
create table %(s)s.dropped (id int primary key, v text, gone1 text, gone2 text, gone3 text);
create table %(s)s.renamed (id int primary key, a1 text, a2 text, a3 text);
create table %(s)s.retyped (id int primary key, n1 int, n2 int, n3 int);
create table %(s)s.untouched (id int primary key, v text);
"""
OLD_ONLY = """
create table old.member (id int primary key, v text);
create table old.bio (member_id int primary key, said0 text);
insert into old.added select i, 'v' || i from generate_series(1, 300) i;
insert into old.dropped select i, 'v', 'g' || i, 'h' || i from generate_series(1, 300) i;
insert into old.renamed select i, 'a' || i, 'b' || i from generate_series(1, 300) i;
insert into old.retyped select i, i, i from generate_series(1, 300) i;
insert into old.untouched select i, 'v' || i from generate_series(1, 300) i;
insert into old.member select i, 'v' || i from generate_series(1, 300) i;
insert into old.bio select i, 'b' || i from generate_series(1, 300, 2) i;
"""
NEW_ONLY = "create table new.joined (id int primary key, v text, b text);"
MAPPING = """
copy: "*"
tables:
  - {to: joined, select: "select m.id, m.v, b.said0 as b from member m left join bio b on b.member_id = m.id"}
reverse:
  - {to: member, select: "select id, v from joined"}
  - {to: bio, select: "select id as member_id, b as said0 from joined where b is not null"}
cutover: {max_pause_s: 60, max_lag_s: 300, gates: {statistics: off, roundtrip: off, verification: off}}
"""
KINDS = ("added", "dropped", "renamed", "retyped")


def changes(side: str, n: int) -> str:
    """Every kind of planned change at once, the `n`th time."""
    return f"""
    alter table {side}.added add extra{n} text default 'd{n}';
    alter table {side}.dropped drop gone{n};
    alter table {side}.renamed rename a{n} to c{n};
    alter table {side}.retyped alter n{n} type text using 'x' || n{n};
    create table {side}.fresh{n} (id int primary key, v text);
    """


class Writing:
    """An application that writes to one side all the time, as the tables are at that moment."""

    def __init__(self, dsn: str, side: str, n: int) -> None:
        self._dsn, self._side, self._n = dsn, side, n
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.taken: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        s, n, i = self._side, self._n, 1000 * self._n
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._stop.wait(0.02):
                i += 1
                row = 1 + i % 300
                for statement in (
                    f"insert into {s}.added (id, v) values ({i}, 'late')",
                    f"update {s}.added set extra{n} = 'e{i}' where id = {row}",
                    f"update {s}.dropped set v = 'w{i}' where id = {row}",
                    f"insert into {s}.dropped (id, v) values ({i}, 'late')",
                    f"update {s}.renamed set a{n} = 'u{i}' where id = {row}",
                    f"update {s}.renamed set c{n} = 'w{i}' where id = {row}",
                    f"insert into {s}.retyped (id, n{n}) values ({i}, '{i}')",
                    f"update {s}.retyped set n{n} = '{i}' where id = {row}",
                    f"delete from {s}.retyped where id = {i - 40}",
                    f"insert into {s}.fresh{n} values ({i}, 'new')",
                    f"update {s}.untouched set v = 'u{i}' where id = {row}",
                    f"update {s}.member set v = 'u{i}' where id = {row}",
                    f"update {s}.joined set v = 'u{i}' where id = {row}",
                ):
                    try:
                        conn.execute(statement.encode())
                    except psycopg.Error:  # the tables are not, or not any more, like that
                        continue
                    self.taken[statement.split(" set ")[0].split(" values")[0]] = i


@pytest.fixture
def program(
    databases: Databases, bootstrap: str, topic_prefix: str, migration_name: str, tmp_path: Path
) -> Iterator[Program]:
    for dsn, schema, more in ((databases.old, "old", OLD_ONLY), (databases.new, "new", NEW_ONLY)):
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"{TABLES % {'s': schema}} {more}".encode())
    text = (
        f'migration: {migration_name}\nold: {{dsn: "${{OLD_DSN}}", schema: old}}\n'
        f'new: {{dsn: "${{NEW_DSN}}", schema: new}}\n'
        f'kafka: {{bootstrap: "${{KAFKA}}", topic_prefix: {topic_prefix}, partitions: 2}}\n{MAPPING}'
    )
    env = {"OLD_DSN": databases.old, "NEW_DSN": databases.new, "KAFKA": bootstrap}
    with started_with(tmp_path, text, env) as made:
        yield made


def on(program: Program, side: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(program.env["OLD_DSN" if side == "old" else "NEW_DSN"], autocommit=True) as conn:
        cursor = conn.execute(query.encode())
        return cursor.fetchall() if cursor.description is not None else []


def differing(program: Program, n: int) -> list[str]:
    """Tables that are not the same on both sides; columns by name, for their order is not the application's matter."""
    names = [*KINDS, "untouched", *(f"fresh{k}" for k in range(1, n + 1))]
    queries = {t: tuple(f"select to_jsonb(t)::text from {s}.{t} t" for s in ("old", "new")) for t in names}
    queries["joined"] = (
        f"select m.id, m.v, b.said{n} as b from old.member m left join old.bio b on b.member_id = m.id",
        "select id, v, b from new.joined",
    )
    return [t for t, (a, b) in queries.items() if sorted(on(program, "old", a)) != sorted(on(program, "new", b))]


def waiting(program: Program) -> list[Any]:
    query = "select cause from slackwater.silent_change where state <> 'done'"
    return [cause for side in ("old", "new") for (cause,) in on(program, side, query)]


def lag(program: Program, direction: str) -> object:
    return program.status()["directions"][direction].get("lag_seconds")


def settled(program: Program, direction: str) -> None:
    """Everything is loaded, compared, and applied; by a look that remembers nothing from before."""
    program.watch = None
    loading = "select name from slackwater.load where state <> 'done' union all select load from slackwater.reread"
    program.until(lambda: not [x for s in ("old", "new") for x in on(program, s, loading)], 120)
    program.until(lambda: not waiting(program), 120)
    program.until(lambda: lag(program, direction) == 0, 60)


def loaded(program: Program) -> dict[tuple[Any, ...], Any]:
    query = "select direction, name, done_at::text from slackwater.load"
    return {row[:2]: row[2] for side in ("old", "new") for row in on(program, side, query)}


def edited(program: Program, n: int) -> None:
    """The column of old that the file names was renamed; `status` has to be asked with the new file."""
    program.watch = None
    program.file.write_text(program.file.read_text().replace(f"said{n - 1}", f"said{n}"))


def planned(program: Program, run: Any, side: str, n: int) -> Any:
    """As the runbook has it, with the application writing to `side` all the time; the new process of `run`."""
    other = "new" if side == "old" else "old"
    with Writing(program.env[f"{side.upper()}_DSN"], side, n) as writing:
        on(program, side, changes(side, n))
        if side == "old":
            on(program, "old", f"alter table old.bio rename said{n - 1} to said{n}")
        way = "forward" if side == "old" else "reverse"
        program.until(lambda: program.status()["directions"][way]["apply"]["state"] == "halted", 60)
        run.terminate()
        run.wait(60)
        on(program, other, changes(other, n))
        if side == "new":
            on(program, "old", f"alter table old.bio rename said{n - 1} to said{n}")
        edited(program, n)
        program("prepare", "--yes")
        anew = program.start("run")
        program.until(lambda: len(writing.taken) >= 11, 30)
    return anew


def test_before_the_way_back_is_armed(program: Program) -> None:
    run = program.streaming()
    before = loaded(program)
    planned(program, run, "old", 1)
    program.until(lambda: program.status()["phase"] == "streaming", 90)
    settled(program, "forward")
    assert differing(program, 1) == []
    after = loaded(program)
    assert {name for _, name in before if before["forward", name] != after["forward", name]} == {
        *KINDS, "mirror:bio", "joined"
    }  # fmt: skip
    assert program.status()["quarantine"]["rows"] == 0


def test_after_a_turn_and_after_the_way_back(program: Program) -> None:
    """Nothing is emptied, on either side, and nothing loaded but the new table and a mirror."""
    run = program.armed()
    program.until(lambda: program.status()["safe_to_cutover"] is True, 60)
    program("cutover", "--yes")
    # Rows that only the closed side has, in columns that nothing maps, have to outlive it.
    before = loaded(program)
    run = planned(program, run, "new", 1)
    settled(program, "reverse")
    assert differing(program, 1) == []
    after = loaded(program)
    changed = {key for key in after if before.get(key) != after[key]}
    assert changed == {
        ("forward", "fresh1"), ("reverse", "fresh1"), ("forward", "mirror:bio"), ("forward", "joined")
    }  # fmt: skip
    assert program.status()["quarantine"]["rows"] == 0
    program.until(lambda: program.status()["safe_to_rollback"] is True, 90)
    program("rollback", "--yes")
    assert differing(program, 1) == []
    # And once more, there and back having been gone.
    run = planned(program, run, "old", 2)
    settled(program, "forward")
    assert differing(program, 2) == []
    program("arm")
    program.until(lambda: program.status()["safe_to_cutover"] is True, 90)
    program("cutover", "--yes")
    assert differing(program, 2) == []


def test_a_change_while_nothing_runs_and_rows_wait(program: Program) -> None:
    """Rows of the earlier shape are still to come when `prepare` has read the new one; key columns as well."""
    run = program.streaming()
    run.terminate()
    run.wait(60)
    on(program, "old", "update old.retyped set n1 = n1 + 1000; insert into old.retyped values (900, 1, 1)")
    on(program, "old", "delete from old.retyped where id = 7; update old.untouched set v = 'x' where id < 9")
    on(program, "old", "insert into old.added values (901, 'older'); update old.added set v = 'older' where id = 3")
    for side in ("old", "new"):
        on(program, side, f"alter table {side}.retyped alter n1 type text using 'x' || n1")
        on(program, side, f"alter table {side}.added alter id type text using 'k' || id")
    on(program, "old", "update old.retyped set n1 = 'late' where id = 5; insert into old.added values ('k5000', 'y')")
    log = program.file.with_suffix(".prepare")
    preparing = program.launch("prepare", "--yes", failpoints="prepare.after_fence=sleep:4", log=log)
    program.until(lambda: log.exists() and "retyped: its mapping has changed" in log.read_text(), 40)
    for side in ("old", "new"):
        on(program, side, f"alter table {side}.untouched add late int")
    assert preparing.wait(60) != 0
    assert "old table untouched was altered while it was being prepared" in log.read_text()
    program("prepare", "--yes")
    program.start("run")
    program.until(lambda: program.status()["phase"] == "streaming", 90)
    settled(program, "forward")
    assert differing(program, 0) == []
    assert program.status()["quarantine"]["rows"] == 0


def test_a_column_that_only_new_has_got_is_named_before_anybody_goes_back(program: Program) -> None:
    program.armed()
    program.until(lambda: program.status()["safe_to_cutover"] is True, 60)
    program("cutover", "--yes")
    program.until(lambda: program.status()["safe_to_rollback"] is True, 60)
    on(program, "new", "alter table new.joined add mood text")
    program.until(lambda: program.status()["safe_to_rollback"] is False, 30)
    gates = program.document("gates", "--direction", "reverse")
    named = [g for g in gates["gates"] if g["gate"] == "unmapped_columns"]
    assert ([g["state"] for g in named], gates["safe"]) == (["failed"], False)
    assert "joined.mood" in named[0]["detail"]
    # Whatever ends on old, and whoever finishes it: what new had to compute for itself is computed again.
    back = ("failover", "--to", "old", "--accept-loss", "--source-isolated", "--yes")
    killed = program.launch(*back, failpoints="failover.after_open=kill")
    assert killed.wait(90) == -9
    assert program.status()["writes"] == "old"
    program(*back)
    told = "select relation from slackwater.silent_change where cause like '% was not computed while new was open'"
    assert on(program, "new", told) == [("joined",)]
    program.until(lambda: not waiting(program), 60)
