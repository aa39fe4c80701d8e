"""Every error slackwater raises on purpose, and what may be done about it.

    SlackwaterError
    |-- ConfigError            the file or the command line is wrong                       exit 2
    |   `-- MappingError       one mapping in the file is wrong
    |-- Refused                the answer is no; every reason is listed                    exit 3
    |   |-- Unanswerable       a question that was asked cannot be answered                exit 1
    |   `-- OtherVersion       another version of slackwater left the migration like this
    |       `-- Outdated       ... an older one: `upgrade` brings it to this one
    |-- Aborted                given up, or stopped, where nothing is lost by it           exit 4
    |-- Ambiguous              the state could not be proven                               exit 5
    |-- Unavailable            a server did not answer; trying again is right              BACKOFF
    |   `-- Contended          deadlock, serialization failure, lock timeout               BACKOFF
    |-- Superseded             another process owns this role now                          NEVER
    `-- Halt                   carrying on could lose or corrupt a row                     OPERATOR
        |-- SlotLost           the slot is gone, advanced or somebody else's
        |-- StreamGap          Kafka does not hold what the checkpoint needs next
        |-- SchemaChanged      the source's tables are not what was prepared
        |-- RowRejected        the target refuses a row
        |-- StatementRefused   the target refuses a statement: for a row that it meets, or for what it says
        `-- PrivilegeMissing   a role may not do what its work needs

Invariant: an unknown failure is never retried in silence. `retry` is BACKOFF only for the classes that say so.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Retry(StrEnum):
    """Who acts next: the process itself after a pause, an operator, or nobody."""

    BACKOFF = "backoff"
    OPERATOR = "operator"
    NEVER = "never"


class SlackwaterError(Exception):
    """`cause` says what happened, `hint` says what to do; neither ever holds a row value or a secret."""

    retry: ClassVar[Retry] = Retry.OPERATOR
    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, *, hint: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.cause}\n  remedy: {self.hint}" if self.hint else self.cause


class ConfigError(SlackwaterError):
    """The configuration or the command line cannot be used as it is."""

    exit_code = 2


class MappingError(ConfigError):
    """One entry under `copy`, `tables` or `reverse` cannot be used as it is."""


class Refused(SlackwaterError):
    """The answer is no. `reasons` lists every one of them, not the first."""

    exit_code = 3

    def __init__(self, cause: str, *, reasons: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(cause, hint=hint)
        self.reasons = reasons


class Unanswerable(Refused):
    """What would answer the question cannot be looked at: of a verb whose 3 is an answer, this is none."""

    exit_code = 1


class OtherVersion(Refused):
    """What another version of slackwater has left is not read, and not guessed at."""


class Outdated(OtherVersion):
    """An older version left it: `slackwater upgrade` brings it to this one."""


class Aborted(SlackwaterError):
    """Given up, or told to stop, where that is safe: the side that was open is open, and nothing is lost."""

    exit_code = 4

    def __init__(self, cause: str, *, reasons: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(cause, hint=hint)
        self.reasons = reasons


class Ambiguous(SlackwaterError):
    """What state a turn has reached could not be proven; `hint` says what to look at and what to run."""

    exit_code = 5

    def __init__(self, cause: str, *, reasons: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(cause, hint=hint)
        self.reasons = reasons


class Unavailable(SlackwaterError):
    """A server could not be reached or went away; nothing is lost by trying again."""

    retry = Retry.BACKOFF


class Contended(Unavailable):
    """A deadlock, a serialization failure or a lock timeout ended the transaction; it can be run again whole."""


class Superseded(SlackwaterError):
    """Another process has taken this role; this one must stop."""

    retry = Retry.NEVER


class Halt(SlackwaterError):
    """Carrying on could lose, double or corrupt a row: the role stops and waits for an operator."""


class SlotLost(Halt):
    """The replication slot is missing, was recreated, was advanced, or belongs to another cluster or timeline."""


class StreamGap(Halt):
    """Kafka does not hold the records that the checkpoint needs next."""


class SchemaChanged(Halt):
    """A source table is no longer what was prepared, in a way that a mapping depends on."""


COLLISIONS = frozenset({"23505", "23P01"})  # of a unique index, of an exclusion constraint


class RowRejected(Halt):
    """The target refuses a row. The engine isolates it; it ends the role only when the quarantine may not take it."""

    def __init__(self, cause: str, *, hint: str = "", sqlstate: str = "", constraint: str | None = None) -> None:
        super().__init__(cause, hint=hint)
        self.sqlstate = sqlstate
        self.constraint = constraint

    @property
    def collides(self) -> bool:
        """Whether it is another row that stands in the way, which may be about to give up what this one wants."""
        return self.sqlstate in COLLISIONS


class StatementRefused(Halt):
    """The target refuses a statement that writes rows, and its SQLSTATE does not say whether a row is at fault.

    A trigger that raises, an index that a value does not fit, a function that does not take it: of a row's fault there
    is nothing where the same statements write no row at all. `of_row`: the cause, without what may be a row's values.
    """

    def __init__(self, cause: str, *, hint: str = "", sqlstate: str = "", of_row: str = "") -> None:
        super().__init__(cause, hint=hint)
        self.sqlstate = sqlstate
        self.of_row = of_row

    def rejected(self) -> RowRejected:
        """The same, once it is known to be a row's fault."""
        return RowRejected(self.of_row or self.cause, sqlstate=self.sqlstate)


class PrivilegeMissing(Halt):
    """A database role lacks a privilege that the work needs."""
