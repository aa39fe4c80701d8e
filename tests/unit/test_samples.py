"""When a suspect row agrees and when it is different: what no write in flight can explain, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from schemas.position import Lsn
from stream.verify.evidence import Sample, settle

KEY = ("1",)


def sample(order: int, lsn: int, value: str | None, version: object = None, at_s: float | None = None) -> Sample:
    return Sample(
        order=order,
        at_s=float(order) if at_s is None else at_s,
        lsn=Lsn(lsn),
        images={} if value is None else {KEY: ((value,),)},
        versions={} if version is None else {KEY: version},
    )


def judged(leaders: list[Sample], followers: list[Sample]) -> str:
    agreed, different = settle([KEY], leaders, followers)
    return "agrees" if agreed else "different" if different else "open"


def test_the_same_on_both_sides() -> None:
    assert judged([sample(1, 100, "a", "v1")], [sample(2, 100, "a")]) == "agrees"


def test_a_follower_that_is_only_late_is_left_open() -> None:
    assert judged([sample(1, 100, "b", "v2")], [sample(2, 90, "a")]) == "open"
    assert judged([sample(1, 100, "b", "v2"), sample(3, 110, "b", "v2")], [sample(2, 90, "a")]) == "open"


def test_a_row_that_was_not_written_in_between_is_proof() -> None:
    leaders = [sample(1, 100, "b", "v2"), sample(3, 120, "b", "v2")]
    assert judged(leaders, [sample(2, 100, "a")]) == "different"


def test_a_row_that_was_written_back_and_forth_is_no_proof() -> None:
    leaders = [sample(1, 100, "b", "v2"), sample(3, 120, "b", "v4")]
    assert judged(leaders, [sample(2, 110, "a")]) == "open"


def test_the_leaders_past_does_not_count_once_it_was_overtaken() -> None:
    """A lost update: the follower has what the leader had, and should have what it has had since."""
    leaders = [sample(1, 100, "a", "v1"), sample(3, 120, "b", "v2"), sample(5, 130, "b", "v2")]
    assert judged(leaders, [sample(2, 95, "a"), sample(4, 125, "a")]) == "agrees"  # it did, when first looked at
    assert judged(leaders, [sample(4, 125, "a")]) == "different"


def test_what_has_no_version_needs_several_looks() -> None:
    leaders = [sample(n, 100 + n, None) for n in (1, 3, 5, 7, 9)]
    followers = [sample(n, 100 + n, "extra", "w") for n in (2, 4, 6, 8)]
    assert judged(leaders[:3], followers[:2]) == "open"
    assert judged(leaders, followers) == "different"
    moved = [*followers[:3], sample(8, 108, "extra", "x")]
    assert judged(leaders, moved) == "open"  # the follower's row was written meanwhile
    hasty = [sample(n, 100 + n, "extra", "w", at_s=n / 100) for n in (2, 4, 6, 8)]
    assert judged(leaders, hasty) == "open"


def test_a_hot_row_agrees_where_two_samples_meet() -> None:
    leaders = [sample(n, 100 + 2 * n, f"n{n}", f"v{n}") for n in range(1, 40, 2)]
    assert judged(leaders, [sample(40, 100 + 2 * 21 + 1, "n21")]) == "agrees"
    assert judged(leaders, [sample(40, 200, "never")]) == "open"


def test_a_row_that_may_wait_to_be_read_again_is_no_proof() -> None:
    leaders = [sample(1, 100, "b", "v2"), sample(3, 120, "b", "v2")]
    unsettled = replace(sample(2, 100, None), unsettled=True)
    assert judged(leaders, [unsettled]) == "open"
    assert judged(leaders, [replace(sample(2, 100, "b"), unsettled=True)]) == "agrees"
    leaders = [sample(n, 100, "b") for n in range(1, 20, 2)]
    assert judged(leaders, [replace(sample(n, 100, "a"), unsettled=True) for n in range(2, 19, 2)]) == "open"
