"""`init`: a first migration.yaml, from what both databases hold. Tables and columns are matched by name; the rest is
listed, commented, for a person to decide. Pure: it is given tables and returns text."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schemas.sequence_links import Known
from schemas.table import Column, Table

ALIKE = 0.6  # of names and of columns: below it, a guess would cost more than it saves

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A new table and the old table it seems to come from. `rename` is old -> new."""

    old: Table
    new: Table
    rename: dict[str, str]
    left: tuple[str, ...]  # old columns that nothing reads
    unfilled: tuple[Column, ...]  # new columns that nothing fills, though they must be filled
    retyped: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether `copy` does: same name, every column on both sides, of the same type."""
        return (
            self.old.name == self.new.name
            and not (self.rename or self.left or self.unfilled or self.retyped)
            and {c.name for c in self.old.columns} >= {c.name for c in self.new.columns if not c.generated}
        )


def matched(old: Mapping[str, Table], new: Mapping[str, Table]) -> list[Match]:
    """The best old table for each new one, each old one used once; equal names first, then likeness."""
    scores = sorted(
        ((_likeness(o, n), o.name, n.name) for n in new.values() for o in old.values()),
        key=lambda score: (-score[0], score[1], score[2]),
    )
    taken: dict[str, str] = {}
    for likeness, from_, to in scores:
        if likeness >= ALIKE and to not in taken and from_ not in taken.values():
            taken[to] = from_
    return [_match(old[from_], new[to]) for to, from_ in sorted(taken.items())]


def _likeness(old: Table, new: Table) -> float:
    if old.name == new.name:
        return 1.0
    names = difflib.SequenceMatcher(None, old.name.lower(), new.name.lower()).ratio()
    mine, theirs = set(old.column_names), set(new.column_names)
    shared = len(mine & theirs) / max(1, min(len(mine), len(theirs)))
    return (names + shared) / 2 if names > ALIKE / 2 else 0.0


def _match(old: Table, new: Table) -> Match:
    free_old = [c for c in old.columns if c.name not in new.column_names]
    free_new = [c for c in new.columns if c.name not in old.column_names and not c.generated]
    rename: dict[str, str] = {}
    for column in free_new:
        rest = [c.name for c in free_old if c.name not in rename and c.type == column.type]
        near = difflib.get_close_matches(column.name, rest, n=1, cutoff=ALIKE)
        if near:
            rename[near[0]] = column.name
    unfilled = [
        c for c in free_new if c.name not in rename.values() and c.not_null and not c.has_default and not c.identity
    ]
    shared = [c for c in new.columns if c.name in old.column_names]
    return Match(
        old=old,
        new=new,
        rename=rename,
        left=tuple(c.name for c in free_old if c.name not in rename and not c.generated),
        unfilled=tuple(unfilled),
        retyped=tuple(
            f"{c.name}: {old.column(c.name).type_full} -> {c.type_full}"
            for c in shared
            if old.column(c.name).type != c.type
        ),
    )


def first_file(
    migration: str,
    old_schema: str,
    new_schema: str,
    old: Mapping[str, Table],
    new: Mapping[str, Table],
    sequences: tuple[Iterable[Known], Iterable[Known]] = ((), ()),
    paths: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> str:
    """The YAML text. It loads as it stands; what is undecided stands in comments, and `check` asks for it.

    `paths`: the `search_path` of each side, where its functions need more than its own schema.
    """
    matches = matched(old, new)
    copied = [m for m in matches if m.whole]
    mapped = [m for m in matches if not m.whole]
    unmade = [new[name] for name in sorted(new.keys() - {m.new.name for m in matches})]
    unread = sorted(old.keys() - {m.old.name for m in matches})
    lines = [
        "# A first migration file, written by `slackwater init`: tables and columns were matched by name.",
        "# Read it through, then: slackwater -c this-file check",
        f"migration: {migration}",
        f'old: {{dsn: "${{OLD_DSN}}", schema: {_scalar(old_schema)}{_path(paths[0])}}}',
        f'new: {{dsn: "${{NEW_DSN}}", schema: {_scalar(new_schema)}{_path(paths[1])}}}',
        'kafka: {bootstrap: "${KAFKA_BOOTSTRAP}"}',
        "",
        "# The same on both sides.",
        f"copy: {_flow(m.old.name for m in copied)}",
        "",
    ]
    if unread:
        lines.append("# Old tables that nothing reads yet. Map each below, or move it to `exclude`:")
        lines += [f"#   {_scalar(name)}  ({', '.join(old[name].column_names)})" for name in unread]
    lines += ["exclude: []", ""]
    lines.append("tables:" if mapped else "tables: []")
    for match in mapped:
        lines += _entry(match)
    for table in unmade:
        lines += _stub(table)
    lines += _sequences(old_schema, new_schema, *sequences)
    return "\n".join(lines) + "\n"


def _path(schemas: Sequence[str]) -> str:
    return f", search_path: {_flow(schemas)}" if schemas else ""


def _entry(match: Match) -> list[str]:
    parts = [f"to: {_scalar(match.new.name)}", f"from: {_scalar(match.old.name)}"]
    if match.rename:
        parts.append("rename: {" + ", ".join(f"{_scalar(a)}: {_scalar(b)}" for a, b in match.rename.items()) + "}")
    lines = [f"  - {{{', '.join(parts)}}}"]
    if match.left:  # never dropped for somebody: `check` refuses what is forgotten
        lines.append(f"    # read by nothing yet: rename them, use them in `set`, or add drop: {_flow(match.left)}")
    lines += [
        f"    # {change}: add `set: {{column: expression}}` if a plain cast will not do" for change in match.retyped
    ]
    lines += [
        f"    # {c.name} ({c.type_full}) must be filled, and nothing does: set: {{{_scalar(c.name)}: ...}}"
        for c in match.unfilled
    ]
    return lines


def _stub(table: Table) -> list[str]:
    """A new table that no old one resembles."""
    lines = [f"  # - to: {_scalar(table.name)}", "  #   select: |"]
    columns = [c for c in table.columns if not c.generated]
    lines += [
        f"  #     {'select' if i == 0 else '      '} ... as {_sql(c.name)}{',' if i < len(columns) - 1 else ''}"
        f"  -- {c.type_full}{' not null' if c.not_null else ''}"
        for i, c in enumerate(columns)
    ]
    return [*lines, "  #     from ..."]


def _sequences(old_schema: str, new_schema: str, old: Iterable[Known], new: Iterable[Known]) -> list[str]:
    """Those that feed no column: an application draws from them itself, and a turn has to be told what goes on."""
    here = {s.name for s in old if s.schema == old_schema and not s.feeds}
    there = {s.name for s in new if s.schema == new_schema and not s.feeds}
    both = {s.name for s in old} & {s.name for s in new} & (here | there)
    if not here | there:
        return []
    lines = ["", "# Sequences that feed no column: an application draws from them itself. The same on both sides:"]
    lines.append(f"sequences: {_flow(sorted(both))}")
    for side, names, entry in (
        ("old", here - both, "{{to: ..., from: {}}}"),
        ("new", there - both, "{{to: {}, from: ...}}"),
    ):
        lines += [f"#   {entry.format(_scalar(n))}  # on {side} alone: add it above, or below" for n in sorted(names)]
    return [*lines, "exclude_sequences: []"]


def _scalar(name: str) -> str:
    """A name as YAML takes it."""
    return name if _PLAIN.fullmatch(name) and name not in _WORDS else json.dumps(name, ensure_ascii=False)


def _sql(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def _flow(names: Iterable[str]) -> str:
    return "[" + ", ".join(_scalar(name) for name in names) + "]"
