"""The temporary tables that a session has, and which of them a rollback takes along.

Invariant: a table is made once per session, never per batch (their catalog rows would bloat pg_class), and is known to
be gone when the transaction or the savepoint in which it was made is undone.
"""

from __future__ import annotations

from collections.abc import Sequence

from connectors.postgres.session import Connection, translated


class Made:
    """By name, whatever the caller calls them."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._made: set[str] = set()
        self._marks: dict[str, frozenset[str]] = {}  # savepoint -> what was there when it was set
        self._making: set[str] = set()  # made since the transaction began

    def __contains__(self, what: str) -> bool:
        return what in self._made

    def make(self, what: str, statements: Sequence[str]) -> None:
        """Run the statements that make it, unless it is there."""
        if what not in self._made:
            with translated(f"making the temporary tables of {what}"):
                for statement in statements:
                    self._conn.execute(statement)
            self._made.add(what)
            self._making.add(what)

    def committed(self) -> None:
        """What there is stays."""
        self._making.clear()

    def rolled_back(self) -> None:
        """What the transaction made is gone."""
        self._made -= self._making
        self._making.clear()

    def mark(self, savepoint: str) -> None:
        """A savepoint was set."""
        self._marks[savepoint] = frozenset(self._made)

    def back_to(self, savepoint: str) -> None:
        """What was made since the savepoint is gone."""
        self._made = set(self._marks[savepoint])
        self._making &= self._made
