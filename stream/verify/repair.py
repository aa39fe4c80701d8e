"""Repair: the rows that differ are read again from the source, through the same queue as any row that has to be.

Invariants: nothing is written here but requests; what answers them loads chunks of one row under backfill's rule, so a
repair can never put an older row in the place of a newer one, and a kill in the middle leaves requests, done or not. A
request says whether it may delete; where nobody asked for that, a row that only the target has stays, for it may be the
last copy of it. A table that was repaired is not clean: only a later pass says that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from connectors.failpoint import failpoint
from connectors.postgres import user_path
from connectors.postgres.mirror import mirror_key
from connectors.postgres.session import Connection, translated
from connectors.postgres.target import Target
from connectors.postgres.void import void
from schemas.control import MIRROR_SCHEMA, mirror_name
from schemas.names import qualified, quote
from schemas.plan import Plan
from schemas.repair import Action, Repair
from stream.backfill.load_table import MIRROR
from stream.backfill.reread import assert_closed
from stream.engine.build import mirror_mapping
from stream.verify.digests import Pair
from stream.verify.lookup import feeding
from stream.verify.queries import Key, View, bare, owners, restricts
from stream.verify.verdicts import Mismatch, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be read again: load -> (source table, keys). `refused`: tables that cannot be, and why.

    `owners`: what may come from no source row any more, load -> (source table, owners by the target's columns).
    `anew`: it has no key, so all of it is.
    """

    rows: Mapping[str, tuple[str, Sequence[Mapping[str, str | None]]]]
    owners: Mapping[str, tuple[str, Sequence[Mapping[str, str | None]]]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    anew: bool = False


def plan_repair(pair: Pair, plan: Plan, view: View, mismatches: Sequence[Mismatch]) -> Asked:
    """Which rows of which tables have to be read again so that one target table's mismatches go."""
    if not view.mapping.key:
        return Asked(rows={}, anew=True)
    keys: list[Key] = [tuple(m.key[k] for k in view.mapping.key) for m in mismatches]
    wanted = owners(view, keys)
    if view.mapping.row_local:
        return _row_local(pair, view, wanted)
    return _joined(pair, plan, view, wanted)


def _row_local(pair: Pair, view: View, wanted: Sequence[Key]) -> Asked:
    """The source rows by their keys; of owners that have none any more, by the columns that would name them."""
    by = restricts(view)
    table = view.sources[0]
    if by is None:
        return Asked(rows={}, refused={view.name: f"nothing tells which rows of {table.name} feed it"})
    names = [bare(e, table) for e in by[table.name]]
    if all(names):
        asked = [dict(zip(map(str, names), owner, strict=True)) for owner in wanted]
        return Asked(rows={view.name: (table.name, asked)})
    found, fed = _keys(pair, view, by, wanted)
    gone = [dict(zip(view.mapping.owner, o, strict=True)) for o in wanted if o not in fed]
    return Asked(
        rows={view.name: (table.name, found[table.name])} if found[table.name] else {},
        owners={view.name: (table.name, gone)} if gone else {},
    )


def _joined(pair: Pair, plan: Plan, view: View, wanted: Sequence[Key]) -> Asked:
    """Its owners, and every mirror row that feeds them, be it only in the mirror."""
    rows: dict[str, tuple[str, Sequence[Mapping[str, str | None]]]] = {}
    by = restricts(view)
    if by is not None:
        found, _ = _keys(pair, view, by, wanted)
        for table in view.sources:
            mirrored = _mirrored(pair.target.primary, plan, view, by, wanted, table.name)
            unique = {json.dumps(k, sort_keys=True): k for k in [*found[table.name], *mirrored]}
            if unique:
                rows[f"mirror:{table.name}"] = (table.name, list(unique.values()))
    rows[view.name] = ("", [dict(zip(view.mapping.owner, owner, strict=True)) for owner in wanted])
    return Asked(rows=rows)


def _keys(
    pair: Pair, view: View, by: Mapping[str, Sequence[str]], wanted: Sequence[Key]
) -> tuple[dict[str, list[dict[str, str | None]]], set[Key]]:
    """Keys of the source rows that feed some owners, and the owners that are fed."""
    found: dict[str, list[dict[str, str | None]]] = {}
    fed: set[Key] = set()
    with pair.source.look(view.sources, timeout_s=60, path=view.source_path):
        for table in view.sources:
            key = mirror_key(table)
            texts, where = feeding(view, table, by[table.name], wanted)
            picked = ", ".join([*(f"{quote(k)}::text" for k in key), *texts])
            name = qualified(table.schema, table.name)
            rows = pair.source.all(
                f"select {picked} from {name if table.partitioned else f'only {name}'} where {where}",
                f"reading keys of {table.name}",
            )
            found[table.name] = [dict(zip(key, row[: len(key)], strict=True)) for row in rows]
            fed |= {tuple(row[len(key) :]) for row in rows}
    return found, fed


def _mirrored(
    target: Connection, plan: Plan, view: View, by: Mapping[str, Sequence[str]], wanted: Sequence[Key], source: str
) -> list[dict[str, str | None]]:
    """Keys of the mirror's rows that feed some owners: those of rows that are gone from the source, too."""
    table = plan.sources[source]
    key = mirror_mapping(table).key
    _, where = feeding(view, table, by[source], wanted)
    name = qualified(MIRROR_SCHEMA, mirror_name(plan.migration, plan.direction, source))
    query = f"select {', '.join(f'{quote(k)}::text' for k in key)} from {name} where {where}"
    with (
        translated(f"reading the mirror of {source}"),
        target.transaction(),
        user_path.within(target, view.target_path),
    ):
        return [dict(zip(key, row, strict=True)) for row in target.execute(query.encode()).fetchall()]


def ask(store: Store, name: str, asked: Asked, repair: Repair, *, whole: bool = True) -> int:
    """Queue what is to be read again, and mark the table; how many rows. One transaction: both or neither.

    `whole`: it is asked for all that is known to be wrong; else the table stays mismatched.
    Errors: Refused while the target is open to the application.
    """
    target = Target(store.conn, store.migration, store.direction)
    total = 0
    with translated("asking for rows to be read again"), store.conn.transaction():
        assert_closed(store.conn, store.migration, store.direction)
        for load, (source, keys) in asked.rows.items():
            target.ask_reread(load, source, keys, repair.reason, repair=repair)
            total += len(keys)
        for load, (source, keys) in asked.owners.items() if repair.deletes else ():
            target.ask_reread(load, source, keys, repair.reason, repair=replace(repair, owners=True))
            total += len(keys)
        failpoint("verify.mid_repair")
        # What is read again may be a row of a mirror, which feeds other tables, too.
        tables = None if any(load.startswith(MIRROR) for load in asked.rows) else {name}
        void(store.conn, store.migration, store.direction, tables=tables, cause="rows were read again by a repair")
        if not asked.refused and whole and total:
            store.repaired(name)
    return total


def left(conn: Connection, plan: Plan) -> int:
    """How many rows still wait to be read again, and tables to be loaded."""
    with translated("counting what waits to be read again"):
        row = conn.execute(
            "select (select count(*) from slackwater.reread where migration = %s and direction = %s)"
            " + (select count(*) from slackwater.load where migration = %s and direction = %s and state <> 'done')",
            (plan.migration, plan.direction.value) * 2,
        ).fetchone()
    assert row is not None
    return int(str(row[0]))


def newest_kept(conn: Connection) -> int:
    """The number of the newest row that was kept, of any direction; 0 where there is none."""
    with translated("reading what repairs have kept"):
        row = conn.execute("select coalesce(max(id), 0) from slackwater.repaired").fetchone()
    assert row is not None
    return int(str(row[0]))


def kept_since(conn: Connection, plan: Plan, newest: int) -> dict[Action, dict[str, int]]:
    """Rows that were kept after that one: by what became of them, and by table."""
    with translated("counting what the repair has kept"):
        rows = conn.execute(
            "select action, load, count(*) from slackwater.repaired"
            " where migration = %s and direction = %s and id > %s group by 1, 2 order by 2",
            (plan.migration, plan.direction.value, newest),
        ).fetchall()
    found: dict[Action, dict[str, int]] = {action: {} for action in Action}
    for action, load, n in rows:
        found[Action(str(action))][str(load)] = int(str(n))
    return found
