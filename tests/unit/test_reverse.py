"""The way back: what is derived from the forward mappings, what is not, and the words for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from schemas.digest import held
from schemas.direction import Direction
from schemas.resolve import Resolution, resolve
from schemas.reversal import How, Loss, Reversal
from schemas.table import Column, Identity, Table
from tests.unit.tables import only, referring, refusals, spec, table

CUSTOMERS = table("customers", "id integer!, cust_nm text!, email, fax, street, city")
CUSTOMER = table("customer", "id integer!, name text!, email")
OLDER = table("customers", "id integer!, name text!, vat text!")
ADDRESS = table("address", "customer_id integer!, street text!, city", key="customer_id")
USERS = table("users", "id integer!, login text!")
PROFILES = table("profiles", "user_id integer!, bio, mood text!", key="user_id")


def back(text: str, old: Iterable[Table], new: Iterable[Table]) -> Resolution:
    """The reverse direction of a file whose forward direction is in order."""
    sides = {t.name: t for t in old}, {t.name: t for t in new}
    forward = resolve(spec(text), Direction.FORWARD, *sides)
    assert not forward.problems, "\n".join(map(str, forward.problems))
    return resolve(spec(text), Direction.REVERSE, sides[1], sides[0])


def of(resolution: Resolution, name: str) -> Reversal:
    table_name, _, column = name.partition(".")
    [found] = [r for r in resolution.reversals if (r.table, r.column) == (table_name, column)]
    return found


def way(expression: str, old_type: str, new_type: str) -> Reversal:
    """How column `a` of `o` comes back from `n.b`, which is `expression` over it."""
    old = table("o", f"id integer!, a {old_type}")
    new = table("n", f"id integer!, b {new_type}")
    new = replace(
        new, columns=tuple(replace(c, type_kind="e") if c.type.startswith("app.") else c for c in new.columns)
    )
    text = f'tables: [{{to: n, select: "select id, {expression} as b from o"}}]\n'
    return of(back(text, [old], [new]), "o.a")


# Forms.


def test_a_copy_goes_back_as_it_came() -> None:
    r = back('copy: "*"\n', [USERS], [USERS])
    m = only(r)
    assert (m.text, m.origin, m.row_local, m.scope) == ("select id, login from users", "copy", True, None)
    assert {x.loss for x in r.reversals} == {Loss.LOSSLESS}


def test_a_renamed_column_gets_its_name_back() -> None:
    text = "tables: [{to: customer, from: customers, rename: {cust_nm: name}, drop: [fax, street, city]}]\n"
    r = back(text, [CUSTOMERS], [CUSTOMER])
    assert only(r).text == "select id, name as cust_nm, email from customer"
    assert of(r, "customers.fax").loss is Loss.LOST
    assert of(r, "customers.fax").how is How.NONE


def test_a_split_is_joined_by_its_key() -> None:
    text = """
drop: [customers.fax]
tables:
  - {to: customer, select: "select id, cust_nm as name, email from customers"}
  - {to: address, select: "select id as customer_id, street, city from customers where street is not null"}
"""
    r = back(text, [CUSTOMERS], [CUSTOMER, ADDRESS])
    m = only(r)
    assert m.text.endswith("from customer\nleft join address on address.customer_id = customer.id")
    assert (m.row_local, m.sources, r.mirrors) == (False, ("customer", "address"), ("customer", "address"))
    assert m.feeds["address"].restrict == ('"customer_id"',)
    assert of(r, "customers.street").loss is Loss.LOSSLESS  # no row there says that it is null
    assert of(r, "customers.city").loss is Loss.LOSSY
    assert "address" in of(r, "customers.city").why


SPLIT = """
drop: [customers.fax]
tables:
  - {to: customer, select: "select id, cust_nm as name from customers"}
  - {to: address, select: "select id as customer_id, email, street, city from customers"}
"""
NAMED = table("customer", "id integer!, name text!")
CHILD = table("address", "customer_id integer!, email, street, city", key="customer_id")
BARE = table("customers", "id integer!, cust_nm, email, fax, street, city")


@pytest.mark.parametrize("child", [CHILD, referring(CHILD, "customer_id", to="customer")])
def test_a_split_begins_at_the_table_that_is_a_row_of_old_by_itself(child: Table) -> None:
    """The child knows more columns, but a customer is one without an address, too."""
    r = back(SPLIT, [CUSTOMERS], [NAMED, child])
    assert only(r).text.endswith("from customer\nleft join address on address.customer_id = customer.id")
    assert r.strays == ({} if child.references else {"customers": ("address",)})


def test_the_child_is_where_a_split_begins_when_the_other_leans_on_it() -> None:
    r = back(SPLIT, [BARE], [referring(NAMED, "id", to="address", keys=("customer_id",)), CHILD])
    assert only(r).text.endswith("from address\nleft join customer on customer.id = address.customer_id")
    assert not r.strays


def test_a_split_of_which_either_part_may_stand_alone_is_not_derived() -> None:
    r = back(SPLIT, [BARE], [NAMED, CHILD])
    assert not r.mappings
    assert not r.problems
    assert "new may hold one in either of them alone" in of(r, "customers.email").why
    assert "add foreign key (id) references address (customer_id)" in of(r, "customers.email").why
    assert only(back(SPLIT, [BARE], [NAMED, referring(CHILD, "customer_id", to="customer")])).sources == (
        "customer",
        "address",
    )


@pytest.mark.parametrize(
    "child",
    [
        referring(CHILD, "customer_id", to="customer", keys=("number",)),
        referring(CHILD, "email", to="customer"),
        referring(CHILD, "customer_id", to="elsewhere"),
    ],
)
def test_a_foreign_key_over_other_columns_does_not_say_where_the_rows_are(child: Table) -> None:
    parent = table("customer", "id integer!, number integer!, name")
    text = SPLIT.replace("cust_nm as name", "cust_nm as name, id + 7 as number")
    assert not back(text, [BARE], [parent, child]).mappings


def test_a_foreign_key_between_keys_that_are_computed_otherwise_says_nothing() -> None:
    text = SPLIT.replace("id as customer_id", "id + 1 as customer_id")
    assert not back(text, [BARE], [NAMED, referring(CHILD, "customer_id", to="customer")]).mappings
    text = text.replace("select id, cust_nm", "select id + 1 as id, cust_nm")
    assert of(back(text, [BARE], [NAMED, referring(CHILD, "customer_id", to="customer")]), "customers.city").why == ""


def test_a_chain_of_foreign_keys_leads_to_where_the_rows_begin() -> None:
    text = """
drop: [customers.fax]
tables:
  - {to: c, select: "select id, cust_nm as name from customers"}
  - {to: d, select: "select id, email from customers"}
  - {to: e, select: "select id, street, city from customers where street is not null"}
"""
    c, d, e = table("c", "id integer!, name"), table("d", "id integer!, email"), table("e", "id integer!, street, city")
    r = back(text, [BARE], [c, referring(d, "id", to="c"), referring(e, "id", to="d")])
    assert "\nfrom c\nleft join" in only(r).text
    assert only(r).sources == ("c", "e", "d")
    assert not back(text, [BARE], [c, referring(d, "id", to="c"), e]).mappings


def test_a_better_column_elsewhere_does_not_take_the_lesser_one_s_place_where_it_is_not() -> None:
    text = """
drop: [customers.fax, customers.street, customers.city]
tables:
  - {to: customer, select: "select id, cust_nm as name, lower(email) as email from customers"}
  - {to: address, select: "select id as customer_id, email from customers"}
"""
    child = table("address", "customer_id integer!, email", key="customer_id")
    r = back(text, [CUSTOMERS], [CUSTOMER, referring(child, "customer_id", to="customer")])
    where = "case when address.customer_id is not null then address.email else customer.email end"
    assert of(r, "customers.email").expression == where


def test_a_column_set_under_reverse_makes_a_row_of_it() -> None:
    """What only the file can say of a column, it says of each row."""
    older = replace(BARE, columns=(*BARE.columns, *table("x", "vat text!").columns))
    text = SPLIT.replace("[customers.fax]", "[customers.fax, customers.vat]")
    text += "reverse: [{to: customers, set: {vat: \"'none'\"}}]\n"
    r = back(text, [older], [NAMED, referring(CHILD, "customer_id", to="customer")])
    assert "\nfrom customer\nleft join address" in only(r).text


def test_a_filter_leaves_other_rows_as_they_are() -> None:
    text = "drop: [customers.fax, customers.cust_nm, customers.email]\n"
    text += "reverse: [{to: customers, set: {cust_nm: \"''\"}}]\ntables:\n"
    text += "  - {to: address, select: \"select id as customer_id, street, city from customers where city <> ''\"}\n"
    m = only(back(text, [CUSTOMERS], [ADDRESS]))
    assert m.scope == "(\"city\" <> '')"
    assert m.row_local


def test_rows_that_the_way_back_does_not_speak_of_are_not_compared() -> None:
    old, new = table("t", "id integer!, gone text"), table("t", "id integer!")
    text = "drop: [t.gone]\ntables: [{to: t, select: select id from t where gone is null}]\n"
    m = only(back(text, [old], [new]))
    assert held(m, old, {}, "id < 9").where == '(id < 9) and (("gone" IS NULL)) is true'
    assert held(replace(m, scope=None), old, {}, "id < 9").where == "id < 9"


def test_a_merge_is_taken_apart() -> None:
    text = 'tables: [{to: account, select: "select u.id, u.login, p.bio, p.mood from users u left join profiles p'
    text += ' on p.user_id = u.id"}]\n'
    r = back(text, [USERS, PROFILES], [table("account", "id integer!, login, bio, mood")])
    assert only(r, "users").text == "select id, login from account"
    assert only(r, "profiles").text == (
        "select id as user_id, bio, mood from account where bio is not null or mood is not null"
    )
    assert r.mirrors == ()


def test_rows_that_an_inner_join_leaves_out_are_not_meant() -> None:
    text = 'tables: [{to: account, select: "select u.id, u.login, p.bio, p.mood from users u join profiles p'
    text += ' on p.user_id = u.id"}]\n'
    r = back(text, [USERS, PROFILES], [table("account", "id integer!, login, bio, mood")])
    for name, key in (("users", "id"), ("profiles", "user_id")):
        scope = only(r, name).scope
        assert scope is not None
        assert scope.startswith("exists (select from (")
        assert f'id = q."{key}"' in scope


def test_a_merge_that_hides_who_was_there_is_not_taken_apart() -> None:
    text = "drop: [profiles.mood]\n"
    text += 'tables: [{to: account, select: "select u.id, u.login, p.bio from users u left join profiles p'
    text += ' on p.user_id = u.id"}]\n'
    r = back(text, [USERS, PROFILES], [table("account", "id integer!, login, bio")])
    assert [m.target for m in r.mappings] == ["users"]
    assert of(r, "profiles.bio").loss is Loss.LOST
    assert "whether it had a row" in of(r, "profiles.bio").why


def test_rows_parted_by_a_value_are_put_together() -> None:
    old = table("people", "id integer!, kind text!, name text!")
    new = [table(n, "id integer!, name text!") for n in ("buyer", "seller")]
    text = "tables:\n  - {to: buyer, select: \"select id, name from people where kind = 'B'\"}\n"
    text += "  - {to: seller, select: \"select id, name from people where kind = 'S'\"}\n"
    m = only(back(text, [old], new))
    assert "union all" in m.text
    assert "'B' as kind" in m.text
    assert m.scope == "((\"kind\" = 'B')) or ((\"kind\" = 'S'))"


def test_parts_that_may_overlap_are_not_put_together() -> None:
    old = table("people", "id integer!, age integer!, name text!")
    new = [table(n, "id integer!, age integer!, name text!") for n in ("young", "tall")]
    text = 'tables:\n  - {to: young, select: "select id, age, name from people where age < 9"}\n'
    text += '  - {to: tall, select: "select id, age, name from people where age > 5"}\n'
    r = back(text, [old], new)
    assert not r.mappings
    assert "young, tall each hold a part" in of(r, "people.name").why


def test_what_was_gathered_does_not_come_back() -> None:
    orders = table("orders", "id integer!, customer_id integer!, total numeric")
    text = "drop: [orders.id]\ntables:\n  - to: sales\n"
    text += "    select: select customer_id, sum(total) as total from orders group by customer_id\n"
    r = back(text, [orders], [table("sales", "customer_id integer!, total numeric", key="customer_id")])
    assert not r.mappings
    assert not r.problems
    assert "one row of many" in of(r, "orders.total").why


def test_a_table_without_a_key_comes_back_whole_or_not_at_all() -> None:
    views = table("views", "at timestamp without time zone!, path text!", key="", identity=Identity.FULL)
    assert only(back('copy: "*"\n', [views], [views])).text == "select at, path from views"
    new = table("views", "path text!", key="", identity=Identity.FULL)
    r = back('copy: "*"\ndrop: [views.at]\n', [views], [new])
    assert not r.mappings
    assert "has no key" in of(r, "views.path").why


def test_a_column_that_needs_a_value_is_asked_for() -> None:
    text = "drop: [customers.vat]\ntables: [{to: customer, select: 'select id, name from customers'}]\n"
    r = back(text, [OLDER], [CUSTOMER])
    said = refusals(r)
    assert "customers.vat is NOT NULL without a default" in said
    assert "reverse: [{to: customers, set: {vat: <expression>}}]" in said
    text += "reverse: [{to: customers, set: {vat: \"'none of ' || name\"}}]\n"
    r = back(text, [OLDER], [CUSTOMER])
    assert only(r).text == "select id, name, 'none of ' || name as vat from customer"
    assert of(r, "customers.vat").how is How.WRITTEN


@pytest.mark.parametrize("expression", ["1 from customer where false --", "1, 2", "x y z"])
def test_set_under_reverse_holds_an_expression(expression: str) -> None:
    text = "drop: [customers.vat]\ntables: [{to: customer, select: 'select id, name from customers'}]\n"
    text += f'reverse: [{{to: customers, set: {{vat: "{expression}"}}}}]\n'
    assert refusals(back(text, [OLDER], [CUSTOMER]))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{to: custmers, set: {name: id}}", "did you mean customers"),
        ("{to: customers, set: {nam: id}}", "did you mean name"),
        ("{to: customers, set: {name: nothing}}", "column nothing is unknown"),
        ("{to: customers, select: 'select id, nam from customer'}", "column nam is unknown"),
        ("{to: customers, from: custome}", "there is no new table custome; did you mean customer?"),
        ("{to: other, select: 'select id, name from customer'}", "there is no old table other"),
    ],
)
def test_mistakes_under_reverse(entry: str, said: str) -> None:
    text = f"tables: [{{to: customer, select: 'select id, name from customers'}}]\nreverse: [{entry}]\n"
    assert said in refusals(back(text, [table("customers", "id integer!, name text!")], [CUSTOMER]))


def test_a_written_way_back_takes_the_place_of_the_derived_one() -> None:
    text = 'tables: [{to: account, select: "select u.id, u.login, p.bio from users u left join profiles p'
    text += ' on p.user_id = u.id"}]\ndrop: [profiles.mood]\n'
    select = "select id as user_id, bio, 'x' as mood from account where bio is not null"
    text += f'reverse: [{{to: profiles, select: "{select}"}}]\n'
    r = back(text, [USERS, PROFILES], [table("account", "id integer!, login, bio")])
    assert {m.target: m.origin for m in r.mappings} == {"users": "derived", "profiles": "select"}
    assert of(r, "profiles.mood") == Reversal(
        table="profiles", column="mood", how=How.WRITTEN, loss=Loss.UNKNOWN, expression="'x'",
        place=of(r, "profiles.mood").place,
    )  # fmt: skip


def test_a_type_s_name_is_not_an_output_s() -> None:
    old = table("o", "id integer!, flag boolean")
    text = "tables: [{to: n, select: 'select id, flag::text as b from o'}]\n"
    assert only(back(text, [old], [table("n", "id integer!, b")])).text == "select id, b::boolean as flag from n"
    old = replace(table("o", "id integer!, mood app.mood"), columns=(old.columns[0], _enum("mood")))
    text = "tables: [{to: n, select: 'select id, mood::text as b from o'}]\n"
    assert only(back(text, [old], [table("n", "id integer!, b")])).text == "select id, b as mood from n"


def _enum(name: str) -> Column:
    return Column(name=name, type_oid=1, type="app.mood", type_full="app.mood", type_kind="e")


# Expressions.

WHENS = "case b when 'x' then 1 when 'y' then 2 end"
LOSSLESS = [
    ("a", "integer", "bigint", "b"),
    ("a", "text", "character varying", "b"),
    ("a::text", "integer", "text", "b::integer"),
    ("a + 7", "integer", "integer", "(b - 7)::integer"),
    ("-a", "integer", "integer", "-b"),
    ("100 - a", "integer", "integer", "(100 - b)::integer"),
    ("a * 100", "integer", "bigint", "(b::integer / 100)::integer"),
    ("a / 100.0", "integer", "numeric", "round(b * 100.0)::integer"),
    ("'C-' || a", "text", "text", "substr(b, 3)"),
    ("a || '!'", "text", "text", "left(b, -1)"),
    ("not a", "boolean", "boolean", "not b"),
    ("a at time zone 'UTC'", "timestamp without time zone", "timestamp with time zone", "b at time zone 'UTC'"),
    ("case a when 1 then 'x' when 2 then 'y' end", "integer", "text!", WHENS),
    ("case when a then 'Y' else 'N' end", "boolean!", "text", "case b when 'Y' then TRUE when 'N' then FALSE end"),
    ("coalesce(a, 0)", "integer!", "integer", "b"),
    ("a", "date", "timestamp without time zone", "b::date"),
]


@pytest.mark.parametrize(("expression", "old", "new", "sql"), LOSSLESS)
def test_what_is_turned_round_without_loss(expression: str, old: str, new: str, sql: str) -> None:
    found = way(expression, old, new)
    assert (found.loss, found.expression, found.why) == (Loss.LOSSLESS, sql, "")


LOSSY = [
    ("lower(a)", "text", "text", "b", "capital"),
    ("coalesce(a, 0)", "integer", "integer", "b", "NULL becomes 0"),
    ("a::integer", "numeric", "integer", "b::numeric", "after the point"),
    ("a::integer", "text", "integer", "b::text", "not written as PostgreSQL"),
    ("a / 100", "integer", "integer", "(b * 100)::integer", "remainder"),
    ("case a when 1 then 'x' when 2 then 'y' end", "integer", "text", WHENS, "NULL"),
    ("to_date(a, 'DD.MM.YYYY')", "text", "date", "to_char(b, 'DD.MM.YYYY')", "DD.MM.YYYY"),
    ("a at time zone 'Europe/Berlin'", "timestamp without time zone", "timestamp with time zone",
     "b at time zone 'Europe/Berlin'", "clocks"),
    ("a", "double precision", "numeric", "b::double precision", "binary"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "old", "new", "sql", "why"), LOSSY)
def test_what_is_turned_round_with_loss(expression: str, old: str, new: str, sql: str, why: str) -> None:
    found = way(expression, old, new)
    assert (found.loss, found.expression) == (Loss.LOSSY, sql)
    assert why in found.why


@pytest.mark.parametrize(
    ("expression", "old", "new", "why"),
    [
        ("md5(a)", "text", "text", "no reverse"),
        ("lib.label(a)", "text", "text", "label() has no reverse"),
        ("a[1]", "text[]", "text", "it is computed"),
        ("a = 'Y'", "text", "boolean", "comparison"),
        ("case a when 1 then 'x' else 'y' end", "integer", "text", "list each value"),
        ("case a when 1 then 'x' when 2 then 'x' end", "integer", "text", "two values become one"),
        ("a || id", "text", "text", "where each of them ends"),
        ("a * 0", "integer", "integer", "everything becomes 0"),
        ("a + id", "integer", "integer", "a constant"),
        ("to_char(a, 'YYYY')", "date", "text", "YYYY, MM and DD"),
    ],
)
def test_what_has_no_way_back(expression: str, old: str, new: str, why: str) -> None:
    found = way(expression, old, new)
    assert (found.how, found.loss) == (How.NONE, Loss.LOST)
    assert why in found.why


@pytest.mark.parametrize(
    ("old", "new", "cuts"),
    [
        ("integer", "bigint", "beyond integer"),
        ("integer", "numeric", "numeric"),
        ("bigint", "bigint", ""),
        ("text", "character varying", ""),
    ],
)
def test_what_fits_new_and_not_old(old: str, new: str, cuts: str) -> None:
    found = way("a", old, new)
    assert cuts in found.cuts
    assert bool(cuts) == bool(found.cuts)
