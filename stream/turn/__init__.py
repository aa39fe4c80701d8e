"""Turning the tide: gates, hold, token, final checks, close, open, and what follows; the same in both directions.

run        the one function, and what its end means
standing   where a turn stands, from the two turn rows (pure)
turning    what one run has in its hands
hold       the source's writers, held back within a budget
drain      the token through the whole pipe, and the last look
closing    the intent, and the point of no return
opening    the other side, while this one is known to be closed
hooks, history, outcome
"""

from stream.turn.outcome import Outcome
from stream.turn.run import turn
from stream.turn.turning import Order

__all__ = ["Order", "Outcome", "turn"]
