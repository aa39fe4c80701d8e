"""`status` as a person reads it at three in the morning: the answer first, then who, then what to do."""

from __future__ import annotations

from typing import Any

from stream.cli import formatting

Document = dict[str, Any]

LISTED = 12  # tables of the backfill that are shown; the rest is counted


def screen(status: Document) -> str:
    """The whole screen; the first line alone says what most people came to ask."""
    parts = [headline(status), ""]
    if status["phase"] == "planned" and not status["errors"]:
        return "\n".join([*parts, formatting.NOTHING_HERE])
    parts += _switching(status)
    for name, direction in status["directions"].items():
        parts += _direction(name, direction)
    parts += _backfill(status["backfill"])
    parts.append(
        f"queues    {_rows(status['quarantine'])} in quarantine, {_rows(status['reread'])} to be read again",
    )
    parts += _gates(status["gates"], status["gates_off"])
    for side, error in status["errors"].items():
        parts += [f"{side:<9} does not answer: {error['cause']}", *_remedy(error["remedy"])]
    return "\n".join(parts)


def headline(status: Document) -> str:
    failing = sum(map(_stops, status["gates"]))
    safe = {True: "yes", False: f"no ({failing})" if failing else "no", None: "unknown"}[status["safe_to_cutover"]]
    line = f"WRITES {status['writes'] or 'unknown'}  PHASE {status['phase'] or 'unknown'}  CUTOVER {safe}"
    return line + (f"  NEXT {status['next']}" if status["next"] else "")


def _switching(status: Document) -> list[str]:
    """A turn between its beginning and its end, and the last one that came to it."""
    now, last = status.get("switching"), status["cutover"]
    if now is not None:
        who = f" begun at {now['since']} by {now['by']}" if now["since"] else ""
        return [f"switching {now['verb']}{who} has not come to its end: if it does not run, run it again", ""]
    if last["at"] is None:
        return []
    pause = "" if last["pause_seconds"] is None else f", writers paused for {last['pause_seconds']:.3f} s"
    return [f"turn {last['turn']:<4} {last['verb']} at {last['at']}{pause}", ""]


def _direction(name: str, d: Document) -> list[str]:
    rate = f", {d['rows_per_second']:,.0f} rows/s" if d["rows_per_second"] else ""
    known = f" (known {formatting.seconds(d['freshness_seconds'])} ago)" if d["freshness_seconds"] is not None else ""
    behind = "" if d["lag_bytes"] is None else f", {formatting.size(d['lag_bytes'])} behind"
    lines = [f"{name:<9} {d['state']:<9} lag {formatting.seconds(d['lag_seconds'])}{known}{behind}{rate}"]
    lines += [_role(role, d[role]) for role in ("capture", "apply")]
    slot = d["slot"]
    if slot is not None:
        how = slot["wal_status"] or "unknown"
        lines.append(f"  slot    {how:<9} {slot['name']} holds back {formatting.size(slot['retained_bytes'])} of WAL")
    if d["stuck"] is not None and d["paused"] is None:
        lines.append(f"  held up by {d['stuck']['stage']}: {d['stuck']['cause']}")
    lines += _paused(d["paused"]) + _error(d["last_error"], [d["capture"], d["apply"]])
    return [*lines, ""]


def _role(name: str, role: Document | None) -> str:
    if role is None:
        return f"  {name:<7} has never run"
    line = f"  {name:<7} {role['state']:<9} pid {role['pid']} on {role['host']}"
    if role["state"] in ("dead", "stopped"):
        line += f", last heard of at {role['seen_at']}"
    return line + (f": {role['reason']}" if role["reason"] else "")


def _paused(pause: Document | None) -> list[str]:
    if pause is None:
        return []
    reason = f": {pause['reason']}" if pause["reason"] else ""
    return [f"  paused by {pause['by']} at {pause['at']}{reason}"]


def _error(error: Document | None, roles: list[Document | None]) -> list[str]:
    """The last error; one that the roles have got over is marked as past."""
    if error is None:
        return []
    past = all(role is None or role["state"] == "running" for role in roles)
    return [f"  {'last' if past else 'error'} at {error['at']}: {error['cause']}", *_remedy(error["remedy"])]


def _remedy(remedy: str | None) -> list[str]:
    return [f"    remedy: {remedy}"] if remedy else []


def _backfill(backfill: Document) -> list[str]:
    tables = backfill["tables"]
    if backfill["state"] is None:
        return ["backfill  unknown", ""]
    done = [t for t in tables.values() if t["state"] == "done"]
    rows = sum(t["rows"] for t in tables.values())
    left = backfill.get("seconds_left")
    ahead = f", about {formatting.seconds(left)} left" if left and backfill["state"] == "running" else ""
    lines = [
        f"backfill  {backfill['state']:<9} {len(done)} of {len(tables)} tables, {formatting.count(rows)} rows{ahead}",
    ]
    if backfill["role"] is not None and backfill["state"] != "done":
        lines.append(_role("role", backfill["role"]))
    waiting = [(name, t) for name, t in tables.items() if t["state"] != "done"]
    waiting.sort(key=lambda item: (item[1]["state"] not in ("running", "indexing"), item[0]))
    rows_shown = [
        (
            name,
            t["state"],
            f"{formatting.count(t['rows'])} rows",
            f"{t['chunks_done']} of {t['chunks']} chunks" if t["chunks"] else "",
            f"about {formatting.seconds(t['seconds_left'])} left" if t["seconds_left"] else "",
        )
        for name, t in waiting[:LISTED]
    ]
    if rows_shown:
        lines.append(formatting.columns(rows_shown, indent=2))
    if len(waiting) > LISTED:
        lines.append(f"  and {len(waiting) - LISTED} more")
    lines += _paused(backfill["paused"]) + _error(backfill.get("last_error"), [backfill["role"]])
    return [*lines, ""]


def _rows(queue: Document) -> str:
    rows = queue["rows"]
    return "an unknown number of rows" if rows is None else f"{rows:,} row{'' if rows == 1 else 's'}"


def _gates(gates: list[Document], off: list[Document]) -> list[str]:
    if not gates:
        return []
    passing = sum(g["state"] == "passed" for g in gates)
    lines = [f"gates     {passing} of {len(gates)} pass"]
    for gate in (g for g in gates if g["state"] != "passed"):
        state = gate["state"] if gate["blocks"] else "warning"
        lines.append(f"  {state:<7} {gate['gate']}: {gate['detail']}")
        lines += _remedy(gate["remedy"])
    return lines + [f"  off     {gate['gate']}: {gate['detail']}" for gate in off]


def _stops(gate: Document) -> bool:
    return bool(gate["blocks"]) and gate["state"] != "passed"
