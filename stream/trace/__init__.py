"""`trace`: where a row came from, and what wrote it last.

`rows` finds the rows on both sides, `wrote` finds who wrote a source row's image last; `trace` puts them together.
"""

from stream.trace.trace import Tracing, trace

__all__ = ["Tracing", "trace"]
