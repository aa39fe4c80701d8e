"""`slackwater foreign-writes`: writes that reached a closed side, and what becomes of them."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from connectors.postgres import foreign
from connectors.postgres.foreign import Recorded
from schemas.direction import Side
from schemas.errors import Refused
from schemas.spec import Spec
from stream.cli import context
from stream.migration import prepared
from stream.remediation import foreign_writes as deciding

app = typer.Typer(no_args_is_help=True, help="Writes that reached a closed side: list, accept or discard them.")

Reason = Annotated[str | None, typer.Option("--reason", help="Why; kept in the journal.", metavar="TEXT")]
ByHand = Annotated[
    bool, typer.Option("--done-by-hand", help="You have brought both sides together yourself; only record it.")
]


@app.command("list", epilog="Example: slackwater -c shop.yaml foreign-writes list")
def list_(every: Annotated[bool, typer.Option("--all", help="Also those that were decided upon.")] = False) -> None:
    """List them by table and key, never by value."""
    spec = context.spec()
    found = _found(spec, every=every)
    rows = [
        {
            "side": r.side,
            "table": r.source,
            "key": dict(r.key),
            "op": r.op,
            "committed_at": r.committed_at,
            "state": r.state,
        }
        for r in found
    ]
    lines = [
        f"{r.committed_at:%Y-%m-%d %H:%M:%S}  {r.side}.{r.source}  {r.op}  "
        f"{', '.join(f'{k}={v}' for k, v in r.key.items()) or '(no key)'}  {r.state}"
        for r in found
    ]
    context.show({"migration": spec.migration, "rows": rows}, "\n".join(lines or ["no foreign writes"]))


@app.command(
    short_help="Take the rows over to the open side",
    epilog='Example: slackwater -c shop.yaml foreign-writes accept --reason "orders of the fair"',
)
def accept(reason: Reason = None, done_by_hand: ByHand = False) -> None:
    """Take the rows over to the open side as they are now; from there they come back like any write."""
    _decide("accept", reason, by_hand=done_by_hand)


@app.command(
    short_help="Put the closed side's rows back",
    epilog='Example: slackwater -c shop.yaml foreign-writes discard --reason "a forgotten batch job"',
)
def discard(reason: Reason = None, done_by_hand: ByHand = False) -> None:
    """Put the closed side's rows back to what the open side makes of them."""
    _decide("discard", reason, by_hand=done_by_hand)


def _decide(verb: str, reason: str | None, *, by_hand: bool) -> None:
    spec = context.spec()
    rows = _found(spec, every=False)
    if not rows:
        context.show({"migration": spec.migration, "rows": 0, "result": "already"}, "no foreign writes wait")
        return
    with closing(context.prepared_side(spec, Side.NEW, "foreign-writes")) as new:
        document = prepared.load(new, spec.migration)
    if document is None:
        raise Refused(f"migration {spec.migration} is not prepared", hint=context.command(spec, "prepare"))
    done = {"accept": "accepted", "discard": "discarded"}[verb]
    context.confirm(f"{verb} {len(rows)} foreign writes of {', '.join(sorted({r.source for r in rows}))}?")
    for side in Side:
        own = [r for r in rows if r.side == side]
        if not own:
            continue
        if by_hand:
            deciding.done_by_hand(spec, document, own, side, done, actor=context.actor, reason=reason)
        elif verb == "accept":
            deciding.accept(spec, document, own, side, actor=context.actor, reason=reason)
        else:
            deciding.discard(spec, document, own, side, actor=context.actor, reason=reason)
    context.show(
        {"migration": spec.migration, "rows": len(rows), "result": done},
        f"{len(rows)} foreign writes {done}; capture goes on by itself",
    )


def _found(spec: Spec, *, every: bool) -> list[Recorded]:
    found: list[Recorded] = []
    for side in Side:
        with closing(context.prepared_side(spec, side, "foreign-writes")) as conn:
            found += foreign.listed(conn, spec.migration, side, every=every)
    unique = {(r.side, r.id): r for r in found}
    return list(unique.values())
