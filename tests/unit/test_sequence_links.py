"""Which sequence goes on from which: by columns, by name, by the file; and whether it can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.direction import Direction, Side
from schemas.resolve import resolve
from schemas.sequence_check import Column, Examined, Standing, Surveyed, examined
from schemas.sequence_links import Fed, Known
from schemas.sequences import MARGIN_STEPS, Sequence
from schemas.spec import Spec, parse_spec
from tests.unit.tables import table

BIG = (1 << 63) - 1
INT = (1 << 31) - 1


def spec(text: str) -> Spec:
    head = "migration: m\nold: {dsn: x, schema: shop}\nnew: {dsn: y, schema: app}\nkafka: {bootstrap: z}\n"
    return parse_spec(head + text, env={})


def side(schema: str, database: int, *made: tuple[str, tuple[Fed, ...], dict[str, object]]) -> Surveyed:
    """Sequences by name, with what they feed; `last`, `maximum`, `type`, `owned`, `column` (a type) as given."""
    known: list[Known] = []
    states: dict[int, Sequence] = {}
    columns: dict[Fed, Column] = {}
    for oid, (name, feeds, more) in enumerate(made, database * 100):
        of, _, own = name.rpartition(".")
        given: dict[str, object] = {
            "increment": 1,
            "minimum": 1,
            "maximum": BIG,
            "start": 1,
            "cache": 1,
            "cycle": False,
            "last": None,
        }
        given |= {k: v for k, v in more.items() if k in given}
        known.append(
            Known(
                oid=oid,
                schema=of or schema,
                name=own,
                type=str(more.get("type", "bigint")),
                owned=bool(more.get("owned", False)),
                feeds=feeds,
                readable=bool(more.get("readable", True)),
            )
        )
        if more.get("readable", True):
            states[oid] = Sequence(**given)  # type: ignore[arg-type]
        columns |= {fed: Column(at=fed, type=str(more.get("column", "bigint")), indexed=True) for fed in feeds}
    return Surveyed(
        known=tuple(known), standing=Standing(sequences=states, columns=columns), database=("system", database)
    )


def look(
    file: Spec, old: Surveyed, new: Surveyed, direction: Direction = Direction.FORWARD, tables: tuple[str, ...] = ("t",)
) -> Examined:
    there = {name: table(name, "id bigint!, v") for name in tables}
    here = {name: table(name, "id bigint!, v") for name in tables}
    forward = resolve(file, Direction.FORWARD, there, here)
    assert not forward.problems
    way = forward if direction is Direction.FORWARD else resolve(file, direction, here, there)
    return examined(file, direction, way.mappings, forward.mappings, {Side.OLD: old, Side.NEW: new})


def linked(found: Examined) -> dict[str, tuple[list[str], str]]:
    return {link.own.label: ([s.label for s in link.others], link.how) for link in found.links.links}


T_OLD: tuple[Fed, ...] = (("shop", "t", "id"),)
T_NEW: tuple[Fed, ...] = (("app", "t", "id"),)


def test_by_columns_whatever_they_are_called_and_by_name_in_both_directions() -> None:
    old = side("shop", 1, ("t_seq", T_OLD, {"owned": True, "last": 5}), ("order_no", (), {"last": 9}))
    new = side("app", 2, ("t_id_seq", T_NEW, {"owned": True}), ("order_no", (), {}))
    found = look(spec("copy: '*'\n"), old, new)
    assert linked(found) == {"app.t_id_seq": (["shop.t_seq"], "columns"), "app.order_no": (["shop.order_no"], "name")}
    assert not found.wrong
    placed = {j.link.own.name: j.place.value for j in found.judged if j.place is not None}
    assert placed == {"t_id_seq": 5 + MARGIN_STEPS, "order_no": 9 + MARGIN_STEPS}
    back = look(spec("copy: '*'\n"), old, new, Direction.REVERSE)
    assert linked(back) == {"shop.t_seq": (["app.t_id_seq"], "columns"), "shop.order_no": (["app.order_no"], "name")}


def test_what_nobody_decided_upon_is_named() -> None:
    old = side(
        "shop", 1, ("order_no", (), {}), ("legacy", (), {}), ("audit", (("shop", "log", "id"),), {"owned": True})
    )
    new = side("app", 2, ("order_no", (), {}), ("fresh", (), {}), ("extra", (("app", "t", "more"),), {}))
    found = look(spec("copy: [t]\n"), old, new)
    assert [cause.split(" feeds")[0] for cause, _ in found.wrong] == [
        "sequence order_no", "old's sequence shop.legacy", "new's sequence app.fresh",
    ]  # fmt: skip
    assert "`sequences: [order_no]`" in found.wrong[0][1]
    decided = spec(
        "copy: [t]\nsequences: [order_no, {to: fresh, from: legacy}]\n",
    )
    assert linked(look(decided, old, new)) == {
        "app.order_no": (["shop.order_no"], "file"), "app.fresh": (["shop.legacy"], "file"),
    }  # fmt: skip
    assert not look(decided, old, new).wrong
    left = look(spec('copy: [t]\nexclude_sequences: [order_no, legacy, "fre*"]\n'), old, new)
    assert (linked(left), left.wrong) == ({}, ())
    assert len(left.excluded) == 4
    patterns = look(spec('copy: [t]\nsequences: ["order_*"]\nexclude_sequences: [legacy, fresh]\n'), old, new)
    assert linked(patterns) == {"app.order_no": (["shop.order_no"], "name")}


def test_one_that_feeds_a_column_on_one_side_only() -> None:
    """Drawn by a trigger on old, by the default on new; and the other way round, where new's draws from it itself."""
    old = side("shop", 1, ("t_seq", (), {"last": 70}))
    new = side("app", 2, ("t_seq", T_NEW, {"owned": True}))
    assert linked(look(spec("copy: '*'\n"), old, new)) == {"app.t_seq": (["shop.t_seq"], "columns")}
    old = side("shop", 1, ("t_seq", T_OLD, {"owned": True, "last": 70}))
    new = side("app", 2, ("ids", (), {}))
    found = look(spec("copy: '*'\n"), old, new)
    assert [cause for cause, _ in found.wrong] == [
        "new's sequence app.ids feeds no column, and nothing says which one of old it goes on from"
    ]
    named = look(spec("copy: '*'\nsequences: [{to: ids, from: t_seq}]\n"), old, new)
    assert linked(named) == {"app.ids": (["shop.t_seq"], "file")}
    assert [j.place.value for j in named.judged if j.place] == [70 + MARGIN_STEPS]


def test_one_of_another_schema() -> None:
    """A function speaks of it, or both databases have it: in one database it is the same for both sides."""
    old = side("shop", 1, ("seqs.tickets", (), {"last": 70}), ("crm.other", (), {}))
    new = side("app", 2, ("seqs.tickets", (), {}))
    old = replace(old, known=tuple(replace(s, outside=True) for s in old.known))
    new = replace(new, known=tuple(replace(s, outside=True) for s in new.known))
    found = look(spec("copy: '*'\n"), old, new)
    assert linked(found) == {"seqs.tickets": (["seqs.tickets"], "name")}
    assert not found.wrong
    ((cause, remedy),) = look(spec("copy: [t]\n"), old, new).wrong
    assert cause.startswith("sequence seqs.tickets feeds no column")
    assert "`sequences: [seqs.tickets]`" in remedy
    assert not look(spec("copy: [t]\nsequences: [seqs.tickets]\n"), old, new).wrong
    assert not look(spec("copy: [t]\nexclude_sequences: [seqs.tickets]\n"), old, new).wrong
    spoken = replace(old, known=tuple(replace(s, spoken_of=True) for s in old.known))
    assert [c for c, _ in look(spec("copy: '*'\n"), spoken, new).wrong] == [
        "old's sequence crm.other feeds no column, and nothing says which one of new goes on from it"
    ]
    same = look(spec("copy: '*'\n"), old, replace(new, known=old.known[:1], database=old.database))
    assert (linked(same), same.wrong) == ({}, ())


def test_in_one_database_a_function_of_a_side_may_seem_to_speak_of_the_other_sides() -> None:
    """Each side's function names its own, and the two are called alike: each is outside of the other's schema."""
    mine, theirs = side("shop", 1, ("n", (), {"last": 70})), side("app", 2, ("n", (), {}))
    (ours,), (others,) = mine.known, theirs.known
    everything = {**mine.standing.sequences, **theirs.standing.sequences}
    states = Standing(sequences=everything)
    old = Surveyed(known=(ours, replace(others, outside=True, spoken_of=True)), standing=states, database=("system", 1))
    new = Surveyed(known=(others, replace(ours, outside=True, spoken_of=True)), standing=states, database=("system", 1))
    for direction, wanted in ((Direction.FORWARD, "app.n"), (Direction.REVERSE, "shop.n")):
        found = look(spec("copy: '*'\n"), old, new, direction)
        assert (list(linked(found)), found.wrong) == ([wanted], ())


def test_one_that_both_sides_share_is_left_alone() -> None:
    shared: tuple[Fed, ...] = (("shop", "t", "id"), ("app", "t", "id"))
    both = side("shop", 1, ("ids", shared, {"last": 5}))
    found = look(spec("copy: '*'\n"), both, Surveyed(known=both.known, standing=both.standing, database=both.database))
    assert (linked(found), found.wrong) == ({}, ())


@pytest.mark.parametrize(
    ("new", "cause", "remedy"),
    [
        ({"type": "integer", "maximum": INT}, "(it ends at 2147483647)", "alter sequence app.t_id_seq as bigint"),
        ({"maximum": 4000}, "(it ends at 4000)", "alter sequence app.t_id_seq no maxvalue"),
        (
            {"type": "integer", "maximum": INT, "column": "integer"},
            "(t.id is integer)",
            "alter table app.t alter column id type bigint; alter sequence app.t_id_seq as bigint",
        ),
        ({"column": "smallint"}, "(t.id is smallint)", "alter table app.t alter column id type bigint"),
        ({"increment": -1, "maximum": -1, "minimum": -BIG, "start": -1}, "", ""),
    ],
)
def test_one_that_cannot_reach(new: dict[str, object], cause: str, remedy: str) -> None:
    old = side("shop", 1, ("t_id_seq", T_OLD, {"last": 3_000_000_000}))
    found = look(spec("copy: '*'\n"), old, side("app", 2, ("t_id_seq", T_NEW, new)))
    if not remedy:  # it counts away from what the other one has given
        assert not found.wrong
        return
    ((said, mended),) = found.wrong
    assert said.startswith("new's sequence app.t_id_seq cannot go on from old's shop.t_id_seq")
    assert cause in said
    assert mended.startswith(f"{remedy} -- or ")
    assert "3000000000" not in said


def test_room_is_asked_for_before_a_turn_for_what_is_drawn_until_then() -> None:
    def wrong(last: int, most: int = INT) -> bool:
        old = side("shop", 1, ("t_id_seq", T_OLD, {"last": last, "maximum": most}))
        new = side("app", 2, ("t_id_seq", T_NEW, {"type": "integer", "maximum": INT}))
        return bool(look(spec("copy: '*'\n"), old, new).wrong)

    assert not wrong(INT - 2 * MARGIN_STEPS - 1, BIG)
    assert wrong(INT - 2 * MARGIN_STEPS + 1, BIG)
    assert wrong(INT - 1, BIG)
    # Where old would end there as well, nothing is lost by the turn.
    assert not wrong(INT - 2 * MARGIN_STEPS + 1)
    assert not wrong(INT - 1)
    assert not wrong(INT)


def test_a_sequence_that_begins_anew_and_one_that_ends() -> None:
    old = side("shop", 1, ("n", (), {"cycle": True, "maximum": 9999, "last": 500}))
    new = side("app", 2, ("n", (), {"maximum": 9999}))
    ((said, mended),) = look(spec("copy: '*'\n"), old, new).wrong
    assert "it ends where the other side's starts anew" in said
    assert mended.startswith("alter sequence app.n cycle")
    wider = side("app", 2, ("n", (), {}))
    assert not look(spec("copy: '*'\n"), old, wider).wrong
    around = side("app", 2, ("n", (), {"cycle": True, "minimum": 1000, "maximum": 9999, "start": 1000}))
    ((said, mended),) = look(spec("copy: '*'\n"), old, around).wrong
    assert mended.startswith("alter sequence app.n minvalue 1 maxvalue 9999")


def test_one_that_may_not_be_read_is_unknown() -> None:
    old = side("shop", 1, ("n", (), {"readable": False}))
    found = look(spec("copy: '*'\n"), old, side("app", 2, ("n", (), {})))
    assert found.unknown == ("old's sequence shop.n may not be read, or is gone",)


def test_names_that_stand_for_nothing_have_their_line() -> None:
    file = spec("copy: [t]\nsequences:\n  - {to: ordr_no, from: order_no}\nexclude_sequences: [order_nr]\n")
    both = (side("shop", 1, ("order_no", (), {})), side("app", 2, ("order_no", (), {})))
    problems = look(file, *both).links.problems
    assert [(p.where, "did you mean" in p.cause) for p in problems] == [
        ("migration.yaml line 8", True), ("migration.yaml line 7", True),
    ]  # fmt: skip
    twice = spec("copy: [t]\nsequences: [order_no]\nexclude_sequences: [order_no]\n")
    assert "is excluded, and `sequences` names it" in look(twice, *both).links.problems[0].cause


def test_a_role_that_may_draw_on_one_side_only() -> None:
    old, new = side("shop", 1, ("n", (), {})), side("app", 2, ("n", (), {}))
    old = replace(old, known=(replace(old.known[0], users=("etl", "web")),))
    new = replace(new, known=(replace(new.known[0], users=("web",)),))
    assert look(spec("copy: '*'\n"), old, new).wrong == (
        (
            "role etl may draw from old's shop.n, and not from new's app.n",
            "grant usage on sequence app.n to etl",
        ),
    )
    assert not look(spec("copy: '*'\n"), old, new, Direction.REVERSE).wrong
    assert not look(spec("copy: '*'\ncutover: {gates: {grants: {except: [etl]}}}\n"), old, new).wrong
