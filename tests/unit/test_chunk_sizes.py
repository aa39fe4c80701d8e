"""Where integer ranges are cut, how large chunks are made, and what is said of the time left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.postgres.chunks import before_header
from connectors.postgres.ranges import Chunk, cut, is_dense, pack, unpack
from schemas.position import Lsn
from stream.backfill.chunk_queue import AIM_S, FIRST_ROWS, Sizer
from stream.backfill.post_load import index_of


@given(
    least=st.integers(-(2**63), 2**63 - 2),
    width=st.integers(1, 10_000),
    share=st.floats(0.5, 1.0),
    rows=st.integers(1, 3_000),
)
def test_cuts_cover_the_keys_without_a_gap(least: int, width: int, share: float, rows: int) -> None:
    greatest = min(least + width, 2**63 - 1)
    estimate = max(1, int((greatest - least + 1) * share))
    chunk, pieces = Chunk(number=0), 0
    while (at := cut(chunk, (least, greatest), estimate, rows)) is not None:
        assert least < int(at) <= greatest
        if chunk.lower is not None:
            assert 0 < int(at) - int(chunk.lower) <= 2 * rows + 2  # w keys hold at most w rows
        chunk = Chunk(number=0, lower=at)
        pieces += 1
        assert pieces <= width


def test_density_needs_an_estimate() -> None:
    assert is_dense((1, 200), 100)
    assert not is_dense((1, 201), 100)
    assert not is_dense((1, 5), 0)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_packed_key_unpacks(key: list[str]) -> None:
    assert unpack(pack(tuple(key)), len(key)) == tuple(key)


def test_chunks_grow_to_the_time_and_the_bytes_that_they_may_take() -> None:
    sizer = Sizer(row_bytes=100, chunk_bytes=16 << 20)
    assert sizer.rows == FIRST_ROWS
    for _ in range(10):
        sizer.seen(rows=sizer.rows, size=sizer.rows * 100, seconds=sizer.rows * 1e-6)
    assert sizer.rows == (16 << 20) // 100  # bytes are the limit where rows are quick
    for _ in range(10):
        sizer.seen(rows=sizer.rows, size=sizer.rows * 100, seconds=sizer.rows * 1e-4)
    assert sizer.rows == pytest.approx(AIM_S * 1e4, rel=0.01)  # time where they are not
    for _ in range(10):
        sizer.seen(rows=sizer.rows, size=sizer.rows * 1_000_000, seconds=0.001)
    assert sizer.rows == 16  # rows of a megabyte
    sizer.too_large()
    assert sizer.rows == 2


def test_a_chunk_of_a_few_rows_teaches_nothing() -> None:
    sizer = Sizer(row_bytes=100, chunk_bytes=16 << 20)
    sizer.seen(rows=3, size=300, seconds=30)
    assert sizer.rows == FIRST_ROWS


def test_a_position_behind_a_page_header_is_the_pages_start() -> None:
    assert before_header(Lsn(5 * 8192 + 24), 8192) == 5 * 8192
    assert before_header(Lsn(5 * 8192 + 40), 8192) == 5 * 8192
    assert before_header(Lsn(5 * 8192 + 48), 8192) == 5 * 8192 + 48


@pytest.mark.parametrize(
    ("statement", "name", "table", "unique", "rest"),
    [
        ("create index customer_email on customer (email)", "customer_email", "customer", False, "(email)"),
        (
            "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS X ON app.Customer(lower(email));",
            "x",
            "customer",
            True,
            None,
        ),
        ('create index "X y" on only "app"."Odd ""t""" using gin (doc) where a > 1', "X y", 'Odd "t"', False, None),
    ],
)
def test_an_index_is_known_by_its_name_and_table(
    statement: str, name: str, table: str, unique: bool, rest: str | None
) -> None:
    index = index_of(statement, "app")
    assert index is not None
    assert (index.name, index.table, index.unique) == (name, table, unique)
    assert rest is None or index.rest == rest


@pytest.mark.parametrize(
    "statement",
    [
        "create index on customer (email)",  # without a name nobody could tell whether it was built
        "create index i on other.customer (email)",
        "alter table customer add constraint c unique (email)",
        "create table index_on (a int)",
    ],
)
def test_anything_else_is_not_an_index_of_ours(statement: str) -> None:
    assert index_of(statement, "app") is None
