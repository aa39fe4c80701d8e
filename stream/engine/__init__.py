"""The engine: staged source rows become target rows, set by set, inside the caller's transaction.

The same steps serve an epoch of the stream, a chunk of the backfill, a reread and a mapping that wakes. README.md
follows rows through them.
"""

from stream.engine.engine import Engine, Lock

__all__ = ["Engine", "Lock"]
