"""Values that the target cannot hold at all: they are met as rows are staged, before any mapping's statement."""

from __future__ import annotations

import contextlib

from connectors.postgres.session import connect
from tests.fixtures.databases import Databases, fresh_database
from tests.fixtures.filling import Filling
from tests.integration.test_refused_rows import apart, retried


def test_values_that_the_encoding_of_new_lacks(postgres_dsn: str) -> None:
    """They are met before any statement of a mapping runs: the rows are left out of what is staged."""
    with contextlib.ExitStack() as stack:
        form = "encoding 'LATIN1' locale 'C'"
        old = stack.enter_context(fresh_database(postgres_dsn, "old"))
        new = stack.enter_context(fresh_database(postgres_dsn, "new", form))
        ddl = "create table t (id integer primary key, v text); create table u (id integer primary key, v text)"
        mapping = "copy: [t]\ntables:\n  - {to: u, select: 'select id, v from t'}\n"
        made = Filling(Databases(old=old, new=new), ddl.partition(";")[0], ddl, mapping)
        stack.enter_context(contextlib.closing(made))
        with made.backfill(), made.streaming():
            made.filled()
        made.old.execute("insert into t select i, case i when 3 then '€' else 'é' end from generate_series(1, 5) i")
        made.advance()
        assert apart(made) == {"t": {("3", "22P05")}, "u": {("3", "22P05")}}
        made.old.execute("update t set v = '€€' where id = 3; update t set v = 'ü' where id < 3")
        made.advance()
        with connect(new) as conn:
            assert conn.execute("select id, v from app.t order by 1").fetchall() == [
                (1, "ü"), (2, "ü"), (4, "é"), (5, "é"),
            ]  # fmt: skip
        made.old.execute("update t set v = 'euro' where id = 3")
        made.advance()
        retried(made)
        assert apart(made) == {}
        made.agrees()
