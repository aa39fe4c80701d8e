"""Collations of a source's columns, as its target has them: what it lacks, and what it has under the name otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from connectors.postgres.session import Connection, translated
from schemas.names import qualified, quote


@dataclass(frozen=True, slots=True, kw_only=True)
class Collation:
    """A row of pg_collation. `locale` is ICU's or the built-in provider's; `collate` and `ctype` the C library's.

    `version` is what the library says now, `recorded` what it said when the collation was made; None: it says none.
    """

    schema: str
    name: str
    provider: str  # c libc, i icu, b builtin, d the database's own
    deterministic: bool
    locale: str | None
    collate: str | None
    ctype: str | None
    rules: str | None
    version: str | None
    recorded: str | None

    @property
    def spelled(self) -> str:
        return qualified(self.schema, self.name)

    @property
    def meaning(self) -> tuple[object, ...]:
        """What two collations of one name have to agree on; the C library's names of locales are spelled in ways."""
        plain = tuple(_plain(v) for v in (self.collate, self.ctype))
        return self.provider, self.deterministic, self.locale, self.rules or None, plain

    @property
    def statement(self) -> str:
        """What makes it in another database."""
        if self.schema == "pg_catalog":
            return "select pg_catalog.pg_import_system_collations('pg_catalog')"
        if self.provider == "c":
            options = [f"lc_collate = {_literal(self.collate)}", f"lc_ctype = {_literal(self.ctype)}"]
        else:
            options = [f"locale = {_literal(self.locale)}"]
        options.insert(0, f"provider = {_PROVIDERS.get(self.provider, self.provider)}")
        options += ["deterministic = false"] if not self.deterministic else []
        options += [f"rules = {_literal(self.rules)}"] if self.rules else []
        return (
            f"create schema if not exists {quote(self.schema)}; create collation {self.spelled} ({', '.join(options)})"
        )


_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}

# The column of an ICU locale has had three names: collcollate (14), colliculocale (15, 16), colllocale (from 17 on).
_READ = """
select u.name, n.nspname, c.collname, c.collprovider::text, c.collisdeterministic,
       coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale',
                case when c.collprovider = 'i' then to_jsonb(c) ->> 'collcollate' end),
       case when c.collprovider = 'c' then c.collcollate::text end,
       case when c.collprovider = 'c' then c.collctype::text end,
       to_jsonb(c) ->> 'collicurules', pg_catalog.pg_collation_actual_version(c.oid), c.collversion
  from pg_catalog.unnest(%s::text[]) u(name)
  join pg_catalog.pg_collation c on c.oid = pg_catalog.to_regcollation(u.name)::oid
  join pg_catalog.pg_namespace n on n.oid = c.collnamespace
"""

# Of the database: what text is sorted by where nothing else is said.
_DEFAULT = """
select to_jsonb(d) ->> 'datlocprovider', d.datcollate, d.datctype,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale')
  from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()
"""


def read(conn: Connection, names: Iterable[str]) -> dict[str, Collation]:
    """By the name (with its schema) that each was asked by; what the database lacks, and '', is left out."""
    wanted = sorted(filter(None, set(names)))
    if not wanted:
        return {}
    with translated("cannot read collations"):
        rows: list[Any] = conn.execute(_READ, (wanted,)).fetchall()
    return {
        asked: Collation(
            schema=schema,
            name=name,
            provider=provider,
            deterministic=deterministic,
            locale=locale,
            collate=collate,
            ctype=ctype,
            rules=rules,
            version=version,
            recorded=recorded,
        )
        for asked, schema, name, provider, deterministic, locale, collate, ctype, rules, version, recorded in rows
    }


def default(conn: Connection) -> tuple[object, ...]:
    """The database's own: two databases that sort alike have equal ones."""
    with translated("cannot read the database's collation"):
        row: Any = conn.execute(_DEFAULT).fetchone()
    provider, collate, ctype, locale = row
    return provider or "c", _plain(collate), _plain(ctype), locale


def _plain(locale: str | None) -> str | None:
    """`en_US.UTF-8` and `en_US.utf8` are one, as are C and POSIX."""
    if locale is None:
        return None
    name = locale.lower().replace("-", "")
    return "c" if name == "posix" else name


def _literal(text: str | None) -> str:
    return "'" + (text or "").replace("'", "''") + "'"
