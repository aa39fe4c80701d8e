"""Every mapping's text, held up to both servers in each binding it will run in, before a row is read.

Guards: what PostgreSQL would refuse at three in the morning, it refuses now; what sqlglot believes a text to read is
what the server says it reads; and no function is run whose value is not the row's alone. Everything happens in
transactions that are rolled back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import pq

from connectors.postgres import collations, column_types, mirror, parse_tree, user_path
from connectors.postgres.session import Connection, translated
from connectors.postgres.user_path import Path
from schemas.bind import bound
from schemas.collated import collated
from schemas.control import MIRROR_SCHEMA
from schemas.direction import Side
from schemas.equality import among
from schemas.mapping import Mapping as TableMapping
from schemas.names import qualified, quote
from schemas.problem import Problem
from schemas.resolve import finish
from schemas.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """`types` are the outputs' types as the target describes them, without lengths: what `resolve.finish` asks for."""

    problems: tuple[Problem, ...]
    types: dict[str, str]


def examine(
    source: Connection,
    target: Connection,
    mapping: TableMapping,
    sources: Mapping[str, Table],
    table: Table,
    *,
    trust: Collection[str] = (),
    where: str = "",
    side: Side = Side.NEW,
    paths: tuple[Path, Path] = ((), ()),
) -> Examined:
    """Prepare one mapping wherever it will run. `table` is its target, on `side`; `trust` and `where` are the file's,
    `paths` the users' paths on the source and on the target.

    Errors: those of a connection that fails; whatever is wrong with the mapping comes back as problems.
    """
    exam = _Exam(mapping, sources, table, trust, where or f"tables: {mapping.target}", side, paths)
    with translated(f"preparing the mapping of {mapping.target}"):
        with source.transaction(force_rollback=True):
            exam.on_source(source)
        with target.transaction(force_rollback=True):
            exam.on_target(target)
    return Examined(problems=tuple(dict.fromkeys(exam.problems)), types=exam.types)


def relation(table: Table, columns: Sequence[str]) -> str:
    """A source table as a binding: only itself (its children are tables of their own), only what is read."""
    names = ", ".join(quote(c) for c in columns)
    only = "" if table.partitioned else "only "
    return f"select {names} from {only}{qualified(table.schema, table.name)}"


@dataclass(slots=True)
class _Exam:
    mapping: TableMapping
    sources: Mapping[str, Table]
    table: Table
    trust: Collection[str]
    where: str
    side: Side
    paths: tuple[Path, Path]
    problems: list[Problem] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    user_types: list[mirror.UserType] = field(default_factory=list)

    def refuse(self, cause: str, remedy: str) -> None:
        self.problems.append(Problem(cause=cause, remedy=remedy, where=self.where))

    # On the source: backfill, verification.

    def on_source(self, conn: Connection) -> None:
        m = self.mapping
        oids = [c.type_oid for s in m.sources for c in self.sources[s].columns if c.name in m.reads[s]]
        self.user_types = mirror.user_types(conn, oids)
        bindings = {s: relation(self.sources[s], m.reads[s]) for s in m.sources}
        error = self._prepared(conn, bound(m.text, bindings), self.paths[0])
        if error is not None:
            self.refuse(
                f"the source does not accept the mapping of {m.target}: {error.message}",
                _remedy(error, "correct the SELECT; functions and types are written with their schema"),
            )

    # On the target: the stream, chunks, mirrors.

    def on_target(self, conn: Connection) -> None:
        """Over tables of the sources' names and types that live until the transaction is rolled back."""
        self._key(conn)
        if not self._staging(conn):
            return
        m = self.mapping
        bindings = {s: f"select * from pg_temp.{quote(s)}" for s in m.sources}
        error = self._prepared(conn, bound(m.text, bindings), self.paths[1])
        if error is not None:
            self.refuse(
                f"the target does not accept the mapping of {m.target} over staged rows: {error.message}",
                _remedy(
                    error,
                    f"what it names must be there on {self.side} as well, with its schema; `group by` must name every"
                    " column that is not aggregated",
                ),
            )
            return
        self._describe(conn, bound(m.text, bindings))
        if not self.problems:
            self._assignable(conn, bindings)
            self._feeds(conn, bindings)
            faults = parse_tree.faults(conn, m, self.trust, self.paths[1], side=self.side, schema=self.table.schema)
            for cause, remedy in faults:
                self.refuse(cause, remedy)

    def _staging(self, conn: Connection) -> bool:
        made = mirror.stand_ins(conn, self.user_types)
        if made.impossible:
            self.refuse(
                f"the target lacks the type {', '.join(made.impossible)}, which {self.mapping.target} is made from",
                f"create it on {self.side} too: usually the same extension (`create extension ...`)",
            )
            return False
        if made.statements:
            conn.execute(f"create schema if not exists {MIRROR_SCHEMA}".encode())
        for statement in made.statements:
            conn.execute(statement.encode())
        for name in self.mapping.sources:
            columns = [c for c in self.sources[name].columns if c.name in self.mapping.reads[name]]
            ordered = collated([self.mapping], name)
            there = collations.read(conn, [c.collation for c in columns])  # what is not is told apart from here
            spelled = ", ".join(
                f"{quote(c.name)} {mirror.spelled(conn, c.type)}"
                + (f" collate {c.collation}" if c.collation in there and c.name in ordered else "")
                for c in columns
            )
            conn.execute(f"create temp table {quote(name)} ({spelled}) on commit drop".encode())
        return True

    def _prepared(self, conn: Connection, query: str, path: Path) -> _Refusal | None:
        """What the server objects to, or None. Nothing is run."""
        try:
            with conn.transaction(), user_path.within(conn, path):
                result = conn.pgconn.prepare(b"", query.encode())
                if result.status != pq.ExecStatus.COMMAND_OK:
                    raise psycopg.errors.error_from_result(result, encoding="utf-8")
        except (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege):
            raise
        except psycopg.Error as error:
            return _Refusal(
                message=error.diag.message_primary or str(error).splitlines()[0], hint=error.diag.message_hint or ""
            )
        return None

    def _describe(self, conn: Connection, query: str) -> None:
        with user_path.within(conn, self.paths[1]):
            conn.pgconn.prepare(b"", query.encode())
            result = conn.pgconn.describe_prepared(b"")
        names = [(result.fname(i) or b"").decode() for i in range(result.nfields)]
        oids = [result.ftype(i) for i in range(result.nfields)]
        rows = conn.execute(
            "select pg_catalog.format_type(o, -1) from pg_catalog.unnest(%s::oid[]) with ordinality t(o, n) order by n",
            (oids,),
        ).fetchall()
        self.types = {name: str(row[0]) for name, row in zip(names, rows, strict=True)}
        if names != list(self.mapping.columns):
            self.refuse(
                f"the mapping of {self.mapping.target} gives the columns {', '.join(names)}, and was read as giving"
                f" {', '.join(self.mapping.columns)}",
                "name every output: `... as column_of_new`",
            )

    def _assignable(self, conn: Connection, bindings: Mapping[str, str]) -> None:
        """Each output reaches its column by assignment; PostgreSQL decides, column by column."""
        m = finish(self.mapping, self.types, self.table)
        into = qualified(self.table.schema, self.table.name)
        text = bound(m.text, bindings)
        for output in m.outputs:
            column = self.table.column(output.name)
            value = f"x.{quote(output.name)}" + (f"::{column.type}" if output.cast else "")
            error = self._prepared(
                conn,
                f"insert into {into} ({quote(output.name)}) overriding system value select {value} from (\n{text}\n) x",
                self.paths[1],
            )
            if error is not None:
                self.refuse(
                    f"column {self.table.name}.{output.name} is of type {column.type_full}, but the mapping gives"
                    f" {self.types[output.name]} ({output.expression})",
                    f"convert it in the SELECT: `({output.expression})::{column.type} as {output.name}`, or with an"
                    " expression that says how",
                )

    def _feeds(self, conn: Connection, bindings: Mapping[str, str]) -> None:
        held = column_types.of_columns(conn, [qualified(self.table.schema, self.table.name)])
        types = [held[qualified(self.table.schema, self.table.name)][k] for k in self.mapping.owner]
        owners = [f"o{i}" for i in range(len(types))]
        names = ", ".join(owners)
        casts = ", ".join(f"{t.cast(o)} as {o}" for o, t in zip(owners, types, strict=True))
        for name, feed in self.mapping.feeds.items():
            query = f"select {casts} from (\n{bound(feed.query, bindings)}\n) x({names})"
            error = self._prepared(conn, query, self.paths[1])
            if error is not None and self._own_mirror(conn, name, feed.query):
                error = self._prepared(conn, query, self.paths[1])
            if error is None and feed.restrict is not None:
                within = among(feed.restrict, types, f"({query}) o({names})", owners)
                error = self._prepared(conn, f"select from pg_temp.{quote(name)} where {within}", self.paths[1])
            if error is not None:
                self.refuse(
                    f"the feed of {self.mapping.target} from {name} does not give its owner"
                    f" ({', '.join(self.mapping.owner)}): {error.message}",
                    f"write `feeds: {{{name}: ...}}` as expressions of the types of {', '.join(self.mapping.owner)}",
                )

    def _own_mirror(self, conn: Connection, name: str, query: str) -> bool:
        """Whether a feed reads its own table's mirror by name, which now stands here in place of the one to come."""
        named = re.search(rf'"{MIRROR_SCHEMA}"\."((?:[^"]|"")+)"', query)
        if named is None:
            return False
        conn.execute(f"create schema if not exists {MIRROR_SCHEMA}".encode())
        conn.execute(f"create table if not exists {named[0]} (like pg_temp.{quote(name)})".encode())
        return True

    def _key(self, conn: Connection) -> None:
        """The key finds at most one row, and finds it: unique on the target, and never null."""
        if not self.mapping.key:
            return
        row = conn.execute(_UNIQUE, (qualified(self.table.schema, self.table.name), list(self.mapping.key))).fetchone()
        names = ", ".join(map(quote, self.mapping.key))
        into = qualified(self.table.schema, self.table.name)
        if row is None or not row[0]:
            self.refuse(
                f"nothing in {self.side} says that the key ({', '.join(self.mapping.key)}) of {self.table.name} is"
                " unique",
                f"run on {self.side}: create unique index on {into} ({names}); or name the primary key's columns under"
                " `key:`",
            )
        nullable = [k for k in self.mapping.key if not self.table.column(k).not_null]
        if nullable:
            self.refuse(
                f"key column {', '.join(nullable)} of {self.table.name} may be null: such a row would be lost to it",
                f"run on {self.side}: "
                + "; ".join(f"alter table {into} alter column {quote(k)} set not null" for k in nullable),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    message: str
    hint: str


def _remedy(error: _Refusal, otherwise: str) -> str:
    return f"{error.hint} {otherwise}".strip() if error.hint else otherwise


_UNIQUE = """
select exists (
  select from pg_catalog.pg_index i
   where i.indrelid = pg_catalog.to_regclass(%s) and i.indisunique and i.indisvalid and i.indimmediate
     and i.indpred is null and i.indexprs is null
     and (select array_agg(a.attname::text) from pg_catalog.unnest(i.indkey) with ordinality k(attnum, n)
            join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
           where k.n <= i.indnkeyatts) <@ %s::text[])
"""
