"""A table that another one has replaced while its own rows were on their way: nothing of them reaches the other one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fixtures.plain import fresh_shop, program_on
from tests.fixtures.preparing import Shop
from tests.fixtures.running import Program, end

OLD = """
create schema shop;
create table shop.kept (id int primary key, v text);
create table shop.dropped (id int primary key, v varchar(40));
create table shop.renamed (id int primary key, v text);
create table shop.joined (id int primary key, w text);
insert into shop.kept select i, 'k' || i from generate_series(1, 50) i;
insert into shop.dropped select i, 'd' || i from generate_series(1, 50) i;
insert into shop.renamed select i, 'r' || i from generate_series(1, 50) i;
insert into shop.joined select i, 'j' || i from generate_series(1, 50) i;
"""
NEW = """
create schema app;
create table app.kept (id int primary key, v text);
create table app.dropped (id int primary key, v text);
create table app.renamed (id int primary key, v text);
create table app.both (id int primary key, v text, w text);
"""
TABLES = """
copy: [kept, dropped, renamed]
exclude: ["*_old"]
tables:
  - {to: both, select: "select r.id, r.v, j.w from renamed r left join joined j on j.id = r.id"}
"""
OF_THE_PREDECESSORS = """
insert into shop.dropped select i, 'gone' from generate_series({n}, {n} + 9) i;
update shop.dropped set v = 'gone' where id between {n} % 40 and {n} % 40 + 3;
delete from shop.dropped where id = 1 + {n} % 50;
insert into shop.renamed select i, 'gone' from generate_series({n}, {n} + 9) i;
update shop.renamed set v = 'gone' where id between {n} % 40 and {n} % 40 + 3;
insert into shop.kept values ({n}, 'kept');
"""
REPLACED = """
create table shop.load_ (id int primary key, v text);
insert into shop.load_ select i, 'fresh' || i from generate_series(1, 30) i;
drop table shop.dropped; alter table shop.load_ rename to dropped;
create table shop.other (id int primary key, v text);
insert into shop.other select i, 'other' || i from generate_series(1, 30) i;
alter table shop.renamed rename to renamed_old; alter table shop.other rename to renamed;
"""
AFTERWARDS = """
insert into shop.dropped values (500, 'later'); update shop.dropped set v = 'later' where id = 3;
insert into shop.renamed values (500, 'later'); delete from shop.renamed where id = 4;
insert into shop.renamed_old values (9000, 'of another table now');
"""
PAIRS = {
    "kept": ("select id, v from shop.kept", "select id, v from app.kept"),
    "dropped": ("select id, v::text from shop.dropped", "select id, v from app.dropped"),
    "renamed": ("select id, v from shop.renamed", "select id, v from app.renamed"),
    "both": (
        "select r.id, r.v, j.w from shop.renamed r left join shop.joined j on j.id = r.id",
        "select id, v, w from app.both",
    ),
}


def differing(shop: Shop) -> list[str]:
    return [name for name, (a, b) in PAIRS.items() if sorted(shop.on_old(a)) != sorted(shop.on_new(b))]


def loaded(shop: Shop) -> dict[str, Any]:
    return dict(shop.on_new("select name, done_at::text from slackwater.load"))


def in_kafka(program: Program, shop: Shop) -> None:
    """Everything that is written now is published, and nobody has applied it."""
    ((lsn,),) = shop.on_old("select pg_current_wal_insert_lsn()::text")
    query = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s"
    program.until(lambda: shop.on_old(query, lsn, shop.slot) == [(True,)])


def test_rows_of_the_predecessor_are_left_out(postgres_dsn: str, bootstrap: str, tmp_path: Path) -> None:
    """Some are in Kafka, some in the WAL alone; one predecessor is dropped, one renamed and written to."""
    with (
        fresh_shop(postgres_dsn, bootstrap, OLD, NEW) as made,
        program_on(made.with_(tables=TABLES), tmp_path) as program,
    ):
        run = program.streaming()
        before = loaded(made)
        program("pause", "apply")
        program.until(lambda: program.forward()["paused"])
        made.on_old(OF_THE_PREDECESSORS.format(n=1000))
        in_kafka(program, made)
        end(run)
        made.on_old(OF_THE_PREDECESSORS.format(n=2010))
        made.on_old(REPLACED)
        made.on_old(AFTERWARDS)
        assert "dropped was replaced" in program("gates", code=None)
        done = program.document("prepare", "--yes")
        assert any("without shop.renamed_old, whose place another table has taken" in s for s in done["steps"]), done
        program("resume", "apply")
        program.start("run")
        program.until(lambda: program.status()["phase"] == "streaming", 90)
        program.until(lambda: program.forward()["lag_seconds"] == 0, 60)
        made.on_old("insert into shop.renamed_old values (9001, 'nobody hears of it')")
        made.on_old("insert into shop.renamed values (501, 'last')")
        program.until(lambda: not differing(made), 60)
        for name in ("dropped", "renamed"):
            assert f"rows of the table that was {name} before it was replaced are left out" in program.log
        assert loaded(made)["kept"] == before["kept"]
        program("verify")  # 0: clean
        # And back again: the one that had the name first has it once more.
        end(program.background[-1])
        made.on_old("alter table shop.renamed rename to other; alter table shop.renamed_old rename to renamed")
        made.on_old("drop table shop.other; update shop.renamed set v = 'home' where id = 7")
        program("prepare", "--yes")
        program.start("run")
        program.until(lambda: program.status()["phase"] == "streaming", 90)
        program.until(lambda: not differing(made), 60)
        assert program.status()["quarantine"]["rows"] == 0
