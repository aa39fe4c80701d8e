"""What a hook is told, and what is told of it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from schemas.direction import Side
from schemas.errors import Aborted
from schemas.spec import load_spec
from stream.cutover import Order, hooks
from stream.cutover.attempt import Turning

SECRET = "hunter2, the token"


def turning(folder: Path, hook: str, said: list[str]) -> Turning:
    file = folder / "shop.yaml"
    file.write_text(
        "migration: shop\nold: {dsn: 'dbname=old password=swordfish'}\nnew: {dsn: dbname=new}\n"
        f"kafka: {{bootstrap: 'k:1'}}\nhooks: {{before_cutover: {hook!r}, on_change: {hook!r}}}\n"
    )
    return Turning(
        spec=load_spec(file, {"TOKEN": SECRET}),
        order=Order(to=Side.NEW, max_pause_s=1.0, attempts=1),
        actor=lambda _: pytest.fail("nobody acts here"),
        gates=lambda _: [],
        say=said.append,
        stop=threading.Event(),
    )


def test_neither_a_secret_in_a_hook_nor_what_it_says_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    t = turning(tmp_path, "echo calling with ${TOKEN}, swordfish; pwd; exit 7", said)
    with pytest.raises(Aborted) as refused:
        hooks.before(t)
    assert refused.value.cause == "the hook before_cutover exited with 7"
    assert said == ["hooks.before_cutover runs", f"calling with ***, ***\n{tmp_path}"]
    hooks.after(t, still=lambda: None)
    assert t.notes == ["the hook on_change exited with 7; the turn stands"]
    assert SECRET not in "".join(said)


def test_a_hook_that_does_not_end_is_named_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "PATIENCE_S", 0.3)
    said: list[str] = []
    with pytest.raises(Aborted, match="did not end in 0 s"):
        hooks.before(turning(tmp_path, "echo begun; exec sleep 30", said))
    assert said[-1] == "begun"
