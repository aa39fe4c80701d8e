"""Our SQL that runs while the users' `search_path` is in force names every function and operator with its schema.

There a better fitting overload would be taken in the place of PostgreSQL's own. (A type is not overloaded: of two of
one name PostgreSQL's own comes first, for no path lists pg_catalog.) `tests/integration/test_user_path.py` tries it
with overloads; here the text itself is read, so that a statement which no test runs is seen as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOLE = "\x01"

# Those whose text runs under the path, or is put into one that does.
MODULES = (
    "schemas/bind.py", "schemas/digest.py", "schemas/equality.py", "schemas/owner.py", "schemas/repair.py",
    "connectors/postgres/bindings.py", "connectors/postgres/composed.py", "connectors/postgres/constraints.py",
    "connectors/postgres/fired.py",
    "connectors/postgres/made_rows.py", "connectors/postgres/made_world.py", "connectors/postgres/parse_tree.py",
    "connectors/postgres/peek.py", "connectors/postgres/ranges.py", "connectors/postgres/sight.py",
    "connectors/postgres/statistics.py", "connectors/postgres/targets.py", "connectors/postgres/trial.py",
    "stream/backfill/post_load.py", "stream/engine/build.py", "stream/engine/chunk.py", "stream/engine/engine.py",
    "stream/engine/graves.py",
    "stream/engine/joins.py", "stream/engine/keyless.py", "stream/engine/mapping_sql.py", "stream/engine/repairs.py",
    "stream/engine/small_batch.py", "stream/engine/staging.py", "stream/engine/toast.py",
    "stream/remediation/repaired.py", "stream/verify/counterparts.py", "stream/verify/digests.py",
    "stream/verify/lookup.py", "stream/verify/queries.py", "stream/verify/row_by_row.py", "stream/verify/sampler.py",
)  # fmt: skip

# (module, function or constant): text of these that runs before the path is entered, or after it was left.
APART = {
    ("connectors/postgres/bindings.py", "_UNIQUE"),
    ("connectors/postgres/constraints.py", "_CHECKS"),
    ("connectors/postgres/constraints.py", "_INDEXED"),
    ("connectors/postgres/constraints.py", "_PARTITIONS"),
    ("connectors/postgres/fired.py", "_USERS"),
    ("connectors/postgres/fired.py", "_EXPRESSIONS"),
    ("connectors/postgres/fired.py", "_also"),
    ("connectors/postgres/fired.py", "_TYPES"),
    ("connectors/postgres/fired.py", "_THERE"),
    ("connectors/postgres/made_rows.py", "_OBSTACLES"),
    ("connectors/postgres/parse_tree.py", "_FUNCTIONS"),
    ("connectors/postgres/parse_tree.py", "_READS"),
    ("connectors/postgres/parse_tree.py", "_parsed"),
    ("connectors/postgres/parse_tree.py", "_elsewhere"),  # a sentence
    ("connectors/postgres/parse_tree.py", "_function"),  # a sentence
    ("connectors/postgres/ranges.py", "_KEY_TYPES"),
    ("connectors/postgres/sight.py", "_BASES"),
    ("connectors/postgres/statistics.py", "_ANALYSED"),
    ("connectors/postgres/targets.py", "_referred"),
    ("stream/backfill/post_load.py", "_build"),
    ("stream/backfill/post_load.py", "_run"),
    ("stream/engine/build.py", "parents_first"),
    ("stream/engine/engine.py", "begin"),
    ("stream/remediation/repaired.py", "READ"),
    ("stream/remediation/repaired.py", "COLUMNS"),
    ("stream/remediation/repaired.py", "_put"),
    ("stream/remediation/repaired.py", "_insert"),
    ("stream/verify/sampler.py", "_make"),  # a name of ours
}
# Assignments, of `update ... set`.
ASSIGNED = {
    ("connectors/postgres/trial.py", f"{HOLE} = {HOLE}"),
    ("stream/engine/mapping_sql.py", f"{HOLE} = s.{HOLE}"),
    ("stream/engine/mapping_sql.py", f"{HOLE} = t.{HOLE}"),
    ("stream/engine/mapping_sql.py", f"{HOLE} = k.{HOLE}"),
    ("stream/engine/mapping_sql.py", f"update {HOLE} set {HOLE} = 1 where {HOLE} is null"),
}
# What stands before a parenthesis and is no function that a path is asked for: syntax, and PostgreSQL's own constructs.
SYNTAX = frozenset(
    {
        "all", "and", "any", "array", "as", "bit", "by", "case", "cast", "char", "check", "coalesce", "conflict",
        "default", "distinct", "else", "except", "exists", "extract", "filter", "from", "greatest", "grouping",
        "having", "in", "include", "index", "intersect", "into", "key", "lateral", "least", "limit", "materialized",
        "not", "nullif", "numeric", "of", "on", "operator", "or", "order", "over", "partition", "primary", "range",
        "references", "returning", "row", "rows", "select", "set", "sets", "then", "time", "timestamp", "unique",
        "union", "update", "using", "values", "varchar", "when", "where", "window", "with",
    }
)  # fmt: skip
CALL = re.compile(r'(?<![.\w"\x01$])([a-z_][a-z0-9_]*)\(')
OPERATOR = re.compile(r"(?<=\s)(=|<>|!=|<=|>=|<|>|\|\||->>|->|#>>|#>|\+|-|%%|&|~|!~|@>|<@|like|ilike)(?=\s)")
SQL = re.compile(r"\b(select|insert into|delete from|update|where|join|order by|group by|case when|values|set)\b")
SETTING = re.compile(r"\bset (local )?[\w.]+ = ")


def texts(module: str) -> Iterator[tuple[str, str]]:
    """(function or constant, text with a HOLE for what is put in) of every string but docstrings."""
    tree = ast.parse((ROOT / module).read_text())

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.FunctionDef):
            name = node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and not name:
            name = node.targets[0].id
        if isinstance(node, ast.JoinedStr):
            yield name, "".join(str(v.value) if isinstance(v, ast.Constant) else HOLE for v in node.values)
            for value in node.values:
                if isinstance(value, ast.FormattedValue):
                    yield from walk(value.value, name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield name, node.value
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, name)

    yield from walk(tree, "")


def bare(text: str) -> list[str]:
    """Functions and operators in a text of SQL that are named without their schema."""
    calls = [name for name in CALL.findall(text) if name not in SYNTAX and len(name) > 1]  # `t(`: an alias
    return calls + OPERATOR.findall(SETTING.sub("", f" {text} "))


@pytest.mark.parametrize("module", MODULES)
def test_what_runs_under_the_users_path_is_named_with_its_schema(module: str) -> None:
    found = [
        f"{name}: {', '.join(names)} in {text[:80]!r}"
        for name, text in texts(module)
        if (SQL.search(text) or HOLE in text)
        and (module, name) not in APART
        and (module, text) not in ASSIGNED
        and (names := bare(text))
    ]
    assert found == []


def test_every_module_that_enters_the_path_is_read() -> None:
    entering = re.compile(r"user_path\.(enter|within|local|SET)|\.firing\(\)|\blook\([^)]*path=")
    found = {
        str(path.relative_to(ROOT))
        for room in ("connectors", "stream")
        for path in (ROOT / room).rglob("*.py")
        if entering.search(path.read_text())
    }
    assert found - set(MODULES) - {"stream/verify/repair.py"} == set()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("select count(*) from t where a operator(pg_catalog.=) b", ["count"]),
        ("select pg_catalog.count(*) from t where a = b", ["="]),
        ("set local lock_timeout = 3", []),
        ("insert into t (a) select x.a || 'y' from unnest(array[1]) x(a)", ["unnest", "||"]),
        ("where a in (1) and exists (select from t) and coalesce(a, b) is null", []),
    ],
)
def test_the_reader_sees_what_is_bare(text: str, names: list[str]) -> None:
    assert bare(text) == names
