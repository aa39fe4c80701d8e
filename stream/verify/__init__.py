"""Comparing every row of both sides, and judging those that differ, while traffic runs.

Following a table through: `views` says how its rows are compared (ranges of an integer key, or hash buckets of one
scan); `compare` digests both sides at once and narrows a difference down to rows, which are suspects, no more;
`judging` samples the suspects (`witness`) until each of them agrees or is proven different (`samples`); `sweep` does so
for all tables, under a throttle, and records what it found. `repair` asks for the rows to be read again.
"""
