"""One thing that `check` found, and how bad it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from schemas.remedy import on_file


class Severity(StrEnum):
    """A problem stops the migration; a warning may hurt later; a note is good to know."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`name` is stable, for scripts; `cause` and `remedy` are for people; `where` is a side, a table or a line."""

    name: str
    severity: Severity
    cause: str
    remedy: str = ""
    where: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.cause}" + (f"\n    remedy: {self.remedy}" if self.remedy else "")

    def document(self) -> dict[str, str]:
        """The finding as `check --json` prints it."""
        return {key: str(value) for key, value in asdict(self).items()}


class Findings(list[Finding]):
    """Findings in the order they were made, with short ways to add one; what to run is on the file of `command`."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self._command = command

    def problem(self, name: str, cause: str, remedy: str, where: str = "") -> None:
        self._add(name, Severity.PROBLEM, cause, remedy, where)

    def warning(self, name: str, cause: str, remedy: str = "", where: str = "") -> None:
        self._add(name, Severity.WARNING, cause, remedy, where)

    def note(self, name: str, cause: str, remedy: str = "", where: str = "") -> None:
        self._add(name, Severity.NOTE, cause, remedy, where)

    def _add(self, name: str, severity: Severity, cause: str, remedy: str, where: str) -> None:
        told = on_file(remedy, self._command)
        self.append(Finding(name=name, severity=severity, cause=cause, remedy=told, where=where))

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(f for f in self if f.severity is Severity.PROBLEM)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(f for f in self if f.severity is severity)


def listed(names: Iterable[str], most: int = 8) -> str:
    """'a, b, c and 4 more'."""
    every = sorted(names)
    shown = ", ".join(every[:most])
    return shown if len(every) <= most else f"{shown} and {len(every) - most} more"


def counted(count: int, noun: str) -> str:
    """'1 table', '2 tables'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
