"""A chunk whose snapshot lies inside the changes of one batch: what it brought in between does not stay."""

from __future__ import annotations

import pytest

from tests.fixtures.databases import Databases
from tests.fixtures.tape import Tape

OLD = """
create table t (k text primary key, v integer, tags text[] not null default '{}');
create table f (id integer primary key, owner integer not null, v integer);
alter table f replica identity full;
"""
NEW = """
create table t (k text primary key, v integer);
create table tag (k text, tag text, primary key (k, tag));
create table f (id integer, owner integer, v integer, primary key (id, owner));
"""
MAPPING = """
tables:
  - {to: t, from: t, drop: [tags]}
  - {to: tag, key: [k, tag], select: "select k, unnest(tags) as tag from t"}
  - {to: f, select: "select id, owner, v from f"}
"""


@pytest.fixture
def tape(databases: Databases) -> Tape:
    return Tape(databases, OLD, NEW, MAPPING)


def chunk(tape: Tape) -> None:
    """What a chunk read now would leave on the target, in its plainest form."""
    for target in ("t", "tag", "f"):
        for row in tape.expected(target):
            values = ", ".join(["%s"] * len(row))
            tape.new.execute("set session_replication_role = replica")
            tape.new.execute(f"insert into app.{target} values ({values}) on conflict do nothing".encode(), row)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("update t set k = 'b' where k = 'a'", "update t set k = 'c' where k = 'b'"),
        ("insert into t values ('n', 1, '{y}')", "update t set k = 'm' where k = 'n'"),
        ("insert into t values ('n', 1, '{y}')", "delete from t where k = 'n'"),
        ("update t set k = 'b' where k = 'a'", "delete from t where k = 'b'"),
        ("update f set owner = 20 where id = 1", "update f set owner = 30 where id = 1"),
        ("update f set owner = 20 where id = 1", "delete from f where id = 1"),
    ],
)
def test_what_a_chunk_brought_in_between_does_not_stay(tape: Tape, before: str, after: str) -> None:
    tape.new.execute("alter table app.t disable trigger user")
    tape.old.execute("insert into t values ('a', 1, '{x,y}')")
    tape.old.execute("insert into f values (1, 10, 1)")
    tape.advance()
    tape.old.execute(before.encode())
    chunk(tape)
    tape.old.execute(after.encode())
    tape.advance()
    tape.agrees()
    tape.close()
