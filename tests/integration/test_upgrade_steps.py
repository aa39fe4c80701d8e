"""The steps of an upgrade make of the first control schema what a fresh install makes: no step is forgotten."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connectors.postgres import control, control_version, session
from connectors.postgres.session import Connection
from schemas.control import FUNCTIONS
from schemas.control_steps import STEPS, VERSION
from schemas.direction import Side
from schemas.errors import OtherVersion, Outdated

FIRST = (Path(__file__).parents[1] / "fixtures" / "control_0.sql").read_text()

FUNCTIONS_AT = {
    0: "e7936ed4aaddcba1",
}
"""Step -> what it makes of the functions: the first 16 digits of the sha256 of `control.FUNCTIONS`.

Functions are made anew by each upgrade, so the catalogs would agree although nothing told a running migration to
upgrade. Whoever changes one adds a step, and its line here.
"""

OURS = "n.nspname in ('slackwater', 'slackwater_mirror')"
CATALOG = {
    "relations": f"select n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,"
    f" coalesce(c.relacl, acldefault('r', c.relowner))::text, c.reloptions::text, obj_description(c.oid, 'pg_class')"
    f" from pg_class c join pg_namespace n on n.oid = c.relnamespace where {OURS}",
    # not its place: a column that a step adds comes last, and no statement of ours goes by places
    "columns": f"select n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,"
    f" pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text, a.attcollation::regcollation::text,"
    f" a.attstorage::text, a.attacl::text from pg_attribute a join pg_class c on c.oid = a.attrelid"
    f" join pg_namespace n on n.oid = c.relnamespace left join pg_attrdef d on (d.adrelid, d.adnum) = (c.oid, a.attnum)"
    f" where a.attnum > 0 and not a.attisdropped and c.relkind = 'r' and {OURS}",
    "constraints": f"select c.conrelid::regclass::text, c.conname, pg_get_constraintdef(c.oid), c.convalidated"
    f" from pg_constraint c join pg_namespace n on n.oid = c.connamespace where {OURS}",
    "indexes": f"select pg_get_indexdef(i.indexrelid), i.indisvalid from pg_index i"
    f" join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace where {OURS}",
    "functions": f"select p.oid::regprocedure::text, pg_get_functiondef(p.oid),"
    f" coalesce(p.proacl, acldefault('f', p.proowner))::text"
    f" from pg_proc p join pg_namespace n on n.oid = p.pronamespace where {OURS}",
    "triggers": f"select pg_get_triggerdef(t.oid), t.tgenabled::text from pg_trigger t join pg_class c on c.oid ="
    f" t.tgrelid join pg_namespace n on n.oid = c.relnamespace where not t.tgisinternal and {OURS}",
    "types": f"select n.nspname, t.typname, t.typtype::text from pg_type t join pg_namespace n"
    f" on n.oid = t.typnamespace where {OURS}",
    "schemas": f"select n.nspname, n.nspacl::text from pg_namespace n where {OURS}",
}


@pytest.fixture
def database(make_database: Callable[[str], str]) -> Iterator[Callable[[], Connection]]:
    """Sessions on empty databases of their own."""
    made: list[Connection] = []

    def connect() -> Connection:
        made.append(session.connect(make_database("control")))
        return made[-1]

    yield connect
    for conn in made:
        conn.close()


def catalog(conn: Connection) -> dict[str, list[str]]:
    return {
        what: sorted(repr(row) for row in conn.execute(query.encode()).fetchall()) for what, query in CATALOG.items()
    }


def first(conn: Connection) -> Connection:
    with conn.transaction():
        conn.execute(FIRST.encode())
    return conn


def test_every_step_makes_what_a_fresh_install_makes(database: Callable[[], Connection]) -> None:
    """A change of schemas/control.py without a step in schemas/control_steps.py fails here."""
    fresh, upgraded = database(), first(database())
    with control.transaction(fresh, "install"):
        control.install(fresh)
    with control.transaction(upgraded, "upgrade"):
        assert control_version.bring(upgraded, set(Side)) == STEPS
    wanted, found = catalog(fresh), catalog(upgraded)
    for what in CATALOG:
        assert found[what] == wanted[what], f"{what}: see schemas/control_steps.py on how to add a step"
    assert control_version.of(fresh) == control_version.of(upgraded) == VERSION


def test_a_step_taken_twice_changes_nothing(database: Callable[[], Connection]) -> None:
    conn = first(database())
    with control.transaction(conn, "upgrade"):
        control_version.bring(conn, set(Side))
    once = catalog(conn)
    conn.execute("update slackwater.version set version = 0")
    with control.transaction(conn, "upgrade"):
        assert control_version.bring(conn, set(Side)) == STEPS
    assert catalog(conn) == once
    with control.transaction(conn, "upgrade"):
        assert control_version.bring(conn, set(Side)) == ()


def test_steps_are_numbered_and_explained() -> None:
    assert [step.number for step in STEPS] == list(range(1, len(STEPS) + 1))
    for step in STEPS:
        assert step.brings, step
        assert not step.brings.endswith("."), step
        assert "\n" not in step.brings, step


def test_functions_change_with_a_step() -> None:
    now = hashlib.sha256(FUNCTIONS.encode()).hexdigest()[:16]
    newest = max(FUNCTIONS_AT)
    assert newest <= VERSION
    assert FUNCTIONS_AT[newest] == now, (
        "a function of schemas/control.py changed: add a step to schemas/control_steps.py, and"
        f" `{VERSION + 1}: {now!r}` to FUNCTIONS_AT"
    )


def test_another_version_is_neither_read_nor_made_whole(database: Callable[[], Connection]) -> None:
    conn = first(database())
    for act in (lambda: control.installed(conn), lambda: control.install(conn)):
        with pytest.raises(Outdated) as refused, conn.transaction():
            act()
        assert "was made by an older slackwater" in refused.value.cause
        assert "slackwater upgrade" in refused.value.hint
    with conn.transaction():
        control_version.bring(conn, set(Side))
    assert control.installed(conn)
    conn.execute("update slackwater.version set version = version + 1")
    for act in (lambda: control.installed(conn), lambda: control.install(conn)):
        with pytest.raises(OtherVersion) as newer, conn.transaction():
            act()
        assert not isinstance(newer.value, Outdated)
        assert "was upgraded by a newer slackwater" in newer.value.cause
        assert newer.value.hint
