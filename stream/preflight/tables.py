"""What the tables of each side must be, before the stream stands on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from connectors.postgres import fence, survey
from connectors.postgres.session import Connection
from schemas.direction import Side
from schemas.names import qualified
from schemas.table import Identity, Table
from stream.preflight.finding import Findings, listed


def identity_statements(table: Table, partitions: Iterable[tuple[str, str]]) -> list[str]:
    """What sets REPLICA IDENTITY FULL on a table: its partitions too, for the setting does not pass down."""
    relations = [(table.schema, table.name), *partitions]
    return [f"alter table {qualified(*relation)} replica identity full" for relation in relations]


def without_identity(tables: Iterable[Table]) -> list[Table]:
    """Tables whose UPDATE and DELETE PostgreSQL refuses once they are published: nothing would name the old row."""
    return [table for table in tables if not table.identity_columns]


def source(
    conn: Connection, side: Side, tables: Mapping[str, Table], will_be_full: Collection[str], found: Findings
) -> None:
    """The tables to be streamed. `will_be_full`: those whose replica identity `prepare` is about to set to FULL."""
    _privileges(conn, side, tables.values(), ("SELECT", "OWNER"), found)
    _common(conn, side, tables, found)
    kinds = _by_kind(conn, tables.values())
    for table in without_identity(t for n, t in tables.items() if n not in will_be_full):
        why = {
            Identity.DEFAULT: "it has no primary key (one that is deferrable does not count)",
            Identity.NOTHING: "its replica identity is NOTHING",
            Identity.INDEX: "the index of its replica identity is gone",
        }.get(table.identity, "no column of it is left")
        found.problem(
            "replica_identity",
            f"{why}: once it is published, PostgreSQL refuses the application's UPDATE and DELETE on it",
            f"{'; '.join(identity_statements(table, ()))} -- or give it a primary key; or `slackwater"
            f" {'prepare' if side is Side.OLD else 'arm'} --set-replica-identity` does it, and the migration's end"
            " undoes it",
            f"{side}.{table.name}",
        )
    for name, partitions in kinds["partition identity"].items():
        if name in will_be_full:
            continue
        found.problem(
            "replica_identity",
            f"partitions have another replica identity than the table: {listed(partitions)}",
            "alter table <partition> replica identity ..., as the table itself has it",
            f"{side}.{name}",
        )
    for name in kinds["unlogged"]:
        found.problem(
            "unlogged",
            "it is unlogged: its changes never reach the WAL",
            f"alter table {qualified(tables[name].schema, name)} set logged, or list it under `exclude`",
            f"{side}.{name}",
        )
    for name, columns in kinds["generated column"].items():
        found.note(
            "generated_columns",
            f"generated columns are not streamed: {listed(columns)}; new computes its own",
            where=f"{side}.{name}",
        )
    for name, columns in kinds["large object"].items():
        found.warning(
            "large_objects",
            f"{listed(columns)} may refer to large objects, which no logical stream carries",
            "move their content into a bytea column first, or copy them by other means",
            f"{side}.{name}",
        )
    for name in (n for n, t in tables.items() if t.partitioned):
        found.warning(
            "partitions",
            "no logical stream carries TRUNCATE, ATTACH, DETACH or DROP of a single partition, by which rows would come"
            " or go here and not on the other side: capture notices each of them, and halts for good",
            "until the migration ends, DELETE the rows or truncate the whole table; new partitions are welcome, made"
            " by `create table ... partition of`",
            f"{side}.{name}",
        )
    for name, children in kinds["inherited by"].items():
        found.note(
            "inheritance",
            f"rows of its children are not rows of its own here: {listed(children)} are tables by themselves",
            where=f"{side}.{name}",
        )


def target(
    conn: Connection,
    side: Side,
    tables: Mapping[str, Table],
    whole: Mapping[str, Table],
    must_be_empty: Collection[str],
    migration: str,
    found: Findings,
) -> None:
    """The tables to be written. `whole` is all of their schema, which is fenced; `must_be_empty` those of them that
    nothing of ours was ever loaded into."""
    role = survey.role(conn)
    _privileges(conn, side, [t for t in whole.values() if t.name not in tables], ("OWNER",), found)
    _privileges(conn, side, tables.values(), ("SELECT", "INSERT", "UPDATE", "DELETE", "OWNER"), found)
    _common(conn, side, tables, found)
    kinds = _by_kind(conn, tables.values())
    _fires(kinds, side, role, found)
    for name in kinds["unlogged"]:
        found.problem(
            "unlogged",
            "it is unlogged: a crash of the server would empty it, and nothing would bring the rows back",
            f"alter table {qualified(tables[name].schema, name)} set logged",
            f"{side}.{name}",
        )
    for relation, present in fence.fences(conn).items():
        if present.migration != migration and relation in {(t.schema, t.name) for t in tables.values()}:
            found.problem(
                "fenced",
                f"it carries the fence of migration {present.migration}",
                f"end {present.migration} first, by `finalize` or `cancel` with its own file",
                f"{side}.{relation[1]}",
            )
    unreadable = survey.unprivileged(conn, tables.values(), ("SELECT",))
    for name in survey.holds_rows(conn, [t for n, t in tables.items() if n in must_be_empty and n not in unreadable]):
        found.problem(
            "not_empty",
            "it holds rows that did not come from old: they would stay beside what is migrated, or be taken for it",
            f"if nobody needs them: truncate {qualified(tables[name].schema, name)}",
            f"{side}.{name}",
        )


def _fires(kinds: Mapping[str, Mapping[str, list[str]]], side: Side, role: survey.Role, found: Findings) -> None:
    """Triggers and rules that would fire on what the applier writes: they have fired on the source already."""
    firing = ["trigger always", "rule always"]
    if role.replica:
        firing += ["trigger replica", "rule replica"]
    else:
        firing += ["trigger", "rule"]
        found.warning(
            "session_replication_role",
            f"role {role.name} may not set session_replication_role: foreign keys are checked row by row, and triggers"
            " fire on what is applied",
            f"grant set on parameter session_replication_role to {role.name} (PostgreSQL 15 or newer)",
            side,
        )
    if role.replica:
        for name, names in kinds["deferrable constraint"].items():
            found.problem(
                "deferrable_constraint",
                f"{listed(names)} can be deferred, so a trigger checks it that a session in replica role skips: rows"
                " that break it would be applied in silence",
                "make it immediate until the migration ends, which holds nobody up: create unique index concurrently"
                " ..., then drop the constraint and add it `using index` in one transaction. Where the application"
                " needs it deferred: run apply as a role that may not set session_replication_role, and it holds at"
                " each commit",
                f"{side}.{name}",
            )
    for kind in firing:
        for name, names in kinds[kind].items():
            what = kind.partition(" ")[0]
            found.problem(
                "triggers",
                f"the {what} {listed(names)} would fire on rows that {side.other} has already had its effects for",
                f"disable it until the migration ends (alter table ... disable {what} ...)"
                + ("" if role.replica else ", or let the role set session_replication_role"),
                f"{side}.{name}",
            )


def _privileges(
    conn: Connection, side: Side, tables: Iterable[Table], wanted: tuple[str, ...], found: Findings
) -> None:
    lacking: dict[str, list[str]] = defaultdict(list)
    for name, privileges in survey.unprivileged(conn, tables, wanted).items():
        for privilege in privileges:
            lacking[privilege].append(name)
    for privilege, names in lacking.items():
        if privilege == "OWNER":
            why = "publishing a table" if side is Side.OLD else "fencing a table"
            cause = f"the role does not own {listed(names)}; {why} is for its owner (or a member of the owning role)"
            remedy = "run `check` and `prepare` as the owner; the roles that stream need less: `slackwater grants`"
        else:
            cause = f"the role lacks {privilege} on {listed(names)}"
            remedy = "`slackwater grants` prints what each role needs"
        found.problem("privileges", cause, remedy, side)


def _common(conn: Connection, side: Side, tables: Mapping[str, Table], found: Findings) -> None:
    """What holds for tables of either side."""
    kinds = _by_kind(conn, tables.values())
    for name, subscriptions in kinds["subscribed"].items():
        found.problem(
            "subscription",
            f"it is fed by the native subscription {listed(subscriptions)}, whose writes pass every statement trigger:"
            " neither side could be closed to them",
            "end that subscription for this table, or list the table under `exclude`",
            f"{side}.{name}",
        )
    for name, partitions in kinds["foreign partition"].items():
        found.problem(
            "foreign_partition",
            f"partitions that are foreign tables are neither streamed nor fenced: {listed(partitions)}",
            "detach them, or list the table under `exclude`",
            f"{side}.{name}",
        )
    for name, partitions in kinds["partition owner"].items():
        found.problem(
            "privileges",
            f"the role does not own all of its partitions, each of which gets a trigger: {listed(partitions)}",
            "run `check` and `prepare` as the owner; the roles that stream need less: `slackwater grants`",
            f"{side}.{name}",
        )
    for name in kinds["row security"]:
        if survey.row_security_applies(conn, tables[name]):
            found.problem(
                "row_security",
                "its row security policies apply to this role: rows would be hidden from it",
                "alter role ... bypassrls, or use the table's owner",
                f"{side}.{name}",
            )


def _by_kind(conn: Connection, tables: Iterable[Table]) -> defaultdict[str, dict[str, list[str]]]:
    """kind -> table -> details."""
    kinds: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for trait in survey.traits(conn, tables):
        kinds[trait.kind].setdefault(trait.table, []).append(trait.detail)
    return kinds
