"""The SQL of one load: how staged source rows become target rows. Pure text; the engine runs it.

A *load* is a mapping's target, or a mirror (which is a mapping that copies a source table as it is). Four steps: `rows`
is the SELECT over what is staged; stale target rows of the staged owners are deleted; rows that differ are updated;
rows that are not there are inserted. Rows are compared as images (`*<>`), so that 1.0 and 1.00 differ, and only over
mapped columns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from schemas.bind import bound
from schemas.mapping import Mapping
from schemas.names import EQ, qualified, quote
from schemas.table import Table

# Key types whose equal values are the same value. Of any other (numeric, interval, citext, text under some collation) a
# key can change its image and stay equal, so that its row is matched, and the key has to be written like any column.
EXACT = frozenset(
    {"smallint", "integer", "bigint", "oid", "boolean", "uuid", "date", "bytea"}
    | {"timestamp without time zone", "timestamp with time zone"}
)
N = "slackwater_n"  # the staged row's number in its epoch
PART = "slackwater_part"  # 0: nothing missing; else which columns are
DONE = "slackwater_done"  # in `rows`: a row whose key changed and that has its values; NULL for all others


def columns(names: Sequence[str], alias: str = "") -> str:
    """`a."x", a."y"`."""
    dot = f"{alias}." if alias else ""
    return ", ".join(f"{dot}{quote(n)}" for n in names)


def matches(names: Sequence[str], left: str, right: str) -> str:
    """`l."k1" = r."k1" and ...`, by PostgreSQL's own operators."""
    return " and ".join(f"{left}.{quote(n)} {EQ} {right}.{quote(n)}" for n in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A mapping with the names of the tables it is run over. `number` makes its temporary tables' names unique."""

    name: str
    number: int
    mapping: Mapping
    schema: str  # of the table written
    table: Table

    @property
    def into(self) -> str:
        return qualified(self.schema, self.table.name)

    @property
    def rows(self) -> str:
        return f"pg_temp.slackwater_rows_{self.number}"

    @property
    def owners(self) -> str:
        return f"pg_temp.slackwater_owners_{self.number}"

    @property
    def kept(self) -> str:
        return f"pg_temp.slackwater_kept_{self.number}"

    @property
    def is_mirror(self) -> bool:
        return self.name.startswith("mirror:")

    @property
    def fans_out(self) -> bool:
        return self.mapping.owner != self.mapping.key

    @property
    def leaves_gaps(self) -> bool:
        """Whether a source row that is there may have fewer target rows than before."""
        return self.fans_out or bool(self.mapping.row_deps) or not self.mapping.row_local

    def named_by(self, source: str) -> frozenset[str]:
        """The source columns that say which target rows are a source row's own."""
        return self.mapping.feeds[source].columns

    def values(self, alias: str = "q") -> str:
        """The SELECT's outputs, cast where a text output meets a target that is not text; never to a length."""
        return ", ".join(
            f"{alias}.{quote(o.name)}" + (f"::{self.table.column(o.name).type}" if o.cast else "")
            for o in self.mapping.outputs
        )

    # Temporary tables.

    def create(self) -> list[str]:
        """Statements that make this load's temporary tables, empty at each commit."""
        made = [self._like(self.rows, self.mapping.columns, f"null::integer as {DONE}")]
        if self.mapping.owner:
            made.append(self._like(self.owners, self.mapping.owner))
        return made

    def create_kept(self) -> list[str]:
        return [self._like(self.kept, self.table.column_names)]

    def _like(self, name: str, names: Sequence[str], *more: str) -> str:
        return (
            f"create temporary table {name} on commit delete rows as "
            f"select {', '.join([columns(names), *more])} from {self.into} with no data"
        )

    # Step 1.

    def transform(self, bindings: dict[str, str], *, where_owner: bool = False) -> str:
        """Fill `rows` from the SELECT over `bindings`."""
        own = (
            f"\nwhere ({columns(self.mapping.owner, 'q')}) {EQ} any "
            f"(select {columns(self.mapping.owner)} from {self.owners})"
            if where_owner
            else ""
        )
        text = bound(self.mapping.text, bindings)
        return (
            f"insert into {self.rows} ({columns(self.mapping.columns)})\n"
            f"select {self.values()} from (\n{text}\n) q{own}"
        )

    # Step 2.

    def collect_owners(self, source: str, bindings: dict[str, str]) -> str:
        """Add the owners that the images bound to `source` feed."""
        feed = self.mapping.feeds[source]
        names = columns(self.mapping.owner)
        aliases = ", ".join(f"o{i}" for i in range(len(self.mapping.owner)))
        types = ", ".join(f"o{i}::{self.table.column(n).type}" for i, n in enumerate(self.mapping.owner))
        there = " and ".join(f"o{i} is not null" for i in range(len(self.mapping.owner)))
        return (
            f"insert into {self.owners} ({names}) select {types} from (\n{bound(feed.query, bindings)}\n"
            f") x({aliases}) where {there}"
        )

    def owners_of(self, source: str, bindings: dict[str, str]) -> str:
        """The owners that the images bound to `source` feed, as texts that the target may not take."""
        aliases = [f"o{i}" for i in range(len(self.mapping.owner))]
        texts = ", ".join(f"{a}::text" for a in aliases)
        query = bound(self.mapping.feeds[source].query, bindings)
        return f"select {texts} from (\n{query}\n) x({', '.join(aliases)})"

    def delete_stale(self) -> str:
        """Delete target rows of the owners that `rows` does not hold."""
        m = self.mapping
        there = " and ".join(f"r.{quote(k)} is not null" for k in m.key)
        # Hashed subplans: `rows` has no index, and the session's joins are nested loops (see `Engine`). They stand
        # where the target is not scanned yet, or the planner charges them to each lookup and reads the target whole.
        kept = f"(select {columns(m.key, 'r')} from {self.rows} r where {there})"
        if not self.fans_out:
            return (
                f"delete from {self.into} t using (select distinct {columns(m.owner, 'w')} from {self.owners} w\n"
                f"where not (({columns(m.owner, 'w')}) {EQ} any {kept})) o\nwhere {matches(m.owner, 't', 'o')}"
            )
        return (
            f"delete from {self.into} t using (\n"
            f"select {columns(m.key, 'x')} from {self.into} x, (select distinct {columns(m.owner)} from {self.owners})"
            f" o\nwhere {matches(m.owner, 'x', 'o')} offset 0) s\n"
            f"where not (({columns(m.key, 's')}) {EQ} any {kept}) and {matches(m.key, 't', 's')}"
        )

    def delete_left(self, source: str, images: str) -> str:
        """Delete the target rows of the owners that `images` feed, whatever `rows` holds."""
        m = self.mapping
        aliases = ", ".join(f"o{i}" for i in range(len(m.owner)))
        typed = " and ".join(f"t.{quote(n)} {EQ} o.o{i}::{self.table.column(n).type}" for i, n in enumerate(m.owner))
        owners = bound(m.feeds[source].query, {source: images})
        return f"delete from {self.into} t using (\n{owners}\n) o({aliases}) where {typed}"

    def delete_all(self) -> str:
        return f"delete from {self.into}"

    # Steps 3 and 4.

    def update(self, written: Collection[str] | None = None, *, rows: str | None = None) -> str | None:
        """Update rows that differ in the columns written (all mapped ones by default); None when none can differ."""
        m = self.mapping
        names = self._may_differ(written)
        if not names:
            return None
        settable = [n for n in names if self.table.column(n).identity != "a"]
        if not settable:
            return None
        sets = ", ".join(f"{quote(n)} = s.{quote(n)}" for n in settable)
        return (
            f"update {self.into} t set {sets}\nfrom {rows or self.rows} s where {matches(m.key, 't', 's')}\n"
            f"and row({columns(names, 't')})::record operator(pg_catalog.*<>) row({columns(names, 's')})::record"
        )

    def _may_differ(self, written: Collection[str] | None = None) -> list[str]:
        """The mapped columns (those written) that rows of the same key may differ in."""
        still = {k for k in self.mapping.key if self.table.column(k).type in EXACT}
        return [n for n in self.mapping.columns if n not in still and (written is None or n in written)]

    def changed(self) -> str | None:
        """The target rows that `update` changes, as they are; None when none can differ."""
        names = self._may_differ()
        if not names:
            return None
        return (
            f"select t.* from {self.into} t, {self.rows} s where {matches(self.mapping.key, 't', 's')}\n"
            f"and row({columns(names, 't')})::record operator(pg_catalog.*<>) row({columns(names, 's')})::record"
        )

    def insert(self) -> str:
        m = self.mapping
        names = columns(m.columns)
        return (
            f"insert into {self.into} ({names}) overriding system value\n"
            f"select {columns(m.columns, 's')} from {self.rows} s\n"
            f"where not exists (select from {self.into} t where {matches(m.key, 't', 's')})"
        )

    def absent(self) -> str:
        """Whether any of `rows` has no target row."""
        m = self.mapping
        return (
            f"select exists (select from {self.rows} s where not exists "
            f"(select from {self.into} t where {matches(m.key, 't', 's')}))"
        )

    def clear_rows(self) -> str:
        return f"delete from {self.rows}"

    # A row whose key changed: one at a time, the one in `rows` that is not done; its old owner is alone in `owners`.

    @property
    def unmapped(self) -> tuple[str, ...]:
        """Target columns that the mapping does not write: they stay with their row when its key changes."""
        mapped = set(self.mapping.columns)
        return tuple(c.name for c in self.table.columns if c.name not in mapped and not c.generated)

    def fill_moved(self, kept: Sequence[str]) -> str:
        """Give it the `kept` values of the row under its old key (all of `kept` are mapped columns)."""
        sets = ", ".join(f"{quote(n)} = t.{quote(n)}" for n in kept)
        return (
            f"update {self.rows} r set {sets} from {self.into} t, {self.owners} o "
            f"where r.{DONE} is null and {matches(self.mapping.owner, 't', 'o')}"
        )

    def keep_moved(self) -> str:
        """Set aside, under its new key, the values of the columns that are not mapped."""
        m, rest = self.mapping, self.unmapped
        within = [k for k in m.key if k not in m.owner]  # which of its owner's rows it is
        same = " and ".join([matches(m.owner, "t", "o"), *([matches(within, "t", "r")] if within else [])])
        return (
            f"insert into {self.kept} ({columns([*m.key, *rest])})\n"
            f"select {columns(m.key, 'r')}, {columns(rest, 't')} from {self.rows} r, {self.into} t, {self.owners} o "
            f"where r.{DONE} is null and {same}"
        )

    def unmapped_of(self, source: str, new: dict[str, str]) -> str:
        """The rows of the old owner, as documents of their unmapped columns under the owner that `new` feeds."""
        m = self.mapping
        feed = m.feeds[source]
        aliases = ", ".join(f"o{i}" for i in range(len(m.owner)))
        place = {k: f"n.o{m.owner.index(k)}" if k in m.owner else f"t.{quote(k)}" for k in m.key}
        place |= {c: f"t.{quote(c)}" for c in self.unmapped}
        pairs = ", ".join(f"'{n.replace(chr(39), chr(39) * 2)}', {value}::text" for n, value in place.items())
        return (
            f"select pg_catalog.jsonb_build_object({pairs}) from {self.into} t, {self.owners} o, (\n"
            f"{bound(feed.query, new)}\n) n({aliases}) where {matches(m.owner, 't', 'o')}"
        )

    def keep_owners(self) -> str:
        """Set aside, under their new owners, the unmapped values of owners that are called otherwise now.

        The statement's one parameter is a JSON array of {"was", "now"}: the values of the owner's columns, as texts.
        """
        m, rest = self.mapping, self.unmapped
        place = {k: f"x.now_{m.owner.index(k)}" if k in m.owner else f"t.{quote(k)}" for k in m.key}
        return _taking(
            f"insert into {self.kept} ({columns([*m.key, *rest])}) select {', '.join(place.values())}, "
            f"{columns(rest, 't')} from {self.into} t, {self._renamed()}"
        )

    def delete_renamed(self) -> str:
        """Delete the target rows of those owners; the parameter is that of `keep_owners`."""
        return _taking(f"delete from {self.into} t using {self._renamed()}")

    def _renamed(self) -> str:
        """The owners of `keep_owners`, and the rows `t` that they had."""
        numbered = list(enumerate(self.mapping.owner))
        values = ", ".join(
            f"(v operator(pg_catalog.->) '{when}' operator(pg_catalog.->>) {i})::{self.table.column(n).type} "
            f"as {when}_{i}"
            for when in ("was", "now")
            for i, n in numbered
        )
        same = " and ".join(f"t.{quote(n)} {EQ} x.was_{i}" for i, n in numbered)
        return f"(select {values} from pg_catalog.jsonb_array_elements($slackwater::jsonb) v(v)) x where {same}"

    def keep_documents(self) -> str:
        """Set aside what such documents say: the statement's one parameter, a JSON array of them."""
        names = columns([*self.mapping.key, *self.unmapped])
        return _taking(
            f"insert into {self.kept} ({names}) select {names} "
            f"from pg_catalog.jsonb_populate_recordset(null::{self.kept}, $slackwater::jsonb)"
        )

    def done_moved(self) -> str:
        return f"update {self.rows} set {DONE} = 1 where {DONE} is null"

    def fill_staying(self, kept: Sequence[str]) -> str:
        """Give the rows that are not done the `kept` values that stand under their own key."""
        sets = ", ".join(f"{quote(n)} = t.{quote(n)}" for n in kept)
        return (
            f"update {self.rows} r set {sets} from {self.into} t "
            f"where r.{DONE} is null and {matches(self.mapping.key, 't', 'r')}"
        )

    def drop_absent(self) -> str:
        """Forget the rows that are not done and have no target row."""
        return (
            f"delete from {self.rows} r where r.{DONE} is null "
            f"and not exists (select from {self.into} t where {matches(self.mapping.key, 't', 'r')})"
        )

    def drop_moved(self) -> str:
        return f"delete from {self.rows} where {DONE} is null"

    def carry(self) -> str | None:
        """Where a row took another row's key: give it its own unmapped values. None when all are identities."""
        settable = [n for n in self.unmapped if self.table.column(n).identity != "a"]
        if not settable:
            return None
        sets = ", ".join(f"{quote(n)} = k.{quote(n)}" for n in settable)
        return f"update {self.into} t set {sets} from {self.kept} k where {matches(self.mapping.key, 't', 'k')}"

    # A unique value that moves between rows of one batch: take the rows out, put them back as they are to be.

    def take_out(self) -> str:
        """Delete the target rows of `rows`, and set aside their unmapped values (rows that moved have theirs there)."""
        m = self.mapping
        names = [*m.key, *self.unmapped]
        return (
            f"with g as (delete from {self.into} t using {self.rows} s where {matches(m.key, 't', 's')} "
            f"returning {columns(names, 't')})\n"
            f"insert into {self.kept} ({columns(names)}) select {columns(names)} from g "
            f"where not exists (select from {self.kept} k where {matches(m.key, 'k', 'g')})"
        )

    def put_back(self) -> str:
        """Insert those of `rows` that are not there and whose unmapped values were set aside."""
        m, rest = self.mapping, self.unmapped
        values = [columns(m.columns, "s"), *([columns(rest, "k")] if rest else [])]
        return (
            f"insert into {self.into} ({columns([*m.columns, *rest])}) overriding system value\n"
            f"select {', '.join(values)}\n"
            f"from {self.rows} s join {self.kept} k on {matches(m.key, 'k', 's')}\n"
            f"where not exists (select from {self.into} t where {matches(m.key, 't', 's')})"
        )


def _taking(sql: str) -> str:
    """For a statement with parameters: names may hold a percent sign."""
    return sql.replace("%", "%%").replace("$slackwater", "%s")
