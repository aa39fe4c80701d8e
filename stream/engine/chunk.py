"""A chunk of the backfill, or of a reread, through the engine's steps: staged as bytes, written like any batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from connectors.postgres.session import translated
from schemas.errors import Halt
from schemas.position import Lsn
from stream.engine.mapping_sql import columns
from stream.engine.staging import Part, Staged

if TYPE_CHECKING:
    from stream.engine.engine import Engine


class Chunk:
    """Staging and writing a chunk, within a transaction that the caller has begun."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def columns(self, load: str) -> tuple[str, ...]:
        """The source columns, in order, that a chunk of this load is staged with."""
        e = self._engine
        mapping = e.loads[load].mapping
        source = mapping.sources[0]
        wanted = {*mapping.reads[source], *e.stages[source].key}
        return tuple(n for n in e.stages[source].names if n in wanted)

    @contextmanager
    def stage(self, load: str) -> Iterator[Any]:
        """A COPY in text format into the staging table of the load's source; write the source's bytes to it."""
        e = self._engine
        mapping = e.loads[load].mapping
        stage = e.stage_of(mapping.sources[0])
        e.prepare(e.loads[load])
        names = columns(self.columns(load))
        e.current = load
        with (
            translated(f"staging a chunk of {load}", rows=True),
            e.firing(),
            e.conn.cursor() as cursor,
            cursor.copy(f"copy {stage.new} ({names}) from stdin") as copy,
        ):
            yield copy

    def stage_keys(self, load: str, keys: Sequence[Mapping[str, str | None]]) -> None:
        """Name the source rows that a reread asks for, so that target rows of those that are gone are deleted."""
        e = self._engine
        source = e.loads[load].mapping.sources[0]
        stage = e.stage_of(source)
        e.prepare(e.loads[load])
        named = tuple(keys[0])  # the source's key, or the columns that say which owner a row feeds
        names = columns(named)
        with (
            translated(f"staging keys of {load}", rows=True),
            e.firing(),
            e.conn.cursor() as cursor,
            cursor.copy(f"copy {stage.old} ({names}) from stdin") as copy,
        ):
            for key in keys:
                copy.write_row([key[n] for n in named])

    def stage_owners(self, load: str, owners: Sequence[Mapping[str, str | None]]) -> None:
        """Name owners of target rows, by the target's columns, whose rows are deleted where nothing makes them."""
        e = self._engine
        x = e.loads[load]
        e.stage_of(x.mapping.sources[0])
        e.prepare(x)
        named = x.mapping.owner
        with (
            translated(f"staging owners of {load}"),
            e.conn.cursor() as cursor,
            cursor.copy(f"copy {x.owners} ({columns(named)}) from stdin") as copy,
        ):
            for owner in owners:
                copy.write_row([owner[n] for n in named])

    def keep(self, load: str, carried: Sequence[Mapping[str, str | None]]) -> None:
        """Set aside unmapped columns that rows to be read again brought along from under their old keys."""
        e = self._engine
        x = e.loads[load]
        e.keep(x)
        with translated(f"staging rows of {load}"), e.firing():
            e.conn.execute(x.keep_documents(), (json.dumps([dict(document) for document in carried]),))

    def apply(self, load: str, *, carried: bool = False, owners: bool = False, swap: bool = False) -> int:
        """Transform and write what `stage`, `stage_keys` and (`carried`) `keep` staged; returns target rows written.

        `owners`: `stage_owners` has named some. `swap`: a unique value moves between the rows.

        A mirror's rows also recompute the awake mappings that read it, which needs the exclusive lock.
        """
        e = self._engine
        x = e.loads[load]
        source = x.mapping.sources[0]
        asked = e.conn.execute(f"select exists (select from {e.stages[source].old})").fetchone()
        assert asked is not None
        gone = owners or bool(asked[0])
        staged = Staged(truncated=False, has_new=True, has_old=gone, has_gone=gone, carried=carried)
        staged.parts = [Part(number=0, missing=frozenset(), moved=False, entering=False, rows=())]
        if e.mirrors_only and not x.is_mirror:
            raise Halt(f"{load} is no mirror, and nothing else may be written now", hint="slackwater status")
        names = {load}
        if x.is_mirror and not e.mirrors_only:
            joined = {n for n, y in e.loads.items() if not y.mapping.row_local and source in y.mapping.sources}
            names |= joined
            e.owners.isolate |= joined  # what one of these refuses is not the mirror's row's fault
        if not x.mapping.key:
            with e.writing(x):
                return e.keyless.load(x)
        # Where a row comes that carries something, another one may be still: it is taken out, not made into this one.
        taken_out = {load} if swap or (carried and e.replica) else ()
        e.settle({source: staged}, swap=taken_out, skip={}, applied_lsn=Lsn(0), only=names)
        return e.written
