"""Turning the tide: gates, hold, token, final checks, close, open, and what follows; the same in both directions.

procedure      the one function, and what its end means
progress       where a turn stands, from the two turn rows (pure)
attempt        what one run has in its hands
hold           the source's writers, held back within a budget
catalogs       both sides' catalogs, before the hold and under it: changes that no event tells
drain          the token through the whole pipe, and what waits beside it
comparison     rows of both sides, under the hold and right after the pause
sequences      which of this side goes on from which of the other, judged before the hold and set under it
close_source   the intent, and the point of no return
open_target    the other side, while this one is known to be closed
hooks          the user's own commands around it
record         its phase and its journal entries
outcome        what it came to, as `--json` prints it
failover       the same end without the side that is dead

`procedure` goes through `hold`, `drain`, `comparison`, `close_source` and `open_target`, in this order; the turn rows
of both sides say how far a run that was killed has come, and the next one goes on from there.

Deliberately absent: undoing. Before the closing commit nothing has happened; after it there is only forward.
"""

from stream.cutover.attempt import Order
from stream.cutover.outcome import Outcome
from stream.cutover.procedure import turn

__all__ = ["Order", "Outcome", "turn"]
