"""Derived ways back of generated splits, merges and filters, over rows that new can hold, in plain SQL.

Each row of new has its row on old, with each of its values; or nothing was derived; or the table is one whose lone rows
the derivation itself says that old cannot hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.postgres import catalog, session
from connectors.postgres.session import Connection
from schemas.direction import Direction
from schemas.mapping import Mapping
from schemas.resolve import Resolution, resolve
from tests.fixtures.databases import fresh_database
from tests.unit.tables import spec

COLUMNS = ("c0", "c1", "c2", "c3")
FEW = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def conn(postgres_dsn: str) -> Iterator[Connection]:
    with fresh_database(postgres_dsn, "new") as dsn, session.connect(dsn) as conn:
        yield conn


def back(conn: Connection, text: str) -> Resolution:
    """The reverse direction of a file between the schemas `public` (old) and `app`."""
    old, new = catalog.tables(conn, "public"), catalog.tables(conn, "app")
    forward = resolve(spec(text), Direction.FORWARD, old, new)
    assert not forward.problems, "\n".join(map(str, forward.problems))
    return resolve(spec(text), Direction.REVERSE, new, old)


def rows(conn: Connection, mapping: Mapping) -> dict[Any, dict[str, Any]]:
    """What the way back makes of new as it is now, by key."""
    conn.execute("set local search_path = app")
    found = conn.execute(f"select {', '.join(mapping.columns)} from (\n{mapping.text}\n) q".encode()).fetchall()
    conn.execute("set local search_path = ''")
    made = [dict(zip(mapping.columns, row, strict=True)) for row in found]
    keyed = {row[mapping.key[0]]: row for row in made}
    assert len(keyed) == len(made), "two rows of one key"
    return keyed


def insert(conn: Connection, statement: str) -> None:
    """What new does not take is no row that new can hold."""
    try:
        with conn.transaction():
            conn.execute(statement.encode())
    except psycopg.errors.IntegrityError:
        pass


@dataclass(frozen=True)
class Split:
    """`parts` are the columns of each new table, `leans` the one that each refers to, `filters` whether a part holds
    the rows alone of which its first column is not null."""

    required: frozenset[str]
    parts: tuple[tuple[str, ...], ...]
    leans: tuple[int | None, ...]
    filters: tuple[bool, ...]

    @property
    def text(self) -> str:
        entries = []
        for n, part in enumerate(self.parts):
            where = f" where {part[0]} is not null" if self.filters[n] else ""
            entries.append(f"  - {{to: t{n}, select: 'select {', '.join(('id', *part))} from o{where}'}}\n")
        return "tables:\n" + "".join(entries)

    def create(self, conn: Connection) -> None:
        columns = ", ".join(f"{c} integer{' not null' if c in self.required else ''}" for c in COLUMNS)
        conn.execute(f"create table public.o (id integer primary key, {columns})".encode())
        conn.execute("create schema app")
        for n, part in enumerate(self.parts):
            own = ", ".join(f"{c} integer" for c in part)
            conn.execute(f"create table app.t{n} (id integer primary key, {own})".encode())
        for n, lean in enumerate(self.leans):
            if lean is not None:
                conn.execute(f"alter table app.t{n} add foreign key (id) references app.t{lean}".encode())


@st.composite
def splits(draw: st.DrawFn) -> Split:
    columns = draw(st.permutations(COLUMNS))
    cuts = sorted(draw(st.sets(st.integers(1, 3), min_size=1, max_size=2)))
    ends = [0, *cuts, len(columns)]
    parts = tuple(tuple(columns[a:b]) for a, b in itertools.pairwise(ends))
    return Split(
        required=draw(st.frozensets(st.sampled_from(COLUMNS), max_size=2)),
        parts=parts,
        leans=tuple(
            draw(st.one_of(st.none(), st.sampled_from([m for m in range(len(parts)) if m != n])))
            for n in range(len(parts))
        ),
        filters=tuple(draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))),
    )


VALUES = st.one_of(st.none(), st.integers(1, 3))


@FEW
@given(split=splits(), data=st.data())
def test_a_split(conn: Connection, split: Split, data: st.DataObject) -> None:
    with conn.transaction(force_rollback=True):
        split.create(conn)
        resolution = back(conn, split.text)
        if resolution.problems:  # what old needs is in a part that does not hold every row
            assert all("is NOT NULL without a default" in p.cause for p in resolution.problems)
            assert any(split.filters)
            return
        for n in data.draw(st.permutations(range(len(split.parts)))) * 2:  # twice: what refers to a later one, too
            for key in data.draw(st.lists(st.integers(1, 6), unique=True, max_size=6)):
                shown = ", ".join("null" if v is None else str(v) for v in (data.draw(VALUES) for _ in split.parts[n]))
                insert(conn, f"insert into app.t{n} values ({key}, {shown}) on conflict do nothing")
        if not resolution.mappings:
            return
        [mapping] = resolution.mappings
        found = rows(conn, mapping)
        lone = {int(name[1:]) for name in resolution.strays.get("o", ())}
        anchors = set(range(len(split.parts))) - lone
        expected: dict[int, dict[str, Any]] = {}
        for n, part in enumerate(split.parts):
            if f"t{n}" not in mapping.sources:
                continue
            for key, *values in conn.execute(f"select id, {', '.join(part)} from app.t{n}".encode()).fetchall():
                if n in anchors or key in found:
                    expected.setdefault(key, {}).update(dict(zip(part, values, strict=True)))
        for key, held in expected.items():
            assert key in found, f"row {key} of new never reaches old by {mapping.text}"
            assert held.items() <= found[key].items(), f"{held} came back as {found[key]} by {mapping.text}"
        for n in lone:  # said of no table whose rows could be old's by themselves
            assert split.required - set(split.parts[n])


@FEW
@given(
    needed=st.booleans(),
    first=st.booleans(),
    accounts=st.dictionaries(st.integers(1, 6), st.tuples(VALUES, VALUES, VALUES), max_size=6),
)
def test_a_merge(
    conn: Connection, needed: bool, first: bool, accounts: dict[int, tuple[int | None, int | None, int | None]]
) -> None:
    """`needed`: a column of the optional part is NOT NULL on old; without one nothing says that a row was there."""
    bio, mood = ("integer", "integer not null" if needed else "integer")[:: 1 if first else -1]
    with conn.transaction(force_rollback=True):
        conn.execute("create table public.users (id integer primary key, login integer)")
        conn.execute(f"create table public.profiles (id integer primary key, bio {bio}, mood {mood})".encode())
        conn.execute("create schema app")
        conn.execute("create table app.account (id integer primary key, login integer, bio integer, mood integer)")
        resolution = back(
            conn,
            "drop: [profiles.id]\ntables:\n  - to: account\n    select: select u.id, u.login, p.bio, p.mood"
            " from users u left join profiles p on p.id = u.id\n",
        )
        assert not resolution.problems
        for key, values in accounts.items():
            shown = ", ".join("null" if v is None else str(v) for v in values)
            insert(conn, f"insert into app.account values ({key}, {shown})")
        made = {m.target: rows(conn, m) for m in resolution.mappings}
        assert {k: r["login"] for k, r in made["users"].items()} == {k: v[0] for k, v in accounts.items()}
        assert ("profiles" in made) == needed
        if needed:
            there = {k: v[1:] for k, v in accounts.items() if v[1:] != (None, None)}
            assert {k: (r["bio"], r["mood"]) for k, r in made["profiles"].items()} == there


@FEW
@given(
    fixed=st.booleans(),
    kept=st.booleans(),
    there=st.dictionaries(st.integers(1, 6), st.tuples(VALUES, VALUES), max_size=6),
)
def test_a_filter(conn: Connection, fixed: bool, kept: bool, there: dict[int, tuple[int | None, int | None]]) -> None:
    """Whatever new holds, also what the filter would not have let through."""
    condition = "kind = 1" if fixed else "kind > 1"
    with conn.transaction(force_rollback=True):
        conn.execute("create table public.o (id integer primary key, kind integer, name integer)")
        conn.execute("create schema app")
        conn.execute("create table app.t (id integer primary key, kind integer, name integer)")
        taken = "id, kind, name" if kept else "id, name"
        resolution = back(conn, f"tables: [{{to: t, select: 'select {taken} from o where {condition}'}}]\n")
        assert not resolution.problems
        for key, values in there.items():
            shown = ", ".join("null" if v is None else str(v) for v in values)
            insert(conn, f"insert into app.t values ({key}, {shown})")
        [mapping] = resolution.mappings
        found = rows(conn, mapping)
        assert {k: r["name"] for k, r in found.items()} == {k: v[1] for k, v in there.items()}
        if kept:
            assert {k: r["kind"] for k, r in found.items()} == {k: v[0] for k, v in there.items()}
        elif fixed:
            assert all(r["kind"] == 1 for r in found.values())
