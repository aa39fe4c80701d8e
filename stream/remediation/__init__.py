"""Rows that need a person's decision, and what comes of it.

quarantine       rows that the target refused: listed, tried again, or given up by name and for a reason
foreign_writes   rows written to a closed side: taken over by the open one, or undone
repaired         rows that a repair has deleted or written over: listed, and put back

How they come here: the applier (`stream.apply.transaction`), a chunk (`stream.backfill.chunk_loader`) or a reread sets
a row aside in `slackwater.quarantine`; capture (`stream.capture.foreign_writes`) and a late epoch after a failover
(`stream.apply.late_writes`) record foreign writes by table and key. Nothing here writes a row past the rules: what is
to be tried again is asked for in backfill's reread queue, and what is taken over comes back through the open side's
stream; only a row that a repair has deleted is put back as it was.

Deliberately absent: a decision that nobody is named for.
"""
