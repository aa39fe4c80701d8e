"""Identifiers as PostgreSQL spells them. Every name that reaches SQL goes through `quote`; none is pasted in bare."""

from __future__ import annotations

import re

_SIMPLE = re.compile(r"[a-z_][a-z0-9_]*")
_RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case cast
    char character check coalesce collate collation column concurrently constraint create cross current_catalog
    current_date current_role current_schema current_time current_timestamp current_user dec decimal default deferrable
    desc distinct do else end except exists extract false fetch float for foreign freeze from full grant greatest group
    grouping having ilike in initially inner inout int integer intersect interval into is isnull join json json_array
    json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize json_table json_value
    lateral leading least left like limit localtime localtimestamp merge_action national natural nchar none normalize
    not notnull null nullif numeric offset on only or order out outer overlaps overlay placing position precision
    primary real references returning right row select session_user setof similar smallint some substring symmetric
    system_user table tablesample then time timestamp to trailing treat trim true union unique user using values varchar
    variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces
    xmlparse xmlpi xmlroot xmlserialize xmltable
    """.split()  # noqa: SIM905 - pg_get_keywords(), category R, T or C
)


EQ = "operator(pg_catalog.=)"
"""For SQL that runs under a user's path: there, a bare `=` may be one that stands in the path for just these types."""


def quote(name: str) -> str:
    """Always quoted, inner quotes doubled. ValueError for what PostgreSQL cannot hold: an empty name, a zero byte."""
    if not name or "\0" in name:
        raise ValueError(f"not an identifier: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """Schema and name, each quoted."""
    return f"{quote(schema)}.{quote(name)}"


def fold(name: str) -> str:
    """An identifier written without quotes, as PostgreSQL reads it: ASCII letters in lower case, the rest as it is.

    (PostgreSQL folds other letters in single-byte encodings only; every database here is read as UTF-8.)
    """
    return "".join(c.lower() if c.isascii() else c for c in name)


def readable(name: str) -> str:
    """Quoted only where it must be: for SQL that people read, and that is run as well."""
    return name if _SIMPLE.fullmatch(name) and name not in _RESERVED else quote(name)
