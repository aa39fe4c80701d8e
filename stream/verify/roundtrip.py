"""`roundtrip`: old -> new -> old over the real rows, table by table and chunk by chunk, before anybody relies on it;
and rows that only new can hold, made and taken back (`made_rows`).

Invariant: what could not be judged is never called lossless; a verdict belongs to one file, and to no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from connectors.postgres import catalog, composed, control
from connectors.postgres import roundtrip as kept
from connectors.postgres.composed import SAMPLES, Composition, Counts
from connectors.postgres.ranges import Chunk, KeySpace, Kind
from connectors.postgres.session import Connection
from connectors.postgres.user_path import Path
from schemas.direction import Direction
from schemas.errors import PrivilegeMissing, Refused, SlackwaterError, Unavailable
from schemas.mapping import Mapping as TableMapping
from schemas.resolve import Resolution, resolve
from schemas.reversal import How, Loss, Reversal
from schemas.roundtrip import ColumnVerdict, TableVerdict, Verdict, one_way
from schemas.spec import Spec
from schemas.table import Table
from stream.migration.paths import NONE, judged_under
from stream.migration.prepared import load, paths_now
from stream.preflight import Findings, ddl, identity
from stream.verify.made_rows import try_made_rows

CHUNK_ROWS = 50_000
TOOK_LONG_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The newest verdict that was kept: under what, as `judged_under` has it, and when."""

    under: str
    at: datetime
    verdict: Verdict


def latest(conn: Connection, migration: str) -> Kept | None:
    """The migration's newest verdict, from new's control schema; None where there is none. `accepted` is as it was
    then: judge with `Verdict.judged(spec)`."""
    row = kept.read(conn, migration)
    return None if row is None else Kept(under=row[0], at=row[1], verdict=Verdict.of(row[2]))


def keep(conn: Connection, spec: Spec, verdict: Verdict) -> bool:
    """Keep the verdict for the gates; False where new holds no control schema yet. A pass that could not judge
    everything replaces nothing but a verdict on another file."""
    if not control.installed(conn):
        return False
    document = load(conn, spec.migration)
    under = judged_under(spec.fingerprint, spec, NONE if document is None else document.paths)
    kept.write(conn, spec.migration, under, verdict.document())
    return True


def roundtrip(spec: Spec, old: Connection, new: Connection, say: Callable[[str], None]) -> Verdict:
    """Judge every old table that new takes rows from. `say` is told what is done.

    Errors: Refused where one of the directions does not resolve.
    """
    sources = catalog.tables(old, spec.old.schema_)
    with ddl.tried(new, spec, Findings(spec.command)):
        targets = {n: identity.as_full(t) for n, t in catalog.tables(new, spec.new.schema_).items()}
        forward = resolve(spec, Direction.FORWARD, sources, targets)
        back = resolve(spec, Direction.REVERSE, targets, sources)
        _usable(forward, back)
        read = {name for m in back.mappings for name in m.sources}
        composed.prepare_types(old, new, [targets[name] for name in targets if name in read])
        paths = paths_now(spec, old, new)
        made, untried = try_made_rows(spec, (old, new), (sources, targets), forward, back, paths, say)
    writers = {m.target: m for m in forward.mappings}
    columns = _by_table(back.reversals)
    ways = {m.target: m for m in back.mappings}
    tables: list[TableVerdict] = []
    said: list[ColumnVerdict] = []
    for name in columns:
        judge = _Judge(spec, old, sources, targets, writers, columns[name], say, paths.old)
        table, verdicts = judge.table(sources[name], ways.get(name))
        tables.append(table)
        said += verdicts
    return Verdict(
        tables=tuple(tables),
        columns=tuple(said),
        one_way=one_way(spec, [m.target for m in forward.mappings], back),
        made=made,
        untried=untried,
    ).judged(spec)


def _usable(*resolutions: Resolution) -> None:
    problems = [str(p) for r in resolutions for p in r.problems]
    if problems:
        raise Refused("the mappings cannot be used as they are", reasons=tuple(problems), hint="slackwater check")


def _by_table(reversals: tuple[Reversal, ...]) -> dict[str, list[Reversal]]:
    found: dict[str, list[Reversal]] = {}
    for reversal in reversals:
        found.setdefault(reversal.table, []).append(reversal)
    return found


@dataclass(slots=True)
class _Judge:
    """One old table's verdict."""

    spec: Spec
    conn: Connection
    sources: Mapping[str, Table]
    targets: Mapping[str, Table]
    writers: Mapping[str, TableMapping]
    reversals: list[Reversal]
    say: Callable[[str], None]
    path: Path

    def table(self, table: Table, way: TableMapping | None) -> tuple[TableVerdict, list[ColumnVerdict]]:
        if way is None:
            return TableVerdict(table=table.name), [self._lost(r, 0) for r in self.reversals]
        problem = self._unwritten(way)
        if problem is None:
            composition = Composition(
                conn=self.conn,
                table=table,
                back=way,
                forward={s: self.writers[s] for s in way.sources},
                old=self.sources,
                new=self.targets,
                path=self.path,
            )
            try:
                return self._judged(composition, way)
            except (Unavailable, PrivilegeMissing):
                raise
            except SlackwaterError as error:
                problem = error.cause
        unknown = [self._verdict(r, Loss.UNKNOWN if r.how is not How.NONE else Loss.LOST) for r in self.reversals]
        return TableVerdict(table=table.name, problem=problem), unknown

    def _unwritten(self, way: TableMapping) -> str | None:
        """What the way back reads, and the forward mappings do not give: of that nothing is known here."""
        for name in way.sources:
            if name not in self.writers:
                return f"the way back reads new's {name}, which no mapping writes"
            missing = [c for c in way.reads[name] if c not in self.writers[name].columns]
            if missing:
                return f"the way back reads {name}.{', '.join(missing)}, which no mapping gives"
        return None

    def _judged(self, composition: Composition, way: TableMapping) -> tuple[TableVerdict, list[ColumnVerdict]]:
        total: Counts | None = None
        samples: dict[str, list[dict[str, str]]] = {}
        for space, chunk in self._chunks(composition):
            counts = composition.judge(space, chunk)
            total = counts if total is None else _sum(total, counts)
            wanted = {"missing": counts.missing, "extra": counts.extra, **counts.differing}
            for which, rows in wanted.items():
                lacking = SAMPLES - len(samples.get(which, ()))
                if rows and lacking > 0:
                    samples.setdefault(which, []).extend(composition.keys(space, chunk, which, lacking))
        assert total is not None
        derived = way.origin in ("derived", "copy") and bool(way.key)
        verdict = TableVerdict(
            table=way.target,
            rows=total.rows + total.outside,
            # A derived way back has each row that reached new: what is missing was never there, and stays as it is.
            left_out=total.outside + (total.missing if derived else 0),
            missing=0 if derived else total.missing,
            extra=total.extra,
            missing_keys=() if derived else tuple(samples.get("missing", ())),
            extra_keys=tuple(samples.get("extra", ())),
        )
        return verdict, [self._column(r, total, samples) for r in self.reversals]

    def _column(self, reversal: Reversal, total: Counts, samples: Mapping[str, list[dict[str, str]]]) -> ColumnVerdict:
        if reversal.how is How.NONE:
            return self._lost(reversal, total.filled.get(reversal.column, 0))
        rows = total.differing.get(reversal.column, 0)
        found = self._verdict(reversal, Loss.LOSSY if rows else Loss.LOSSLESS)
        return replace(found, rows=rows, keys=tuple(samples.get(reversal.column, ())))

    def _lost(self, reversal: Reversal, rows: int) -> ColumnVerdict:
        return replace(self._verdict(reversal, Loss.LOST), rows=rows)

    def _verdict(self, reversal: Reversal, loss: Loss) -> ColumnVerdict:
        why = "" if loss is Loss.LOSSLESS else reversal.why
        return ColumnVerdict(table=reversal.table, column=reversal.column, how=reversal.how, loss=loss, why=why)

    def _chunks(self, composition: Composition) -> Any:
        """The table's ranges in order, each cut when the one before it is done; the whole where it cannot be cut."""
        table = composition.table
        space = KeySpace.of(self.conn, table, whole=not composition.cuttable)
        if space.kind is not Kind.RANGE:
            whole = composed.whole(space)
            self.say(f"{table.name}: whole")
            yield whole, whole.first(1)[0]
            return
        rest: Chunk | None = space.first(1)[0]
        number, began = 0, time.monotonic()
        while rest is not None:
            at = space.plan_cut(self.conn, rest, table.rows_estimate, CHUNK_ROWS)
            chunk, rest = (rest, None) if at is None else space.cut_at(rest, at)
            yield space, chunk
            number += 1
            if rest is not None and time.monotonic() - began > TOOK_LONG_S:
                began = time.monotonic()
                self.say(f"{table.name}: {number} chunks of about {CHUNK_ROWS:,} rows are judged")
        self.say(f"{table.name}: {number} chunk{'' if number == 1 else 's'}")


def _sum(a: Counts, b: Counts) -> Counts:
    return Counts(
        rows=a.rows + b.rows,
        outside=a.outside + b.outside,
        missing=a.missing + b.missing,
        extra=a.extra + b.extra,
        differing={c: n + b.differing[c] for c, n in a.differing.items()},
        filled={c: n + b.filled[c] for c, n in a.filled.items()},
    )
