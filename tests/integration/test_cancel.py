"""cancel: every trace is taken away, whatever it finds, and nothing of a user's with it."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.kafka.topics import Topics
from schemas.errors import Contended, Refused, Unavailable
from tests.fixtures.catalogs import CATALOGS, catalogs
from tests.fixtures.preparing import NotConfirmed, Shop
from tests.integration.test_prepare import run


def traces(shop: Shop) -> list[str]:
    """Topics of the migration that are still there."""
    names = [f"{shop.prefix}.{shop.migration}.forward.shop.{t}" for t in ("customers", "profiles", "readings")]
    return list(Topics(shop.bootstrap, {}).partitions([*names, shop.epochs, f"{shop.prefix}.{shop.migration}.schemas"]))


def test_both_sides_are_as_they_were(shop: Shop) -> None:
    shop.on_old("create table shop.log (line text)")
    shop.on_new("create table app.log (line text)")
    shop.on_new("create view app.names as select name from app.customer")
    shop = shop.with_(tables=shop.tables.replace("copy: [readings]", "copy: [readings, log]"))
    before = catalogs(shop.old), catalogs(shop.new)
    shop.prepare(set_identity=True)
    assert len(traces(shop)) == 5
    during = catalogs(shop.old), catalogs(shop.new)
    assert during[0] != before[0]
    assert during[1]["pg_type"] - before[1]["pg_type"] >= {("slackwater_mirror", "mood")}
    outcome = shop.cancel()
    assert outcome.result == "cancelled"
    after = catalogs(shop.old), catalogs(shop.new)
    for side in (0, 1):
        for name in CATALOGS:
            assert after[side][name] == before[side][name], name
    assert traces(shop) == []
    shop.on_new("insert into app.customer values (1, 'free again')")
    assert shop.cancel().result == "already"


def test_one_database(one_database: Shop) -> None:
    before = catalogs(one_database.old)
    one_database.prepare()
    one_database.cancel()
    assert catalogs(one_database.old) == before


def test_prepare_works_again_after_it(shop: Shop) -> None:
    shop.prepare()
    shop.cancel()
    assert shop.prepare().result == "prepared"


@pytest.mark.parametrize("place", ["prepare.after_fence", "prepare.after_slot", "prepare.after_epoch_0"])
def test_it_cleans_up_after_a_prepare_that_was_killed(shop: Shop, tmp_path: Path, place: str) -> None:
    before = catalogs(shop.old), catalogs(shop.new)
    assert run(shop, tmp_path, "prepare", failpoints=f"{place}=kill").returncode == -9
    shop.cancel()
    assert (catalogs(shop.old), catalogs(shop.new)) == before
    assert traces(shop) == []


def test_killed_anywhere_the_next_cancel_completes_it(shop: Shop, tmp_path: Path) -> None:
    before = catalogs(shop.old), catalogs(shop.new)
    shop.prepare()
    for place in ("cancel.after_slot", "cancel.after_fences", "cancel.after_topics", "cancel.after_old"):
        killed = run(shop, tmp_path, "cancel", "--yes", failpoints=f"{place}=kill")
        assert killed.returncode == -9, f"{place}: {killed.stderr}"
        with pytest.raises(Refused, match="was cancelled"):
            shop.prepare()
        told = json.loads(run(shop, tmp_path, "status", "--json").stdout)
        assert (told["writes"], told["switching"]) == ("old", None)
        assert told["next"].endswith(" cancel")
    assert shop.cancel().result == "cancelled"
    assert (catalogs(shop.old), catalogs(shop.new)) == before


def test_it_asks_first(shop: Shop) -> None:
    shop.prepare()
    before = catalogs(shop.old), catalogs(shop.new)
    with pytest.raises(NotConfirmed):
        shop.cancel(yes=False)
    assert (catalogs(shop.old), catalogs(shop.new)) == before
    assert shop.prepare().result == "already"


def test_without_a_terminal_and_without_yes_it_is_a_usage_error(shop: Shop, tmp_path: Path) -> None:
    shop.prepare()
    asked = run(shop, tmp_path, "cancel")
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    assert run(shop, tmp_path, "cancel", "--yes", "--json").returncode == 0


def test_never_after_a_switch(shop: Shop) -> None:
    shop.prepare()
    shop.on_new("update slackwater.turn set open_turn = 1 where side = 'new'")
    shop.on_new("update slackwater.migration set phase = 'switched'")
    with pytest.raises(Refused, match="only copy"):
        shop.cancel()
    assert shop.on_old("select count(*) from pg_replication_slots where slot_name = %s", shop.slot) == [(1,)]


def test_never_while_old_is_being_closed(shop: Shop) -> None:
    shop.prepare()
    shop.on_old("update slackwater.turn set fence_turn = 2 where side = 'old'")
    with pytest.raises(Refused, match="only copy"):
        shop.cancel()


def test_roles_are_stopped_first(shop: Shop) -> None:
    shop.prepare()
    shop.on_old(
        "insert into slackwater.role (migration, direction, role, pid, host, state)"
        " values (%s, 'forward', 'capture', 42, 'a', 'running')",
        shop.migration,
    )
    with pytest.raises(Refused, match=r"forward capture \(pid 42 on a\)"):
        shop.cancel()


def test_a_table_in_use_is_waited_for_without_holding_up_others(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from connectors.postgres import fence

    shop.prepare()
    with psycopg.connect(shop.new) as reader:
        reader.execute("select * from app.customer")  # holds ACCESS SHARE until it ends
        plain = fence.drop
        monkeypatch.setattr(fence, "drop", lambda conn, migration: plain(conn, migration, patience_s=2.0))
        with pytest.raises(Contended, match="other transactions held the table"):
            shop.cancel()
        reader.rollback()
    assert shop.cancel().result == "cancelled"


def test_what_somebody_built_on_the_control_schema_is_not_dropped(shop: Shop) -> None:
    shop.prepare()
    shop.on_new("create view app.whose as select writes from slackwater.route")
    with pytest.raises(Refused, match="cannot be dropped") as refused:
        shop.cancel()
    assert any("app.whose" in reason for reason in refused.value.reasons)
    shop.on_new("drop view app.whose")
    assert shop.cancel().result == "cancelled"


def test_where_new_is_gone_for_good_the_way_out_is_told(shop: Shop) -> None:
    shop.prepare()
    gone = shop.with_(new=make_conninfo(shop.new, dbname="gone_for_good"))
    with pytest.raises(Unavailable) as error:
        gone.cancel()
    assert f"pg_drop_replication_slot('{shop.slot}')" in error.value.hint
