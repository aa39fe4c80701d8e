"""Digests of both sides at once, narrowed down to the rows that differ.

Invariant: a row that both sides hold alike is never a suspect for long, and one that they do not is always one: what
was left out of a comparison is an error, never silence. Suspects are not verdicts: under traffic one side is ahead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from connectors.postgres import user_path
from connectors.postgres.ranges import Chunk, Kind
from connectors.postgres.session import Connection, translated
from connectors.postgres.sight import Sight
from connectors.postgres.user_path import Path
from schemas import digest
from schemas.digest import Hash, Rows
from schemas.errors import Halt
from stream.verify.queries import Key, View

RANGE_S = 60.0  # a range's statement
SCAN_S = 3600.0  # one scan of a whole table: the age that its snapshot may reach
LISTED_ROWS = 200_000  # fetched at once from each side
MOST_SUSPECTS = 50_000  # of a table that is compared by buckets, before they are judged

Digest = tuple[int, int, int]
"""Count and two sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A chunk. `suspects` are the keys of rows that differed when they were read.

    `apart`: those under which the two sides had another number of rows.
    """

    source_rows: int
    target_rows: int
    suspects: tuple[Key, ...] = ()
    apart: tuple[Key, ...] = ()
    youngest: int | None = None
    by_rows: bool = False  # every row is a suspect
    more: bool = False  # there are more suspects than were listed

    @property
    def rows(self) -> int:
        return max(self.source_rows, self.target_rows)


class Pair:
    """A session on each side, which are read at the same time: the source on a thread of its own."""

    def __init__(self, source: Sight, target: Sight) -> None:
        self.source = source
        self.target = target
        self._other = ThreadPoolExecutor(max_workers=1, thread_name_prefix="source")

    def close(self) -> None:
        self._other.shutdown(wait=True, cancel_futures=True)
        self.source.close()
        self.target.close()

    def cancel(self) -> None:
        """From another thread: end what runs on either side."""
        self.source.cancel()
        self.target.cancel()

    def both(
        self,
        view: View,
        chunk: Chunk,
        text: Callable[[Rows], str],
        timeout_s: float,
        target_text: Callable[[Rows], str] | None = None,
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """The rows of a statement over the chunk, on the source and on the target."""

        def ask_source() -> list[tuple[Any, ...]]:
            with self.source.look(view.sources, timeout_s=timeout_s, path=view.source_path):
                query = text(view.source(self.source.rows, chunk))
                return self.source.all(query, f"computing {view.name} on the source")

        asked: Future[list[tuple[Any, ...]]] = self._other.submit(ask_source)
        try:
            with self.target.look([view.table], timeout_s=timeout_s, path=view.target_path):
                query = (target_text or text)(view.target(self.target.rows, chunk))
                there = self.target.all(query, f"reading {view.name} on the target")
        except BaseException:
            if not asked.done():
                self.source.cancel()
            asked.exception()
            raise
        return asked.result(), there


def agreed_hash(source: Sight, target: Sight) -> Hash:
    """The first way of hashing that both servers can, and on which they agree.

    Errors: Halt when there is none.
    """
    ((mine,),), ((theirs,),) = (side.all(digest.ENCODING, "asking for the encoding") for side in (source, target))
    for how in (h for h in Hash if h.recodes is (mine != theirs)):
        answers = []
        for side in (source, target):
            try:
                answers.append(side.all(how.probe(), "asking for a hash"))
            except Halt:  # FIPS: MD5 is refused
                break
        if len(answers) == 2 and answers[0] == answers[1]:
            return how
    raise Halt(
        "the two servers have no hash in common: rows cannot be compared",
        hint="both have to offer md5() or sha256()",
    )


def compare(pair: Pair, view: View, chunk: Chunk) -> Compared:
    """One range, or a whole table by buckets.

    Errors: what the servers say (`Halt` where the source cannot compute the SELECT), Unavailable past the time limit.
    """
    return _range(pair, view, chunk) if view.space is not None else _buckets(pair, view, chunk)


def _range(pair: Pair, view: View, chunk: Chunk) -> Compared:
    how = view.how
    (mine,), (theirs,) = pair.both(
        view,
        chunk,
        lambda rows: digest.whole(rows, how),
        RANGE_S,
        lambda rows: digest.whole(rows, how, youngest=True),
    )
    source, target, youngest = _digest(mine[:3]), _digest(theirs[:3]), theirs[3]
    found, apart = tuple[Key, ...](), tuple[Key, ...]()
    if source != target:
        found, apart = _differing(*pair.both(view, chunk, lambda rows: digest.listed(rows, how), RANGE_S))
    return Compared(source_rows=source[0], target_rows=target[0], suspects=found, apart=apart, youngest=youngest)


def _buckets(pair: Pair, view: View, chunk: Chunk) -> Compared:
    how, mask = view.how, view.mask
    mine, theirs = pair.both(view, chunk, lambda rows: digest.buckets(rows, how, mask), SCAN_S)
    source = {int(row[0]): _digest(row[1:4]) for row in mine}
    target = {int(row[0]): _digest(row[1:4]) for row in theirs}
    differ = sorted(b for b in source.keys() | target.keys() if source.get(b) != target.get(b))
    found, apart = list[Key](), list[Key]()
    for part in _batches(differ, lambda b: max(source.get(b, (0,))[0], target.get(b, (0,))[0])):
        listed = pair.both(view, chunk, lambda rows, part=part: digest.listed(rows, how, mask, part), SCAN_S)  # type: ignore[misc]
        differing, uneven = _differing(*listed)
        found += differing
        apart += uneven
        if len(found) > MOST_SUSPECTS:
            break
    return Compared(
        source_rows=sum(d[0] for d in source.values()),
        target_rows=sum(d[0] for d in target.values()),
        suspects=tuple(found),
        apart=tuple(apart),
        more=len(found) > MOST_SUSPECTS,
    )


def _batches(buckets: Sequence[int], rows: Callable[[int], int]) -> Iterable[list[int]]:
    part: list[int] = []
    total = 0
    for bucket in buckets:
        part.append(bucket)
        total += rows(bucket)
        if total >= LISTED_ROWS:
            yield part
            part, total = [], 0
    if part:
        yield part


def _digest(row: Sequence[Any]) -> Digest:
    return int(row[0]), int(row[1]), int(row[2])


def _differing(
    mine: Iterable[tuple[Any, ...]], theirs: Iterable[tuple[Any, ...]]
) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """Keys whose rows are not the same on both sides, and those of which one side has more.

    A key of several rows is compared with all of them.
    """
    left: defaultdict[Key, list[str]] = defaultdict(list)
    right: defaultdict[Key, list[str]] = defaultdict(list)
    for into, rows in ((left, mine), (right, theirs)):
        for row in rows:
            into[row[:-1]].append(row[-1])
    differing = tuple(k for k in left.keys() | right.keys() if sorted(left.get(k, ())) != sorted(right.get(k, ())))
    return differing, tuple(k for k in differing if len(left.get(k, ())) != len(right.get(k, ())))


def assert_empty(view: View, source: Connection, target: Connection) -> None:
    """No row of a table was compared: that is clean only if a count of each side says that there is none.

    Errors: Halt when there is one.
    """
    everything = Chunk(number=0, kind=Kind.RANGE if view.space is not None else Kind.WHOLE)
    rows = digest.held(view.mapping, view.table, view.bases)
    there = _one(target, f"select pg_catalog.count(*) from {rows.source} where {rows.where}", view.target_path)
    count = f"select pg_catalog.count(*) from {view.source(source, everything).source}"
    here = _one(source, count, view.source_path)
    if here or there:
        raise Halt(
            f"no row of {view.name} was compared, though there are {here} and {there}",
            hint="rows came meanwhile, or a role may not see them: slackwater verify",
        )


def _one(conn: Connection, query: str, path: Path) -> int:
    with translated("counting rows"), conn.transaction(), user_path.within(conn, path):
        row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return int(str(row[0]))
