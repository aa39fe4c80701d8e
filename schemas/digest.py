"""How rows of two servers are compared without moving them: SQL for their canonical text, and for digests over it.

Invariants (hazards G3, G4): equal digests mean equal rows. A row's text is `row(...)::text` of its mapped columns as
the target's types under the pinned settings: it is injective (NULL is nothing, an empty text is `""`, whatever could be
taken for a separator is quoted), and it tells 1.0 from 1.00. Where a type's text could depend on the server, the
comparison may differ in vain, which costs a second look, and never agrees in vain.

A digest is a count and two sums of 64 bits. MD5 (or SHA-256 where a server refuses MD5) turns the text into bits that
nothing in the data can steer; each sum is over another hash of those bits. Summing, unlike xor, keeps duplicates. The
hash of the hash costs a fifth of what cutting the digest into numbers costs in SQL; measured: 0.76 s against 1.01 s
(MD5 cut in two), 1.11 s (SHA-256) and 0.61 s (`sum(hashtext(t::text))`) for half a million rows of 200 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from schemas.bind import bound
from schemas.mapping import Mapping
from schemas.names import EQ, qualified, quote
from schemas.table import Column, Table

# An explicit cast to these with a length cuts in silence; where a length is, assignment refuses, and never changes.
_LENGTHS = ("character varying", "bpchar", '"bit"', "bit varying")
_PADDED = "bpchar"

PROBE = "slackwater: probe"
"""A text whose hashes two servers have to agree on before they are compared by them."""

ENCODING = "select pg_catalog.getdatabaseencoding()"
"""By the bytes of which a server hashes its text."""


class Hash(StrEnum):
    """How a row's text becomes two numbers. Every server has the first; both servers use the same.

    Servers of two encodings have other bytes for one text: those hash its UTF-8, which takes a conversion of each row.
    """

    MD5 = "md5"
    SHA256 = "sha256"  # for servers in FIPS mode
    MD5_CUT = "md5 cut"  # for servers that do not agree on hashtextextended
    MD5_UTF8 = "md5 utf8"
    SHA256_UTF8 = "sha256 utf8"
    MD5_CUT_UTF8 = "md5 cut utf8"

    @property
    def recodes(self) -> bool:
        """Whether it is for servers of two encodings."""
        return self in (Hash.MD5_UTF8, Hash.SHA256_UTF8, Hash.MD5_CUT_UTF8)

    def digest(self, text: str) -> str:
        """The strong hash of a text expression, in hex."""
        if self in (Hash.SHA256, Hash.SHA256_UTF8):
            return f"pg_catalog.encode(pg_catalog.sha256({_utf8(text)}), 'hex')"
        return f"pg_catalog.md5({_utf8(text) if self.recodes else text})"

    def halves(self, digest: str) -> tuple[str, str]:
        """Two bigints of it."""
        if self in (Hash.MD5_CUT, Hash.MD5_CUT_UTF8):
            return _cut(f"pg_catalog.left({digest}, 16)", 64), _cut(f"pg_catalog.right({digest}, 16)", 64)
        return _seeded(digest, 0), _seeded(digest, 1)

    def bucket(self, text: str, mask: int) -> str:
        """Which of `mask + 1` buckets (a power of two) a text expression falls into."""
        if self in (Hash.MD5_CUT, Hash.MD5_CUT_UTF8):
            number = _cut(f"pg_catalog.left({self.digest(text)}, 8)", 32)
        else:
            number = _seeded(self.digest(text) if self.recodes else text, 2)
        return f"({number} operator(pg_catalog.&) {mask}::bigint)"

    def probe(self) -> str:
        """What two servers have to agree on."""
        a, b = self.halves("m")
        return (
            f"select {a}::text, {b}::text, {self.bucket('m', 65535)}::text"
            f' from (select {self.digest(_literal(PROBE))} collate "C" as m) p'
        )


def _utf8(text: str) -> str:
    return f"pg_catalog.convert_to({text}, 'UTF8')"


def _cut(hexadecimal: str, bits: int) -> str:
    return f"('x' operator(pg_catalog.||) {hexadecimal})::bit({bits})::bigint"


def _seeded(text: str, seed: int) -> str:
    return f"pg_catalog.hashtextextended({text}, {seed}::bigint)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One side's rows of a target table: a FROM item called `q`, a condition, the key's columns and the image as text.

    `keys` is empty for a table without a key.
    """

    source: str
    keys: tuple[str, ...]
    image: str
    cells: tuple[str, ...]  # the mapped columns
    where: str = "true"

    @property
    def key(self) -> str:
        """The whole key as one text, never NULL."""
        return f"coalesce({self.keys[0]}, '')" if len(self.keys) == 1 else f"row({', '.join(self.keys)})::text"


def made(mapping: Mapping, table: Table, bindings: Map[str, str], bases: Map[str, str]) -> Rows:
    """What the mapping's SELECT makes of what its sources are bound to. `bases`: the target's domains -> types."""
    cells = {o.name: _as_target(f"q.{quote(o.name)}", table.column(o.name), bases) for o in mapping.outputs}
    return _rows(f"(\n{bound(mapping.text, bindings)}\n) q", mapping, cells)


def held(mapping: Mapping, table: Table, bases: Map[str, str], where: str = "true") -> Rows:
    """What the target has, under a condition on its columns; rows that the mapping does not speak of are not its."""
    if mapping.scope is not None:
        where = f"({where}) and ({mapping.scope}) is true"
    cells = {o.name: _there(f"q.{quote(o.name)}", table.column(o.name), bases) for o in mapping.outputs}
    name = qualified(table.schema, table.name)
    return _rows(f"{name if table.partitioned else f'only {name}'} q", mapping, cells, where)


def _rows(source: str, mapping: Mapping, cells: Map[str, str], where: str = "true") -> Rows:
    return Rows(
        source=source,
        keys=tuple(f'({cells[k]})::text collate "C"' for k in mapping.key),
        image=f"row({', '.join(cells[o.name] for o in mapping.outputs)})::text",
        cells=tuple(cells[o.name] for o in mapping.outputs),
        where=where,
    )


def _as_target(value: str, column: Column, bases: Map[str, str]) -> str:
    """A SELECT's output as the target would hold it."""
    type_, full = column.type, column.type_full
    if "." in type_:
        base = bases.get(type_)
        if base is None:
            return f"{value}::text"  # a type that the source need not have
        type_ = full = base
        if base.startswith(("character", "bit", "bpchar")):
            return f"{value}::text"
    if type_ == _PADDED:
        return f"{value}::bpchar::text"
    return f"{value}::{type_ if type_.removesuffix('[]') in _LENGTHS else full}"


def _there(value: str, column: Column, bases: Map[str, str]) -> str:
    """The same of the target's own row."""
    type_ = column.type
    if "." in type_:
        base = bases.get(type_)
        return f"{value}::text" if base is None or base.startswith(("character", "bit", "bpchar")) else value
    return f"{value}::text" if type_ == _PADDED else value


# Equal values of these are compared as they are: their equality is the type's own, on every server.
_NATIVE = frozenset(
    {"smallint", "integer", "bigint", "oid", "boolean", "uuid", "date", "bytea", "numeric", "real", "double precision"}
    | {"interval", "timestamp without time zone", "timestamp with time zone", "time without time zone"}
)


def comparable(value: str, column: Column, bases: Map[str, str]) -> str:
    """A value as the target's column would hold it, spelled so that `=` finds the rows that belong together."""
    cast = _as_target(value, column, bases)
    type_ = bases.get(column.type, column.type).partition("(")[0]
    return cast if type_ in _NATIVE and not cast.endswith("::text") else f'({cast})::text collate "C"'


# Statements.


def _hashed(rows: Rows, how: Hash, *more: str, also: str = "true") -> str:
    """Each row once: its strong hash as `m`, and whatever else is asked for. (OFFSET 0 keeps m from being inlined.)"""
    picked = ", ".join([f'{how.digest(rows.image)} collate "C" as m', *more])
    tests = " and ".join(f"({t})" for t in (rows.where, also) if t != "true")
    return f"(select {picked} from {rows.source}{' where ' + tests if tests else ''} offset 0) s"


def whole(rows: Rows, how: Hash, *, youngest: bool = False) -> str:
    """One digest of all: count, two sums, and how many transactions ago the newest row was written, if asked for."""
    a, b = how.halves("s.m")
    more = ("q.xmin as x",) if youngest else ()
    last = "pg_catalog.min(pg_catalog.age(s.x))::bigint" if youngest else "null::bigint"
    return (
        f"select pg_catalog.count(*), coalesce(pg_catalog.sum({a}), 0)::text,"
        f" coalesce(pg_catalog.sum({b}), 0)::text, {last}"
        f" from {_hashed(rows, how, *more)}"
    )


def buckets(rows: Rows, how: Hash, mask: int) -> str:
    """A digest for each bucket of keys (of images, where there is no key): bucket, count, two sums."""
    a, b = how.halves("s.m")
    inner = _hashed(rows, how, *([f"{how.bucket(rows.key, mask)} as b"] if rows.keys else []))
    bucket = "s.b" if rows.keys else how.bucket("s.m", mask)
    sums = f"pg_catalog.sum({a})::text, pg_catalog.sum({b})::text"
    return f"select {bucket}, pg_catalog.count(*), {sums} from {inner} group by 1"


def listed(rows: Rows, how: Hash, mask: int = 0, wanted: Sequence[int] = ()) -> str:
    """Each row's key, column by column, with its strong hash; in the `wanted` buckets only, where some are given.

    Of a table without a key: each image's strong hash, with the number of rows that have it.
    """
    some = f" {EQ} any('{{{','.join(map(str, wanted))}}}'::bigint[])"
    if not rows.keys:
        test = f" where {how.bucket('s.m', mask)}{some}" if wanted else ""
        return f"select s.m, pg_catalog.count(*)::text from {_hashed(rows, how)}{test} group by 1"
    names = [f"{k} as k{i}" for i, k in enumerate(rows.keys)]
    picked = ", ".join(f"s.k{i}" for i in range(len(rows.keys)))
    also = how.bucket(rows.key, mask) + some if wanted else "true"
    return f"select {picked}, s.m from {_hashed(rows, how, *names, also=also)}"


def counted(rows: Rows, how: Hash, images: Sequence[str]) -> str:
    """How many rows have each of some images (strong hashes), of a table without a key."""
    some = ", ".join(_literal(m) for m in images)
    return (
        f"select s.m, pg_catalog.count(*)::text from {_hashed(rows, how)} where s.m {EQ} any (array[{some}]) group by 1"
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
