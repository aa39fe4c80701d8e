"""What each version of the prepared document brought, and how a document of an older one becomes one of this.

Invariant: a document of another version is refused, never read as if it were one of this; what this version asks of the
catalog and an older one did not is filled in, and nothing that was prepared is changed by it.

How to add a step: raise the number with a Step here whose `change` rewrites the JSON. A new field of Table or Column
needs no more than a default and a Step that changes nothing: what the document lacks is taken from the catalog.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from schemas.direction import Side
from schemas.errors import OtherVersion, Outdated
from schemas.table import Table

Document = dict[str, Any]
Catalogs = Mapping[Side, Mapping[str, Table]]
"""Each side's tables as they are now, by unqualified name; without a side that could not be asked."""


def _as_it_is(doc: Document) -> Document:
    return doc


def _no_paths(doc: Document) -> Document:
    """What mappings and indexes mean stays as it was."""
    return {**doc, "paths": {"old": [], "new": []}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From version `number` - 1 to `number`. `brings` is a sentence for the operator, without a full stop."""

    number: int
    brings: str
    change: Callable[[Document], Document] = _as_it_is


FIRST = 1
STEPS: tuple[Step, ...] = (
    Step(number=2, brings="what was prepared says which slackwater may go on with it"),
    Step(number=3, brings="tables know their foreign keys, which say where a derived way back begins"),
    Step(
        number=4,
        brings="the search_path of users' functions can be given; it stays empty until the file says otherwise",
        change=_no_paths,
    ),
    Step(
        number=5,
        brings="tables know what decides a row's partition, so that one that moves stays the row it is, and columns"
        " their collations",
    ),
)
VERSION = STEPS[-1].number


def version(doc: Mapping[str, Any]) -> int:
    """Of a document, as it says."""
    return int(doc["version"])


def assert_current(doc: Mapping[str, Any]) -> None:
    """Errors: Outdated, OtherVersion where another version of slackwater wrote it."""
    assert_not_newer(doc)
    if version(doc) < VERSION:
        raise Outdated(
            f"migration {doc.get('migration')} was prepared by an older slackwater: its document is of version"
            f" {version(doc)}, this program works with version {VERSION}",
            hint="stop the migration's roles, then run `slackwater upgrade`",
        )


def assert_not_newer(doc: Mapping[str, Any]) -> None:
    """Errors: OtherVersion where this program is older than the document."""
    if version(doc) > VERSION:
        raise OtherVersion(
            f"migration {doc.get('migration')} was upgraded by a newer slackwater: its document is of version"
            f" {version(doc)}, this program knows none above {VERSION}",
            hint="run that version of slackwater, or a newer one; `slackwater --version` prints which one this is",
        )


def missing(doc: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps that a document has ahead of it."""
    return tuple(step for step in STEPS if step.number > version(doc))


def upgraded(doc: Document, now: Catalogs) -> Document:
    """A document of an older version as this program would have written it. Errors: OtherVersion for a newer one."""
    assert_not_newer(doc)
    made: Document = json.loads(json.dumps(doc))
    for step in missing(doc):
        made = step.change(made)
    made["version"] = VERSION
    for side in Side:
        for name, table in made[side.value].items():
            _fill(table, now.get(side, {}).get(name))
    return made


def _fill(kept: Document, present: Table | None) -> None:
    """What `kept` does not say, from the same table as it is now; another table of that name says nothing of it."""
    if present is None or present.oid != kept["oid"]:
        return
    found = json.loads(json.dumps(asdict(present)))
    columns = {column["name"]: column for column in found["columns"]}
    for column in kept["columns"]:
        same = columns.get(column["name"])
        if same is not None and same["type_oid"] == column["type_oid"]:
            _add(column, same, same)
    _add(kept, found, found.keys() - {"columns"})


def _add(to: Document, found: Document, names: Iterable[str]) -> None:
    to |= {name: found[name] for name in names if name not in to}
