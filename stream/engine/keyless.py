"""Tables without a key: rows are told apart by their whole image, and counted.

Invariant: the target holds as many rows of each image as the source. Loaded once, from one snapshot, which is stored;
the stream leaves out what that snapshot already showed, and before it there is nothing to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from schemas.change import Change, Image, Op
from schemas.errors import Halt
from schemas.names import EQ
from schemas.snapshot import Snapshot
from stream.engine.mapping_sql import Load, columns

if TYPE_CHECKING:
    from stream.engine.engine import Engine

Row = tuple[object, ...]


class Keyless:
    """The engine's steps for loads without a key."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self, load: Load) -> int:
        """The one chunk: everything staged, as it is."""
        e = self._engine
        source = load.mapping.sources[0]
        e.run(load.transform({source: e.stages[source].reading()}))
        return e.run(self._insert(load))

    def apply(self, source: str, changes: Sequence[Change]) -> None:
        """Apply changes of a source without a key, in order, to every load that reads it."""
        e = self._engine
        for load in e.loads.values():
            if source not in load.mapping.sources or load.mapping.key:
                continue
            state = e.states[load.name]
            if state.snapshot is None:
                continue  # its chunk will show all of this: a chunk shows everything that was applied before it
            seen, newest = Snapshot.parse(state.snapshot), state.newest_lsn
            # What committed past the load is not in it, whatever its id: ids come round again.
            self._apply(load, [c for c in changes if c.position.commit_lsn > newest or not seen.shows(c.xid)])

    def _apply(self, load: Load, changes: Iterable[Change]) -> None:
        e = self._engine
        source = load.mapping.sources[0]
        stage = e.stage_of(source)
        e.prepare(load)
        truncated, net = self._net(changes, stage.names, source)
        with e.writing(load):
            e.run(f"truncate {stage.new}, {load.rows}")  # mappings with a key may have staged the same table
            e.run("set local enable_hashjoin = on")
            if truncated:
                e.written += e.run(load.delete_all())
            gone = [row for row, n in net.items() for _ in range(-n)]
            come = [row for row, n in net.items() for _ in range(n)]
            if gone:
                stage.copy(e.conn, stage.new, [[*row, None, 0] for row in gone])
                wanted = e.run(load.transform({source: stage.reading()}))
                deleted = e.run(self._delete(load))
                if deleted != wanted:
                    raise Halt(
                        f"{load.name}: {wanted} rows went away at the source, {deleted} of them are here",
                        hint=f"something else wrote to {load.name}: find out what, then load it anew",
                    )
                e.written += deleted
                e.run(f"truncate {stage.new}, {load.rows}")
            if come:
                stage.copy(e.conn, stage.new, [[*row, None, 0] for row in come])
                e.run(load.transform({source: stage.reading()}))
                e.written += e.run(self._insert(load))
                e.run(f"truncate {stage.new}, {load.rows}")

    def _net(self, changes: Iterable[Change], names: tuple[str, ...], source: str) -> tuple[bool, Counter[Row]]:
        """Whether the table was truncated, and by how much the count of each image changed since."""
        truncated, net = False, Counter[Row]()
        for change in changes:
            if change.op == Op.TRUNCATE:
                truncated = True
                net.clear()
                continue
            if change.before is not None:
                net[_image(change.before, names, source)] -= 1
            elif change.op != Op.INSERT:
                raise Halt(
                    f"a change of {source} lacks its old row", hint=f"alter table {source} replica identity full"
                )
            if change.after is not None:
                net[_image(change.after, names, source)] += 1
        return truncated, net

    def _insert(self, load: Load) -> str:
        names = columns(load.mapping.columns)
        return f"insert into {load.into} ({names}) overriding system value select {names} from {load.rows}"

    def _delete(self, load: Load) -> str:
        """As many target rows of each image as `rows` holds, whichever they are."""
        image = f"row({columns(load.mapping.columns)})::text"
        return (
            f"with gone as materialized (select {image} as image, pg_catalog.count(*) as n\n"
            f"from {load.rows} group by 1),\n"
            f"found as (select tableoid as t, ctid as c, {image} as image, "
            f"pg_catalog.row_number() over (partition by {image}) as i from {load.into}\n"
            f"where {image} {EQ} any (select image from gone))\n"
            f"delete from {load.into} x using found f, gone g "
            f"where x.tableoid {EQ} f.t and x.ctid {EQ} f.c and f.image {EQ} g.image "
            "and f.i operator(pg_catalog.<=) g.n"
        )


def _image(image: Image, names: tuple[str, ...], source: str) -> Row:
    try:
        # 0.0 and -0.0 are equal in Python, and two images in PostgreSQL.
        return tuple([repr(v) if isinstance(v, float) and v == 0 else v for v in map(image.__getitem__, names)])
    except KeyError as error:
        raise Halt(
            f"a row of {source} lacks the column {error.args[0]}",
            hint="run `slackwater prepare` after a change of the table",
        ) from error
