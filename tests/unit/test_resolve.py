"""From the file to mappings: every form, and every refusal with the words that help."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from schemas.direction import Direction
from schemas.mapping import Mapping
from schemas.resolve import Resolution, finish, resolve
from schemas.table import Identity, Table
from tests.unit.tables import only, refusals, resolved, spec, table

CUSTOMERS = table("customers", "id integer!, cust_nm, email, fax, street, city, zip, tags text[]")
USERS = table("users", "id integer!, email")
PROFILES = table("profiles", "user_id integer!, bio", key="user_id")
ORDERS = table("orders", "id integer!, uid integer, amount numeric, day date")
LINES = table("lines", "order_id integer!, line_no integer!, sku", key="order_id,line_no")


def one(select: str, old: Sequence[Table], new: Table, more: str = "") -> Mapping:
    """The mapping of a SELECT to the table `new`; columns that it does not read are dropped."""
    return only(entry(select, old, new, more))


def entry(select: str, old: Sequence[Table], new: Table, more: str = "") -> Resolution:
    old = [t for t in old if t.name in select or t.name in more]
    drop = ", ".join(f"'{t.name}.{c.name}'" for t in old for c in t.columns)
    text = f"drop: [{drop}]\ntables:\n  - to: {new.name}\n    select: |\n      {select}\n{more}"
    return resolved(text, old, [new])


# Forms.


def test_copy_takes_tables_over_as_they_are() -> None:
    r = resolved('copy: "*"\nexclude: [old_*]\n', [USERS, table("old_x", "id integer!")], [USERS])
    m = only(r)
    assert (m.text, m.origin, m.row_local) == ("select id, email from users", "copy", True)
    assert (m.key, m.owner) == (("id",), ("id",))
    assert m.feeds["users"].query == 'select "id" from "users"'
    assert r.streamed == ("users",)
    assert r.mirrors == ()


def test_copy_leaves_alone_what_entries_read() -> None:
    text = 'copy: "*"\ntables: [{to: account, from: users}]\n'
    r = resolved(text, [USERS, PROFILES], [table("account", "id integer!, email"), PROFILES])
    assert {m.target: m.origin for m in r.mappings} == {"account": "from", "profiles": "copy"}
    assert not r.problems


def test_what_one_entry_does_without_another_one_takes() -> None:
    """A column that an entry drops is lost only where no other entry has it: never in silence where one would."""
    text = """
copy: [users]
tables:
  - {to: customer, from: customers, drop: [street, city, zip, tags, fax, email]}
  - {to: address, from: customers, drop: [cust_nm, tags, fax, email, zip]}
  - {to: account, from: users, drop: [email]}
"""
    targets = [table("customer", "id integer!, cust_nm"), table("address", "id integer!, street, city"), USERS]
    r = resolved(text, [CUSTOMERS, USERS], [*targets, table("account", "id integer!, email")])
    assert not r.problems
    assert {m.target: m.text for m in r.mappings} == {
        "customer": "select id, cust_nm from customers",
        "address": "select id, street, city from customers",
        "users": "select id, email from users",
        "account": "select id from users",
    }


def test_the_shorthand_is_a_select() -> None:
    text = """
tables:
  - {to: customer, from: customers, rename: {cust_nm: name}, set: {email: lower(email), kind: "'c'"},
     drop: [fax, street, city, zip, tags]}
"""
    m = only(resolved(text, [CUSTOMERS], [table("customer", "id integer!, name!, email, kind, note default")]))
    assert m.text == "select id, cust_nm as name, lower(email) as email, 'c' as kind from customers"
    assert m.output("name").plain == ("customers", "cust_nm")
    assert m.output("email").deps == {("customers", "email")}
    assert m.output("email").plain is None
    assert m.reads == {"customers": ("id", "cust_nm", "email")}


def test_quoted_and_reserved_names() -> None:
    odd = table("Order", 'Key integer!, select, we"ird', key="Key")
    new = table("Group", 'Key integer!, user, we"ird', key="Key")
    m = only(resolved("tables: [{to: Group, from: Order, rename: {select: user}}]\n", [odd], [new]))
    assert m.text == 'select "Key", "select" as "user", "we""ird" from "Order"'
    assert m.feeds["Order"].query == 'select "Key" from "Order"'
    folded = resolved("tables: [{to: Group, select: select Key from Order}]\n", [odd], [new])
    assert "table order is unknown" in refusals(folded)  # unquoted, it is folded


def test_a_split_with_a_key_of_its_own_name() -> None:
    new = table("address", "customer_id integer!, street, city", key="customer_id")
    m = one("select id as customer_id, street, city from customers where street is not null", [CUSTOMERS], new)
    assert m.row_local
    assert m.owner == ("customer_id",)
    assert m.feeds["customers"].query == 'select "id" from "customers"'
    assert m.row_deps == {("customers", "street")}


@pytest.mark.parametrize(
    "select",
    [
        (
            "select c.id as customer_id, t.no, t.tag from customers c cross join lateral"
            " unnest(c.tags) with ordinality as t(tag, no)"
        ),
        "select id as customer_id, t.no, t.tag from customers, unnest(tags) with ordinality t(tag, no)",
        (
            "select c.id as customer_id, v.no, v.tag from customers c cross join lateral"
            " (values (1, c.street), (2, c.city)) v(no, tag)"
        ),
        "select id as customer_id, generate_series(1, 3) as no, zip as tag from customers",
        (
            "select id as customer_id, x.no, x.tag from customers c, lateral"
            " (select 1 as no, c.street as tag union all select 2, c.city) x"
        ),
    ],
)
def test_fan_out_is_owned_by_the_row_it_comes_from(select: str) -> None:
    new = table("tag", "customer_id integer!, no bigint!, tag", key="customer_id,no")
    m = one(select, [CUSTOMERS], new)
    assert m.row_local
    assert m.key == ("customer_id", "no")
    assert m.owner == ("customer_id",)


def test_what_is_gathered_from_one_row_alone_stays_row_local() -> None:
    m = one(
        "select c.id, (select string_agg(t, ',' order by t) from unnest(c.tags) t) as tags from customers c",
        [CUSTOMERS],
        table("customer", "id integer!, tags"),
    )
    assert m.row_local
    assert m.output("tags").deps == {("customers", "tags")}


def test_an_aggregate_over_the_outer_row_is_not_row_local() -> None:
    r = entry(
        "select (select max(c.id) from unnest(array[1]) t) as id from customers c",
        [CUSTOMERS],
        table("x", "id integer!"),
    )
    assert "does not say which of its rows (id)" in refusals(r)


def test_merge_by_join() -> None:
    m = one(
        "select u.id, u.email, p.bio from users u left join profiles p on p.user_id = u.id",
        [USERS, PROFILES],
        table("account", "id integer!, email, bio"),
    )
    assert not m.row_local
    assert m.owner == ("id",)
    assert m.feeds["users"].restrict == ('"id"',)
    assert m.feeds["profiles"].query == 'select "user_id" from "profiles"'
    assert m.feeds["profiles"].restrict == ('"user_id"',)
    assert m.output("bio").plain is None  # it is NULL where there is no profile
    assert m.output("email").plain == ("users", "email")


@pytest.mark.parametrize(
    ("select", "columns", "key", "feeds"),
    [
        pytest.param(
            "select uid, sum(amount) as total from orders group by uid",
            "uid integer!, total numeric", "uid", {"orders": 'select "uid" from "orders"'}, id="aggregate",
        ),
        pytest.param(
            "select uid as id, max(day) as d from orders group by 1 having count(*) > 1",
            "id integer!, d date", "id", {"orders": 'select "uid" from "orders"'}, id="by position",
        ),
        pytest.param(
            "select u.id, (select count(*) from orders o where o.uid = u.id) as n from users u",
            "id integer!, n bigint", "id",
            {"users": 'select "id" from "users"', "orders": 'select "uid" from "orders"'}, id="correlated",
        ),
        pytest.param(
            "select id, email from users u where exists (select from orders where uid = u.id and amount > 0)",
            "id integer!, email", "id",
            {"users": 'select "id" from "users"', "orders": 'select "uid" from "orders"'}, id="exists",
        ),
        pytest.param(
            "select id, email from users where id in (select uid from orders)",
            "id integer!, email", "id",
            {"users": 'select "id" from "users"', "orders": 'select "uid" from "orders"'}, id="in",
        ),
        pytest.param(
            "select id, email, n from users left join (select uid, count(*) n from orders group by uid) o on uid = id",
            "id integer!, email, n bigint", "id",
            {"users": 'select "id" from "users"', "orders": 'select "uid" from "orders"'}, id="derived",
        ),
        pytest.param(
            "with o as (select uid as id, count(*) as n from orders group by uid) select id, email, n from users"
            " join o using (id)",
            "id integer!, email, n bigint", "id",
            {"users": 'select "id" from "users"', "orders": 'select "uid" from "orders"'}, id="cte and using",
        ),
        pytest.param(
            "select coalesce(u.id, p.user_id) as id, email, bio from users u full join profiles p on p.user_id = u.id",
            "id integer!, email, bio", "id",
            {"users": 'select "id" from "users"', "profiles": 'select "user_id" from "profiles"'}, id="full",
        ),
        pytest.param(
            "select id, email, bio from users full join (select user_id as id, bio from profiles) p using (id)",
            "id integer!, email, bio", "id",
            {"users": 'select "id" from "users"', "profiles": 'select "user_id" from "profiles"'}, id="full using",
        ),
        pytest.param(
            "select o.id, u.email from orders o join users u on u.id = o.uid",
            "id integer!, email", "id",
            {
                "orders": 'select "id" from "orders"',
                "users": 'select j0."id" from "users" f, "orders" j0 where j0."uid" = f."id"',
            }, id="lookup",
        ),
        pytest.param(
            "select l.order_id, l.line_no, o.day from lines l join orders o on o.id = l.order_id",
            "order_id integer!, line_no integer!, day date", "order_id,line_no",
            {"lines": 'select "order_id" from "lines"', "orders": 'select "id" from "orders"'}, id="header and lines",
        ),
        pytest.param(
            "select a.id, b.email as other from users a join users b on b.id = a.id",
            "id integer!, other", "id", {"users": 'select "id" from "users"'}, id="self",
        ),
        pytest.param(
            "select id, email from users union all select user_id, bio from profiles",
            "id integer!, email", "id",
            {"users": 'select "id" from "users"', "profiles": 'select "user_id" from "profiles"'}, id="union",
        ),
        pytest.param(
            "select distinct on (uid) uid as id, day from orders order by uid, day desc",
            "id integer!, day date", "id", {"orders": 'select "uid" from "orders"'}, id="distinct on",
        ),
        pytest.param(
            "select uid, id, row_number() over (partition by uid order by day) as n from orders",
            "uid integer!, id integer!, n bigint", "uid,id", {"orders": 'select "uid" from "orders"'}, id="window",
        ),
        pytest.param(
            "select u.id, x.day from users u left join lateral (select max(day) as day from orders where uid = u.id)"
            " x on true",
            "id integer!, day date", "id",
            {"users": 'select "id" from "users"', "orders": 'select "uid" from "orders"'}, id="lateral",
        ),
    ],
)  # fmt: skip
def test_feeds_are_derived(select: str, columns: str, key: str, feeds: dict[str, str]) -> None:
    m = one(select, [USERS, PROFILES, ORDERS, LINES], table("x", columns, key=key))
    assert not m.row_local
    assert {t: f.query for t, f in m.feeds.items()} == feeds
    assert any(f.restrict for f in m.feeds.values())


def test_a_feed_may_be_given() -> None:
    select = "select u.id, p.bio from users u left join profiles p on p.user_id::text = u.id::text"
    new = table("account", "id integer!, bio")
    asked = refusals(entry(select, [USERS, PROFILES], new))
    assert "a changed row of profiles feeds" in asked
    assert "feeds: {profiles:" in asked
    m = one(select, [USERS, PROFILES], new, "    feeds: {profiles: p_user_id}\n".replace("p_user", "user"))
    assert m.feeds["profiles"].restrict == ('"user_id"',)
    m = one(select, [USERS, PROFILES], new, "    feeds: {profiles: 'profiles.user_id + 0'}\n")
    assert m.feeds["profiles"].query == 'select "user_id" + 0 from "profiles"'
    m = one(select, [USERS, PROFILES], new, "    feeds: {profiles: 'select u.id from users u, profiles p'}\n")
    assert m.feeds["profiles"].restrict is None
    assert m.feeds["profiles"].columns == set()


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ("{orders: uid}", "names orders, which its SELECT does not read"),
        ("{profiles: nothing}", "column nothing is unknown"),
        ("{profiles: 'user_id, bio'}", "do not all give the same columns of its key"),
        ("{profiles: select uid from orders}", "reads orders, which the mapping does not"),
        ("{profiles: 'user_id from profiles; drop table x'}", "syntax error"),
    ],
)
def test_a_wrong_feed_is_refused(feeds: str, said: str) -> None:
    select = "select u.id, p.bio from users u left join profiles p on p.user_id::text = u.id::text"
    new = table("account", "id integer!, bio")
    drop = ", ".join(f"{t.name}.{c.name}" for t in (USERS, PROFILES, ORDERS) for c in t.columns)
    text = f"drop: [{drop}]\nexclude: [orders]\ntables:\n  - to: account\n    select: {select}\n    feeds: {feeds}\n"
    r = resolved(text, [USERS, PROFILES, ORDERS], [new])
    assert said in refusals(r)


@pytest.mark.parametrize(
    "select",
    [
        "select u.id, (select count(*) from orders) as n from users u",
        "select u.id, u.email as n from users u where id not in (select uid from orders)",
        "select u.id, p.day as n from users u left join (select uid, day from orders) p on p.uid > u.id",
        "select u.id, max(o.amount) as n from users u, orders o group by u.id",
        "select u.id, n from users u, (select uid, rank() over (order by amount) n from orders) x where uid = u.id",
        "select u.id, n from users u join (select max(uid) as uid, day as n from orders group by day) x on uid = u.id",
        (
            "with recursive r as (select id, uid from orders union select id, r.uid from orders o, r where r.id = uid)"
            " select u.id, r.id as n from users u join r on r.uid = u.id"
        ),
        "select u.id, o.id as n from users u left join orders o on exists (select from orders z where z.uid = u.id)",
        "select u.id, o.id as n from users u left join orders o on (o.uid = u.id or o.amount > 7)",
    ],
)
def test_where_the_text_does_not_decide_it_asks(select: str) -> None:
    r = entry(select, [USERS, ORDERS], table("x", "id integer!, n"))
    assert "does not say which of its rows (id) a changed row of orders feeds" in refusals(r)


def test_the_preserved_side_of_a_join_is_not_tied_by_its_condition() -> None:
    # where nothing matches, o.uid = u.id need not hold: uid alone must not stand for u.id
    r = entry(
        "select o.uid as id, u.email as n from orders o left join users u on u.id = o.uid and u.id = o.id",
        [USERS, ORDERS],
        table("x", "id integer!, n"),
    )
    m = only(r)
    assert m.feeds["orders"].query == 'select "uid" from "orders"'
    assert m.feeds["users"].query == 'select "id" from "users"'


def test_loose_equalities_are_trusted_only_where_new_compares_the_same_way() -> None:
    loose = [table("a", "id citext!, x", key="id"), table("b", "a_id citext!, y", key="a_id")]
    select = "select a.id, y from a left join b on b.a_id = a.id"
    assert only(entry(select, loose, table("n", "id citext!, y"))).feeds["b"].restrict == ('"a_id"',)
    through = only(entry(select, loose, table("n", "id text!, y"))).feeds["b"]
    assert through.query == 'select j0."id" from "b" f, "a" j0 where j0."id" = f."a_id"'
    assert through.restrict is None


def test_tables_without_a_key() -> None:
    full = table("events", "kind, at timestamptz", key="", identity=Identity.FULL)
    m = only(resolved("copy: [events]\n", [full], [table("events", "kind, at timestamptz", key="")]))
    assert (m.key, m.owner, m.feeds) == ((), (), {})
    default = table("events", "kind, at timestamptz", key="")
    said = refusals(resolved("copy: [events]\n", [default], [table("events", "kind, at timestamptz", key="")]))
    assert 'alter table "public"."events" replica identity full' in said
    said = refusals(resolved("copy: [events]\n", [full], [table("events", "kind!, at timestamptz", key="kind")]))
    assert "has no primary key" in said
    joined = entry(
        "select u.id, kind from users u join events on kind = email", [USERS, full], table("n", "id integer!, kind")
    )
    assert "joins or aggregates it" in refusals(joined)


@pytest.mark.parametrize(
    ("expression", "refused"),
    [
        ("id", False), ("id::text", False), ("'c-' || id", False), ("md5(id::text)::uuid", False), ("id + 1", False),
        ("(id)::bigint", False), ("concat('c', id)", False), ("id % 10", True), ("id::varchar(3)", True),
        ("id::smallint", False), ("left(id::text, 2)", True), ("id + id", True),
    ],
)  # fmt: skip
def test_a_key_must_tell_old_rows_apart(expression: str, refused: bool) -> None:
    r = entry(f"select {expression} as k, email from customers", [CUSTOMERS], table("x", "k!, email", key="k"))
    if refused:
        assert "two rows of customers could write one row of x" in refusals(r)
    else:
        assert only(r).owner == ("k",)


def test_a_key_of_expressions_is_fed_by_them() -> None:
    m = one("select 'c-' || c.id as k, c.email from customers c", [CUSTOMERS], table("x", "k!, email", key="k"))
    assert m.feeds["customers"].query == """select 'c-' || "id" from "customers\""""


def test_a_key_must_be_sent() -> None:
    new = table("x", "id integer!, email!", key="id,email")
    said = refusals(entry("select id, email from users", [USERS], new))
    assert "key column email of x is computed from email, which users does not send" in said
    assert 'alter table "public"."users" replica identity full' in said
    full = table("users", "id integer!, email", identity=Identity.FULL)
    assert one("select id, email from users", [full], new).owner == ("id", "email")


def test_a_constant_may_be_part_of_a_key() -> None:
    m = one("select id, 'u' as kind from users", [USERS], table("x", "id integer!, kind!", key="id,kind"))
    assert m.owner == ("id", "kind")


def test_fan_out_needs_a_key_that_tells_its_rows_apart() -> None:
    said = refusals(
        entry("select id, t as tag from customers, unnest(tags) t", [CUSTOMERS], table("x", "id integer!, tag"))
    )
    assert "can give several rows of x" in said
    assert "with ordinality" in said


# Refusals.


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ("selec id from users", "syntax error at line 1"),
        ("select id, from users where (", "syntax error"),
        ("", "0 statements"),
        ("select id, email from users; select 1", "2 statements"),
        ("insert into users values (1)", "not a SELECT"),
        ("with x as (delete from users returning id, email) select id, email from x", "writes rows"),
        ("select id, random()::text as email from users", "random() is not a function of the row"),
        ("select id, now()::text as email from users", "now() is not a function of the row"),
        ("select id, current_timestamp::text as email from users", "current_timestamp"),
        ("select id, current_user as email from users", "current_user"),
        ("select id, gen_random_uuid()::text as email from users", "gen_random_uuid"),
        ("select id, pg_catalog.clock_timestamp()::text as email from users", "clock_timestamp"),
        ("select id, nextval('s')::text as email from users", "nextval"),
        ("select id, current_setting('x') as email from users", "current_setting"),
        ("select id, txid_current()::text as email from users", "txid_current"),
        ("select id, pg_backend_pid()::text as email from users", "pg_backend_pid"),
        ("select id, ('now'::timestamp)::text as email from users", "'now' stands for the moment"),
        ("select id, (date 'today')::text as email from users", "'today' stands for the moment"),
        ("select id, email from public.users", "public.users is written with its schema"),
        ("select id, public.users.email from users", "written with its schema"),
        ("select id, email from users limit 5", "`limit`"),
        ("select id, email from users fetch first 5 rows only", "`limit`"),
        ("select id, email from users offset 5", "`offset`"),
        ("select id, (select email from users limit 1) as email from users", "`limit`"),
        ("select id, email from users for update", "locks nothing"),
        ("select id, email from users tablesample system (1)", "tablesample"),
        ("select id, email from only users", "`only`"),
        ("select id, email, ctid from users", "ctid is a system column"),
        ("select id, u.xmin::text as email from users u", "xmin is a system column"),
        ("select id, email into x from users", "`select into`"),
        ("select id, $1 as email from users", "parameter"),
        ("select id, email from users natural join profiles", "natural join"),
        ("select id, email from userss", "table userss is unknown"),
        ("select id, emial as email from users", "column emial is unknown"),
        ("select id, u.emial as email from users u", "column u.emial is unknown"),
        ("select id, x.email from users u", "table or alias x is unknown"),
        ("select id, email from users a join users b on true", "column id is ambiguous"),
        ("with x as (select 1) select id, email from users", "`with x` is never used"),
        ("select id, lower(email) from users", "output 2 of the mapping of account has no name"),
        ("select id, email, email from users", "gives email 2 times"),
        ("select id, email as mail from users", "gives a column mail, which new's account has not"),
        ("select email from users", "column account.id is NOT NULL without a default"),
        ("select 1 as id, 'x' as email", "reads no old table"),
        ("explain select 1", "not a SELECT"),
    ],
)
def test_bad_texts_are_refused(select: str, said: str) -> None:
    text = f"drop: [users.id, users.email]\nexclude: [profiles]\ntables:\n  - to: account\n    select: {select!r}\n"
    if "'" in select:
        text = text.partition("    select")[0] + f"    select: |\n      {select}\n"
    message = refusals(resolved(text, [USERS, PROFILES], [table("account", "id integer!, email")]))
    assert said in message, message
    assert "migration.yaml line" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tables: [{to: customer, from: users}]\n", ["old table profiles is read by nothing", "exclude: [profiles]"]),
        ("copy: [userz, users, profiles]\n", ["`copy` names userz", "did you mean users?"]),
        ("copy: [users, profiles]\nexclude: [profilez]\n", ["`exclude` names profilez", "did you mean profiles?"]),
        ("copy: [users, profiles]\ndrop: [users.emial]\n", ["users has no such column", "did you mean email?"]),
        ("copy: [users, profiles]\ndrop: [user.email]\n", ["there is no old table user"]),
        (
            "exclude: [users, profiles]\ntables: [{to: customer, from: users}]\n",
            ["users is excluded, and a mapping reads"],
        ),
        (
            "copy: [users]\nexclude: [profiles]\ntables: [{to: users, from: users}]\n",
            ["2 mappings write users", "`copy`"],
        ),
        ("exclude: [profiles]\ntables: [{to: custmer, from: users}]\n", ["new has no table custmer", "customer?"]),
        ("exclude: [profiles]\ntables: [{to: customer, from: usrs}]\n", ["there is no old table usrs", "users?"]),
        (
            "exclude: [profiles]\ntables: [{to: customer, from: users, rename: {mail: email}}]\n",
            ["`rename` names mail"],
        ),
        (
            "exclude: [profiles]\ntables: [{to: customer, from: users, set: {email: 'a, b'}}]\n",
            ["not a list of expressions"],
        ),
        (
            "exclude: [profiles]\ntables: [{to: customer, from: users, set: {email: 'id, id'}}]\n",
            ["not a list of expressions"],
        ),
        (
            "exclude: [profiles]\ntables: [{to: customer, from: users, set: {email: 'email from profiles --'}}]\n",
            ["`set` of customer is not a list of expressions"],
        ),
        (
            "exclude: [profiles]\ntables: [{to: customer, from: users, key: [mail]}]\n",
            ["names mail, which new's customer"],
        ),
        (
            "exclude: [profiles]\ntables: [{to: customer, from: users, drop: [fax]}]\n",
            ["`drop` names users.fax, and users has no such column"],
        ),
        (
            "exclude: [profiles]\ntables: [{to: nowhere, select: 'select id from users'}]\n",
            ["there is no new table nowhere"],
        ),
        ("copy: [users, profiles]\ntables: [{to: customer, from: users}]\n", []),
    ],
)
def test_bad_files_are_refused(text: str, said: list[str]) -> None:
    r = resolved(text, [USERS, PROFILES], [table("customer", "id integer!, email"), USERS, PROFILES])
    if not said:
        assert not r.problems
        return
    message = refusals(r)
    for words in said:
        assert words in message, message


def test_a_forgotten_column_is_named() -> None:
    r = resolved("copy: [customers]\n", [CUSTOMERS], [table("customers", "id integer!, email")])
    message = refusals(r)
    assert "customers.cust_nm, customers.fax, customers.street" in message
    assert "drop: [customers.cust_nm" in message
    dropped = "drop: [" + ", ".join(f"customers.{c}" for c in CUSTOMERS.column_names[1:] if c != "email") + "]\n"
    assert not resolved(
        "copy: [customers]\n" + dropped, [CUSTOMERS], [table("customers", "id integer!, email")]
    ).problems


def test_a_column_read_by_any_mapping_is_not_forgotten() -> None:
    text = """
tables:
  - {to: a, select: "select id, cust_nm, email, fax, tags from customers"}
  - {to: b, select: "select id, street, city, zip from customers"}
"""
    new = [table("a", "id integer!, cust_nm, email, fax, tags text[]"), table("b", "id integer!, street, city, zip")]
    assert not resolved(text, [CUSTOMERS], new).problems


def test_generated_columns_are_not_read_in_silence() -> None:
    old = table("t", "id integer!, a numeric, twice numeric gen")
    said = refusals(resolved("copy: [t]\n", [old], [table("t", "id integer!, a numeric, twice numeric")]))
    assert "t.twice is generated: logical replication does not carry it" in said
    assert not resolved("copy: [t]\n", [old], [table("t", "id integer!, a numeric, twice numeric gen")]).problems
    assert not resolved("copy: [t]\n", [old], [table("t", "id integer!, a numeric")]).problems
    said = refusals(entry("select id, twice as a from t", [old], table("x", "id integer!, a numeric")))
    assert "t.twice is generated" in said
    said = refusals(
        entry("select id, a, a as twice from t", [old], table("x", "id integer!, a numeric, twice numeric gen"))
    )
    assert "x.twice is generated in new, so it cannot be written" in said


def test_defaults_identities_and_generated_columns_need_no_mapping() -> None:
    new = table("x", "id integer!, email, no integer! identity, n integer! default, g integer! gen")
    assert one("select id, email from users", [USERS], new).columns == ("id", "email")


def test_every_problem_is_reported_at_once() -> None:
    text = """
copy: [nowhere]
tables:
  - {to: a, select: "select now() as id from users limit 1"}
  - {to: b, select: "select id from profils"}
"""
    r = resolved(text, [USERS, PROFILES, ORDERS], [table("a", "id integer!"), table("b", "id integer!")])
    message = refusals(r)
    for words in ("now()", "`limit`", "profils", "nowhere", "orders is read by nothing", "line 7", "line 8"):
        assert words in message, message


def test_replica_identities_that_do_not_hold_the_key() -> None:
    nothing = table("users", "id integer!, email", identity=Identity.NOTHING)
    said = refusals(resolved("copy: [users]\n", [nothing], [USERS]))
    assert "does not send of a changed or deleted row" in said or "does not hold its primary key" in said


def test_fingerprints_follow_what_is_written() -> None:
    def of(text: str, old: str = "id integer!, email") -> str:
        return only(resolved(text, [table("users", old)], [table("a", "id integer!, email")])).fingerprint

    base = of("tables: [{to: a, from: users}]\n")
    assert of("tables: [{to: a, from: users}]\nbackfill: {workers: 3}\n") == base
    assert of("tables: [{to: a, from: users, set: {email: lower(email)}}]\n") != base
    assert of("tables: [{to: a, from: users}]\n", "id bigint!, email") != base


def test_casts_are_asked_for_where_text_meets_another_type() -> None:
    new = table("a", "id integer!, email date")
    m = only(resolved("tables: [{to: a, from: users}]\n", [USERS], [new]))
    done = finish(m, {"id": "integer", "email": "text"}, new)
    assert [o.cast for o in done.outputs] == [False, True]
    assert [o.cast for o in finish(m, {"id": "integer", "email": "date"}, new).outputs] == [False, False]


def test_reverse_has_its_own_entries_and_copies_back() -> None:
    s = spec('copy: "*"\ntables: [{to: account, from: users}]\nreverse: [{to: users, from: account}]\n')
    old = {t.name: t for t in (USERS, PROFILES)}
    new = {t.name: t for t in (table("account", "id integer!, email"), PROFILES)}
    r = resolve(s, Direction.REVERSE, new, old)
    assert not r.problems
    assert {m.target: m.sources for m in r.mappings} == {"users": ("account",), "profiles": ("profiles",)}
