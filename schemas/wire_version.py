"""The version of what waits outside the databases' tables: records of topics, and messages of ours in the WAL.

Invariant: a reader takes what this version and the one before it wrote, for slots and topics outlast an upgrade; what a
newer one wrote it refuses, and never takes for something it knows. The echo mark alone carries no version: it is
compared as a whole, and never changes.
"""

from __future__ import annotations

from schemas.errors import Halt

VERSION = 2
"""Written in each epoch record, each row's `source.version`, each turn's message and token."""
UNSAID = 1
"""Of a message without a version: before 2, messages did not say one."""
READ = (VERSION - 1, VERSION)


def assert_readable(version: object, what: str) -> None:
    """`what` opens the message: "an epoch record". Errors: Halt on one that this program cannot read."""
    if version in READ:
        return
    raise Halt(
        f"{what} of version {version}, which another slackwater wrote: this program reads versions {READ[0]} and"
        f" {READ[1]}",
        hint="run the version of slackwater that upgraded this migration, or a newer one; `slackwater --version` prints"
        " which one this is",
    )
