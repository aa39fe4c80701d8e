"""Servers of two encodings: rows are streamed, compared and mended as between servers of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import LiteralString

import pytest

from tests.fixtures.databases import Databases, fresh_database
from tests.fixtures.filling import Filling
from tests.fixtures.verifying import corrupt, found, swept

LATIN1 = "encoding 'LATIN1' locale_provider libc locale 'C'"
TABLES = """
create table t (id int primary key, v text); create table k (v text, w text, primary key (v, w));
create table log (v text); alter table log replica identity full;
"""
ROWS = """
insert into t select i, 'stra\u00dfe ' || i from generate_series(1, 600) i;
insert into k select '\u00e4' || i, '\u00f6' from generate_series(1, 300) i;
insert into log select '\u00fc' || i % 3 from generate_series(1, 30) i;
"""
MAPPING = "copy: [t, k, log]\n"


@pytest.fixture(params=["old", "new"])
def filling(request: pytest.FixtureRequest, postgres_dsn: str) -> Iterator[Filling]:
    """One side is in LATIN1."""
    forms: dict[str, LiteralString] = {request.param: LATIN1}
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(fresh_database(postgres_dsn, side, forms.get(side, ""))) for side in ("old", "new")
        )
        with closing(Filling(Databases(old=old, new=new), TABLES + ROWS, TABLES, MAPPING)) as made:
            yield made


def test_text_of_another_encoding_is_compared(filling: Filling) -> None:
    with filling.backfill(), filling.streaming():
        filling.filled()
    filling.old.execute("update t set v = '\u00c4nderung' where id = 3; update k set w = '\u00e9' where v = '\u00e47'")
    filling.advance()
    filling.agrees()
    with filling.streaming():
        assert found(swept(filling)) == {}
        corrupt(filling, "update app.t set v = 'strasse' where id = 7", "delete from app.k where v = '\u00e49'")
        assert found(swept(filling)) == {
            "t": [("different", ("7",), ("v",))],
            "k": [("missing", ("\u00e49", "\u00f6"), ())],
        }


def test_a_value_that_the_target_lacks_is_set_aside_by_name(filling: Filling) -> None:
    """And the rest goes on; it comes once the value is one that the target has."""
    with filling.backfill(), filling.streaming():
        filling.filled()
    if filling.one("select pg_catalog.getdatabaseencoding()", on="new") == "UTF8":
        pytest.skip("UTF-8 has every letter")
    filling.old.execute("update t set v = '\u20ac' where id = 3; update t set v = 'fine' where id = 4")
    filling.advance()
    held = "select load, key ->> 'id', sqlstate, error from slackwater.quarantine"
    ((*named, error),) = filling.new.execute(held).fetchall()
    assert named == ["t", "3", "22P05"]
    assert 'byte sequence ... in encoding "UTF8" has no equivalent in encoding "LATIN1"' in error
    assert filling.one("select v from app.t where id = 4", on="new") == "fine"
