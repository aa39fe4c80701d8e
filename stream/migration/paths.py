"""Which `search_path` users' code has on each side: the file's, or what was found when the migration was prepared.

Invariant: what a mapping's text means does not change by itself. Without a word in the file it is the side's own schema
and those of its columns' types, where nobody else may create in them, as `prepare` found it; a file that says otherwise
is obeyed when a role starts, and what was verified under another path does not count.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from connectors.postgres import user_path
from connectors.postgres.session import Connection
from connectors.postgres.user_path import Path
from schemas.direction import Direction, Side
from schemas.spec import Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Both sides'."""

    old: Path = ()
    new: Path = ()

    def of(self, side: Side) -> Path:
        return self.old if side is Side.OLD else self.new

    def along(self, direction: Direction) -> tuple[Path, Path]:
        """(the source's, the target's)."""
        return self.of(direction.source), self.of(direction.target)


NONE = Paths()


def in_force(spec: Spec, prepared: Paths) -> Paths:
    """The file's, and where it says nothing, what was `prepared`."""

    def of(said: list[str] | None, otherwise: Path) -> Path:
        return otherwise if said is None else tuple(said)

    return Paths(old=of(spec.old.search_path, prepared.old), new=of(spec.new.search_path, prepared.new))


def judged_under(fingerprint: str, spec: Spec, prepared: Paths) -> str:
    """What a verdict is given under, and counts for: a file, by its fingerprint, and the paths if they are others than
    were `prepared`. What a function of users makes of a row may hang on where its names lead."""
    paths = in_force(spec, prepared)
    if paths == prepared:
        return fingerprint
    said = hashlib.sha256(json.dumps([paths.old, paths.new]).encode()).hexdigest()
    return f"{fingerprint} {said[:16]}"


def found(spec: Spec, old: Connection, new: Connection) -> Paths:
    """What `prepare` keeps for a file that says nothing."""
    types = [*user_path.base_types(old, spec.old.schema_), *user_path.base_types(new, spec.new.schema_)]
    return Paths(old=user_path.own(old, spec.old.schema_, types), new=user_path.own(new, spec.new.schema_, types))
