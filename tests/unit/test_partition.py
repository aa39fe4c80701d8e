"""murmur2 as Kafka's Java client has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import partition
from schemas.partition import murmur2, partition_for

# Kafka's UtilsTest.testMurmur2, signed as Java prints them.
KNOWN = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("key", KNOWN)
def test_kafkas_own_vectors(key: bytes) -> None:
    assert murmur2(key) == KNOWN[key] & 0xFFFFFFFF
    assert partition._murmur2(key) == KNOWN[key] & 0xFFFFFFFF


@given(st.binary(max_size=300))
def test_unrolled_is_the_loop(key: bytes) -> None:
    assert murmur2(key) == partition._murmur2(key)


@given(st.binary(max_size=40), st.integers(1, 200))
def test_a_partition_exists(key: bytes, n: int) -> None:
    assert 0 <= partition_for(key, n) < n
