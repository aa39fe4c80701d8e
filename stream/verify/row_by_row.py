"""Where the source cannot compute a mapping's SELECT (it lacks a function, or a row's value is none that the SELECT
takes): every row is a suspect.

Invariant: each key that either side has is judged: the source's rows are staged and transformed on the target, as the
stream does it. What cannot be told apart so keeps the source's own error; it is never left out.
"""

from __future__ import annotations

from connectors.postgres.ranges import Chunk, relation
from schemas.errors import Halt, RowRejected, SlackwaterError, StatementRefused
from stream.verify.digests import RANGE_S, SCAN_S, Compared, Pair
from stream.verify.lookup import feeding
from stream.verify.queries import Key, View, owners, restricts
from stream.verify.sampler import Witness

UNDEFINED_FUNCTION, UNDEFINED_OBJECT, UNDEFINED_SCHEMA = "42883", "42704", "3F000"
BATCH = 5_000  # judged together
MOST = 1_000_000  # keys of one chunk, which are held in memory


def lacks(error: SlackwaterError) -> bool:
    """Whether a statement failed because something that it names is not there (a function, a type, a collation), or for
    a row that it met: one of which nothing can be made keeps nobody from comparing the others."""
    state = getattr(error.__cause__, "sqlstate", None)
    if isinstance(error, Halt) and state in (UNDEFINED_FUNCTION, UNDEFINED_OBJECT, UNDEFINED_SCHEMA):
        return True
    return isinstance(error, (RowRejected, StatementRefused))


def possible(view: View) -> bool:
    """Whether something says which source rows feed an owner, and no chunk has more rows than are judged so."""
    return (
        bool(view.mapping.key)
        and restricts(view) is not None
        and (view.space is not None or view.rows_estimate <= MOST // 2)
    )


def every_row(pair: Pair, witness: Witness, view: View, chunk: Chunk, why: SlackwaterError | None = None) -> Compared:
    """A chunk of which each row is a suspect. Errors: `why`, where nothing says which source rows feed an owner."""
    by = restricts(view)
    if by is None or not view.mapping.key:
        raise why or Halt(f"nothing says which rows {view.name} comes from", hint="slackwater check")
    limit = f" limit {MOST + 1}"
    timeout_s = RANGE_S if view.space is not None else SCAN_S
    fed: dict[Key, None] = {}
    with pair.source.look(view.sources, timeout_s=timeout_s, path=view.source_path):
        for table in view.sources:
            texts, _ = feeding(view, table, by[table.name], [])
            where = view.space.condition(pair.source.rows, chunk) if view.space is not None else "true"
            query = f"select distinct {', '.join(texts)} from {relation(table)} where {where}{limit}"
            fed |= dict.fromkeys(pair.source.all(query, f"reading keys of {table.name}"))
    with pair.target.look([view.table], timeout_s=timeout_s, path=view.target_path):
        held = view.target(pair.target.rows, chunk)
        query = f"select {', '.join(held.keys)} from {held.source} where {held.where}{limit}"
        there: list[Key] = list(pair.target.all(query, f"reading keys of {view.name} on the target"))
    if max(len(fed), len(there)) > MOST:
        raise Halt(
            f"{why.cause if why else view.name}; and it has too many rows to be compared one by one",
            hint="create on the source what it lacks; it is needed only while rows are compared",
        )
    found = dict.fromkeys(there) | dict.fromkeys(_made(witness, view, list(fed)))
    return Compared(source_rows=len(there), target_rows=len(there), suspects=tuple(found), by_rows=True)


def _made(witness: Witness, view: View, fed: list[Key]) -> list[Key]:
    """Keys of the rows that some owners may have: where the key is more than the owner, what the SELECT makes says."""
    at = {name: n for n, name in enumerate(view.mapping.owner)}
    keys = [tuple(o[at[k]] if k in at else None for k in view.mapping.key) for o in fed]
    if set(view.mapping.key) <= set(at):
        return keys
    return [key for i in range(0, len(keys), BATCH) for key in witness.made(view, owners(view, keys[i : i + BATCH]))]
