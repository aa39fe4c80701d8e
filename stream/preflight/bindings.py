"""Every mapping's text, held up to both servers in each binding it will run in (`connectors.postgres.bindings`)."""

from __future__ import annotations

from collections.abc import Mapping

from connectors.postgres import bindings
from connectors.postgres.session import Connection
from schemas.direction import Direction
from schemas.errors import PrivilegeMissing, Refused
from schemas.problem import Problem
from schemas.resolve import Resolution
from schemas.spec import Spec
from schemas.table import Table
from stream.migration.paths import Paths

Outputs = dict[str, dict[str, str]]
"""Target table -> output -> its type without a length, as the target describes it over staged rows."""


def examine(
    spec: Spec,
    source: Connection,
    target: Connection,
    sources: Mapping[str, Table],
    targets: Mapping[str, Table],
    resolution: Resolution,
    direction: Direction = Direction.FORWARD,
    *,
    paths: Paths,
) -> tuple[Outputs, list[Problem]]:
    """(the outputs' types, everything that one of the servers objects to). Errors: of a connection that fails."""
    entries = spec.tables if direction is Direction.FORWARD else spec.reverse
    places = {entry.to: entry.place for entry in entries}
    outputs: Outputs = {}
    problems: list[Problem] = []
    for mapping in resolution.mappings:
        where = places.get(
            mapping.target, f"{spec.place('copy' if direction is Direction.FORWARD else 'reverse')}: {mapping.target}"
        )
        table = targets[mapping.target]
        try:
            examined = bindings.examine(
                source,
                target,
                mapping,
                sources,
                table,
                trust=spec.trust,
                where=where,
                side=direction.target,
                paths=paths.along(direction),
            )
        except PrivilegeMissing as error:  # one more thing that is wrong, not the end of the examination
            problems.append(Problem(cause=error.cause, remedy=error.hint, where=where))
            continue
        outputs[mapping.target] = examined.types
        problems += examined.problems
    return outputs, problems


def outputs(
    spec: Spec,
    source: Connection,
    target: Connection,
    sources: Mapping[str, Table],
    targets: Mapping[str, Table],
    resolution: Resolution,
    direction: Direction = Direction.FORWARD,
    *,
    paths: Paths,
) -> Outputs:
    """The outputs' types alone. Errors: Refused, with every reason, when one of the servers objects."""
    found, problems = examine(spec, source, target, sources, targets, resolution, direction, paths=paths)
    if problems:
        raise Refused(
            "the mappings cannot be used as they are",
            reasons=tuple(str(problem) for problem in problems),
            hint="slackwater check",
        )
    return found
