"""`new.ddl` before it is applied: tried in a transaction that is rolled back, so that `check` sees its tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from connectors.postgres import script
from connectors.postgres.session import Connection, translated
from schemas.errors import SlackwaterError
from schemas.spec import Spec
from stream.migration.journal import entries
from stream.migration.phase_store import phase
from stream.preflight.finding import Findings


def fingerprint(spec: Spec) -> str | None:
    """sha256 of `new.ddl`'s text."""
    return None if spec.new.ddl_text is None else hashlib.sha256(spec.new.ddl_text.encode()).hexdigest()


def applied(conn: Connection, spec: Spec) -> str | None:
    """The fingerprint of the `new.ddl` that the journal says was applied, or None."""
    with translated("cannot look for the journal"):
        row = conn.execute("select pg_catalog.to_regclass('slackwater.journal') is not null").fetchone()
    if row != (True,):
        return None
    done = [e for e in entries(conn, spec.migration) if e.step == "ddl" and e.outcome in ("done", "already")]
    return str(done[-1].detail.get("sha256")) if done else None


def apply(conn: Connection, spec: Spec) -> bool:
    """Apply it inside the caller's transaction; False where its tables are there already. Errors: as script.run."""
    return script.run(conn, spec.new.ddl or "new.ddl", spec.new.ddl_text or "", spec.new.schema_)


@contextmanager
def tried(conn: Connection, spec: Spec, found: Findings) -> Iterator[None]:
    """New as it will be once `new.ddl` is applied; nothing of it remains."""
    if spec.new.ddl_text is None or phase(conn, spec.migration) != "planned" or applied(conn, spec) is not None:
        yield
        return
    with translated("cannot try new.ddl"), conn.transaction(force_rollback=True):
        try:
            if not apply(conn, spec):
                found.note(
                    "ddl",
                    f"what {spec.new.ddl} makes is on new already: it is taken as applied",
                    where="new",
                )
        except SlackwaterError as error:
            found.problem("ddl", error.cause, error.hint, "new")
        yield
