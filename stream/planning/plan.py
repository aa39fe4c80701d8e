"""`plan`: what will happen, before it does: tables and sizes, every mapping as it is understood, what leans on the old
tables, and what is not moved. It changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from connectors.postgres import catalog, survey
from connectors.postgres.session import Connection
from connectors.postgres.survey import Trait
from schemas.direction import Direction
from schemas.draft import matching
from schemas.mapping import Mapping
from schemas.resolve import Resolution, resolve
from schemas.reversal import How, Reversal
from schemas.roundtrip import OneWay, one_way
from schemas.spec import Spec
from schemas.table import Table
from stream import preflight
from stream.planning import ddl
from stream.planning.ddl import Proposal
from stream.preflight import Findings, identity, sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that `plan` prints. `sources` and `targets` are whole schemas; sizes are the planner's estimates."""

    spec: Spec
    resolution: Resolution
    sources: dict[str, Table]
    targets: dict[str, Table]
    not_carried: dict[str, tuple[str, ...]]  # old table -> columns that nothing reads
    excluded: tuple[str, ...]
    dependents: tuple[Trait, ...]
    other_slots: tuple[str, ...]
    unmoved: tuple[Trait, ...]
    proposals: tuple[Proposal, ...]
    back: Resolution  # the reverse direction; replica identities of new as `arm` makes them
    sequences: sequences.Examinations


def plan(spec: Spec, old: Connection, new: Connection) -> Report:
    """Read both sides and resolve the file; problems stay in the report, for `check` to refuse."""
    found = Findings(spec.command)
    sources = catalog.tables(old, spec.old.schema_)
    with preflight.ddl.tried(new, spec, found):
        targets = catalog.tables(new, spec.new.schema_)
        resolution = resolve(spec, Direction.FORWARD, sources, targets)
        back = _back(spec, sources, targets)
        looked = sequences.look(spec, old, new, resolution, back)
    read: dict[str, set[str]] = defaultdict(set)
    for mapping in resolution.mappings:
        for source, columns in mapping.reads.items():
            read[source].update(columns)
    return Report(
        spec=spec,
        resolution=resolution,
        sources=sources,
        targets=targets,
        not_carried={
            name: left
            for name in resolution.streamed
            if name in sources and (left := tuple(c for c in sources[name].column_names if c not in read[name]))
        },
        excluded=tuple(sorted(matching(spec.exclude, sources))),
        dependents=tuple(survey.dependents(old, sources.values())),
        other_slots=tuple(survey.other_slots(old)),
        unmoved=tuple(survey.unmoved(old, spec.old.schema_)),
        proposals=tuple(ddl.proposals(spec, old, sources, targets)),
        back=back,
        sequences=looked,
    )


def _back(spec: Spec, sources: dict[str, Table], targets: dict[str, Table]) -> Resolution:
    return resolve(spec, Direction.REVERSE, {name: identity.as_full(t) for name, t in targets.items()}, sources)


# -- text -------------------------------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """The report as an operator reads it."""
    r = report.resolution
    lines = [f"Migration {report.spec.migration}: {report.spec.old.schema_} -> {report.spec.new.schema_}", ""]
    lines += ["Old tables", *_table([_source_row(report, report.sources[n]) for n in sorted(report.sources)])]
    lines += ["", "New tables"]
    for mapping in r.mappings:
        lines += ["", *_mapping(mapping)]
    lines += ["", "The way back", *_way_back(report)]
    if report.not_carried:
        lines += ["", "Old columns that are not carried over"]
        lines += [f"  {name}: {', '.join(columns)}" for name, columns in sorted(report.not_carried.items())]
    lines += ["", "Sequences that cutover sets (no stream carries them; rollback sets old's from new's)"]
    lines += sequences.lines(report.sequences)
    lines += ["", "What leans on the old tables (all of it keeps working: nothing of old is changed)"]
    lines += _traits(report.dependents) or ["  nothing"]
    if report.other_slots:
        lines.append(f"  other logical slots of this database: {', '.join(report.other_slots)}")
    lines += ["", "What is not moved (it is new's to have)"]
    lines += _traits(report.unmoved) or ["  nothing"]
    if report.proposals:
        missing = ", ".join(p.table for p in report.proposals)
        lines += ["", f"Missing on new: {missing} (slackwater plan --ddl proposes them)"]
    if problems := (*r.problems, *report.back.problems):
        lines += ["", f"{len(problems)} problems (slackwater check lists everything)"]
        lines += [f"  - {problem}" for problem in problems]
    return "\n".join(lines)


def _source_row(report: Report, table: Table) -> tuple[str, ...]:
    readers = [m.target for m in report.resolution.mappings if table.name in m.sources]
    if table.name in report.excluded:
        to = "(excluded)"
    else:
        to = "-> " + ", ".join(readers) if readers else "(nothing reads it)"
    mirrored = "mirrored" if table.name in report.resolution.mirrors else ""
    unknown = not table.rows_estimate and table.bytes_estimate  # never analysed
    rows = "rows unknown" if unknown else f"~{table.rows_estimate:,} rows"
    return (table.name, rows, size(table.bytes_estimate), to, mirrored)


def _mapping(mapping: Mapping) -> list[str]:
    kind = "row by row" if mapping.row_local else "over mirrors of " + ", ".join(mapping.sources)
    key = ", ".join(mapping.key) or "none: rows are counted"
    lines = [f"  {mapping.target}  ({mapping.origin}, {kind}; key {key})"]
    lines += [f"      {line}" for line in mapping.text.strip().splitlines()]
    if mapping.owner != mapping.key and mapping.owner:
        lines.append(f"    owner {', '.join(mapping.owner)}: its rows come and go together")
    if not mapping.row_local:
        lines += [f"    a changed {s} finds its rows by: {' '.join(f.query.split())}" for s, f in mapping.feeds.items()]
    derived = [f"{o.name} ({o.expression})" for o in mapping.outputs if o.plain is None]
    if derived:
        lines.append(f"    computed, not copied: {', '.join(derived)}")
    return lines


def _way_back(report: Report) -> list[str]:
    """Each old table's SELECT over new, and its columns that are not simply there again."""
    texts = {m.target: m for m in report.back.mappings}
    lines: list[str] = []
    for name, columns in _by_table(report.back.reversals).items():
        mapping = texts.get(name)
        kind = "none" if mapping is None else "written" if mapping.origin in ("select", "from") else "derived"
        lines += ["", f"  {name}  ({kind})"]
        if mapping is not None:
            lines += [f"      {line}" for line in mapping.text.strip().splitlines()]
            if mapping.scope is not None:
                lines.append(f"    other rows stay as they are; these are meant: {' '.join(mapping.scope.split())}")
            lines += [
                f"    a row of new's {stray} that stands alone does not come back: no row of {name} can hold it"
                for stray in report.back.strays.get(name, ())
            ]
        alike: dict[str, list[str]] = defaultdict(list)
        for reversal in columns:
            alike[_said(reversal)].append(reversal.column)
        lines += [f"    {', '.join(names)}: {said}" for said, names in alike.items()]
    if left := _one_way(report):
        lines += ["", "  No way back (`arm` refuses what `roundtrip.accept` does not name)"]
        lines += [f"    {o.name}{' (accepted)' if o.accepted else ''}: {o.why}" for o in left]
    return lines or ["  nothing is read, so nothing comes back"]


def _one_way(report: Report) -> tuple[OneWay, ...]:
    return one_way(report.spec, [m.target for m in report.resolution.mappings], report.back)


def _said(reversal: Reversal) -> str:
    said = f"{reversal.how}, {reversal.loss}" if reversal.how is How.DERIVED else str(reversal.how)
    if reversal.how is How.WRITTEN:
        said = "written: `slackwater roundtrip` says what it loses"
    if reversal.how is How.NONE:
        said = "lost"
    return f"{said} ({reversal.why})" if reversal.why else said


def _by_table(reversals: Iterable[Reversal]) -> dict[str, list[Reversal]]:
    tables: dict[str, list[Reversal]] = defaultdict(list)
    for reversal in reversals:
        tables[reversal.table].append(reversal)
    return tables


def _back_document(report: Report) -> dict[str, Any]:
    texts = {m.target: m for m in report.back.mappings}
    return {
        name: {
            "origin": texts[name].origin if name in texts else None,
            "select": texts[name].text if name in texts else None,
            "scope": texts[name].scope if name in texts else None,
            "strays": list(report.back.strays.get(name, ())),
            "columns": {
                r.column: {
                    "how": str(r.how), "loss": str(r.loss), "expression": r.expression or None, "why": r.why or None,
                    "cuts": r.cuts or None,
                }
                for r in columns
            },
        }
        for name, columns in _by_table(report.back.reversals).items()
    }  # fmt: skip


def _traits(traits: Iterable[Trait]) -> list[str]:
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for trait in traits:
        grouped[trait.table, trait.kind].append(trait.detail)
    return [
        f"  {table + ': ' if table else ''}{kind} {', '.join(details)}"
        for (table, kind), details in sorted(grouped.items())
    ]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows in aligned columns; the second and third to the right."""
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(rows[0]) if rows else 0)]
    return [
        "  "
        + "  ".join(
            cell.rjust(w) if i in (1, 2) else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def size(size_bytes: int) -> str:
    """1536 -> '1.5 kB'."""
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def document(report: Report) -> dict[str, Any]:
    """The report as `plan --json` prints it."""
    r = report.resolution
    return {
        "migration": report.spec.migration,
        "old": {
            name: {
                "rows_estimate": t.rows_estimate,
                "bytes_estimate": t.bytes_estimate,
                "key": list(t.key),
                "excluded": name in report.excluded,
                "mirrored": name in r.mirrors,
                "not_carried": list(report.not_carried.get(name, ())),
            }
            for name, t in sorted(report.sources.items())
        },
        "new": {
            m.target: {
                "origin": m.origin,
                "select": m.text,
                "sources": list(m.sources),
                "row_local": m.row_local,
                "key": list(m.key),
                "owner": list(m.owner),
                "feeds": {source: feed.query for source, feed in m.feeds.items()},
                "columns": {o.name: o.expression for o in m.outputs},
            }
            for m in r.mappings
        },
        "back": _back_document(report),
        "one_way": [{"name": o.name, "why": o.why, "accepted": o.accepted} for o in _one_way(report)],
        "sequences": sequences.document(report.sequences),
        "streamed": list(r.streamed),
        "mirrors": list(r.mirrors),
        "dependents": [{"table": t.table, "kind": t.kind, "name": t.detail} for t in report.dependents],
        "other_slots": list(report.other_slots),
        "not_moved": [{"kind": t.kind, "name": t.detail} for t in report.unmoved],
        "missing": [{"table": p.table, "ddl": p.sql, "reason": p.reason or None} for p in report.proposals],
        "problems": [
            {"where": p.where, "cause": p.cause, "remedy": p.remedy} for p in (*r.problems, *report.back.problems)
        ],
    }
