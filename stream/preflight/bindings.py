"""Every mapping's text, prepared by PostgreSQL over the tables themselves: the server knows what sqlglot cannot."""

from __future__ import annotations

from collections.abc import Mapping

from connectors.postgres import peek
from connectors.postgres.session import Connection
from schemas.bind import bound
from schemas.errors import SlackwaterError
from schemas.mapping import Mapping as TableMapping
from schemas.resolve import Resolution
from schemas.table import Table
from stream.preflight.finding import Findings

Outputs = dict[str, dict[str, str]]
"""Target table -> output -> its type without a length, as the source describes it."""


def outputs(old: Connection, sources: Mapping[str, Table], resolution: Resolution) -> Outputs:
    """Every mapping's. Errors: the server's, for a text that it does not take."""
    return {mapping.target: _described(old, sources, mapping) for mapping in resolution.mappings}


def examine(old: Connection, sources: Mapping[str, Table], resolution: Resolution, found: Findings) -> Outputs:
    """The same, with what the server does not take among the findings."""
    described: Outputs = {}
    for mapping in resolution.mappings:
        try:
            described[mapping.target] = _described(old, sources, mapping)
        except SlackwaterError as error:
            found.problem("mapping", error.cause, "put its SELECT right; `slackwater plan` shows it", mapping.target)
    return described


def _described(old: Connection, sources: Mapping[str, Table], mapping: TableMapping) -> dict[str, str]:
    with peek.reading(old, f"the mapping of {mapping.target}"):
        columns = peek.describe(old, bound(mapping.text, peek.bindings(sources, mapping.sources)))
    return {column.name: column.base for column in columns}
