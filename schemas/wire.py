"""What a source table looks like on the wire: the columns a Relation message lists, and which of them identify a row.

Invariant: a record's schema and its bytes come from the same Wire; a message that does not fit it is never guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.escape import escape
from schemas.types import avro_type


@dataclass(frozen=True, slots=True, kw_only=True)
class WireColumn:
    """One column, in the order of the Relation message. `type` is format_type() without a length."""

    name: str
    type_oid: int
    type: str

    @property
    def field(self) -> str:
        """The column's name in Avro."""
        return escape(self.name)

    @property
    def avro(self) -> str:
        """The Avro primitive its value travels as."""
        return avro_type(self.type_oid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A table as pgoutput sends it.

    `key` keys the Kafka records (empty: no key). `identity_columns` are what an old tuple of kind 'K' holds.
    Under REPLICA IDENTITY FULL the Relation message flags every column as key: neither is taken from those flags.
    """

    schema: str
    table: str
    columns: tuple[WireColumn, ...]
    key: tuple[str, ...]
    identity_columns: tuple[str, ...]

    def __post_init__(self) -> None:
        names = {c.name for c in self.columns}
        if len(names) != len(self.columns):
            raise ValueError(f"{self.schema}.{self.table} lists a column twice")
        for name in (*self.key, *self.identity_columns):
            if name not in names:
                raise ValueError(f"{self.schema}.{self.table} is keyed by {name}, which is not among its columns")
