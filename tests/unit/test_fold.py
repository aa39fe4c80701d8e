"""Folding: the last image of each row, and every image that was left behind on the way."""

from __future__ import annotations

from schemas.change import Change, Image, Op
from schemas.position import Lsn, Position
from stream.engine.fold import Folded


def folded(*changes: tuple[Op, Image | None, Image | None], feeding: tuple[str, ...] = ()) -> Folded:
    """The changes (op, before, after) of one table with the key `k`, folded in this order."""
    table = Folded(key=("k",), feeding=frozenset(feeding))
    for seq, (op, before, after) in enumerate(changes):
        table.add(
            Change(
                op=op, table="t", before=before, after=None if after is None else dict(after), missing=(),
                before_missing=(), position=Position(Lsn(1), seq), xid=1,
            )
        )  # fmt: skip
    return table


def left(table: Folded) -> set[object]:
    """The keys of `gone`."""
    return {row.origin[0] for row in table.gone if row.origin is not None}


def test_an_update_of_a_row_that_stays_leaves_nothing_behind() -> None:
    table = folded((Op.UPDATE, None, {"k": "a", "v": 1}), (Op.UPDATE, None, {"k": "a", "v": 2}))
    assert table.gone == []
    assert table.rows["a",].after == {"k": "a", "v": 2}


def test_a_key_change_is_one_row_with_its_origin() -> None:
    table = folded((Op.UPDATE, {"k": "a"}, {"k": "b"}))
    assert table.gone == []
    assert table.rows["b",].origin == ("a",)


def test_a_chain_of_keys_leaves_those_in_between() -> None:
    """A chunk read between two of them has brought the one in between to the target."""
    table = folded(
        (Op.UPDATE, {"k": "a"}, {"k": "b"}), (Op.UPDATE, {"k": "b"}, {"k": "c"}), (Op.UPDATE, {"k": "c"}, {"k": "d"})
    )
    assert left(table) == {"b", "c"}
    assert list(table.rows) == [("d",)]
    assert table.rows["d",].origin == ("a",)


def test_a_row_that_is_inserted_and_takes_another_key_leaves_its_first() -> None:
    assert left(folded((Op.INSERT, None, {"k": "a"}), (Op.UPDATE, {"k": "a"}, {"k": "b"}))) == {"a"}


def test_a_row_that_comes_and_goes_is_left_behind() -> None:
    assert left(folded((Op.INSERT, None, {"k": "a"}), (Op.DELETE, {"k": "a"}, None))) == {"a"}


def test_a_row_that_takes_another_key_and_goes_leaves_both() -> None:
    assert left(folded((Op.UPDATE, {"k": "a"}, {"k": "b"}), (Op.DELETE, {"k": "b"}, None))) == {"a", "b"}


def test_a_key_that_comes_back_is_a_row() -> None:
    table = folded(
        (Op.INSERT, None, {"k": "a", "v": 1}), (Op.DELETE, {"k": "a"}, None), (Op.INSERT, None, {"k": "a", "v": 2})
    )
    assert table.rows["a",].after == {"k": "a", "v": 2}


def test_a_truncate_forgets_what_was_left() -> None:
    table = folded((Op.INSERT, None, {"k": "a"}), (Op.DELETE, {"k": "a"}, None), (Op.TRUNCATE, None, None))
    assert table.truncated
    assert table.gone == []


def test_columns_that_feed_leave_their_images() -> None:
    """Under REPLICA IDENTITY FULL the rows fed may depend on columns beside the key."""
    table = folded(
        (Op.UPDATE, {"k": "a", "f": 1}, {"k": "a", "f": 2}),
        (Op.UPDATE, {"k": "a", "f": 2}, {"k": "a", "f": 3}),
        (Op.UPDATE, {"k": "a", "f": 3}, {"k": "a", "f": 3}),
        feeding=("f",),
    )
    assert [row.before for row in table.gone] == [{"k": "a", "f": 2}]
    assert table.rows["a",].before == {"k": "a", "f": 1}


def of(
    *changes: tuple[Op, Image | None, Image | None, int], lasting: tuple[str, ...] = (), at_once: bool = False
) -> Folded:
    """The same, each with its transaction's commit LSN, of a table with the key `k, p`."""
    table = Folded(key=("k", "p"), lasting=lasting, at_once=at_once)
    for seq, (op, before, after, lsn) in enumerate(changes):
        table.add(
            Change(
                op=op, table="t", before=before, after=None if after is None else dict(after), missing=(),
                before_missing=(), position=Position(Lsn(lsn), seq), xid=1,
            )
        )  # fmt: skip
    return table


A, B, C = ({"k": 1, "p": p} for p in "abc")


def test_a_delete_and_an_insert_of_one_transaction_are_one_row() -> None:
    table = of((Op.DELETE, A, None, 1), (Op.INSERT, None, A, 1), (Op.DELETE, A, None, 1), (Op.INSERT, None, A, 1))
    assert table.gone == []
    assert table.rows[1, "a"].origin == (1, "a")


def test_those_of_two_transactions_are_two_rows() -> None:
    table = of((Op.DELETE, A, None, 1), (Op.INSERT, None, A, 2))
    assert [row.origin for row in table.gone] == [(1, "a")]
    assert table.rows[1, "a"].origin is None


def test_a_row_that_took_a_key_and_is_replaced_there_keeps_its_origin() -> None:
    table = of((Op.UPDATE, A, B, 1), (Op.DELETE, B, None, 2), (Op.INSERT, None, B, 2))
    assert table.rows[1, "b"].origin == (1, "a")
    assert [row.origin for row in table.gone] == [(1, "b")]  # a chunk may have brought it


def test_another_row_that_had_the_key_before_is_gone() -> None:
    table = of((Op.DELETE, B, None, 1), (Op.UPDATE, A, B, 1), (Op.DELETE, B, None, 1), (Op.INSERT, None, B, 1))
    assert table.rows[1, "b"].origin == (1, "a")
    assert (1, "b") in {row.origin for row in table.gone}


def test_a_row_is_known_by_the_lasting_part_of_its_key() -> None:
    moves = [(Op.DELETE, A, None, 1), (Op.INSERT, None, B, 1), (Op.DELETE, B, None, 1), (Op.INSERT, None, C, 1)]
    table = of(*moves, lasting=("k",), at_once=True)
    assert table.rows[1, "c"].origin == (1, "a")
    assert {row.origin for row in table.gone} == {(1, "b")}
    assert of(*moves).rows[1, "c"].origin is None


def test_at_once_is_the_very_next_change() -> None:
    other = (Op.DELETE, {"k": 2, "p": "a"}, None, 1)
    apart = [(Op.DELETE, A, None, 1), other, (Op.INSERT, None, B, 1)]
    assert of(*apart, lasting=("k",), at_once=True).rows[1, "b"].origin is None
    assert of(*apart, lasting=("k",)).rows[1, "b"].origin == (1, "a")
