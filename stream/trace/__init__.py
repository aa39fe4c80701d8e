"""`trace`: where a row came from, and what wrote it last.

`trace` finds the rows on both sides, and `last_write` who wrote a source row's image last: the stream or a chunk.
"""

from stream.trace.trace import Tracing, trace

__all__ = ["Tracing", "trace"]
