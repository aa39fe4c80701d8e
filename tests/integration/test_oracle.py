"""The oracle that the engine is held to finds what it is there to find, also where no test asks it."""

from __future__ import annotations

import pytest

from tests.fixtures.databases import Databases
from tests.fixtures.tape import Tape

OLD = """
create table t (id integer primary key, n numeric, v text);
create table log (v text); alter table log replica identity full;
insert into t values (1, 1.0, ''), (2, 2, null);
insert into log values ('a'), ('a');
"""
NEW = "create table t (id integer primary key, n numeric, v text); create table log (v text);"


@pytest.mark.parametrize(
    ("corruption", "said"),
    [
        ("update app.t set n = 1.00 where id = 1", "t lacks"),
        ("update app.t set v = null where id = 1", "t lacks"),
        ("update app.t set v = '' where id = 2", "t lacks"),
        ("delete from app.t where id = 2", "t lacks"),
        ("insert into app.t values (3)", "t has what nothing makes"),
        ("insert into app.log values ('a')", "log has what nothing makes"),
        ("delete from app.log where ctid = (select min(ctid) from app.log)", "log lacks"),
    ],
)
def test_every_corruption_is_found_when_the_test_ends(databases: Databases, corruption: str, said: str) -> None:
    tape = Tape(databases, OLD, NEW, "copy: [t, log]\n")
    tape.new.execute("insert into app.t values (1, 1.0, ''), (2, 2, null); insert into app.log values ('a'), ('a')")
    tape.agrees()
    tape.new.execute(corruption.encode())
    with pytest.raises(AssertionError, match=said):
        tape.close()


def test_rows_that_wait_are_spared_and_no_others(databases: Databases) -> None:
    tape = Tape(databases, OLD, NEW, "copy: [t, log]\n")
    tape.new.execute("insert into app.log values ('a'), ('a')")
    tape.new.execute(
        "insert into slackwater.reread (migration, direction, load, source, key, reason)"
        " values ('tape', 'forward', 't', 't', '{\"id\": \"1\"}', 'no')"
    )
    tape.held()
    tape.new.execute("delete from slackwater.reread")
    with pytest.raises(AssertionError, match="t lacks"):
        tape.close()
