"""A row has one shape wherever it is computed: operators, domains and collations are those of its columns.

Each test is a way in which new's rows were once other than old's with every gate green, or in which apply stood still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from connectors.postgres.mirror import create_mirror
from schemas.collated import collated
from schemas.direction import Direction
from schemas.errors import Halt, Unavailable
from stream.preflight import Findings, collations
from tests.fixtures.databases import Databases
from tests.fixtures.filling import Filling
from tests.fixtures.tape import MIGRATION
from tests.fixtures.verifying import corrupt, found, swept

Make = Callable[..., Filling]

EXTENSIONS = ("citext", "ltree", "isn", "cube", "hstore", "seg")


@pytest.fixture
def make(databases: Databases) -> Iterator[Make]:
    with ExitStack() as stack:
        yield _making(stack, databases)


def _making(stack: ExitStack, databases: Databases) -> Make:
    def filling(old: str, new: str, mapping: str, *, path: tuple[str, ...] = ()) -> Filling:
        made = Filling(databases, old, new, mapping, path=path)
        stack.callback(made.close)
        return made

    return filling


def loaded(filling: Filling) -> Filling:
    with filling.backfill(), filling.streaming():
        filling.filled()
    filling.agrees()
    return filling


def changed(filling: Filling, *transactions: str) -> None:
    """Each transaction as an epoch of its own; then old and new agree, and nothing stands in quarantine."""
    for transaction in transactions:
        filling.old.execute(transaction.encode())
        filling.advance()
        filling.agrees()
    assert filling.one("select count(*) from slackwater.quarantine", on="new") == 0


# Operators.


CITEXT = (
    "create extension citext schema public; create table u (id int primary key, email public.citext not null);"
    "create table o (id int primary key, who public.citext, amt int);"
    "insert into u values (1, 'Ann@x.org'), (2, 'bob@x.org');"
    "insert into o values (10, 'ann@X.ORG', 5), (11, 'bob@x.org', 6)"
)
CITEXT_NEW = "create extension citext schema public; create table j (id int primary key, uid int, vip boolean)"
CITEXT_MAPPING = """
tables:
  - to: j
    select: select o.id, u.id as uid, o.who = 'ANN@x.org' as vip from o left join u on u.email = o.who
    feeds: {o: id, u: "select o.id from o, u where u.email = o.who"}
drop: [o.amt]
roundtrip: {accept: [o.amt]}
"""


def test_values_of_citext_are_equal_as_citext_has_it(make: Make) -> None:
    filling = loaded(make(CITEXT, CITEXT_NEW, CITEXT_MAPPING, path=("app", "public")))
    assert filling.actual("j") == [("10", "1", "true"), ("11", "2", "false")]
    changed(
        filling,
        "update o set amt = 7 where id = 10",
        "update o set who = 'BOB@x.org' where id = 10",
        "update u set email = 'ANN@X.org' where id = 2; update u set email = 'Bob@x.org' where id = 1",
    )
    with filling.streaming():
        assert found(swept(filling)) == {}
        # What text's `=` would have made of it.
        corrupt(filling, "update app.j set uid = null, vip = false where id = 10")
        assert found(swept(filling)) == {"j": [("different", ("10",), ("uid",))]}


MADE = "".join(f"create extension {name} schema public;" for name in EXTENSIONS)
TABLES = """
create table kl (k public.ltree primary key, v int); create table ki (k public.isbn13 primary key, v int);
create table ku (k public.cube primary key, v int); create table kh (k public.hstore primary key, v int);
create table ks (k public.seg primary key, v int);
"""
KEYS = f"""
{MADE} {TABLES}
create table kc (k public.citext primary key, v int);
create table kp (t int, k public.citext, v int, primary key (t, k));
create table m (id int primary key, path public.ltree, n int);
insert into kc values ('Ann', 1), ('Bob', 2), ('c', 3), ('d', 4);
insert into kp select 1, k, v from kc; insert into kp select 2, k, v from kc;
insert into kl select ('a.b' || g)::public.ltree, g from generate_series(1, 4) g;
insert into ki values ('978-0-393-04002-9', 1), ('978-0-306-40615-7', 2), ('978-0-201-63361-0', 3);
insert into ku select public.cube(array[g, g + 1]), g from generate_series(1, 4) g;
insert into kh select ('k=>' || g)::public.hstore, g from generate_series(1, 4) g;
insert into ks select (g || '.0')::public.seg, g from generate_series(1, 4) g;
insert into m select g, ('x.y' || g % 3)::public.ltree, g from generate_series(1, 9) g;
"""
KEYS_NEW = f"""
{MADE} {TABLES}
create table kc (k public.citext primary key, v int, seq bigserial);
create table kp (t int, k public.citext, v int, seq bigserial, primary key (t, k));
create table g (path public.ltree primary key, n bigint);
"""
KEYS_MAPPING = """
copy: [kc, kp, kl, ki, ku, kh, ks]
tables:
  - {to: g, select: "select path, sum(n) as n from m group by path"}
drop: [m.id]
"""


@pytest.mark.parametrize("path", [("app", "public"), ()])
def test_keys_of_types_that_extensions_bring(make: Make, path: tuple[str, ...]) -> None:
    filling = loaded(make(KEYS, KEYS_NEW, KEYS_MAPPING, path=path))
    seqs = "select k::text, seq from app.kc order by 2"
    ids: dict[str, int] = dict(filling.new.execute(seqs).fetchall())
    changed(
        filling,
        "".join(f"update {t} set v = v + 100;" for t in ("kc", "kp", "kl", "ki", "ku", "kh", "ks")),
        "update kc set k = 'ANN' where v = 101; update kp set k = upper(k::text)::public.citext where v = 102;"
        "delete from kc where v = 103; insert into kc values ('new', 1)",
        "update kl set k = 'moved.here' where v = 101; delete from kl where v = 102; insert into kl values ('n.o', 1)",
        "update ki set k = '978-3-16-148410-0' where v = 101; delete from ki where v = 102",
        "update ku set k = '(99, 99)' where v = 101; delete from ku where v = 102; insert into ku values ('(7)', 7)",
        "update kh set k = 'q=>1' where v = 101; delete from kh where v = 102",
        "update ks set k = '5.00' where v = 101; delete from ks where v = 102",
        "update m set path = 'x.y0' where id = 1; delete from m where path operator(public.=) 'x.y2'",
    )
    assert dict(filling.new.execute("select lower(k::text), seq from app.kc where k::text = 'ANN'").fetchall()) == {
        "ann": ids["Ann"]
    }
    with filling.streaming():
        assert found(swept(filling)) == {}


def test_an_extension_that_lives_in_another_schema_on_new(make: Make) -> None:
    filling = loaded(
        make(
            "create extension citext schema public; create table u (id int primary key, email public.citext, n int);"
            "create table t (k public.citext primary key, tags public.citext[]); insert into t values ('A', '{x,Y}');"
            "insert into u values (1, 'Ann', 1), (2, 'bob', 2)",
            "create schema lib; create extension citext schema lib;"
            "create table u (id int primary key, email lib.citext, is_ann boolean);"
            "create table t (k lib.citext primary key, tags lib.citext[]);"
            "create table g (email lib.citext primary key, n bigint)",
            "copy: [t]\ntables:\n"
            "  - {to: u, select: \"select id, email, email = 'ANN' as is_ann from u\"}\n"
            "  - {to: g, select: 'select email, sum(n) as n from u group by email'}\n",
            path=("app", "lib"),
        )
    )
    changed(
        filling,
        "update t set k = 'a' where k = 'A'; insert into t select 'k' || i from generate_series(1, 700) i",
        "insert into u values (3, 'carl', 3); update u set email = 'BOB' where id = 2; delete from t where k = 'K7'",
    )
    with filling.streaming():
        assert found(swept(filling)) == {}


# Domains.

DOMAIN = (
    "create schema types; create domain types.email as text not null check (value like '%@%');"
    "create domain types.price as numeric(10, 2);"
    "create table t (id int primary key, mail types.email, note text, p types.price, n int not null default 0);"
    "alter table t alter mail set storage external, alter note set storage external;"
    "insert into t select i, 'n' || i || '@x', 'x', i / 3.0 from generate_series(1, 1500) i;"
    "create table v (code types.email primary key, n int);"
    "insert into v select 'c' || i || '@', i from generate_series(1, 20) i"
)
DOMAIN_NEW = (
    "create schema types; create domain types.email as text not null check (value like '%@%');"
    "create domain types.price as numeric(10, 2);"
    "create table t (id int primary key, mail types.email, note text, p types.price, n int, seq bigserial,"
    " mine types.email default 'mine@here'); create table v (code types.email primary key, n int);"
    "create table said (id int primary key, mail types.email);"
    "create table used (mail types.email primary key, n bigint)"
)
DOMAIN_MAPPING = """
copy: [v]
tables:
  - {to: t, select: "select id, mail, note, p, n from t"}
  - {to: said, select: "select id, mail::types.email as mail from t"}
  - {to: used, select: "select mail, count(*) as n from t where id < 900 group by mail"}
"""


def test_a_domain_that_is_not_null_is_no_obstacle(make: Make) -> None:
    filling = loaded(make(DOMAIN, DOMAIN_NEW, DOMAIN_MAPPING))
    wide = "repeat('wide', 2000) || '@x'"
    changed(
        filling,
        "delete from t where id = 1",
        "delete from t where id <= 700",
        "update t set id = id + 5000 where id between 701 and 705",
        f"update t set mail = {wide}, note = repeat('long', 2000) where id in (800, 801, 802)",
        "update t set n = 1 where id = 800; update t set n = 2, note = 'short' where id = 801",
        "update t set id = 9000 where id = 802; update t set p = 1.005 where id = 803",
        "update v set code = 'new@' where n = 1; update v set n = n + 1; delete from v where n = 5",
        f"insert into t values (50, {wide}, 'x', 1, 1)",
        "update t set n = 2 where id = 50",
        "delete from t where id = 50",
    )
    with filling.streaming():
        assert found(swept(filling)) == {}
        corrupt(
            filling,
            "update app.t set mail = 'other@x', p = 7 where id = 900",
            "update app.said set mail = upper(mail) where id = 901",
            "update app.used set n = n + 1 where mail = 'n850@x'",
            "update app.v set n = 0 where code = 'new@'",
        )
        assert found(swept(filling)) == {
            "t": [("different", ("900",), ("mail", "p"))],
            "said": [("different", ("901",), ("mail",))],
            "used": [("different", ("n850@x",), ("n",))],
            "v": [("different", ("new@",), ("n",))],
        }


def test_a_domain_that_refuses_what_old_takes_sets_aside_that_row_alone(make: Make) -> None:
    filling = make(
        "create table t (id int primary key, mail text, n int); insert into t values (1, 'a@b', 1)",
        "create domain strict as text check (value like '%@%');create table t (id int primary key, mail strict, n int)",
        "copy: [t]\n",
    )
    loaded(filling)
    filling.old.execute("insert into t values (2, 'nowhere', 2), (3, 'c@d', 3); update t set n = 9 where id = 1")
    filling.advance()
    assert filling.one("select array_agg(key ->> 'id') from slackwater.quarantine", on="new") == ["2"]
    assert filling.actual("t") == [("1", "a@b", "9"), ("3", "c@d", "3")]


# New's columns change while rows are streamed.


def test_a_column_that_is_widened_takes_what_it_takes_now(make: Make) -> None:
    filling = loaded(
        make(
            "create table t (id int primary key, a numeric, b text, c text); insert into t values (1, 1, 'b', 'c')",
            "create table t (id int primary key, a numeric(5, 2), b varchar(3), c text)",
            "copy: [t]\n",
        )
    )
    changed(filling, "update t set a = 2")
    filling.unlike = "the plan has new's types of before"
    begun: list[str] = []
    for alter, change in (
        ("alter column a type numeric(12, 2)", "update t set a = 1234567.5"),
        ("alter column b type varchar(9)", "insert into t select i, i, 'longer', 'c' from generate_series(2, 900) i"),
        ("alter column b type text using b || ''", "update t set b = 'and much longer' where id < 600"),
    ):
        filling.new.execute(f"alter table app.t {alter}".encode())
        filling.old.execute(change.encode())
        changes = filling.read()
        try:  # a small batch goes without temporary tables
            filling.write(changes)
        except Unavailable as error:
            begun.append(error.cause.partition(" when ")[0])
            filling.begin_anew()
            filling.write(changes)
        assert filling.one("select count(*) from slackwater.quarantine", on="new") == 0
    assert begun == ["t.a on new is of type numeric(12,2) now, and was numeric(5,2)"]  # the first that has changed
    assert filling.one("select a::text from app.t where id = 1", on="new") == "1234567.50"
    filling.new.execute("alter table app.t rename column c to d")
    filling.old.execute("update t set c = 'x' where id = 1")
    changes = filling.read()
    with pytest.raises(Halt, match=r"t\.c on new, which the mapping writes, is not there any more"):
        filling.write(changes)
    filling.new.execute("alter table app.t rename column d to c")
    filling.begin_anew()
    filling.write(changes)
    assert filling.one("select a::text || c from app.t where id = 1", on="new") == "1234567.50x"


# Collations.

COLLATED = """
create schema types;
create collation types.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create table p (id int primary key, grp int, name text collate "de-x-icu");
create table q (id int primary key, name text collate "tr-x-icu", tag text collate types.ci);
create table u (name text collate types.ci primary key, city text);
create table o (id int primary key, who text collate types.ci);
create domain types.word as text collate "tr-x-icu";
create table w (id int primary key, a types.word, b types.word collate "de-x-icu");
insert into p values (1, 1, 'Bea'), (2, 1, 'anna'), (3, 1, 'Carl'), (4, 2, 'Z'), (5, 2, 'a');
insert into q values (1, 'istanbul', 'ABC'), (2, 'xyz', 'other');
insert into u values ('Ann', 'Rome'), ('Bob', 'Oslo');
insert into o values (1, 'ANN'), (2, 'bob'), (3, 'Bob');
insert into w values (1, 'izmir', 'izmir'), (2, 'i', 'i');
"""
COLLATED_NEW = """
create schema types;
create collation types.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create table agg (grp int primary key, names text, first text, seq bigserial);
create table q (id int primary key, up text, is_abc boolean);
create table j (id int primary key, city text);
create table w (id int primary key, a text, b text);
"""
COLLATED_MAPPING = """
tables:
  - to: agg
    select: select grp, string_agg(name, ',' order by name) as names, min(name) as first from p group by grp
  - {to: q, select: "select id, upper(name) as up, tag = 'abc' as is_abc from q"}
  - to: j
    select: select o.id, u.city from o left join u on u.name = o.who
    feeds: {o: id, u: "select o.id from o, u where u.name = o.who"}
  - {to: w, select: "select id, upper(a) as a, upper(b) as b from w"}
drop: [p.id]
"""


def test_collations_of_columns_are_kept(icu_databases: Databases) -> None:
    with ExitStack() as stack:
        filling = loaded(_making(stack, icu_databases)(COLLATED, COLLATED_NEW, COLLATED_MAPPING))
        assert filling.actual("agg") == [("1", "anna,Bea,Carl", "anna"), ("2", "a,Z", "a")]
        changed(
            filling,
            "update p set name = 'beate' where id = 1",
            "update q set name = 'izmir' where id = 2; update q set tag = 'aBc' where id = 2",
            "update u set city = 'Paris' where city = 'Rome'; update o set who = 'ann' where id = 3",
            "update u set name = 'ANN' where name = 'Ann'; insert into w values (3, 'ii', 'ii')",
            "insert into w select i, 'ii' || i, 'ii' || i from generate_series(100, 800) i",
        )
        with filling.streaming():
            assert found(swept(filling)) == {}
            # What the database's own collation would have made of it.
            corrupt(
                filling,
                "update app.agg set names = 'Carl,anna,beate', first = 'Carl' where grp = 1",
                "update app.q set up = 'IZMIR', is_abc = false where id = 2",
                "update app.j set city = null where id = 1",
            )
            assert found(swept(filling)) == {
                "agg": [("different", ("1",), ("names", "first"))],
                "q": [("different", ("2",), ("up", "is_abc"))],
                "j": [("different", ("1",), ("city",))],
            }


def test_a_mirror_that_was_made_without_collations(icu_databases: Databases) -> None:
    """By an older version: what mappings read of it has them all the same."""
    with ExitStack() as stack:
        filling = loaded(_making(stack, icu_databases)(COLLATED, COLLATED_NEW, COLLATED_MAPPING))
        for source, column in (("p", "name"), ("u", "name"), ("o", "who")):
            mirror = filling.engine.loads[f"mirror:{source}"].into
            filling.new.execute(f'alter table {mirror} alter "{column}" type text collate "default"'.encode())
        filling.begin_anew()
        changed(
            filling,
            "update p set name = 'beate' where id = 1",
            "update u set city = 'Paris' where city = 'Rome'; update o set who = 'ann' where id = 3",
        )
        with filling.new.transaction():
            for source in ("p", "u", "o"):
                filling.new.execute("set local search_path = ''")
                ordered = collated(filling.plan.mappings, source)
                table = filling.plan.sources[source]
                create_mirror(filling.new, MIGRATION, Direction.FORWARD, table, ordered)
        filling.begin_anew()
        changed(filling, "update p set name = 'Arno' where id = 3", "update o set who = 'bOB' where id = 1")


def test_collations_of_keys(icu_databases: Databases) -> None:
    """The target's decides there which rows are one."""
    ci = "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
    with ExitStack() as stack:
        filling = loaded(
            _making(stack, icu_databases)(
                f"{ci} create table k (name text collate ci primary key, v int);"
                'create table d (name text collate "de-x-icu" primary key, v int);'
                "insert into k values ('Ann', 1), ('Bob', 2); insert into d values ('Ann', 1), ('Bob', 2)",
                "create collation app.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
                "create table k (name text collate app.ci primary key, v int, seq bigserial);"
                'create table d (name text collate "tr-x-icu" primary key, v int, seq bigserial)',
                "copy: [d]\ntables:\n  - {to: k, select: 'select name, v + 1 as v from k'}\n",
            )
        )
        changed(
            filling,
            "update k set v = 5; update d set v = 5",
            "update k set name = 'ANN' where name = 'ann'; update d set name = 'ANN' where name = 'Ann'",
            "delete from k where name = 'bob'; delete from d where name = 'Bob'",
        )
        assert filling.new.execute("select name, seq from app.k").fetchall() == [("ANN", 1)]


def test_another_version_of_a_collation_is_told(icu_databases: Databases) -> None:
    with ExitStack() as stack:
        filling = loaded(_making(stack, icu_databases)(COLLATED, COLLATED_NEW, COLLATED_MAPPING))

        def told() -> list[str]:
            findings = Findings("slackwater")
            sources, mappings = filling.plan.sources, filling.plan.mappings
            collations.examine(filling.old, filling.new, Direction.FORWARD, sources, mappings, findings)
            return [f"{f.name}: {f.cause} {f.remedy}" for f in findings]

        assert told() == []
        filling.new.execute("update pg_collation set collversion = '1.1' where collname = 'ci'")
        [finding] = told()
        assert finding.startswith("collation_version: ")
        assert 'alter collation "types"."ci" refresh version' in finding
        filling.new.execute("alter collation types.ci refresh version")
        assert told() == []
