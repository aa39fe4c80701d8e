"""Gates: the conditions that must hold before writes may move, and the looks that they are judged by.

facts          everything that gates are judged by; None is unknown. `stream.status.facts` gathers it
gate           one condition, judged: passed, failed or unknown
judge          which gates a turn has, in order (pure); each is in one of the next four
pipeline       on the stream itself: who runs, what is loaded, how far behind, what was set aside
evidence       on what was proven: verification, and what the way back loses
environment    on what surrounds it: unmapped columns, fences, foreign keys, statistics, grants, sequences, identities
readiness      on the turn: the way back is built and alive, nobody has written to a closed side, the window
silent_facts   what changed tables without an event, as both sides say
rights         the gate `grants` (pure)
slow_facts     what changes seldom, kept for a while: privileges, statistics, foreign keys, replica identities
sequence_facts what of the sequences goes on from what, and whether it can; kept for a while
orphan_scan    the forward applier's look for rows without their parents; reads whole tables, so seldom
gate_table     what is kept on new: since when each gate is as it is, and the newest scan

Unknown counts as failed. For the way back only what would lose rows stops the turn; the rest is said, and `safe` is not
said over what would have the application refused, nor over rows that are known to be wrong.

Deliberately absent: looking at a migration. Facts come in, gates go out.
"""

from stream.gates.facts import Facts, Look, Stream
from stream.gates.gate import Gate, State, all_passed
from stream.gates.judge import judge, safe, unsafe

__all__ = ["Facts", "Gate", "Look", "State", "Stream", "all_passed", "judge", "safe", "unsafe"]
