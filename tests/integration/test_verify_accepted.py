"""What verification leaves out on purpose: rows that were waived, columns whose loss was accepted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from stream.verify import sweep
from stream.verify.final_check import Standstill
from stream.verify.verdicts import Verdict
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling
from tests.fixtures.tape import MIGRATION
from tests.fixtures.verifying import found, swept

OLD = "create table t (id integer primary key, a text, b text); insert into t select i, 'a' || i, 'b' || i from generate_series(1, 50) i;"  # noqa: E501
NEW = "create table t (id integer primary key, a text, b text);"


@pytest.fixture
def loaded(databases: Databases) -> Iterator[Filling]:
    made = Filling(databases, OLD, NEW, "copy: [t]\n")
    try:
        with made.streaming(), made.backfill():
            made.filled()
        yield made
    finally:
        made.close()


def test_waived_rows_and_accepted_losses(loaded: Filling) -> None:
    loaded.unlike = "rows were corrupted"
    loaded.new.execute("alter table app.t disable trigger all")
    loaded.new.execute("delete from app.t where id in (7, 8); update app.t set b = 'lost' where id = 9")
    for key, state in (("7", "waived"), ("8", "open")):
        loaded.new.execute(
            "insert into slackwater.quarantine (migration, direction, load, source, key, error, state)"
            " values (%s, 'forward', 't', 't', jsonb_build_object('id', %s::text), 'x', %s)",
            (MIGRATION, key, state),
        )
    with loaded.streaming():
        assert found(swept(loaded)) == {"t": [("different", ("9",), ("b",)), ("missing", ("8",), ())]}
        assert found(swept(loaded, accepted=("t.b",))) == {"t": [("missing", ("8",), ())]}
    # Under the hold as well: a waived row hides no other.
    for accepted, expected in (((), ["id=8 (missing)", "id=9 (b)"]), (("t.b",), ["id=8 (missing)"])):
        with closing(Standstill(loaded.databases.old, loaded.databases.new, loaded.plan, accepted)) as still:
            still.freeze(for_s=60)
            looked = still.sum_up(deadline_s=time.monotonic() + 60)
            still.judge(looked, still.suspects, deadline_s=time.monotonic() + 60)
        assert sorted(str(m) for m in looked.mismatches["t"]) == expected


def test_rows_that_are_waived_hide_no_others(loaded: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many were waived that the others were not looked at: no verdict, and no clean one above all."""
    loaded.unlike = "rows were corrupted"
    loaded.new.execute("alter table app.t disable trigger all; delete from app.t where id < 4")
    loaded.new.execute("insert into app.t values (900, 'a', 'b')")
    loaded.new.execute(
        "insert into slackwater.quarantine (migration, direction, load, source, key, error, state)"
        " select %s, 'forward', 't', 't', jsonb_build_object('id', i::text), 'x', 'waived'"
        " from generate_series(1, 3) i",
        (MIGRATION,),
    )
    with loaded.streaming():
        assert found(swept(loaded)) == {"t": [("extra", ("900",), ())]}
        loaded.new.execute("delete from app.t where id = 900")
        assert found(swept(loaded)) == {}
        monkeypatch.setattr(sweep, "MOST", 2)
        tally = swept(loaded)["t"]
        assert "waived" in str(tally.problem)
        assert tally.verdict is not Verdict.CLEAN
