"""Who did what, when: `slackwater.journal` on new, each entry sealed with a hash over itself and its predecessor.

Invariant: an entry that was changed, removed from the middle or put in later breaks the chain at its place.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

from connectors.postgres.session import Connection, translated

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """`identity` is the role that PostgreSQL authenticated; `remark` is what the person said with `--as`."""

    identity: str
    host: str
    remark: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the journal. `outcome` is intent, done, failed, aborted or refused; `detail` holds no row values."""

    migration: str
    seq: int
    at: datetime
    actor: str
    remark: str | None
    host: str
    step: str
    outcome: str
    detail: Mapping[str, Any]
    previous: str
    hash: str

    def sealed(self) -> str:
        """The hash that this entry should carry: SHA-256 over every other field, the predecessor's hash included."""
        fields = [
            self.migration,
            self.seq,
            self.at.astimezone(UTC).isoformat(timespec="microseconds"),
            self.actor,
            self.remark,
            self.host,
            self.step,
            self.outcome,
            self.detail,
            self.previous,
        ]
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def role_actor(conn: Connection, role: str) -> Actor:
    """The actor of what a role does by itself."""
    with translated("asking who is connected"):
        row = conn.execute("select session_user::text").fetchone()
    return Actor(identity=str(row[0]) if row else "", host=socket.gethostname(), remark=f"slackwater run {role}")


def append(
    conn: Connection,
    migration: str,
    *,
    actor: Actor,
    step: str,
    outcome: str = "done",
    detail: Mapping[str, Any] | None = None,
) -> Entry:
    """Adds an entry, in the caller's transaction if there is one: then it stands or falls with what it tells of."""
    with translated("writing the journal"), conn.transaction():
        # Two writers take turns here, so that each sees the other's entry as its predecessor.
        conn.execute("select pg_advisory_xact_lock(hashtextextended('slackwater.journal.' || %s, 0))", (migration,))
        found = conn.execute(
            "select coalesce(max(seq), 0), coalesce((array_agg(hash order by seq desc))[1], %s), clock_timestamp(), "
            "%s::jsonb from slackwater.journal where migration = %s",
            (GENESIS, json.dumps(detail or {}), migration),
        ).fetchone()
        # The detail as the database gives it back: what is sealed is what will be read.
        seq, previous, at, kept = cast("tuple[int, str, datetime, dict[str, Any]]", found)
        entry = Entry(
            migration=migration,
            seq=seq + 1,
            at=at,
            actor=actor.identity,
            remark=actor.remark,
            host=actor.host,
            step=step,
            outcome=outcome,
            detail=kept,
            previous=previous,
            hash="",
        )
        values = (migration, entry.seq, at, entry.actor, entry.remark, entry.host, step, outcome)
        conn.execute(
            "insert into slackwater.journal (migration, seq, at, actor, remark, host, step, outcome, detail, previous, "
            "hash) values (%s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s)",
            (*values, json.dumps(entry.detail), previous, entry.sealed()),
        )
    return replace(entry, hash=entry.sealed())


def entries(conn: Connection, migration: str) -> list[Entry]:
    """The whole journal, oldest first."""
    with translated("reading the journal"):
        rows = conn.execute(
            "select migration, seq, at, actor, remark, host, step, outcome, detail, previous, hash "
            "from slackwater.journal where migration = %s order by seq",
            (migration,),
        ).fetchall()
    names = ("migration", "seq", "at", "actor", "remark", "host", "step", "outcome", "detail", "previous", "hash")
    return [Entry(**cast("dict[str, Any]", dict(zip(names, row, strict=True)))) for row in rows]


def first_break(journal: Iterable[Entry]) -> str | None:
    """Where the chain does not hold, in words; None when it does. What was cut off the end cannot be seen from here."""
    previous, seq = GENESIS, 0
    for entry in journal:
        if entry.seq != seq + 1:
            return f"entry {seq + 1} is missing: after {seq} comes {entry.seq}"
        if entry.previous != previous:
            return f"entry {entry.seq} does not follow entry {seq}: one of the two was replaced"
        if entry.hash != entry.sealed():
            return f"entry {entry.seq} is not what was written: its hash does not match"
        previous, seq = entry.hash, entry.seq
    return None
