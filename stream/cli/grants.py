"""`slackwater grants`: the least-privilege SQL for each role."""

from __future__ import annotations

from contextlib import closing

from connectors.postgres import catalog, control, survey, user_path
from schemas.direction import Side
from stream import preflight
from stream.cli import context
from stream.migration import phase_store
from stream.migration.phases import Phase
from stream.planning import grants as granting

WAY_BACK = (Phase.STREAMING, Phase.ARMED, Phase.SWITCHING, Phase.SWITCHED)


def grants() -> None:
    """Print the least-privilege SQL for each role: run it before `prepare`, after it, and again before `arm`."""
    spec = context.spec()
    with (
        closing(context.open_side(spec, Side.OLD, "grants")) as old,
        closing(context.open_side(spec, Side.NEW, "grants")) as new,
    ):
        plan = preflight.planned(spec, old, new)
        places = [
            granting.Place(
                database=catalog.server(conn).database,
                version=catalog.server(conn).major,
                owners=tuple(survey.owners(conn, tables.values())),
                schemas=tuple(user_path.named(conn, path, [*plan.sources.values(), *plan.targets.values()])),
            )
            for conn, tables, path in (
                (old, plan.sources, plan.source_path),
                (new, plan.targets, plan.target_path),
            )
        ]
        back = control.installed(new) and phase_store.phase(new, spec.migration) in WAY_BACK
    sections = granting.sections(plan, *places, back=back)
    context.show(
        {"migration": spec.migration, "roles": granting.ROLES, "databases": {s.side.value: s.sql for s in sections}},
        lambda: "\n".join([granting.ROLES, *(f"-- {s.title}\n{s.sql}" for s in sections)]),
    )
