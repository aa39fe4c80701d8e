"""Tables and files in a few words, for tests of mappings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from schemas.direction import Direction
from schemas.mapping import Mapping
from schemas.resolve import Resolution, resolve
from schemas.spec import Spec, parse_spec
from schemas.table import Column, Identity, Reference, Table

HEAD = "migration: m\nold: {dsn: a}\nnew: {dsn: b, schema: app}\nkafka: {bootstrap: k}\n"


def table(name: str, columns: str, key: str = "id", identity: Identity = Identity.DEFAULT) -> Table:
    """`id integer!, total numeric, twice numeric gen, n bigint! default` - text where no type is given."""
    made = []
    for number, text in enumerate(columns.split(","), 1):
        words = text.strip().replace("!", " !").split(" ")
        kind = " ".join(w for w in words[1:] if w not in ("!", "gen", "default", "identity")).strip() or "text"
        made.append(
            Column(
                name=words[0],
                type_oid=number,
                type=kind,
                type_full=kind,
                not_null="!" in words,
                has_default="default" in words,
                identity="a" if "identity" in words else "",
                generated="s" if "gen" in words else "",
            )
        )
    keys = tuple(k for k in key.split(",") if k)
    sent = {Identity.DEFAULT: keys, Identity.FULL: tuple(c.name for c in made)}.get(identity, ())
    return Table(schema="public", name=name, columns=tuple(made), key=keys, identity=identity, identity_columns=sent)


def referring(child: Table, *columns: str, to: str, keys: tuple[str, ...] = ("id",)) -> Table:
    """The table with a foreign key."""
    name = f"{child.name}_{'_'.join(columns)}_fkey"
    key = Reference(name=name, columns=columns, schema=child.schema, table=to, to=keys)
    return replace(child, references=(*child.references, key))


def spec(text: str) -> Spec:
    return parse_spec(HEAD + text, env={})


def resolved(text: str, old: Iterable[Table], new: Iterable[Table]) -> Resolution:
    return resolve(spec(text), Direction.FORWARD, {t.name: t for t in old}, {t.name: t for t in new})


def only(resolution: Resolution, target: str | None = None) -> Mapping:
    """The one mapping (of `target`) of a resolution without problems."""
    assert not resolution.problems, "\n".join(map(str, resolution.problems))
    [mapping] = [m for m in resolution.mappings if target is None or m.target == target]
    return mapping


def refusals(resolution: Resolution) -> str:
    """All problems as one text; each has a remedy and a place."""
    assert resolution.problems
    for problem in resolution.problems:
        assert problem.remedy
        assert problem.where
    return "\n".join(map(str, resolution.problems))
