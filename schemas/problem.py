"""One thing that would stop a migration. Problems are collected, so that an operator reads all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.errors import MappingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`cause` is what is wrong, `remedy` what to do, `where` the place: `migration.yaml line 12, tables: address`."""

    cause: str
    remedy: str
    where: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.cause}\n  remedy: {self.remedy}"


def raise_all(problems: Iterable[Problem]) -> None:
    """MappingError that lists every one of them; nothing when there are none."""
    listed = tuple(problems)
    if not listed:
        return
    if len(listed) == 1:
        raise MappingError(f"{listed[0].where}: {listed[0].cause}".removeprefix(": "), hint=listed[0].remedy)
    body = "\n".join(f"- {p}" for p in listed)
    raise MappingError(
        f"{len(listed)} problems with the mappings:\n{body}",
        hint="put each of them right, then run `slackwater check` again",
    )
