"""How an old column comes back: by what SQL, and what is lost on the way. `plan` prints it, `check` objects by it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class How(StrEnum):
    """Who says how the column comes back."""

    DERIVED = "derived"
    WRITTEN = "written"  # under `reverse`
    NONE = "none"  # left alone by updates; an insert takes old's default


class Loss(StrEnum):
    """What the file and the types say; `roundtrip` says it of the rows."""

    LOSSLESS = "lossless"
    LOSSY = "lossy"
    LOST = "lost"
    UNKNOWN = "unknown"  # written: only the rows can tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversal:
    """One old column's way back. `why` is empty where nothing is lost.

    `cuts` says which values that new may hold, and old never gave, do not come back as they are.
    """

    table: str
    column: str
    how: How
    loss: Loss
    expression: str = ""
    why: str = ""
    cuts: str = ""
    place: str = ""
